"""Chains of element-wise operators with constants: (x·a)·b is x·(ab), (x + a) + b is x + (a + b).

Exact for integers; for floats the constants are combined in float64 and rounded once, so the result differs by the
rounding of one operation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ..rewrite import Outcome, Rewriter, Rule
from . import gelu

_FLOATS = ("float16", "float32", "float64")


def _split(rw: Rewriter, node: gs.Node) -> tuple[Any, gs.Constant, bool] | None:
    """The data operand, the constant operand, and whether the constant stands first."""
    if len(node.inputs) != 2:
        return None
    a, b = node.inputs
    if isinstance(a, gs.Constant) == isinstance(b, gs.Constant):
        return None
    return (b, a, True) if isinstance(a, gs.Constant) else (a, b, False)


def _as_scale(rw: Rewriter, node: gs.Node) -> tuple[Any, np.ndarray] | None:
    """x·c, with x / c as x·(1/c)."""
    parts = _split(rw, node)
    if parts is None or (node.op == "Div" and parts[2]) or rw.small(parts[1]) is None:
        return None
    c = parts[1].values
    if c.dtype.name not in _FLOATS:
        return (parts[0], c) if node.op == "Mul" and c.dtype.kind in "iu" else None
    c = c.astype(np.float64)
    if node.op == "Div":
        return (parts[0], 1.0 / c) if np.all(c != 0) else None
    return parts[0], c


def _as_shift(rw: Rewriter, node: gs.Node) -> tuple[Any, np.ndarray, int] | None:
    """sign·x + c."""
    parts = _split(rw, node)
    if parts is None or rw.small(parts[1]) is None:
        return None
    c = parts[1].values
    if c.dtype.name in _FLOATS:
        c = c.astype(np.float64)
    elif c.dtype.kind not in "iu":
        return None
    if node.op == "Add":
        return parts[0], c, 1
    if c.dtype.kind == "u":
        return None
    return (parts[0], c, -1) if parts[2] else (parts[0], -c, 1)


def _fits(rw: Rewriter, value: np.ndarray, node: gs.Node, inner: gs.Node) -> np.ndarray | None:
    """The combined constant in the operands' type; None when it overflows or takes more room than both."""
    constants = [t for n in (node, inner) for t in n.inputs if isinstance(t, gs.Constant)]
    dtype = constants[0].dtype
    if value.size > max(int(np.prod(t.shape, dtype=np.int64)) for t in constants):
        return None
    with np.errstate(all="ignore"):
        new = value.astype(dtype)
    if new.dtype.kind != "f":
        return new
    tiny = (value != 0) & (np.abs(value) < np.finfo(dtype).tiny)
    return None if not np.all(np.isfinite(new)) or np.any(tiny) else new


def _scales(rw: Rewriter, node: gs.Node) -> Outcome:
    outer = _as_scale(rw, node)
    inner = None if outer is None else rw.inner(outer[0], "Mul", "Div")
    if outer is None or inner is None or not rw.together(node, inner) or rw.opset < 7:
        return None
    first = _as_scale(rw, inner)
    if first is None or first[1].dtype != outer[1].dtype or gelu.closes(rw, inner):
        return None
    combined = _fits(rw, first[1] * outer[1], node, inner)
    if combined is None:
        return None
    return rw.become(node, "Mul", [first[0], rw.constant(f"{node.name}_scale", combined)])


def _cancels(total: np.ndarray, first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two float terms mostly cancel: the rounding between them may then be meant, as of (x + 2²³) - 2²³."""
    if total.dtype.kind != "f":
        return False
    return bool(np.any(np.abs(total) < 0.5 * np.maximum(np.abs(first), np.abs(second))))


def _shifts(rw: Rewriter, node: gs.Node) -> Outcome:
    outer = _as_shift(rw, node)
    inner = None if outer is None else rw.inner(outer[0], "Add", "Sub")
    if outer is None or inner is None or not rw.together(node, inner) or rw.opset < 7:
        return None
    first = _as_shift(rw, inner)
    if first is None or first[1].dtype != outer[1].dtype:
        return None
    x, sign = first[0], outer[2] * first[2]
    total = outer[2] * first[1] + outer[1]
    combined = None if _cancels(total, first[1], outer[1]) else _fits(rw, total, node, inner)
    if combined is None:
        return None
    constant = rw.constant(f"{node.name}_shift", combined)
    if sign < 0:
        return rw.become(node, "Sub", [constant, x])
    return rw.become(node, "Add", [x, constant])


def _negated(rw: Rewriter, node: gs.Node) -> Outcome:
    """x + (-y) is x - y, x - (-y) is x + y: exact."""
    other = "Sub" if node.op == "Add" else "Add"
    for at in (1, 0) if node.op == "Add" else (1,):
        neg = rw.inner(node.inputs[at], "Neg") if len(node.inputs) == 2 else None
        if neg is not None and rw.together(node, neg) and rw.opset >= 7:
            return rw.become(node, other, [node.inputs[1 - at], neg.inputs[0]])
    return None


def _reciprocal(rw: Rewriter, node: gs.Node) -> Outcome:
    """x·(1/y) is x / y, up to one rounding."""
    for at in (0, 1):
        inner = rw.inner(node.inputs[at], "Reciprocal", "Div")
        if inner is None or not rw.together(node, inner) or rw.opset < 7:
            continue
        one = inner.inputs[0] if inner.op == "Div" else None
        y = inner.inputs[-1]
        if one is not None and (rw.scalar(one) != 1.0 or len(one.shape) > (rw.rank(y) or 0) or one.dtype.kind != "f"):
            continue
        return rw.become(node, "Div", [node.inputs[1 - at], y])
    return None


RULES = (
    Rule("constant factors joined", ("Mul", "Div"), _scales),
    Rule("constant terms joined", ("Add", "Sub"), _shifts),
    Rule("negations absorbed", ("Add", "Sub"), _negated),
    Rule("reciprocals absorbed", ("Mul",), _reciprocal),
)
