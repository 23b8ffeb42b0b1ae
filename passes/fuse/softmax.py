"""Softmax and LogSoftmax spelled out, as the operator.

The operator subtracts the maximum, divides and takes the logarithm in its own order: results differ by float rounding.
Where the spelled-out form subtracts the maximum too, both give NaN for the same rows. Without the maximum exp
overflows where Softmax does not, so that form is taken only of values that are surely small.
"""

from __future__ import annotations

from typing import Any

import onnx_graphsurgeon as gs

from ..rewrite import Outcome, Rewriter, Rule
from .bounds import bounds
from .factors import is_float
from .reshape import given_axes

# exp of numbers up to this is finite in float16 and float32 and far from zero, and a sum of many such is finite.
_MODEST = 8.0
# Operators whose outputs lie in [-1, 1].
_SMALL = ("Sigmoid", "Tanh", "HardSigmoid", "Softmax", "Softsign", "Erf", "Sin", "Cos")


def _one_axis(rw: Rewriter, tensor: Any, x: Any, op: str) -> int | None:
    """The axis (of the tensor's rank) over which `tensor` is the kept `op` of `x`."""
    node, rank = rw.maker(tensor, op), rw.rank(x)
    if node is None or node.inputs[0] is not x or not rank or not node.attrs.get("keepdims", 1):
        return None
    axes = given_axes(rw, node)
    return axes[0] % rank if axes is not None and len(axes) == 1 and -rank <= axes[0] < rank else None


def _source(rw: Rewriter, exponent: Any, axis: int) -> Any:
    """For x - max(x), or x that is surely small: x; None where exp could overflow."""
    sub = rw.maker(exponent, "Sub")
    if sub is not None and _one_axis(rw, sub.inputs[1], sub.inputs[0], "ReduceMax") == axis:
        return sub.inputs[0]
    clip = rw.maker(exponent, "Clip")
    low, high = (clip is not None and bounds(rw, clip)) or (None, None)
    modest = low is not None and high is not None and max(abs(float(low)), abs(float(high))) <= _MODEST
    return exponent if modest or rw.maker(exponent, *_SMALL) is not None else None


def _written(rw: Rewriter, node: gs.Node, op: str, x: Any, axis: int) -> Outcome:
    rank = rw.rank(x)
    if rank is None or not is_float(x):
        return None
    if (
        axis != rank - 1
    ):  # measured: up to 4 times slower, as it transposes; and below opset 13 it means all that follow
        return f"ONNX Runtime is slower at {op} over an inner axis"
    return rw.become(node, op, [x], {"axis": -1})


def _softmax(rw: Rewriter, node: gs.Node) -> Outcome:
    """exp(x - max(x)) / sum(exp(x - max(x))) over one axis."""
    exp = rw.maker(node.inputs[0], "Exp")
    axis = None if exp is None else _one_axis(rw, node.inputs[1], node.inputs[0], "ReduceSum")
    total = rw.inner(node.inputs[1], "ReduceSum")
    if exp is None or axis is None or total is None or rw.is_output(node.inputs[0]):
        return None
    if len(rw.readers(node.inputs[0])) != 2 or not rw.together(node, exp, total):
        return None
    x = _source(rw, exp.inputs[0], axis)
    if x is None:
        return "without its maximum subtracted exp can overflow where Softmax does not"
    return _written(rw, node, "Softmax", x, axis)


def _log_softmax(rw: Rewriter, node: gs.Node) -> Outcome:
    """d - log(sum(exp(d))) with d = x - max(x), or x - ReduceLogSumExp(x), over one axis."""
    d = node.inputs[0]
    axis = _one_axis(rw, node.inputs[1], d, "ReduceLogSumExp")
    if axis is not None and rw.inner(node.inputs[1]) is not None:
        return _written(rw, node, "LogSoftmax", d, axis)
    log = rw.inner(node.inputs[1], "Log")
    total = None if log is None else rw.inner(log.inputs[0], "ReduceSum")
    exp = None if total is None else rw.inner(total.inputs[0], "Exp")
    if log is None or total is None or exp is None or exp.inputs[0] is not d or not rw.together(node, log, total, exp):
        return None
    axis = _one_axis(rw, log.inputs[0], total.inputs[0], "ReduceSum")
    x = None if axis is None else _source(rw, d, axis)
    return None if x is None or axis is None else _written(rw, node, "LogSoftmax", x, axis)


RULES = (
    Rule("Softmax", ("Div",), _softmax),
    Rule("LogSoftmax", ("Sub",), _log_softmax),
)
