"""Windows: what a convolution or a pool looks at, said by the operator itself.

Both rewrites move or repeat reading, never arithmetic: the pools are exact, the convolution sums in another order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import edit
from ..operands import slice_bounds
from ..rewrite import Outcome, Rewriter, Rule

Phase = tuple[int, int]


def _focus(rw: Rewriter, node: gs.Node) -> Outcome:
    """A convolution over every second row and column, laid out as channels (YOLO's Focus, SpaceToDepth of two).

    A k×k window over the four phases is a 2k×2k window over the image itself with twice the stride and padding. The
    products are the same ones, so nothing changes but the order of the sum.
    """
    weight, above = rw.const(edit.get(node, 1)), rw.inner(node.inputs[0], "Concat", "SpaceToDepth")
    if weight is None or above is None or weight.ndim != 4 or not rw.together(node, above) or not _plain(node):
        return None
    found = _phases(rw, above)
    if found is None:
        return None
    x, phases = found
    channels = (rw.shape(x) or [None, None])[1]
    if not isinstance(channels, int) or weight.shape[1] != channels * len(phases):
        return None
    if not rw.sole(node.inputs[1]):
        return "the weight is shared"
    rows, columns = weight.shape[2:]
    wide = np.zeros((weight.shape[0], channels, 2 * rows, 2 * columns), weight.dtype)
    for k, (dy, dx) in enumerate(phases):
        wide[:, :, dy::2, dx::2] += weight[:, k * channels : (k + 1) * channels]
    strides, pads = node.attrs.get("strides", [1, 1]), node.attrs.get("pads", [0, 0, 0, 0])
    attrs = {
        "kernel_shape": [2 * rows, 2 * columns],
        "strides": [2 * s for s in strides],
        "pads": [2 * p for p in pads],
    }
    return rw.become(node, "Conv", [x, rw.constant(node.inputs[1].name, wide), *node.inputs[2:]], attrs)


def _plain(node: gs.Node) -> bool:
    """One group, no dilation, explicit padding."""
    a = node.attrs
    dense = a.get("group", 1) == 1 and set(a.get("dilations", [1])) == {1}
    return dense and a.get("auto_pad", "NOTSET") in ("NOTSET", b"NOTSET")


def _phases(rw: Rewriter, node: gs.Node) -> tuple[Any, list[Phase]] | None:
    """The image, of even height and width, and the row and column where each block of its channels begins."""
    if node.op == "SpaceToDepth":
        x = node.inputs[0]
        phases = [(dy, dx) for dy in (0, 1) for dx in (0, 1)] if node.attrs.get("blocksize") == 2 else None
    else:
        parts = [rw.maker(t, "Slice") for t in node.inputs]
        x = None if parts[0] is None else parts[0].inputs[0]
        if node.attrs.get("axis") not in (1, -3) or any(p is None or p.inputs[0] is not x for p in parts):
            return None
        starts = [_start(rw, p) for p in parts]
        phases = None if any(s is None for s in starts) else [s for s in starts if s is not None]
    size = rw.static_tail(x, -2)
    if not phases or size is None or rw.rank(x) != 4 or any(d % 2 for d in size):
        return None
    return x, phases


def _start(rw: Rewriter, node: gs.Node) -> Phase | None:
    """Where a Slice begins that takes every second row and column to the end; None for any other."""
    bounds, size = slice_bounds(rw, node), rw.static_tail(node.inputs[0], -2)
    if bounds is None or size is None:
        return None
    found = dict.fromkeys((0, 1), -1)
    for start, end, axis, step in zip(*bounds):
        at = axis - 2 if axis >= 0 else axis + 2
        if at not in found or step != 2 or start not in (0, 1) or end < size[at]:
            return None
        found[at] = start
    return None if -1 in found.values() else (found[0], found[1])


def _cascade(rw: Rewriter, node: gs.Node) -> Outcome:
    """A MaxPool of the same tensor as a smaller one: the largest of a large window is the largest of smaller ones.

    With stride 1 and windows that keep the size, pooling k over pooling j is pooling j + k - 1, borders included
    (padding never wins). SPP blocks (5, 9, 13) so read 25 values a pool instead of up to 169.
    """
    own = _centred(node)
    if own is None:
        return None
    best: tuple[int, gs.Node] | None = None
    for other in rw.readers(node.inputs[0]):
        size = _centred(other) if other is not node and other.op == "MaxPool" and not other.domain else None
        if size is not None and size < own and rw.together(node, other) and (best is None or size > best[0]):
            best = size, other
    if best is None:
        return None
    left = own - best[0] + 1
    half = left // 2
    attrs = {"kernel_shape": [left, left], "pads": [half] * 4, "strides": [1, 1]}
    return rw.become(node, "MaxPool", [best[1].outputs[0]], attrs)


def _centred(node: gs.Node) -> int | None:
    """k of a k×k MaxPool with stride 1 and (k - 1)/2 zeros of padding on all sides; None for any other."""
    a, kernel = node.attrs, list(node.attrs.get("kernel_shape", []))
    if len(kernel) != 2 or kernel[0] != kernel[1] or kernel[0] % 2 == 0 or len([t for t in node.outputs if t.name]) > 1:
        return None
    plain = set(a.get("strides", [1])) == {1} and set(a.get("dilations", [1])) == {1} and not a.get("ceil_mode", 0)
    explicit = a.get("auto_pad", "NOTSET") in ("NOTSET", b"NOTSET")
    return int(kernel[0]) if plain and explicit and list(a.get("pads", [])) == [kernel[0] // 2] * 4 else None


RULES = (
    Rule("space to depth folded into convolutions", ("Conv",), _focus),
    Rule("max pools of max pools", ("MaxPool",), _cascade),
)
