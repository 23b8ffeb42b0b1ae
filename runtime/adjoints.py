"""Adjoints of single operators: what a gradient at a node's output is at its inputs.

A rule gets the node, the values of its inputs and output on one feed, and the gradient at the output. Products and
convolutions are exact; operators that only move data are run on positions instead of values, unless it is plain how
they do, and the gradient is summed where they came from; element-wise functions of one tensor get their slope from a
central difference. Whatever needs ONNX Runtime is a session of one node.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ..ir.errors import PassError
from ..ir.model import Header, Model
from ..ir.ops import facts, trains
from . import products, unfold
from .products import unbroadcast
from .session import Session

Array = np.ndarray
STEP = 1e-3  # of a central difference, times 1 + |x|
EXACT = 1 << 24  # positions that a float32 can count


class Adjoint:
    """The adjoint of one node, for one shape of its inputs.

    wanted: positions of the inputs whose gradients are asked for. Raises PassError where no rule is known.
    """

    def __init__(self, model: Model, node: gs.Node, wanted: Sequence[int]):
        self.node, self.wanted, self.model = node, list(wanted), model
        self.kept: dict[Any, Any] = {}  # sessions and positions, by shape
        self.rule = _rule(node, self.wanted)

    def __call__(self, x: Sequence[Any], y: Any, g: Sequence[Any]) -> dict[int, Array]:
        """Gradients at the wanted inputs; x: values of all inputs (None where omitted); y: of the first output; g: at
        all outputs (None where nothing came), of which most rules take the first."""
        found = self.rule(self, x, y, g if self.node.op in SEVERAL else g[0])
        return {k: np.asarray(v, np.float32).reshape(np.shape(x[k])) for k, v in found.items()}

    def lone(self, key: Any, op: str, attrs: Mapping[str, Any], arrays: Sequence[Any], outputs: int = 1) -> Any:
        """Run a node of its own: arrays are its inputs (None: omitted); the session is kept under the key."""
        if key not in self.kept:
            self.kept[key] = lone_session(self.model, op, self.node.domain, attrs, arrays, outputs)
        given = {f"x{k}": a for k, a in enumerate(arrays) if a is not None and f"x{k}" in self.kept[key].inputs}
        return list(self.kept[key].run(given).values())


def lone_session(
    model: Model, op: str, domain: Any, attrs: Mapping[str, Any], arrays: Sequence[Any], outputs: int = 1
) -> Session:
    """A session of one node with inputs x0, x1 … like the arrays; those that are no floats are constants."""
    inputs: list[Any] = []
    for k, a in enumerate(arrays):
        if a is None:
            inputs.append(gs.Variable.empty())
        elif a.dtype.kind == "f":
            inputs.append(gs.Variable(f"x{k}", a.dtype, list(a.shape)))
        else:
            inputs.append(gs.Constant(f"x{k}", a))
    made = [gs.Variable("y", np.float32), gs.Variable("indices", np.int64)][:outputs]
    node = gs.Node(op, "lone", dict(attrs), inputs, made, domain=domain)
    graph = gs.Graph([node], [t for t in inputs if isinstance(t, gs.Variable) and t.name], made)
    opsets = dict(model.header.opsets)
    if op == "ConvTranspose":
        opsets[""] = max(model.opset, 11)
    return Session(Model(graph, Header(ir_version=model.header.ir_version, opsets=opsets)), arena=False)


Rule = Callable[[Adjoint, Sequence[Any], Array, Any], dict[int, Array]]


def _rule(node: gs.Node, wanted: Sequence[int]) -> Rule:
    if node.domain in (None, "", "ai.onnx"):
        if node.op in RULES:
            return RULES[node.op]
        if facts(node).kind == "move" and _all_float(node, wanted):
            return _move
        if facts(node).kind == "elementwise" and list(wanted) == [0] and _constant_but_first(node):
            return _slope
    raise PassError(f"no gradient is known through '{node.name}' ({node.op})")


def _constant_but_first(node: gs.Node) -> bool:
    return all(isinstance(t, gs.Constant) or not t.name for t in node.inputs[1:])


def _all_float(node: gs.Node, wanted: Sequence[int]) -> bool:
    return list(wanted) == [0] or node.op == "Concat"


def _attrs(node: gs.Node, *names: str) -> dict[str, Any]:
    return {n: node.attrs[n] for n in names if n in node.attrs}


def _binary(own: Adjoint, x: Sequence[Any], y: Array, g: Array) -> dict[int, Array]:
    a, b = x
    op = own.node.op
    left: Callable[[], Array] = {"Add": lambda: g, "Sub": lambda: g, "Mul": lambda: g * b, "Div": lambda: g / b}[op]
    right: Callable[[], Array] = {
        "Add": lambda: g,
        "Sub": lambda: -g,
        "Mul": lambda: g * a,
        "Div": lambda: -g * y / b,
    }[op]
    return {k: unbroadcast(one(), x[k].shape) for k, one in ((0, left), (1, right)) if k in own.wanted}


def _sum(own: Adjoint, x: Sequence[Any], y: Array, g: Array) -> dict[int, Array]:
    return {k: unbroadcast(g, x[k].shape) for k in own.wanted}


def _where(own: Adjoint, x: Sequence[Any], y: Array, g: Array) -> dict[int, Array]:
    sides = {1: np.where(x[0], g, 0), 2: np.where(x[0], 0, g)}
    return {k: unbroadcast(sides[k], x[k].shape) for k in own.wanted if k in sides}


def _softmax(own: Adjoint, x: Sequence[Any], y: Array, g: Array) -> dict[int, Array]:
    old = own.model.opset < 13
    axis = int(own.node.attrs.get("axis", 1 if old else -1)) % y.ndim
    axes = tuple(range(axis, y.ndim)) if old else (axis,)
    if own.node.op == "LogSoftmax":
        return {0: g - np.exp(y) * g.sum(axes, keepdims=True)}
    return {0: y * (g - (g * y).sum(axes, keepdims=True))}


def _reduce(own: Adjoint, x: Sequence[Any], y: Array, g: Array) -> dict[int, Array]:
    node, ndim = own.node, x[0].ndim
    if node.op == "GlobalAveragePool":
        axes: tuple[int, ...] = tuple(range(2, ndim))
    else:
        given = node.attrs.get("axes", x[1] if len(x) > 1 and x[1] is not None else None)
        empty = given is None or not len(given)
        if empty and node.attrs.get("noop_with_empty_axes", 0):
            return {0: g}
        axes = tuple(range(ndim)) if empty else tuple(int(a) % ndim for a in given)
    count = 1 if node.op == "ReduceSum" else int(np.prod([x[0].shape[a] for a in axes]))
    kept = tuple(1 if a in axes else n for a, n in enumerate(x[0].shape))
    return {0: np.broadcast_to(g.reshape(kept) / count, x[0].shape)}


def _batchnorm(own: Adjoint, x: Sequence[Any], y: Array, g: Array) -> dict[int, Array]:
    if trains(own.node):
        raise PassError(f"no gradient is known through '{own.node.name}' (BatchNormalization in training)")
    factor = x[1] / np.sqrt(x[4] + float(own.node.attrs.get("epsilon", 1e-5)))
    return {0: g * factor.reshape(*factor.shape, *[1] * (g.ndim - 1 - factor.ndim))}


def _layernorm(own: Adjoint, x: Sequence[Any], y: Array, g: Array) -> dict[int, Array]:
    axes = tuple(range(int(own.node.attrs.get("axis", -1)) % x[0].ndim, x[0].ndim))
    centred = x[0] - x[0].mean(axes, keepdims=True)
    spread = np.sqrt(np.square(centred).mean(axes, keepdims=True) + float(own.node.attrs.get("epsilon", 1e-5)))
    unit, inner = centred / spread, g * x[1]
    apart = inner - inner.mean(axes, keepdims=True) - unit * (inner * unit).mean(axes, keepdims=True)
    return {0: apart / spread}


def _rmsnorm(own: Adjoint, x: Sequence[Any], y: Array, g: Array) -> dict[int, Array]:
    axes = tuple(range(int(own.node.attrs.get("axis", -1)) % x[0].ndim, x[0].ndim))
    spread = np.sqrt(np.square(x[0]).mean(axes, keepdims=True) + float(own.node.attrs.get("epsilon", 1e-5)))
    unit, inner = x[0] / spread, g * x[1]
    return {0: (inner - unit * (inner * unit).mean(axes, keepdims=True)) / spread}


def _topk(own: Adjoint, x: Sequence[Any], y: Array, g: Array) -> dict[int, Array]:
    key = (x[0].shape, *(np.asarray(k).tobytes() for k in x[1:]))
    where = own.lone(key, "TopK", own.node.attrs, [x[0].astype(np.float32), *x[1:]], outputs=2)[1]
    found = np.zeros(x[0].shape, np.float32)
    np.put_along_axis(found, where, g, int(own.node.attrs.get("axis", -1)))
    return {0: found}


def _maxpool(own: Adjoint, x: Sequence[Any], y: Array, g: Array) -> dict[int, Array]:
    attrs = {k: v for k, v in own.node.attrs.items() if k != "storage_order"}
    where = own.lone(x[0].shape, "MaxPool", attrs, [x[0]], outputs=2)[1]
    return {0: np.bincount(where.reshape(-1), g.reshape(-1), x[0].size)}


def _averagepool(own: Adjoint, x: Sequence[Any], y: Array, g: Array) -> dict[int, Array]:
    """By the positions that each window holds: an average is a sum of taps, shifted, over their number."""
    node, sizes = own.node, x[0].shape[2:]
    kernel = tuple(node.attrs["kernel_shape"])
    ones, zeros = [1] * len(kernel), [0] * (2 * len(kernel))
    flat = node.attrs.get("pads", zeros)
    if node.attrs.get("ceil_mode", 0):
        raise PassError(f"no gradient is known through '{node.name}' (AveragePool with ceil_mode)")
    geo = unfold.Geometry(
        int(np.prod(kernel)), 1, kernel, tuple(node.attrs.get("strides", ones)),
        tuple(node.attrs.get("dilations", ones)), tuple(zip(flat[: len(kernel)], flat[len(kernel) :])),
        str(node.attrs.get("auto_pad", "NOTSET")),
    )  # fmt: skip
    if y.shape not in own.kept:
        inside = np.arange(1, int(np.prod(sizes)) + 1, dtype=np.float64).reshape(1, 1, *sizes)
        places = np.arange(unfold.count(geo, inside.shape))
        own.kept[y.shape] = unfold.rows(geo, inside, places)[0].astype(np.int64)
    held = own.kept[y.shape]  # [windows, taps], 0: padding
    count = held.shape[1] if node.attrs.get("count_include_pad", 0) else np.maximum((held > 0).sum(1), 1)
    each = (g.reshape(-1, len(held)) / count).repeat(held.shape[1], 1)
    size = int(np.prod(sizes)) + 1
    return {0: np.stack([np.bincount(held.reshape(-1), row, size)[1:] for row in each])}


def _move(own: Adjoint, x: Sequence[Any], y: Array, g: Array) -> dict[int, Array]:
    found, given = {}, tuple(map(_what_moves, x))
    for k in own.wanted:
        known, places = own.kept.get(k, (None, None))
        if known != given:
            places = _positions(own, x, k)
            own.kept[k] = given, places
        found[k] = np.bincount(places, g.reshape(-1), x[k].size + 1)[1:]
    return found


def _what_moves(a: Any) -> Any:
    """What positions depend on: the shape of data, and indices, bounds or shapes themselves."""
    array = np.asarray(a)
    return array.shape if array.dtype.kind == "f" else (array.shape, None if a is None else array.tobytes())


def _concat(own: Adjoint, x: Sequence[Any], y: Array, g: Array) -> dict[int, Array]:
    axis = int(own.node.attrs.get("axis", 1)) % y.ndim
    parts = np.split(g, np.cumsum([a.shape[axis] for a in x])[:-1], axis)
    return {k: parts[k] for k in own.wanted}


def _split(own: Adjoint, x: Sequence[Any], y: Any, g: Sequence[Any]) -> dict[int, Array]:
    """What came to the parts, side by side; noughts where nothing came."""
    shape = list(x[0].shape)
    axis = int(own.node.attrs.get("axis", 0)) % len(shape)
    given = own.node.attrs.get("split", x[1] if len(x) > 1 else None)
    if given is None:  # equal parts; the last may be smaller
        size = -(-shape[axis] // len(g))
        given = [max(0, min(size, shape[axis] - k * size)) for k in range(len(g))]
    shapes = [(*shape[:axis], int(n), *shape[axis + 1 :]) for n in given]
    return {0: np.concatenate([np.zeros(s, np.float32) if p is None else p for p, s in zip(g, shapes)], axis)}


def _reshape(own: Adjoint, x: Sequence[Any], y: Array, g: Array) -> dict[int, Array]:
    return {0: g}


def _transpose(own: Adjoint, x: Sequence[Any], y: Array, g: Array) -> dict[int, Array]:
    perm = own.node.attrs.get("perm") or list(range(g.ndim))[::-1]
    return {0: g.transpose(np.argsort(perm))}


def _positions(own: Adjoint, x: Sequence[Any], index: int) -> Array:
    """From which position of an input each position of the output came, counted from 1; 0: from elsewhere."""
    if x[index].size >= EXACT:
        raise PassError(f"no gradient is known through '{own.node.name}': too large")
    marked = [np.zeros_like(a) if a is not None and a.dtype.kind == "f" else a for a in x]
    if own.node.op == "Resize":  # scales are floats too, and constants
        marked[1:] = list(x[1:])
    marked[index] = np.arange(1, x[index].size + 1, dtype=np.float32).reshape(x[index].shape)
    run = lone_session(own.model, own.node.op, own.node.domain, own.node.attrs, marked)
    out = run.run({f"x{k}": a for k, a in enumerate(marked) if a is not None and f"x{k}" in run.inputs})
    return np.asarray(out["y"]).reshape(-1).astype(np.int32)


def _resize(own: Adjoint, x: Sequence[Any], y: Array, g: Array) -> dict[int, Array]:
    if own.node.attrs.get("mode", "nearest") != "nearest":
        raise PassError(f"no gradient is known through '{own.node.name}' (Resize that interpolates)")
    return _move(own, x, y, g)


def _slope(own: Adjoint, x: Sequence[Any], y: Array, g: Array) -> dict[int, Array]:
    """Of an element-wise function of the first input."""
    if y.shape != x[0].shape:
        raise PassError(f"no gradient is known through '{own.node.name}' ({own.node.op} that repeats its input)")
    step = (STEP * (1 + np.abs(x[0]))).astype(x[0].dtype)
    above, below = (
        own.lone(x[0].shape, own.node.op, own.node.attrs, [moved, *x[1:]])[0] for moved in (x[0] + step, x[0] - step)
    )
    return {0: g * (above - below) / (2 * step)}


def _relu(own: Adjoint, x: Sequence[Any], y: Array, g: Array) -> dict[int, Array]:
    return {0: g * (y > 0)}


def _sigmoid(own: Adjoint, x: Sequence[Any], y: Array, g: Array) -> dict[int, Array]:
    return {0: g * y * (1 - y)}


RULES: dict[str, Rule] = {
    **products.RULES,
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), _binary),
    "Sum": _sum,
    "Where": _where,
    **dict.fromkeys(("Softmax", "LogSoftmax"), _softmax),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "GlobalAveragePool"), _reduce),
    "BatchNormalization": _batchnorm,
    "LayerNormalization": _layernorm,
    **dict.fromkeys(("RMSNormalization", "SimplifiedLayerNormalization"), _rmsnorm),
    "TopK": _topk,
    "Split": _split,
    "MaxPool": _maxpool,
    "AveragePool": _averagepool,
    "Concat": _concat,
    "Transpose": _transpose,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"), _reshape),
    "Resize": _resize,
    "Relu": _relu,
    "Sigmoid": _sigmoid,
}

SEVERAL = ("Split",)  # their rules take the gradients at all outputs


__all__ = ["SEVERAL", "Adjoint", "unbroadcast"]
