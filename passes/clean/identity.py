"""Operators that hand a tensor on unchanged, each with the reason why it surely does.

A predicate returns the tensor that the first output equals, bit for bit (the sign of a zero aside, for `x + 0`), or
None. Shapes count only where they are certain; a constant operand must not broadcast its partner to a larger shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from ...ir import edit
from ..rewrite import Outcome, Rewriter, Rule, broadcast_keeps

Source = Callable[[Rewriter, Any], Any]
_INT_MAX = 2**31 - 1


def _first(rw: Rewriter, node: gs.Node) -> Any:
    return edit.get(node, 0)


def _single(rw: Rewriter, node: gs.Node) -> Any:
    """Concat, Max, Min, Mean, Sum of one tensor."""
    return edit.get(node, 0) if len(node.inputs) == 1 else None


def _concat(rw: Rewriter, node: gs.Node) -> Any:
    return _single(rw, node)


def _cast(rw: Rewriter, node: gs.Node) -> Any:
    x, to = node.inputs[0], node.attrs.get("to")
    if x.dtype is None or not isinstance(to, int):
        return None
    return x if np.dtype(onnx.helper.tensor_dtype_to_np_dtype(to)) == x.dtype else None


def _cast_like(rw: Rewriter, node: gs.Node) -> Any:
    x, like = node.inputs[0], node.inputs[1]
    return x if x.dtype is not None and like.dtype is not None and x.dtype == like.dtype else None


def _dropout(rw: Rewriter, node: gs.Node) -> Any:
    """Inference mode; the mask must have no reader."""
    if len(node.outputs) > 1 and (node.outputs[1].outputs or rw.is_output(node.outputs[1])):
        return None
    training = edit.get(node, 2)
    if training is not None and (rw.scalar(training) is None or bool(rw.scalar(training))):
        return None
    if rw.opset < 7 and not node.attrs.get("is_test", 0):
        return None
    return node.inputs[0]


def _reshape(rw: Rewriter, node: gs.Node) -> Any:
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


def _flatten(rw: Rewriter, node: gs.Node) -> Any:
    axis = node.attrs.get("axis", 1)
    return node.inputs[0] if rw.rank(node.inputs[0]) == 2 and axis in (1, -1) else None


def _transpose(rw: Rewriter, node: gs.Node) -> Any:
    perm, shape = node.attrs.get("perm"), rw.shape(node.inputs[0])
    if perm is not None and list(perm) == list(range(len(perm))):
        return node.inputs[0]
    if shape is not None and perm is None and len(shape) <= 1:
        return node.inputs[0]
    return None


def _axes(rw: Rewriter, node: gs.Node, index: int = 1) -> list[int] | None:
    if "axes" in node.attrs:
        return list(node.attrs["axes"])
    return rw.ints(edit.get(node, index))


def _squeeze(rw: Rewriter, node: gs.Node) -> Any:
    shape = rw.shape(node.inputs[0])
    if "axes" in node.attrs or edit.get(node, 1) is not None:
        return node.inputs[0] if _axes(rw, node) == [] and rw.opset >= 13 and shape == [] else None
    none_of_one = shape is not None and all(isinstance(d, int) and d != 1 for d in shape)
    return node.inputs[0] if none_of_one else None


def _unsqueeze(rw: Rewriter, node: gs.Node) -> Any:
    return node.inputs[0] if _axes(rw, node) == [] else None


def _tile(rw: Rewriter, node: gs.Node) -> Any:
    repeats = rw.ints(edit.get(node, 1)) if rw.opset >= 6 else None
    return node.inputs[0] if repeats is not None and all(r == 1 for r in repeats) else None


def _expand(rw: Rewriter, node: gs.Node) -> Any:
    target = rw.ints(edit.get(node, 1))
    return node.inputs[0] if target is not None and broadcast_keeps(rw.shape(node.inputs[0]), target) else None


def _slice(rw: Rewriter, node: gs.Node) -> Any:
    from ..fold.partial import slice_bounds

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


def _pad(rw: Rewriter, node: gs.Node) -> Any:
    pads = node.attrs.get("pads", node.attrs.get("paddings"))
    pads = rw.ints(edit.get(node, 1)) if pads is None else pads
    return node.inputs[0] if pads is not None and len(pads) and not any(pads) else None


def _resize(rw: Rewriter, node: gs.Node) -> Any:
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


def _split(rw: Rewriter, node: gs.Node) -> Any:
    return node.inputs[0] if len(node.outputs) == 1 else None


def _pool(rw: Rewriter, node: gs.Node) -> Any:
    """A window of one element."""
    used = len(node.outputs) > 1 and (node.outputs[1].outputs or rw.is_output(node.outputs[1]))
    kernel, plain = node.attrs.get("kernel_shape", [0]), not any(node.attrs.get("pads", [0]))
    ones = all(k == 1 for k in (*kernel, *node.attrs.get("strides", [1])))
    auto = node.attrs.get("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    return node.inputs[0] if ones and plain and auto and not used else None


def _global_pool(rw: Rewriter, node: gs.Node) -> Any:
    shape = rw.shape(node.inputs[0])
    return node.inputs[0] if shape and len(shape) > 2 and all(d == 1 for d in shape[2:]) else None


def _reduce(rw: Rewriter, node: gs.Node) -> Any:
    """Sum, mean, max, min or product over axes of size 1 that stay."""
    x, shape = node.inputs[0], rw.shape(node.inputs[0])
    axes = _axes(rw, node)
    if axes is None and edit.get(node, 1) is not None:
        return None
    if not axes:
        if node.attrs.get("noop_with_empty_axes", 0):
            return x
        axes = None if shape is None else list(range(len(shape)))
    if shape is None or axes is None or not node.attrs.get("keepdims", 1):
        return None
    return x if all(-len(shape) <= a < len(shape) and shape[a] == 1 for a in axes) else None


def _block(rw: Rewriter, node: gs.Node) -> Any:
    return node.inputs[0] if node.attrs.get("blocksize") == 1 else None


def _einsum(rw: Rewriter, node: gs.Node) -> Any:
    left, arrow, right = str(node.attrs.get("equation", "")).replace(" ", "").partition("->")
    plain = len(node.inputs) == 1 and arrow and left == right and len(set(left)) == len(left)
    return node.inputs[0] if plain and left.isalpha() else None


def _filled(rw: Rewriter, tensor: Any, value: Any) -> bool:
    array = rw.small(tensor)
    return array is not None and array.size > 0 and array.dtype.kind in "biuf" and bool(np.all(array == value))


def _neutral(value: Any, either: bool) -> Source:
    """An operand that changes nothing: right, or on either side for commutative operators."""

    def source(rw: Rewriter, node: gs.Node) -> Any:
        if rw.opset < 7 and ("axis" in node.attrs or "broadcast" in node.attrs):
            return None
        pairs = [(0, 1), (1, 0)] if either else [(0, 1)]
        for keep, gone in pairs:
            x, c = node.inputs[keep], node.inputs[gone]
            if _filled(rw, c, value) and broadcast_keeps(rw.shape(x), c.shape):
                return x
        return None

    return source


def _idempotent(rw: Rewriter, node: gs.Node) -> Any:
    """f(f(x)) = f(x)."""
    return node.inputs[0] if rw.maker(node.inputs[0], node.op) is not None else None


def _involution(rw: Rewriter, node: gs.Node) -> Any:
    """f(f(x)) = x."""
    inner = rw.maker(node.inputs[0], node.op)
    return None if inner is None else inner.inputs[0]


NOT_NEGATIVE = ("Relu", "Sigmoid", "Softmax", "Abs", "HardSigmoid", "Sqrt", "Exp", "Softplus")


def _relu(rw: Rewriter, node: gs.Node) -> Any:
    """Of what is never negative (Relu passes NaN, as identity does)."""
    return node.inputs[0] if rw.maker(node.inputs[0], *NOT_NEGATIVE) is not None else None


def _clip(rw: Rewriter, node: gs.Node) -> Any:
    if rw.opset < 11:
        low, high = node.attrs.get("min"), node.attrs.get("max")
        return node.inputs[0] if low is None and high is None and rw.opset >= 6 else None
    return node.inputs[0] if edit.get(node, 1) is None and edit.get(node, 2) is None else None


def _where(rw: Rewriter, node: gs.Node) -> Any:
    test, a, b = node.inputs
    if a is b and broadcast_keeps(rw.shape(a), rw.shape(test)):
        return a
    for value, taken, other in ((True, a, b), (False, b, a)):
        shape = rw.shape(taken)
        covers = broadcast_keeps(shape, rw.shape(test)) and broadcast_keeps(shape, rw.shape(other))
        if covers and _filled(rw, test, value):
            return taken
    return None


def _gather(rw: Rewriter, node: gs.Node) -> Any:
    """All positions in their order."""
    shape, index = rw.shape(node.inputs[0]), rw.ints(node.inputs[1])
    axis = node.attrs.get("axis", 0)
    if shape is None or index is None or len(node.inputs[1].shape) != 1 or not -len(shape) <= axis < len(shape):
        return None
    return node.inputs[0] if isinstance(shape[axis], int) and index == list(range(shape[axis])) else None


def _same_pair(rw: Rewriter, node: gs.Node) -> Any:
    """Max(x, x), And(x, x)."""
    x = edit.get(node, 0)
    return x if len(node.inputs) > 1 and all(t is x for t in node.inputs) else None


def _optional(rw: Rewriter, node: gs.Node) -> Any:
    """The element of what is a plain tensor, or was just wrapped."""
    x = edit.get(node, 0)
    if x is None:
        return None
    wrapped = rw.maker(x, "Optional")
    if wrapped is not None:
        return edit.get(wrapped, 0)
    return x if x.dtype is not None and x.name not in rw.model.header.protos else None


def _sequence_at(rw: Rewriter, node: gs.Node) -> Any:
    """An element of a sequence that was just put together."""
    made, at = rw.maker(node.inputs[0], "SequenceConstruct"), rw.scalar(node.inputs[1])
    if made is None or at is None or not -len(made.inputs) <= int(at) < len(made.inputs):
        return None
    return made.inputs[int(at)]


def _first_of(*sources: Source) -> Source:
    def source(rw: Rewriter, node: gs.Node) -> Any:
        return next((t for t in (s(rw, node) for s in sources) if t is not None), None)

    return source


SOURCES: dict[str, Source] = {
    "Identity": _first,
    "Concat": _concat,
    "Sum": _single,
    "Mean": _single,
    "Max": _first_of(_single, _same_pair),
    "Min": _first_of(_single, _same_pair),
    "Cast": _cast,
    "CastLike": _cast_like,
    "Dropout": _dropout,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Tile": _tile,
    "Expand": _expand,
    "Slice": _slice,
    "Pad": _pad,
    "Resize": _resize,
    "Upsample": _resize,
    "Split": _split,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "ReduceSum": _reduce,
    "ReduceMean": _reduce,
    "ReduceMax": _reduce,
    "ReduceMin": _reduce,
    "ReduceProd": _reduce,
    "DepthToSpace": _block,
    "SpaceToDepth": _block,
    "Einsum": _einsum,
    "Add": _neutral(0, either=True),
    "Sub": _neutral(0, either=False),
    "Mul": _neutral(1, either=True),
    "Div": _neutral(1, either=False),
    "Pow": _neutral(1, either=False),
    "And": _first_of(_neutral(True, either=True), _same_pair),
    "Or": _first_of(_neutral(False, either=True), _same_pair),
    "Xor": _neutral(False, either=True),
    "BitShift": _neutral(0, either=False),
    "Relu": _relu,
    "Abs": _idempotent,
    "Ceil": _idempotent,
    "Floor": _idempotent,
    "Round": _idempotent,
    "Sign": _idempotent,
    "Neg": _involution,
    "Not": _involution,
    "BitwiseNot": _involution,
    "Clip": _clip,
    "Where": _where,
    "Gather": _gather,
    "OptionalGetElement": _optional,
    "SequenceAt": _sequence_at,
}


def _bypass(rw: Rewriter, node: gs.Node) -> Outcome:
    source = SOURCES[node.op](rw, node)
    out = node.outputs[0]
    if source is None or source is out:
        return None
    if rw.replace(out, source):
        return True
    # an output cannot take the place of its source: what is left to save is the computation
    return rw.become(node, "Identity", [source]) if node.op != "Identity" and len(node.outputs) == 1 else None


def rules() -> Sequence[Rule]:
    """One rule for all operators that may do nothing."""
    return (Rule("identities removed", tuple(SOURCES), _bypass),)
