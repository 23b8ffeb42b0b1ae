"""Adjoints of products: convolutions, matrix products and Einsum; rules as in `adjoints`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ir.equations import terms
from ..ir.errors import PassError
from . import unfold
from .transposed import Spread

if TYPE_CHECKING:
    from .adjoints import Adjoint

Array = np.ndarray


def unbroadcast(g: Array, shape: tuple[int, ...]) -> Array:
    """A gradient summed over what broadcasting repeated."""
    if g.shape == shape:
        return g
    g = g.sum(tuple(range(g.ndim - len(shape))))
    return g.sum(tuple(a for a, n in enumerate(shape) if n == 1 and g.shape[a] != 1), keepdims=True)


def conv(own: Adjoint, x: Sequence[Any], y: Array, g: Array) -> dict[int, Array]:
    geo, sizes = unfold.geometry(own.node), x[0].shape[2:]
    pads = unfold.pads(geo, sizes)
    spans = [(k - 1) * d + 1 for k, d in zip(geo.kernel, geo.dilations)]
    more = [
        n + a + b - (m - 1) * s - span for n, (a, b), m, s, span in zip(sizes, pads, g.shape[2:], geo.strides, spans)
    ]
    attrs = {
        "group": geo.groups,
        "strides": list(geo.strides),
        "dilations": list(geo.dilations),
        "pads": [p[0] for p in pads] + [p[1] for p in pads],
        "output_padding": more,
    }
    return {0: own.lone(g.shape, "ConvTranspose", attrs, [g, x[1]])[0]}


def matmul(own: Adjoint, x: Sequence[Any], y: Array, g: Array) -> dict[int, Array]:
    if min(x[0].ndim, x[1].ndim) < 2:
        raise PassError(f"no gradient is known through '{own.node.name}' (MatMul with a vector)")
    found = {}
    if 0 in own.wanted:
        found[0] = unbroadcast(g @ np.swapaxes(x[1], -1, -2), x[0].shape)
    if 1 in own.wanted:
        found[1] = unbroadcast(np.swapaxes(x[0], -1, -2) @ g, x[1].shape)
    return found


def gemm(own: Adjoint, x: Sequence[Any], y: Array, g: Array) -> dict[int, Array]:
    attrs = own.node.attrs
    alpha = float(attrs.get("alpha", 1.0))
    a, b = (x[k].T if attrs.get(t, 0) else x[k] for k, t in ((0, "transA"), (1, "transB")))
    found = {}
    if 0 in own.wanted:
        found[0] = alpha * (g @ b.T).T if attrs.get("transA", 0) else alpha * (g @ b.T)
    if 1 in own.wanted:
        found[1] = alpha * (a.T @ g).T if attrs.get("transB", 0) else alpha * (a.T @ g)
    if 2 in own.wanted:
        found[2] = unbroadcast(float(attrs.get("beta", 1.0)) * g, x[2].shape)
    return found


def conv_transpose(own: Adjoint, x: Sequence[Any], y: Array, g: Array) -> dict[int, Array]:
    """A convolution of the gradient with the same weight; what lies beyond the last input's reach has no part."""
    spread, sizes = Spread.of(own.node), x[0].shape[2:]
    begins = spread.begins(sizes)
    axes = zip(sizes, g.shape[2:], spread.kernel, spread.strides, spread.dilations, begins)
    ends = [(n - 1) * s + (k - 1) * d + 1 - m - before for n, m, k, s, d, before in axes]
    reach: Any = (slice(None), slice(None), *[slice(0, n + min(e, 0)) for n, e in zip(g.shape[2:], ends)])
    attrs = {
        "group": int(own.node.attrs.get("group", 1)),
        "strides": list(spread.strides),
        "dilations": list(spread.dilations),
        "pads": [*begins, *[max(e, 0) for e in ends]],
    }
    return {0: own.lone(g.shape, "Conv", attrs, [np.ascontiguousarray(g[reach]), x[1]])[0]}


def einsum(own: Adjoint, x: Sequence[Any], y: Array, g: Array) -> dict[int, Array]:
    """The Einsum of the gradient with the other operands."""
    each, right = terms(own.node.attrs.get("equation", ""), [a.ndim for a in x])
    found = {}
    for k in own.wanted:
        others = [t for i, t in enumerate(each) if i != k]
        plain = all(len(set(t)) == len(t) for t in each) and set(each[k]) <= set("".join([right, *others]))
        arrays = [g, *[a for i, a in enumerate(x) if i != k]]
        if not plain or len({(c, n) for t, a in zip(each, x) for c, n in zip(t, a.shape)}) > len(set("".join(each))):
            raise PassError(f"no gradient is known through '{own.node.name}' (Einsum that repeats or sums alone)")
        found[k] = np.einsum(f"{','.join([right, *others])}->{each[k]}", *arrays, optimize=True)
    return found


RULES: dict[str, Callable[..., dict[int, Array]]] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "MatMul": matmul,
    "Gemm": gemm,
    "Einsum": einsum,
}


__all__ = ["RULES", "unbroadcast"]
