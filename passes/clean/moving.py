"""When an operator that moves data moves nothing: each function returns the tensor that its output equals, or None."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import edit
from ..operands import given_axes, slice_bounds
from ..rewrite import Rewriter, broadcast_keeps

_INT_MAX = 2**31 - 1


def reshape(rw: Rewriter, node: gs.Node) -> Any:
    x, shape = node.inputs[0], rw.shape(node.inputs[0])
    target = node.attrs.get("shape") if "shape" in node.attrs else rw.ints(edit.get(node, 1))
    if shape is None or target is None or len(target) != len(shape):
        return None
    copies = not node.attrs.get("allowzero", 0)
    same = [(v == 0 and copies) or (isinstance(d, int) and v == d) for v, d in zip(target, shape)]
    if all(same):
        return x
    # one -1 among sizes that all stay takes what is left: its own size (unless another size is 0, where it may not)
    free = [k for k, ok in enumerate(same) if not ok]
    sure = all(isinstance(d, int) and d > 0 for k, d in enumerate(shape) if k != free[0])
    if len(free) == 1 and target[free[0]] == -1 and (sure or copies):
        return x
    return None


def flatten(rw: Rewriter, node: gs.Node) -> Any:
    axis = node.attrs.get("axis", 1)
    return node.inputs[0] if rw.rank(node.inputs[0]) == 2 and axis in (1, -1) else None


def transpose(rw: Rewriter, node: gs.Node) -> Any:
    perm, shape = node.attrs.get("perm"), rw.shape(node.inputs[0])
    if perm is not None and list(perm) == list(range(len(perm))):
        return node.inputs[0]
    if shape is not None and perm is None and len(shape) <= 1:
        return node.inputs[0]
    return None


def squeeze(rw: Rewriter, node: gs.Node) -> Any:
    shape = rw.shape(node.inputs[0])
    if "axes" in node.attrs or edit.get(node, 1) is not None:
        return node.inputs[0] if given_axes(rw, node) == [] and rw.opset >= 13 and shape == [] else None
    none_of_one = shape is not None and all(isinstance(d, int) and d != 1 for d in shape)
    return node.inputs[0] if none_of_one else None


def unsqueeze(rw: Rewriter, node: gs.Node) -> Any:
    return node.inputs[0] if given_axes(rw, node) == [] else None


def tile(rw: Rewriter, node: gs.Node) -> Any:
    repeats = rw.ints(edit.get(node, 1)) if rw.opset >= 6 else None
    return node.inputs[0] if repeats is not None and all(r == 1 for r in repeats) else None


def expand(rw: Rewriter, node: gs.Node) -> Any:
    target = rw.ints(edit.get(node, 1))
    return node.inputs[0] if target is not None and broadcast_keeps(rw.shape(node.inputs[0]), target) else None


def slice(rw: Rewriter, node: gs.Node) -> Any:
    bounds, shape = slice_bounds(rw, node), rw.shape(node.inputs[0])
    if bounds is None:
        return None
    for start, end, axis, step in zip(*bounds):
        size = shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None
        whole = end >= _INT_MAX or (isinstance(size, int) and end >= size)
        begins = start == 0 or (isinstance(size, int) and start <= -size)
        if step != 1 or not whole or not begins:
            return None
    return node.inputs[0]


def pad(rw: Rewriter, node: gs.Node) -> Any:
    pads = node.attrs.get("pads", node.attrs.get("paddings"))
    pads = rw.ints(edit.get(node, 1)) if pads is None else pads
    return node.inputs[0] if pads is not None and len(pads) and not any(pads) else None


def resize(rw: Rewriter, node: gs.Node) -> Any:
    """Scale 1 puts every sample on itself in all modes but cropping and outside-excluding ones."""
    if node.attrs.get("coordinate_transformation_mode") in ("tf_crop_and_resize", "tf_half_pixel_for_nn"):
        return None
    if node.attrs.get("exclude_outside", 0) or node.attrs.get("antialias", 0):
        return None
    first = 1 if node.op == "Upsample" or rw.opset < 11 else 2
    scales = node.attrs.get("scales") if "scales" in node.attrs else rw.small(edit.get(node, first))
    shape = rw.shape(node.inputs[0])
    if scales is not None and np.size(scales) and shape is not None and np.size(scales) == len(shape):
        return node.inputs[0] if np.all(np.asarray(scales) == 1) else None
    sizes = rw.ints(edit.get(node, 3)) if node.op == "Resize" and rw.opset >= 11 else None
    plain = "axes" not in node.attrs and node.attrs.get("keep_aspect_ratio_policy", "stretch") == "stretch"
    return node.inputs[0] if sizes and plain and sizes == rw.static(node.inputs[0]) else None


def split(rw: Rewriter, node: gs.Node) -> Any:
    return node.inputs[0] if len(node.outputs) == 1 else None


def gather(rw: Rewriter, node: gs.Node) -> Any:
    """All positions in their order."""
    shape, index = rw.shape(node.inputs[0]), rw.ints(node.inputs[1])
    axis = node.attrs.get("axis", 0)
    if shape is None or index is None or len(node.inputs[1].shape) != 1 or not -len(shape) <= axis < len(shape):
        return None
    return node.inputs[0] if isinstance(shape[axis], int) and index == list(range(shape[axis])) else None


def block(rw: Rewriter, node: gs.Node) -> Any:
    return node.inputs[0] if node.attrs.get("blocksize") == 1 else None
