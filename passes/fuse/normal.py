"""Normalizations spelled out, as the one operator that the model's opset has for them.

The fused operator computes mean and variance in its own order: results differ by float rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import edit
from ..rewrite import Outcome, Rewriter, Rule


@dataclass(frozen=True)
class Normalized:
    """(x - mean) / sqrt(var + epsilon) over the axes from `axis` (negative) on."""

    x: Any
    axis: int
    epsilon: float


def _axes(rw: Rewriter, node: gs.Node, rank: int) -> list[int] | None:
    axes = list(node.attrs["axes"]) if "axes" in node.attrs else rw.ints(edit.get(node, 1))
    return None if not axes else sorted(a - rank if a >= 0 else a for a in axes)


def mean_of(rw: Rewriter, tensor: Any, x: Any) -> list[int] | None:
    """The axes (negative, up to the last) over which `tensor` is the kept mean of `x`."""
    node = rw.maker(tensor, "ReduceMean")
    rank = rw.rank(x)
    if node is None or node.inputs[0] is not x or rank is None or not node.attrs.get("keepdims", 1):
        return None
    axes = _axes(rw, node, rank)
    return axes if axes == list(range(-len(axes or []), 0)) else None


def square(rw: Rewriter, tensor: Any) -> Any:
    node = rw.maker(tensor, "Mul", "Pow")
    if node is None or (node.op == "Pow" and not equals(rw, node.inputs[1], 2.0)):
        return None
    return node.inputs[0] if node.op == "Pow" or node.inputs[0] is node.inputs[1] else None


def equals(rw: Rewriter, tensor: Any, value: float) -> bool:
    found = rw.scalar(tensor)
    return found is not None and float(found) == value


def deviation(rw: Rewriter, tensor: Any, power: float = 0.5) -> tuple[Any, float] | None:
    """For sqrt(v + epsilon), or another power of it: v and epsilon."""
    root = rw.maker(tensor, "Sqrt", "Pow")
    if root is None or (root.op == "Sqrt" and power != 0.5):
        return None
    if root.op == "Pow" and not equals(rw, root.inputs[1], power):
        return None
    add = rw.maker(root.inputs[0], "Add")
    if add is None:
        return None
    for at in (0, 1):
        epsilon = rw.scalar(add.inputs[at])
        if epsilon is not None and len(add.inputs[at].shape) <= 1:
            return add.inputs[1 - at], float(epsilon)
    return None


def _centred(rw: Rewriter, tensor: Any) -> tuple[Any, list[int]] | None:
    """For x - mean(x): x and the axes."""
    sub = rw.maker(tensor, "Sub")
    axes = None if sub is None else mean_of(rw, sub.inputs[1], sub.inputs[0])
    return None if sub is None or axes is None else (sub.inputs[0], axes)


def _normalized(rw: Rewriter, top: Any, under: Any, power: float = 0.5) -> Normalized | None:
    """Read `top / under` as a normalization, or `top · under` with power -1/2."""
    below, found = deviation(rw, under, power), _centred(rw, top)
    if below is None or found is None:
        return None
    mean = rw.maker(below[0], "ReduceMean")
    squared = None if mean is None else square(rw, mean.inputs[0])
    if squared is None:
        return None
    same = squared is top or _centred(rw, squared) == found
    if not same or mean_of(rw, below[0], mean.inputs[0]) != found[1]:  # type: ignore[union-attr]
        return None
    return Normalized(found[0], -len(found[1]), below[1])


def trailing(rw: Rewriter, tensor: Any, x: Any, axis: int) -> bool:
    """Whether a constant has exactly the normalized sizes."""
    shape = rw.shape(x)
    return isinstance(tensor, gs.Constant) and shape is not None and list(tensor.shape) == shape[axis:]


def _layer_norm(rw: Rewriter, node: gs.Node) -> Outcome:
    """d / sqrt(v + e), d · Pow(v + e, -1/2) or d · (scale / sqrt(v + e)), and what scales and shifts it after that."""
    core, scale = None, None
    if node.op == "Div":
        core = _normalized(rw, *node.inputs)
    for at in (0, 1) if node.op == "Mul" else ():
        core = _normalized(rw, node.inputs[1 - at], node.inputs[at], -0.5)
        ratio = rw.inner(node.inputs[at], "Div")
        if core is not None:
            break
        core = None if ratio is None else _normalized(rw, node.inputs[1 - at], ratio.inputs[1])
        if core is not None and ratio is not None:
            scale = ratio.inputs[0]
            break
    if core is None or core.x.dtype is None or np.dtype(core.x.dtype).name not in ("float32", "float16"):
        return None  # of float64 the operator may take the statistics in float32 (stash_type)
    if scale is not None and not trailing(rw, scale, core.x, core.axis):
        return None
    sizes = rw.static_tail(core.x, core.axis)
    return None if sizes is None else _write_layer_norm(rw, node, core, scale, sizes)


def _write_layer_norm(rw: Rewriter, node: gs.Node, core: Normalized, scale: Any, sizes: list[int]) -> Outcome:
    last, bias = node, None
    mul = only_reader(rw, last, "Mul") if scale is None else None
    if mul is not None:
        scale = _operand(rw, mul, last, core)
        last = mul if scale is not None else last
    add = only_reader(rw, last, "Add") if scale is not None else None
    if add is not None:
        bias = _operand(rw, add, last, core)
        last = add if bias is not None else last
    if scale is None:
        scale = rw.constant(f"{node.name}_scale", np.ones(sizes, core.x.dtype))
    attrs = {"axis": core.axis, "epsilon": core.epsilon}
    return rw.become(last, "LayerNormalization", [core.x, scale, bias], attrs)


def only_reader(rw: Rewriter, node: gs.Node, op: str) -> gs.Node | None:
    out = node.outputs[0]
    if not rw.sole(out) or not rw.together(node, out.outputs[0]):
        return None
    return out.outputs[0] if out.outputs[0].op == op and not out.outputs[0].domain else None


def _operand(rw: Rewriter, node: gs.Node, inner: gs.Node, core: Normalized) -> Any:
    other = next((t for t in node.inputs if t is not inner.outputs[0]), None)
    return other if other is not None and trailing(rw, other, core.x, core.axis) else None


def _centred_form(rw: Rewriter, node: gs.Node) -> Outcome:
    """x·s + (b - m·s) is (x - m)·s + b: the form in which the difference is taken before it is scaled."""
    for at in (0, 1):
        scaled, rest = rw.inner(node.inputs[at], "Mul"), rw.inner(node.inputs[1 - at], "Sub")
        shift = None if rest is None else rw.inner(rest.inputs[1], "Mul")
        if scaled is None or rest is None or shift is None or rw.opset < 7:
            continue
        if not rw.together(node, scaled, rest, shift):
            continue
        for k in (0, 1):
            x, s = scaled.inputs[k], scaled.inputs[1 - k]
            m = next((t for t, u in (shift.inputs, list(shift.inputs)[::-1]) if u is s), None)
            mean = None if m is None else rw.maker(m, "ReduceMean")
            if mean is None or mean.inputs[0] is not x:
                continue
            centred = rw.insert(node, "Sub", [x, m])
            centred.dtype, centred.shape = x.dtype, rw.shape(x)
            product = rw.insert(node, "Mul", [centred, s])
            product.dtype, product.shape = x.dtype, rw.shape(x)
            return rw.become(node, "Add", [product, rest.inputs[0]])
    return None


RULES = (
    Rule("LayerNormalization", ("Div", "Mul"), _layer_norm, since=17),
    Rule("normalizations centred", ("Add",), _centred_form),
)
