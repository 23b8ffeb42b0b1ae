"""What is known of every channel before anything runs: bounds of its values, and which channels are copies of another.

Intervals flow through the graph from weights alone (inputs are anything), and so does a number for the way in which
a channel is computed. A channel whose bounds meet is a constant; two with one number are equal. Of what an operator
without a rule puts out nothing is known.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from scipy import special

from ...ir import Model, edit, ops

Array = np.ndarray
BLOCK = 1 << 20  # weights that are looked at together


@dataclass(frozen=True)
class Known:
    """Of the positions of one axis of a tensor: bounds, and the number of their computation (float64, float64, int)."""

    axis: int
    lo: Array
    hi: Array
    key: Array


@dataclass
class Analysis:
    """`known`: by tensor, for the tensors of which anything is known."""

    model: Model
    known: dict[str, Known] = field(default_factory=dict)
    _keys: dict[Any, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for node in self.model.graph.nodes:
            rule = RULES.get(node.op)
            if rule is not None and node.domain in (None, "", "ai.onnx"):
                found = rule(self, node)
                if found is not None and not (np.isnan(found.lo).any() or np.isnan(found.hi).any()):
                    self.known[node.outputs[0].name] = found

    def number(self, what: Any) -> int:
        """One number for one way of computing."""
        return self._keys.setdefault(what, len(self._keys) + 1)

    def of(self, tensor: Any) -> Known | None:
        """What is known of a variable."""
        return self.known.get(tensor.name)

    def anything(self, tensor: Any, axis: int, count: int) -> Known:
        """What is known of a variable along an axis; without bounds where nothing is."""
        found = self.of(tensor)
        if found is not None and found.axis == axis and len(found.lo) == count:
            return found
        keys = [self.number((tensor.name, axis, k)) for k in range(count)]
        return Known(axis, np.full(count, -np.inf), np.full(count, np.inf), np.array(keys))


def _times(weight: Array, bound: Array) -> Array:
    """weight · bound, where nothing times no bound is nothing."""
    with np.errstate(invalid="ignore"):
        return np.where(weight == 0, 0.0, weight * bound)


def _linear(x: Known, weight: Array, bias: Array | None, groups: int) -> tuple[Array, Array]:
    """Bounds of W·x + b for weights `[M, K/G, taps]`; a few outputs at a time, since a layer can be most of a model."""
    count, step = len(weight), max(1, BLOCK // max(1, weight[0].size))
    bounds = x.lo.reshape(groups, -1), x.hi.reshape(groups, -1)
    low, high = np.empty(count), np.empty(count)
    for k in range(0, count, step):
        part = weight[k : k + step].astype(np.float64)
        up, down = np.maximum(part, 0).sum(2), np.minimum(part, 0).sum(2)
        lo, hi = (v[np.arange(k, k + len(part)) * groups // count] for v in bounds)
        low[k : k + step] = (_times(up, lo) + _times(down, hi)).sum(1)
        high[k : k + step] = (_times(up, hi) + _times(down, lo)).sum(1)
    extra = 0.0 if bias is None else bias.astype(np.float64)
    return low + extra, high + extra


def _digest(array: Array) -> bytes:
    """What stands for the shape and content of an array; the bytes themselves would hold every weight once more."""
    found = hashlib.blake2b(str(array.shape).encode(), digest_size=20)
    found.update(np.ascontiguousarray(array).data)
    return found.digest()


def _attributes(node: gs.Node) -> Any:
    return (node.op, *sorted((k, str(v)) for k, v in node.attrs.items() if k != "group"))


def _givens(node: gs.Node) -> Any:
    """What stands for the constants behind the first input: where, of which type, and which. A Clip's least value is
    not its greatest."""
    given = ((k, edit.const(node, k)) for k in range(1, len(node.inputs)))
    return tuple((k, v.dtype.str, _digest(v)) for k, v in given if v is not None)


def _conv(a: Analysis, node: gs.Node) -> Known | None:
    weight, bias = edit.const(node, 1), edit.const(node, 2)
    if weight is None or (edit.get(node, 2) is not None and bias is None):
        return None
    groups = int(node.attrs.get("group", 1))
    x = a.anything(node.inputs[0], 1, weight.shape[1] * groups)
    if is_padded(node):
        x = Known(1, np.minimum(x.lo, 0), np.maximum(x.hi, 0), x.key)
    lo, hi = _linear(x, weight.reshape(len(weight), weight.shape[1], -1), bias, groups)
    each = [_digest(keys) for keys in x.key.reshape(groups, -1)]
    rows = [
        (
            _attributes(node),
            each[k * groups // len(weight)],
            _digest(weight[k]),
            None if bias is None else float(bias[k]),
        )
        for k in range(len(weight))
    ]
    return Known(1, lo, hi, np.array([a.number(r) for r in rows]))


def is_padded(node: gs.Node) -> bool:
    """Whether a convolution may see zeros beyond the borders of its input."""
    automatic = str(node.attrs.get("auto_pad", "NOTSET") or "NOTSET")
    return any(node.attrs.get("pads", ())) or automatic not in ("NOTSET", "VALID")


def _matrix(a: Analysis, node: gs.Node) -> Known | None:
    weight, bias = edit.const(node, 1), edit.const(node, 2)
    plain = all(node.attrs.get(k, d) == d for k, d in (("alpha", 1.0), ("beta", 1.0), ("transA", 0)))
    if weight is None or weight.ndim != 2 or not plain or (edit.get(node, 2) is not None and bias is None):
        return None
    rows = weight if node.attrs.get("transB", 0) else weight.T
    shape = node.inputs[0].shape
    if not shape or (bias is not None and bias.shape != (len(rows),)):
        return None
    last = len(shape) - 1
    x = a.anything(node.inputs[0], last, rows.shape[1])
    lo, hi = _linear(x, rows[:, :, None], bias, 1)
    keys = _digest(x.key)
    found = [(keys, _digest(r), None if bias is None else float(bias[k])) for k, r in enumerate(rows)]
    return Known(last, lo, hi, np.array([a.number(f) for f in found]))


def _norm(a: Analysis, node: gs.Node) -> Known | None:
    given = [edit.const(node, k) for k in range(1, 5)]
    if any(g is None for g in given) or ops.trains(node):
        return None
    scale, shift, mean, var = (np.asarray(g, np.float64) for g in given)
    if scale.ndim != 1:  # spatial=0 of opset 8: a channel's positions differ
        return None
    factor = scale / np.sqrt(var + float(node.attrs.get("epsilon", 1e-5)))
    offset = shift - mean * factor
    x = a.anything(node.inputs[0], 1, len(scale))
    ends = _times(factor, x.lo) + offset, _times(factor, x.hi) + offset
    lo, hi = np.minimum(*ends), np.maximum(*ends)
    dead = factor == 0
    lo, hi = np.where(dead, shift, lo), np.where(dead, shift, hi)
    keys = [a.number(("norm", k, f, o)) for k, f, o in zip(x.key.tolist(), factor.tolist(), offset.tolist())]
    return Known(1, lo, hi, np.array(keys))


def _monotone(function: Callable[[gs.Node, Array], Array]) -> Callable[[Analysis, gs.Node], Known | None]:
    def rule(a: Analysis, node: gs.Node) -> Known | None:
        x = a.of(node.inputs[0])
        if x is None or any(
            edit.get(node, k) is not None and edit.const(node, k) is None for k in range(1, len(node.inputs))
        ):
            return None
        with np.errstate(over="ignore"):
            ends = function(node, x.lo), function(node, x.hi)
        extra = (_attributes(node), _givens(node))
        keys = np.array([a.number((extra, k)) for k in x.key.tolist()])
        return Known(x.axis, np.minimum(*ends), np.maximum(*ends), keys)

    return rule


def _clip(node: gs.Node, x: Array) -> Array:
    low, high = edit.const(node, 1), edit.const(node, 2)
    low = node.attrs.get("min", -np.inf) if low is None else low
    high = node.attrs.get("max", np.inf) if high is None else high
    return np.clip(x, np.float64(low), np.float64(high))


def _leaky(node: gs.Node, x: Array) -> Array:
    slope = float(node.attrs.get("alpha", 0.01))
    return np.where(x < 0, _times(np.float64(slope), x), x) if slope >= 0 else np.full_like(x, np.nan)


def _dipped(function: Callable[[Array], Array], floor: float) -> Callable[[Analysis, gs.Node], Known | None]:
    """Functions that fall from 0 to their least value `floor` and rise from there on, such as HardSwish."""

    def rule(a: Analysis, node: gs.Node) -> Known | None:
        x = a.of(node.inputs[0])
        if x is None:
            return None
        ends = [function(np.clip(v, -1e6, 1e6)) for v in (x.lo, x.hi)]
        lo = np.where(x.lo == x.hi, ends[0], floor)
        hi = np.where(np.isinf(x.hi), np.inf, np.maximum(*ends))
        return Known(x.axis, lo, hi, np.array([a.number((_attributes(node), k)) for k in x.key.tolist()]))

    return rule


def _gelu(a: Analysis, node: gs.Node) -> Known | None:
    exact = str(node.attrs.get("approximate", "none")) == "none"  # the other form is another function
    return _dipped(lambda x: x * special.ndtr(x), -0.17)(a, node) if exact else None


def _swish(a: Analysis, node: gs.Node) -> Known | None:
    alpha = float(node.attrs.get("alpha", 1.0))
    if alpha <= 0:  # another shape of function
        return None
    return _dipped(lambda x: x * special.expit(alpha * x), -0.2785 / alpha)(a, node)


def _hard_sigmoid(node: gs.Node, x: Array) -> Array:
    slope = float(node.attrs.get("alpha", 0.2))
    return np.clip(slope * x + float(node.attrs.get("beta", 0.5)), 0, 1) if slope else np.full_like(x, np.nan)


def _elu(node: gs.Node, x: Array) -> Array:
    alpha, scale = float(node.attrs.get("alpha", 1.0)), 1.0
    if node.op == "Selu":
        alpha, scale = (float(node.attrs.get(k, d)) for k, d in (("alpha", 1.6732632), ("gamma", 1.050701)))
    width = alpha if node.op == "Celu" else 1.0
    if alpha <= 0 or scale <= 0:
        return np.full_like(x, np.nan)
    return scale * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0) / width))


def _binary(a: Analysis, node: gs.Node) -> Known | None:
    found = [a.of(t) for t in node.inputs]
    axis, count = next(
        ((f.axis - len(t.shape), len(f.lo)) for f, t in zip(found, node.inputs) if f and t.shape), (0, 0)
    )
    if len(found) != 2 or not count:
        return None
    sides = [_side(a, t, axis, count) for t in node.inputs]
    if any(s is None for s in sides):
        return None
    (xl, xh, xk), (yl, yh, yk) = sides  # type: ignore[misc]
    if node.op == "Add":
        lo, hi = xl + yl, xh + yh
    elif node.op == "Sub":
        lo, hi = xl - yh, xh - yl
    elif node.op == "Mul":
        every = np.stack([_product(p, q) for p in (xl, xh) for q in (yl, yh)])
        lo, hi = every.min(0), every.max(0)
    else:
        pick = np.maximum if node.op == "Max" else np.minimum
        lo, hi = pick(xl, yl), pick(xh, yh)
    keys = np.array([a.number((node.op, p, q)) for p, q in zip(xk, yk)])
    rank = max(len(t.shape) for t in node.inputs)
    return Known(rank + axis, lo, hi, keys)


def _product(p: Array, q: Array) -> Array:
    with np.errstate(invalid="ignore"):
        return np.where((p == 0) | (q == 0), 0.0, p * q)


def _side(a: Analysis, tensor: Any, axis: int, count: int) -> tuple[Array, Array, list[Any]] | None:
    """Bounds of an operand along an axis counted from the end, as long as the other operand's."""
    if isinstance(tensor, gs.Constant):
        values = tensor.values.astype(np.float64)
        along = [d for k, d in enumerate(values.shape) if k - values.ndim != axis]
        if any(d != 1 for d in along) or values.size not in (1, count):
            return None
        flat = np.broadcast_to(values.reshape(-1), (count,))
        return flat, flat, flat.tolist()
    found = a.of(tensor)
    if tensor.shape is None:
        return None
    if found is None or found.axis - len(tensor.shape) != axis or len(found.lo) != count:
        return _unknown(tensor, count) if -axis > len(tensor.shape) or tensor.shape[axis] in (1, count) else None
    return found.lo, found.hi, [("tensor", k) for k in found.key.tolist()]


def _unknown(tensor: Any, count: int) -> tuple[Array, Array, list[Any]]:
    """Of an operand of which nothing is known: nothing times it is nothing all the same."""
    most = np.full(count, np.inf)
    return -most, most, [("of", tensor.name, k) for k in range(count)]


def _pool(a: Analysis, node: gs.Node) -> Known | None:
    x = a.of(node.inputs[0])
    if x is None or x.axis != 1:
        return None
    keys = np.array([a.number((_attributes(node), k)) for k in x.key.tolist()])
    if node.op == "AveragePool" and node.attrs.get("count_include_pad", 0):
        return Known(1, np.minimum(x.lo, 0), np.maximum(x.hi, 0), keys)
    return Known(1, x.lo, x.hi, keys)


def _flat(a: Analysis, node: gs.Node) -> Known | None:
    """Flatten, Reshape, Squeeze and Identity that leave the channels where they are."""
    x, before, after = a.of(node.inputs[0]), node.inputs[0].shape, node.outputs[0].shape
    if x is None or not before or not after or x.axis != 1 or len(after) < 2 or after[1] != len(x.lo):
        return None
    same = list(before) == list(after) or all(d == 1 for d in (*before[2:], *after[2:]))
    return x if same and before[0] == after[0] else None


def _concat(a: Analysis, node: gs.Node) -> Known | None:
    rank = len(node.outputs[0].shape or ())
    axis = int(node.attrs.get("axis", 0)) % rank if rank else -1
    if axis < 1 or any(
        not t.shape or not isinstance(t.shape[axis], int) or isinstance(t, gs.Constant) for t in node.inputs
    ):
        return None
    every = [a.anything(t, axis, t.shape[axis]) for t in node.inputs]
    return Known(axis, *(np.concatenate([getattr(x, k) for x in every]) for k in ("lo", "hi", "key")))


def _sigmoid(node: gs.Node, x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


RULES: dict[str, Callable[[Analysis, gs.Node], Known | None]] = {
    "Conv": _conv,
    "Gemm": _matrix,
    "MatMul": _matrix,
    "BatchNormalization": _norm,
    "Relu": _monotone(lambda node, x: np.maximum(x, 0)),
    "Clip": _monotone(_clip),
    "LeakyRelu": _monotone(_leaky),
    "Sigmoid": _monotone(_sigmoid),
    "HardSigmoid": _monotone(_hard_sigmoid),
    **dict.fromkeys(("Elu", "Selu", "Celu"), _monotone(_elu)),
    "Softplus": _monotone(lambda node, x: np.logaddexp(0, x)),
    "Neg": _monotone(lambda node, x: -x),
    "HardSwish": _dipped(lambda x: x * np.clip(x / 6 + 0.5, 0, 1), -0.375),
    "Gelu": _gelu,
    "Swish": _swish,
    "Mish": _dipped(lambda x: x * np.tanh(np.logaddexp(0, x)), -0.3089),
    "Tanh": _monotone(lambda node, x: np.tanh(x)),
    "Exp": _monotone(lambda node, x: np.exp(x)),
    **dict.fromkeys(("Add", "Sub", "Mul", "Max", "Min"), _binary),
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"), _pool),
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Identity"), _flat),
    "Concat": _concat,
}


def constants(known: Known) -> Sequence[bool]:
    """Which positions have one value only."""
    return (np.isfinite(known.lo) & (known.lo == known.hi)).tolist()
