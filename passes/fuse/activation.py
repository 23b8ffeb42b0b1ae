"""Activations spelled out in simpler operators, as the one operator that the model's opset has for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import edit
from ..rewrite import Outcome, Rewriter, Rule

_FLOATS = ("float32", "float64", "float16")


def _near(value: Any, wanted: float) -> bool:
    """Whether a constant is a number up to float rounding (half precision included)."""
    return value is not None and abs(float(value) - wanted) <= 1e-3 * abs(wanted) * (
        1.0 if np.asarray(value).dtype == np.float16 else 1e-3
    )


def _is(rw: Rewriter, tensor: Any, wanted: float) -> bool:
    return isinstance(tensor, gs.Constant) and len(tensor.shape) <= 1 and _near(rw.scalar(tensor), wanted)


def _with(rw: Rewriter, node: gs.Node | None, wanted: float, ops: tuple[str, ...]) -> Any:
    """The other operand of `x op wanted` (either side for Add and Mul); None when it is not that."""
    if node is None or node.op not in ops or len(node.inputs) != 2:
        return None
    for at in (1, 0) if node.op in ("Add", "Mul") else (1,):
        if _is(rw, node.inputs[at], wanted):
            return node.inputs[1 - at]
    return None


def bounds(rw: Rewriter, node: gs.Node) -> tuple[float | None, float | None] | None:
    """Lower and upper bound of a Clip or Relu; None when they are not constant."""
    if node.op == "Relu":
        return 0.0, None
    if rw.opset < 11:
        return node.attrs.get("min"), node.attrs.get("max")
    found: list[Any] = []
    for k in (1, 2):
        tensor = edit.get(node, k)
        value = None if tensor is None else rw.scalar(tensor)
        if tensor is not None and value is None:
            return None
        found.append(value)
    return found[0], found[1]


def _hard_sigmoid(rw: Rewriter, node: gs.Node) -> Outcome:
    """Clip(x + 3, 0, 6) / 6: HardSigmoid with slope 1/6. Differs by the rounding of 1/6."""
    y = _with(rw, node, 6.0, ("Div",))
    y = _with(rw, node, 1 / 6, ("Mul",)) if y is None else y
    clip = rw.inner(y, "Clip") if y is not None else None
    if clip is None or bounds(rw, clip) is None or not rw.together(node, clip):
        return None
    low, high = bounds(rw, clip)  # type: ignore[misc]
    add = rw.inner(clip.inputs[0], "Add")
    x = _with(rw, add, 3.0, ("Add",))
    if x is None or x.dtype is None or np.dtype(x.dtype).name not in _FLOATS or not rw.together(node, add):
        return None
    if low is None or high is None or float(low) != 0 or float(high) != 6:
        return None
    return rw.become(node, "HardSigmoid", [x], {"alpha": 1 / 6, "beta": 0.5})


def _hard_swish(rw: Rewriter, node: gs.Node) -> Outcome:
    """x · HardSigmoid(x, 1/6, 1/2) is HardSwish by definition."""
    for at in (0, 1):
        inner = rw.inner(node.inputs[at], "HardSigmoid")
        if inner is None or inner.inputs[0] is not node.inputs[1 - at] or not rw.together(node, inner):
            continue
        if _near(inner.attrs.get("alpha", 0.2), 1 / 6) and inner.attrs.get("beta", 0.5) == 0.5:
            return rw.become(node, "HardSwish", [inner.inputs[0]])
    return None


def _sigmoid(rw: Rewriter, node: gs.Node) -> Outcome:
    """1 / (1 + exp(-x)) by definition; where exp overflows both are 0."""
    if node.op == "Div":
        if not _is(rw, node.inputs[0], 1.0):
            return None
        below = node.inputs[1]
    else:
        below = node.inputs[0]
    add = rw.inner(below, "Add")
    e = _with(rw, add, 1.0, ("Add",))
    exp = rw.inner(e, "Exp") if e is not None else None
    neg = rw.inner(exp.inputs[0], "Neg") if exp is not None else None
    if neg is None or not rw.together(node, add, exp, neg):
        return None
    return rw.become(node, "Sigmoid", [neg.inputs[0]])


def _mish(rw: Rewriter, node: gs.Node) -> Outcome:
    """x · tanh(softplus(x)) is Mish by definition."""
    for at in (0, 1):
        tanh = rw.inner(node.inputs[at], "Tanh")
        soft = rw.inner(tanh.inputs[0], "Softplus") if tanh is not None else None
        if soft is not None and soft.inputs[0] is node.inputs[1 - at] and rw.together(node, tanh, soft):
            return rw.become(node, "Mish", [soft.inputs[0]])
    return None


def _factors(rw: Rewriter, node: gs.Node) -> list[Any]:
    """Operands of a product of products and of a division by 2, at most four of them."""
    found: list[Any] = []
    queue = [node]
    while queue:
        current = queue.pop()
        for tensor in current.inputs:
            below = rw.inner(tensor, "Mul")
            if below is not None and len(found) + len(queue) < 4 and rw.together(node, below):
                queue.append(below)
            else:
                found.append(tensor)
    return found


def _gelu(rw: Rewriter, node: gs.Node) -> Outcome:
    """0.5 · x · (1 + erf(x / √2)), and the tanh form: Gelu by definition."""
    factors = _factors(rw, node)
    half = [t for t in factors if _is(rw, t, 0.5)]
    gates = [t for t in factors if rw.inner(t, "Add") is not None]
    if len(factors) != 3 or len(half) != 1:
        return None
    for gate in gates:
        rest = [t for t in factors if t is not gate and t is not half[0]]
        if len(rest) != 1:
            continue
        curve = _with(rw, rw.inner(gate, "Add"), 1.0, ("Add",))
        if curve is None:
            continue
        if _erf_of(rw, curve, rest[0]):
            return rw.become(node, "Gelu", rest)
        if _tanh_of(rw, curve, rest[0]):
            return rw.become(node, "Gelu", rest, {"approximate": "tanh"})
    return None


def _erf_of(rw: Rewriter, curve: Any, x: Any) -> bool:
    erf = rw.inner(curve, "Erf")
    if erf is None:
        return False
    arg = rw.inner(erf.inputs[0], "Div", "Mul")
    inner = _with(rw, arg, 2**0.5, ("Div",))
    inner = _with(rw, arg, 0.5**0.5, ("Mul",)) if inner is None else inner
    return inner is x


def _tanh_of(rw: Rewriter, curve: Any, x: Any) -> bool:
    tanh = rw.inner(curve, "Tanh")
    scaled = _with(rw, rw.inner(tanh.inputs[0], "Mul"), (2 / np.pi) ** 0.5, ("Mul",)) if tanh is not None else None
    add = rw.inner(scaled, "Add") if scaled is not None else None
    if add is None:
        return False
    for at in (0, 1):
        cubic = _with(rw, rw.inner(add.inputs[1 - at], "Mul"), 0.044715, ("Mul",))
        if add.inputs[at] is x and cubic is not None and _cube(rw, cubic, x):
            return True
    return False


def _cube(rw: Rewriter, tensor: Any, x: Any) -> bool:
    power = rw.inner(tensor, "Pow")
    if power is not None:
        return power.inputs[0] is x and _is(rw, power.inputs[1], 3.0)
    outer = rw.inner(tensor, "Mul")
    if outer is None:
        return False
    for at in (0, 1):
        square = rw.inner(outer.inputs[at], "Mul")
        if outer.inputs[1 - at] is x and square is not None and all(t is x for t in square.inputs):
            return True
    return False


def _clips(rw: Rewriter, node: gs.Node) -> Outcome:
    """Clip or Relu of a Clip or Relu: one Clip with the bounds that both leave. Exact."""
    inner = rw.inner(node.inputs[0], "Clip", "Relu")
    if inner is None or not rw.together(node, inner) or (node.op == inner.op == "Relu"):
        return None
    x, dtype = inner.inputs[0], node.inputs[0].dtype
    first, second = bounds(rw, inner), bounds(rw, node)
    if first is None or second is None or dtype is None or np.dtype(dtype).name not in ("float32", "float64"):
        return None
    low, high = _meet(first, second)
    if low is not None and high is not None and low > high:
        return None
    if low == 0 and high is None:
        return rw.become(node, "Relu", [x])
    return _write_clip(rw, node, x, low, high, np.dtype(dtype))


def _meet(first: Any, second: Any) -> tuple[Any, Any]:
    """Bounds of second(first(x)): each bound of the first, clamped by the second."""
    low, high = (None if v is None else float(v) for v in second)

    def clamp(v: Any) -> Any:
        v = v if low is None else max(float(v), low)
        return v if high is None else min(float(v), high)

    a, b = first
    return (low if a is None else clamp(a)), (high if b is None else clamp(b))


def _write_clip(rw: Rewriter, node: gs.Node, x: Any, low: Any, high: Any, dtype: np.dtype) -> Outcome:
    if rw.opset < 11:
        if rw.opset < 6:
            return None
        attrs = {k: float(v) for k, v in (("min", low), ("max", high)) if v is not None}
        return rw.become(node, "Clip", [x], attrs)
    ends = [
        None if v is None else rw.constant(f"{node.name}_{name}", np.array(v, dtype))
        for name, v in (("min", low), ("max", high))
    ]
    return rw.become(node, "Clip", [x, *ends])


def _min_max(rw: Rewriter, node: gs.Node) -> Outcome:
    """Min(Max(x, a), b) with scalars a <= b is Clip(x, a, b). Exact."""
    inner_op = "Max" if node.op == "Min" else "Min"
    outer = _scalar_operand(rw, node)
    inner = rw.inner(outer[0], inner_op) if outer else None
    if outer is None or inner is None or not rw.together(node, inner) or rw.opset < 8:
        return None
    within = _scalar_operand(rw, inner)
    if within is None or within[0].dtype is None or np.dtype(within[0].dtype).name not in ("float32", "float64"):
        return None
    low, high = (within[1], outer[1]) if node.op == "Min" else (outer[1], within[1])
    if not float(low) <= float(high):
        return None
    return _write_clip(rw, node, within[0], float(low), float(high), np.dtype(within[0].dtype))


def _scalar_operand(rw: Rewriter, node: gs.Node) -> tuple[Any, Any] | None:
    if len(node.inputs) != 2:
        return None
    for at in (0, 1):
        c, x = node.inputs[at], node.inputs[1 - at]
        plain = isinstance(c, gs.Constant) and not isinstance(x, gs.Constant)
        if plain and np.prod(c.shape, dtype=np.int64) == 1 and (len(c.shape) == 0 or len(c.shape) <= (rw.rank(x) or 0)):
            return x, rw.scalar(c)
    return None


RULES = (
    Rule("Gelu", ("Mul",), _gelu, since=20),
    Rule("Mish", ("Mul",), _mish, since=18),
    Rule("HardSwish", ("Mul",), _hard_swish, since=14),
    Rule("HardSigmoid", ("Div", "Mul"), _hard_sigmoid, since=6),
    Rule("Sigmoid", ("Div", "Reciprocal"), _sigmoid, since=6),
    Rule("clips joined", ("Clip", "Relu"), _clips),
    Rule("clips joined", ("Min", "Max"), _min_max),
)
