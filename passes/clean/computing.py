"""When an operator that computes changes nothing: each function returns the tensor that its output equals, or None."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from ...ir import edit, equations
from ..operands import given_axes
from ..rewrite import Rewriter, broadcast_keeps

Source = Callable[[Rewriter, Any], Any]


def cast(rw: Rewriter, node: gs.Node) -> Any:
    x, to = node.inputs[0], node.attrs.get("to")
    if x.dtype is None or not isinstance(to, int):
        return None
    return x if np.dtype(onnx.helper.tensor_dtype_to_np_dtype(to)) == x.dtype else None


def cast_like(rw: Rewriter, node: gs.Node) -> Any:
    x, like = node.inputs[0], node.inputs[1]
    return x if x.dtype is not None and like.dtype is not None and x.dtype == like.dtype else None


def dropout(rw: Rewriter, node: gs.Node) -> Any:
    """Inference mode, or nothing to drop; the mask must have no reader."""
    if len(node.outputs) > 1 and (node.outputs[1].outputs or rw.is_output(node.outputs[1])):
        return None
    training, ratio = edit.get(node, 2), rw.scalar(edit.get(node, 1))
    if ratio is not None and float(ratio) == 0:
        return node.inputs[0]
    if training is not None and (rw.scalar(training) is None or bool(rw.scalar(training))):
        return None
    if rw.opset < 7 and not node.attrs.get("is_test", 0):
        return None
    return node.inputs[0]


def pool(rw: Rewriter, node: gs.Node) -> Any:
    """A window of one element."""
    used = len(node.outputs) > 1 and (node.outputs[1].outputs or rw.is_output(node.outputs[1]))
    kernel, plain = node.attrs.get("kernel_shape", [0]), not any(node.attrs.get("pads", [0]))
    ones = all(k == 1 for k in (*kernel, *node.attrs.get("strides", [1])))
    auto = node.attrs.get("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    return node.inputs[0] if ones and plain and auto and not used else None


def global_pool(rw: Rewriter, node: gs.Node) -> Any:
    shape = rw.shape(node.inputs[0])
    return node.inputs[0] if shape and len(shape) > 2 and all(d == 1 for d in shape[2:]) else None


def reduce(rw: Rewriter, node: gs.Node) -> Any:
    """Sum, mean, max, min or product over axes of size 1 that stay."""
    x, shape = node.inputs[0], rw.shape(node.inputs[0])
    axes = given_axes(rw, node)
    if axes is None and edit.get(node, 1) is not None:
        return None
    if not axes:
        if node.attrs.get("noop_with_empty_axes", 0):
            return x
        axes = None if shape is None else list(range(len(shape)))
    if shape is None or axes is None or not node.attrs.get("keepdims", 1):
        return None
    return x if all(-len(shape) <= a < len(shape) and shape[a] == 1 for a in axes) else None


def einsum(rw: Rewriter, node: gs.Node) -> Any:
    (term, *others), result = equations.split(node.attrs.get("equation", ""))
    plain = not others and term == result and len(set(term)) == len(term)
    return node.inputs[0] if plain and term.isalpha() else None


def _filled(rw: Rewriter, tensor: Any, value: Any) -> bool:
    array = rw.small(tensor)
    return array is not None and array.size > 0 and array.dtype.kind in "biuf" and bool(np.all(array == value))


def neutral(value: Any, either: bool) -> Source:
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


def idempotent(rw: Rewriter, node: gs.Node) -> Any:
    """f(f(x)) = f(x)."""
    return node.inputs[0] if rw.maker(node.inputs[0], node.op) is not None else None


def involution(rw: Rewriter, node: gs.Node) -> Any:
    """f(f(x)) = x."""
    inner = rw.maker(node.inputs[0], node.op)
    return None if inner is None else inner.inputs[0]


NOT_NEGATIVE = ("Relu", "Sigmoid", "Softmax", "Abs", "HardSigmoid", "Sqrt", "Exp", "Softplus")


def relu(rw: Rewriter, node: gs.Node) -> Any:
    """Of what is never negative (Relu passes NaN, as identity does)."""
    return node.inputs[0] if rw.maker(node.inputs[0], *NOT_NEGATIVE) is not None else None


BOUNDED = ("Sigmoid", "Tanh", "Softmax", "HardSigmoid", "Erf")


def clip(rw: Rewriter, node: gs.Node) -> Any:
    """Without bounds, of what is never infinite: the bounds are the lowest and the highest number then."""
    given = [edit.get(node, 1), edit.get(node, 2), node.attrs.get("min"), node.attrs.get("max")]
    if rw.opset < 6 or any(end is not None for end in given):
        return None
    x = node.inputs[0]
    whole = x.dtype is not None and np.dtype(x.dtype).kind in "iu"
    return x if whole or rw.maker(x, *BOUNDED) is not None else None


def where(rw: Rewriter, node: gs.Node) -> Any:
    test, a, b = node.inputs
    if a is b and broadcast_keeps(rw.shape(a), rw.shape(test)):
        return a
    for value, taken, other in ((True, a, b), (False, b, a)):
        shape = rw.shape(taken)
        covers = broadcast_keeps(shape, rw.shape(test)) and broadcast_keeps(shape, rw.shape(other))
        if covers and _filled(rw, test, value):
            return taken
    return None


def same_pair(rw: Rewriter, node: gs.Node) -> Any:
    """Max(x, x), And(x, x)."""
    x = edit.get(node, 0)
    return x if len(node.inputs) > 1 and all(t is x for t in node.inputs) else None
