"""One constant factor for each channel, as of layer scale, into the weight and bias behind it, across Transposes.

c · (x·W + b) is x·(W·c) + b·c, channel by channel, and a Transpose only moves the channels elsewhere. Differs by float
rounding. Where nothing stands between product and factor, the rules of `affine` have the same effect.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ..rewrite import Outcome, Rewriter, Rule
from . import affine
from .scaling import scale_bias, writable_bias


def _layer_scale(rw: Rewriter, node: gs.Node) -> Outcome:
    """Mul or Div by a constant for each channel of a product with constant weight, its bias and Transposes between."""
    found = _factors(rw, node)
    if found is None or not rw.can_replace(node.outputs[0], found[0]):
        return None
    x, scale, axis = found
    tensor, axis = _across_transposes(rw, x, axis)
    add = _bias(rw, tensor, axis)
    made = tensor if add is None else next(t for t in add.inputs if not isinstance(t, gs.Constant))
    target = rw.inner(made, "MatMul", "Gemm", "Conv", "ConvTranspose")
    lin = None if target is None else affine.linear(rw, target)
    if target is None or lin is None or (axis, len(scale)) != (lin.axis, lin.count) or made is x:
        return None
    if not affine.writable(rw, target) or (add is not None and not writable_bias(rw, add)):
        return "the weight is used elsewhere"
    if not rw.together(node, target):
        return None
    scale = scale.astype(affine.work(lin.weight.dtype))
    wrote = affine.write(rw, target, lin, affine.scaled_out(lin, scale), None if lin.bias is None else lin.bias * scale)
    if wrote is not True:
        return wrote
    if add is not None:
        scale_bias(rw, add, scale)
    return rw.replace(node.outputs[0], x)


def _factors(rw: Rewriter, node: gs.Node) -> tuple[Any, np.ndarray, int] | None:
    """For x · c or x / c with c along one axis of x: x, the factors, and the axis."""
    for at in (1, 0) if node.op == "Mul" else (1,):
        x, c = node.inputs[1 - at], rw.small(node.inputs[at])
        rank = rw.rank(x)
        if (
            c is None
            or isinstance(x, gs.Constant)
            or rank is None
            or c.ndim > rank
            or c.dtype.name not in affine.FLOATS
        ):
            continue
        wide = [k for k, d in enumerate(c.shape) if d != 1]
        if len(wide) != 1 or not np.all(np.isfinite(c)) or not np.all(c):
            continue
        values = c.reshape(-1).astype(affine.work(c.dtype))
        return x, values if node.op == "Mul" else 1 / values, wide[0] + rank - c.ndim
    return None


def _across_transposes(rw: Rewriter, tensor: Any, axis: int) -> tuple[Any, int]:
    """What a chain of Transposes that nobody else reads moves, and where its axis was."""
    while (node := rw.inner(tensor, "Transpose")) is not None:
        perm = list(node.attrs.get("perm", ()))
        if sorted(perm) != list(range(rw.rank(tensor) or 0)):
            break
        tensor, axis = node.inputs[0], perm[axis]
    return tensor, axis


def _bias(rw: Rewriter, tensor: Any, axis: int) -> gs.Node | None:
    """The Add of a constant along the last axis that makes a tensor, where that is the axis."""
    add, rank = rw.inner(tensor, "Add"), rw.rank(tensor)
    if add is None or rank is None or axis != rank - 1:
        return None
    constants = [t for t in add.inputs if isinstance(t, gs.Constant)]
    if len(constants) != 1 or len(constants[0].shape) > rank or any(d != 1 for d in constants[0].shape[:-1]):
        return None
    return add


RULES = (Rule("channel factors into weights", ("Mul", "Div"), _layer_scale, since=7),)
