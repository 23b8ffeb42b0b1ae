"""Operands that moved from attributes to inputs as operator sets went by, read the same way from either."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from ..ir import edit
from .rewrite import Rewriter


def given_axes(rw: Rewriter, node: gs.Node) -> list[int] | None:
    """Axes of a Squeeze, Unsqueeze or reduction: the attribute or the constant second input; None when neither."""
    return list(node.attrs["axes"]) if "axes" in node.attrs else rw.ints(edit.get(node, 1))


def slice_bounds(rw: Rewriter, node: gs.Node) -> tuple[list[int], list[int], list[int], list[int]] | None:
    """Starts, ends, axes and steps of a Slice, when all are constant (attributes below opset 10)."""
    if "starts" in node.attrs:
        starts, ends = list(node.attrs["starts"]), list(node.attrs["ends"])
        return starts, ends, list(node.attrs.get("axes", range(len(starts)))), [1] * len(starts)
    found = [rw.ints(edit.get(node, k)) for k in range(1, 5)]
    starts, ends = found[0] or [], found[1] or []
    if found[0] is None or found[1] is None:
        return None
    for k in (3, 4):
        if edit.get(node, k) is not None and found[k - 1] is None:
            return None
    axes = list(range(len(starts))) if found[2] is None else found[2]
    return starts, ends, axes, [1] * len(starts) if found[3] is None else found[3]
