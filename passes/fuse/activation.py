"""Activations spelled out in simpler operators, as the one operator that the model's opset has for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ..rewrite import Outcome, Rewriter, Rule
from .affine import LINEAR
from .bounds import bounds

_FLOATS = ("float32", "float64", "float16")


def _near(value: Any, wanted: float) -> bool:
    """Whether a constant is a number up to float rounding (half precision included)."""
    return value is not None and abs(float(value) - wanted) <= 1e-3 * abs(wanted) * (
        1.0 if np.asarray(value).dtype == np.float16 else 1e-3
    )


def _is(rw: Rewriter, tensor: Any, wanted: float) -> bool:
    return isinstance(tensor, gs.Constant) and len(tensor.shape) <= 1 and _near(rw.scalar(tensor), wanted)


def _fits(rw: Rewriter, x: Any, *types: str) -> bool:
    """Whether an operator may take `x` alone: a float, and no scalar, which constants of one axis would broadcast."""
    return x.dtype is not None and np.dtype(x.dtype).name in (types or _FLOATS) and rw.rank(x) != 0


def _with(rw: Rewriter, node: gs.Node | None, wanted: float, ops: tuple[str, ...]) -> Any:
    """The other operand of `x op wanted` (either side for Add and Mul); None when it is not that."""
    if node is None or node.op not in ops or len(node.inputs) != 2:
        return None
    for at in (1, 0) if node.op in ("Add", "Mul") else (1,):
        if _is(rw, node.inputs[at], wanted):
            return node.inputs[1 - at]
    return None


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
    if x is None or not _fits(rw, x) or not rw.together(node, add):
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
    if neg is None or not rw.together(node, add, exp, neg) or not _fits(rw, neg.inputs[0]):
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


def _polynomial(rw: Rewriter, tensor: Any, x: Any, depth: int = 8) -> dict[int, float] | None:
    """Coefficients by power of a tensor that is a polynomial in `x` and made for one reader; None when it is not."""
    if tensor is x:
        return {1: 1.0}
    if isinstance(tensor, gs.Constant):
        value = rw.scalar(tensor) if len(tensor.shape) <= 1 and np.dtype(tensor.dtype).name in _FLOATS else None
        return None if value is None else {0: float(value)}
    node = rw.inner(tensor, "Add", "Sub", "Mul", "Div", "Pow") if depth else None
    if node is None or len(node.inputs) != 2:
        return None
    a, b = (_polynomial(rw, t, x, depth - 1) for t in node.inputs)
    if a is None or b is None:
        return None
    if node.op in ("Add", "Sub"):
        sign = 1.0 if node.op == "Add" else -1.0
        return {k: a.get(k, 0.0) + sign * b.get(k, 0.0) for k in {*a, *b}}
    if node.op == "Mul":
        return _product(a, b)
    if set(b) != {0}:
        return None
    if node.op == "Div":
        return {k: v / b[0] for k, v in a.items()} if b[0] else None
    return {k * int(b[0]): v ** int(b[0]) for k, v in a.items()} if len(a) == 1 and b[0] in (2.0, 3.0) else None


def _product(a: dict[int, float], b: dict[int, float]) -> dict[int, float]:
    found: dict[int, float] = {}
    for j, u in a.items():
        for k, v in b.items():
            found[j + k] = found.get(j + k, 0.0) + u * v
    return found


def _matches(found: dict[int, float] | None, wanted: dict[int, float]) -> bool:
    """Whether the coefficients are those wanted, up to how many digits exporters write."""
    return found is not None and all(
        abs(found.get(k, 0.0) - wanted.get(k, 0.0)) <= 1e-4 * abs(wanted.get(k, 0.0)) for k in {*found, *wanted}
    )


def _factors(rw: Rewriter, node: gs.Node) -> tuple[float, list[Any]] | None:
    """The constant factor of a product (divisions by constants too), and its other factors; None when it has many."""
    number, queue = 1.0, [node]
    found: list[Any] = []
    while queue:
        current = queue.pop()
        for at, tensor in enumerate(current.inputs):
            value = rw.scalar(tensor) if len(tensor.shape or ()) <= 1 else None
            below = rw.inner(tensor, "Mul", "Div")
            if value is not None and np.asarray(value).dtype.name in _FLOATS:
                divides = current.op == "Div"
                if divides and (at == 0 or value == 0):
                    return None
                number *= 1.0 / float(value) if divides else float(value)
            elif current.op == "Div" and at == 1:
                return None
            elif below is not None and len(found) + len(queue) < 4 and rw.together(node, below):
                queue.append(below)
            else:
                found.append(tensor)
    return number, found


# What stands inside the erf or tanh of a Gelu, by power of x.
_ERF = {1: 0.5**0.5}
_TANH = {1: (2 / np.pi) ** 0.5, 3: (2 / np.pi) ** 0.5 * 0.044715}


def _gelu(rw: Rewriter, node: gs.Node) -> Outcome:
    """x · Φ(x) with Φ as (1 + erf(x/√2)) / 2 or its tanh approximation, the factors in any order. By definition."""
    product = _factors(rw, node)
    if product is None or len(product[1]) != 2:
        return None
    for at in (0, 1):
        x, gate = product[1][at], product[1][1 - at]
        curve = _halved(rw, gate, product[0])
        if curve is None or not _fits(rw, x) or not rw.together(node, curve):
            continue
        inside = _polynomial(rw, curve.inputs[0], x)
        if curve.op == "Erf" and _matches(inside, _ERF):
            return rw.become(node, "Gelu", [x])
        if curve.op == "Tanh" and _matches(inside, _TANH):
            return rw.become(node, "Gelu", [x], {"approximate": "tanh"})
    return None


def _halved(rw: Rewriter, gate: Any, number: float) -> gs.Node | None:
    """The Erf or Tanh node c for which number · gate is 1/2 + c/2."""
    add = rw.inner(gate, "Add")
    if add is None:
        return None
    for at in (0, 1):
        curve = rw.inner(add.inputs[at], "Erf", "Tanh")
        scaled = None if curve is not None else rw.inner(add.inputs[at], "Mul")
        slope = 1.0
        if scaled is not None:
            parts = _factors(rw, scaled)
            if parts is None or len(parts[1]) != 1:
                continue
            slope, curve = parts[0], rw.inner(parts[1][0], "Erf", "Tanh")
        shift = rw.scalar(add.inputs[1 - at])
        if curve is not None and shift is not None and len(add.inputs[1 - at].shape) <= 1:
            halves = _near(number * slope, 0.5) and _near(number * float(shift), 0.5)
            return curve if halves and rw.together(add, curve) else None
    return None


def _hard_swish_product(rw: Rewriter, node: gs.Node) -> Outcome:
    """x · Clip(x + 3, 0, 6) / 6, the factors in any order. Differs by the rounding of 1/6."""
    product = _factors(rw, node)
    if product is None or len(product[1]) != 2 or not _near(product[0], 1 / 6):
        return None
    for at in (0, 1):
        x, clip = product[1][at], rw.inner(product[1][1 - at], "Clip")
        found = None if clip is None else bounds(rw, clip)
        if clip is None or found is None or None in found or not rw.together(node, clip):
            continue
        low, high = (float(v) for v in found if v is not None)
        inside = _polynomial(rw, clip.inputs[0], x)
        if (low, high) == (0.0, 6.0) and inside == {1: 1.0, 0: 3.0} and _fits(rw, x, "float32"):
            return rw.become(node, "HardSwish", [x])
    return None


def _hard_sigmoid_clip(rw: Rewriter, node: gs.Node) -> Outcome:
    """Clip(a·x + b, 0, 1) is HardSigmoid by definition."""
    found = bounds(rw, node)
    add = rw.inner(node.inputs[0], "Add", "Sub")
    if found is None or None in found or add is None or [float(v) for v in found if v is not None] != [0.0, 1.0]:
        return None
    for scaled in add.inputs:
        below = rw.inner(scaled, "Mul", "Div")
        sides = [] if below is None else [t for t in below.inputs if not isinstance(t, gs.Constant)]
        if below is None or len(sides) != 1 or not rw.together(node, add, below) or not _fits(rw, sides[0], "float32"):
            continue
        inside = _polynomial(rw, node.inputs[0], sides[0])
        if inside is not None and set(inside) == {0, 1} and rw.maker(sides[0], *LINEAR) is None:
            return rw.become(node, "HardSigmoid", sides, {"alpha": inside[1], "beta": inside[0]})
    return None


def _mish_log(rw: Rewriter, node: gs.Node) -> Outcome:
    """x · tanh(log(1 + exp(x))) is Mish; where exp overflows tanh is 1 in both. ONNX Runtime is slower at Mish."""
    for at in (0, 1):
        tanh = rw.inner(node.inputs[at], "Tanh")
        log = rw.inner(tanh.inputs[0], "Log") if tanh is not None else None
        add = rw.inner(log.inputs[0], "Add") if log is not None else None
        e = _with(rw, add, 1.0, ("Add",))
        exp = rw.inner(e, "Exp") if e is not None else None
        if exp is not None and exp.inputs[0] is node.inputs[1 - at] and rw.together(node, tanh, log, add, exp):
            if not _fits(rw, exp.inputs[0]):
                return None
            return rw.become(node, "Mish", [exp.inputs[0]])
    return None


RULES = (
    Rule("Gelu", ("Mul", "Div"), _gelu, since=20),
    Rule("Mish", ("Mul",), _mish, since=18),
    Rule("HardSwish", ("Mul",), _hard_swish, since=14),
    Rule("HardSwish", ("Mul", "Div"), _hard_swish_product, since=14),
    Rule("HardSigmoid", ("Div", "Mul"), _hard_sigmoid, since=6),
    Rule("HardSigmoid", ("Clip",), _hard_sigmoid_clip, since=6),
    Rule("Sigmoid", ("Div", "Reciprocal"), _sigmoid, since=6),
)
# Where ONNX Runtime is slower at the operator than at what it replaces.
COMPACT = (Rule("Mish", ("Mul",), _mish_log, since=18),)
