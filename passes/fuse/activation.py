"""Activations spelled out in simpler operators, as the one operator that the model's opset has for them."""

from __future__ import annotations

from typing import Any

import onnx_graphsurgeon as gs

from ..rewrite import Outcome, Rewriter, Rule
from .affine import LINEAR
from .bounds import bounds
from .factors import factors, fits, near, polynomial


def _is(rw: Rewriter, tensor: Any, wanted: float) -> bool:
    return isinstance(tensor, gs.Constant) and len(tensor.shape) <= 1 and near(rw.scalar(tensor), wanted)


def _with(rw: Rewriter, node: gs.Node | None, wanted: float, ops: tuple[str, ...]) -> Any:
    """The other operand of `x op wanted` (either side for Add and Mul); None when it is not that."""
    if node is None or node.op not in ops or len(node.inputs) != 2:
        return None
    for at in (1, 0) if node.op in ("Add", "Mul") else (1,):
        if _is(rw, node.inputs[at], wanted):
            return node.inputs[1 - at]
    return None


def _hard_sigmoid(rw: Rewriter, node: gs.Node) -> Outcome:
    """Clip(x + 3, 0, 6) / 6: HardSigmoid with slope 1/6. Differs by the rounding of 1/6.

    ONNX Runtime has none for doubles.
    """
    y = _with(rw, node, 6.0, ("Div",))
    y = _with(rw, node, 1 / 6, ("Mul",)) if y is None else y
    clip = rw.inner(y, "Clip") if y is not None else None
    if clip is None or bounds(rw, clip) is None or not rw.together(node, clip):
        return None
    low, high = bounds(rw, clip)  # type: ignore[misc]
    add = rw.inner(clip.inputs[0], "Add")
    x = _with(rw, add, 3.0, ("Add",))
    if x is None or not fits(rw, x, "float32", "float16") or not rw.together(node, add):
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
        if near(inner.attrs.get("alpha", 0.2), 1 / 6) and inner.attrs.get("beta", 0.5) == 0.5:
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
    if neg is None or not rw.together(node, add, exp, neg) or not fits(rw, neg.inputs[0]):
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


def _hard_swish_product(rw: Rewriter, node: gs.Node) -> Outcome:
    """x · Clip(x + 3, 0, 6) / 6, the factors in any order. Differs by the rounding of 1/6."""
    product = factors(rw, node)
    if product is None or len(product[1]) != 2 or not near(product[0], 1 / 6):
        return None
    for at in (0, 1):
        x, clip = product[1][at], rw.inner(product[1][1 - at], "Clip")
        found = None if clip is None else bounds(rw, clip)
        if clip is None or found is None or None in found or not rw.together(node, clip):
            continue
        low, high = (float(v) for v in found if v is not None)
        inside = polynomial(rw, clip.inputs[0], x)
        if (low, high) == (0.0, 6.0) and inside == {1: 1.0, 0: 3.0} and fits(rw, x, "float32"):
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
        if below is None or len(sides) != 1 or not rw.together(node, add, below) or not fits(rw, sides[0], "float32"):
            continue
        inside = polynomial(rw, node.inputs[0], sides[0])
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
            if not fits(rw, exp.inputs[0]):
                return None
            return rw.become(node, "Mish", [exp.inputs[0]])
    return None


RULES = (
    Rule("Mish", ("Mul",), _mish, since=18),
    Rule("HardSwish", ("Mul",), _hard_swish, since=14),
    Rule("HardSwish", ("Mul", "Div"), _hard_swish_product, since=14),
    Rule("HardSigmoid", ("Div", "Mul"), _hard_sigmoid, since=6),
    Rule("HardSigmoid", ("Clip",), _hard_sigmoid_clip, since=6),
    Rule("Sigmoid", ("Div", "Reciprocal"), _sigmoid, since=6),
)
# Where ONNX Runtime is slower at the operator than at what it replaces.
COMPACT = (Rule("Mish", ("Mul",), _mish_log, since=18),)
