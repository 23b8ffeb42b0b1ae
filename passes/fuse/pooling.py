"""Reductions over the spatial axes as global pooling, and reductions of reductions as one.

Sums run in another order, so results differ by float rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ..operands import given_axes
from ..rewrite import Outcome, Rewriter, Rule
from .factors import is_float

# Spatial axes that ONNX Runtime pools over.
_MOST = 3


def _global(rw: Rewriter, node: gs.Node) -> Outcome:
    """The mean over all spatial axes of [N, C, H, W, ...], kept as ones.

    Rank 3 is left alone: there it is mostly the mean of a normalization over features. ONNX Runtime pools no doubles.
    The maximum stays a ReduceMax: GlobalMaxPool loses NaN and -inf.
    """
    x, axes = node.inputs[0], given_axes(rw, node)
    rank = rw.rank(x)
    if rank is None or not 4 <= rank <= 2 + _MOST or not axes or not node.attrs.get("keepdims", 1):
        return None
    if not is_float(x, "float32"):
        return None
    if sorted(a % rank for a in axes) != list(range(2, rank)):
        return None
    return rw.become(node, "GlobalAveragePool", [x])


def _twice(rw: Rewriter, node: gs.Node) -> Outcome:
    """The same reduction over one axis after another. Means of integers are rounded each time."""
    inner = rw.inner(node.inputs[0], node.op)
    if inner is None or not rw.together(node, inner):
        return None
    if node.op == "ReduceMean" and not is_float(node.inputs[0]):
        return None
    first, second = given_axes(rw, inner), given_axes(rw, node)
    rank = rw.rank(inner.inputs[0])
    if not first or not second or rank is None:
        return None
    if not (node.attrs.get("keepdims", 1) and inner.attrs.get("keepdims", 1)):
        return None
    both = sorted({a % rank for a in (*first, *second)})
    if len(both) != len(first) + len(second):
        return None
    attrs: dict[str, Any] = {"keepdims": 1}
    if "axes" in node.attrs:
        return rw.become(node, node.op, [inner.inputs[0]], {**attrs, "axes": both})
    axes = rw.constant(f"{node.name}_axes", np.array(both, np.int64))
    return rw.become(node, node.op, [inner.inputs[0], axes], attrs)


RULES = (
    Rule("reductions to global pooling", ("ReduceMean",), _global),
    Rule("reductions joined", ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd"), _twice),
)
