"""Relu, Clip, Min and Max with constants, one after another, as one Clip. Exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import edit
from ..rewrite import Outcome, Rewriter, Rule


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


def _clips(rw: Rewriter, node: gs.Node) -> Outcome:
    """Clip or Relu of a Clip or Relu: one Clip with the bounds that both leave. Exact."""
    inner = rw.inner(node.inputs[0], "Clip", "Relu")
    if inner is None or not rw.together(node, inner) or (node.op == inner.op == "Relu"):
        return None
    x, dtype = inner.inputs[0], node.inputs[0].dtype
    if dtype is None or np.dtype(dtype).name not in ("float32", "float64"):
        return None
    first, second = _both(rw, inner, dtype), _both(rw, node, dtype)
    if first is None or second is None:
        return None
    low, high = (min(max(v, second[0]), second[1]) for v in first)
    if not low <= high:
        return None
    if (low, high) == (0, np.inf):
        return rw.become(node, "Relu", [x])
    return _write_clip(rw, node, x, low, high, np.dtype(dtype))


def _both(rw: Rewriter, node: gs.Node, dtype: Any) -> tuple[float, float] | None:
    """Both bounds of a Clip or Relu. One that a Clip lacks is the last number: an infinity does not pass it."""
    found = bounds(rw, node)
    if found is None:
        return None
    lowest, highest = (0.0, np.inf) if node.op == "Relu" else _ends(dtype)
    return lowest if found[0] is None else float(found[0]), highest if found[1] is None else float(found[1])


def _ends(dtype: Any) -> tuple[float, float]:
    """The lowest and the highest number of a type."""
    return float(np.finfo(dtype).min), float(np.finfo(dtype).max)


def _write_clip(rw: Rewriter, node: gs.Node, x: Any, low: float, high: float, dtype: np.dtype) -> Outcome:
    if dtype == np.float64 and rw.opset < 12:
        return None  # ONNX Runtime clips no doubles there
    if rw.opset < 6:
        return None
    given = {name: v for name, v, last in zip(("min", "max"), (low, high), _ends(dtype)) if v != last}
    if rw.opset < 11:
        return rw.become(node, "Clip", [x], given)
    ends = [
        rw.constant(f"{node.name}_{name}", np.array(given[name], dtype)) if name in given else None
        for name in ("min", "max")
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
    Rule("clips joined", ("Clip", "Relu"), _clips),
    Rule("clips joined", ("Min", "Max"), _min_max),
)
