"""Scales and shifts into the linear operator before or after them.

A linear operator's output y = W·x + b followed by s·y + t is (s·W)·x + (s·b + t); preceded by s·x + t it is
(W·s)·x + (W·t + b), the latter only where no padding puts zeros beside the shifted x. Products are formed in the
weight's own precision (at least float32), as ONNX Runtime does when it fuses at load, so what it would have run is
what it runs; against the spelled-out form the result differs by the rounding of one multiplication and addition.

A shift that stands before is taken in only where it is not much larger than what it leaves: x − 10⁶ is exact for x near
10⁶, while W·x and W·10⁶ are each rounded before they cancel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import edit, ops
from ..fold.fills import compact, is_fill
from ..rewrite import Outcome, Rewriter, Rule
from . import gelu

FLOATS = ("float16", "float32", "float64")
# A weight that others read too is copied only below this size (bytes): files must not grow.
COPY_LIMIT = 1024
# How many times larger than what it leaves a shift before a product may be: 128 times cost 7 of float32's 24 bits, and
# leave 1e-5; the means of images (0 to 255) are within it. Of float16's 11 bits it may cost 2.
MOST_SHIFT = {"float16": 2.0**2, "float32": 2.0**7, "float64": 2.0**32}
LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def work(dtype: Any) -> Any:
    """The precision in which weights are combined."""
    return np.promote_types(dtype, np.float32)


@dataclass(frozen=True)
class Affine:
    """s·y + t per channel: arrays of length C, or of length 1 for all channels.

    spread: how large the results are taken to be, where nothing but the constants is known.
    """

    scale: np.ndarray
    shift: np.ndarray
    spread: float = 1.0


def channel_vector(rw: Rewriter, tensor: Any, rank: int, axis: int, count: int) -> np.ndarray | None:
    """A float constant that varies along one axis at most, of length `count` or 1."""
    if not isinstance(tensor, gs.Constant) or np.dtype(tensor.dtype).name not in FLOATS:
        return None
    shape = [1] * (rank - len(tensor.shape)) + list(tensor.shape)
    if len(shape) > rank or shape[axis] not in (1, count) or any(d != 1 for k, d in enumerate(shape) if k != axis):
        return None
    return tensor.values.reshape(-1).astype(work(tensor.dtype))


def batch_norm(rw: Rewriter, node: gs.Node, count: int) -> Affine | None:
    """An inference-mode BatchNormalization with constant parameters as an affine map."""
    if ops.trains(node):
        return None
    if rw.opset < 7 and not node.attrs.get("is_test", 0):
        return None
    if node.attrs.get("spatial", 1) != 1:
        return None
    found = [rw.const(t) for t in node.inputs[1:5]]
    if len(found) != 4 or any(v is None or v.shape != (count,) for v in found):
        return None
    gamma, beta, mean, var = (v.astype(work(v.dtype)) for v in found if v is not None)
    with np.errstate(all="ignore"):
        scale = gamma / np.sqrt(var + var.dtype.type(node.attrs.get("epsilon", 1e-5)))
        spread = float(np.max(np.abs(gamma) + np.abs(beta), initial=0.0))
        return Affine(scale, beta - mean * scale, spread)


def arithmetic(rw: Rewriter, node: gs.Node, x: Any, rank: int, axis: int, count: int) -> Affine | None:
    """Add, Sub, Mul or Div of `x` and a per-channel constant as an affine map."""
    if len(node.inputs) != 2 or node.inputs[0] is node.inputs[1] or (rw.opset < 7 and "axis" in node.attrs):
        return None
    at = 0 if node.inputs[0] is x else 1
    c = channel_vector(rw, node.inputs[1 - at], rank, axis, count)
    if c is None:
        return None
    one, zero = np.ones(1, c.dtype), np.zeros(1, c.dtype)
    if node.op == "Add":
        return Affine(one, c)
    if node.op == "Sub":
        return Affine(one, -c) if at == 0 else Affine(-one, c)
    if node.op == "Mul":
        return Affine(c, zero)
    if node.op == "Div" and at == 0 and np.all(c != 0):
        return Affine(1.0 / c, zero)
    return None


@dataclass(frozen=True)
class Linear:
    """The constant parts of a linear node.

    weight: the array; out_axis and in_axis of it; count: output channels; bias: of length `count` or None;
    rank and axis: of the output, and where its channels are; groups: of a convolution.
    """

    weight: np.ndarray
    out_axis: int
    in_axis: int
    count: int
    bias: np.ndarray | None
    rank: int
    axis: int
    groups: int = 1


def linear(rw: Rewriter, node: gs.Node) -> Linear | None:
    """Read a linear node with constant weight; None when it is not one that can be edited."""
    w = rw.const(edit.get(node, 1))
    if w is None or w.dtype.name not in FLOATS or w.ndim < 2:
        return None
    if node.op in ("Conv", "ConvTranspose"):
        return _convolution(rw, node, w)
    if w.ndim != 2:
        return None
    if node.op == "MatMul":
        rank = rw.rank(node.inputs[0])
        return None if rank is None or rank < 2 else Linear(w, 1, 0, w.shape[1], None, rank, rank - 1)
    if node.attrs.get("alpha", 1.0) != 1.0 or node.attrs.get("beta", 1.0) != 1.0 or node.attrs.get("transA", 0):
        return None
    out = 0 if node.attrs.get("transB", 0) else 1
    count = w.shape[out]
    given = edit.get(node, 2)
    bias = None if given is None else channel_vector(rw, given, 2, 1, count)
    if given is not None and bias is None:
        return None
    return Linear(w, out, 1 - out, count, bias, 2, 1)


def _convolution(rw: Rewriter, node: gs.Node, w: np.ndarray) -> Linear | None:
    groups = int(node.attrs.get("group", 1))
    out = 0 if node.op == "Conv" else 1
    count = w.shape[0] if node.op == "Conv" else w.shape[1] * groups
    given = edit.get(node, 2)
    bias = None if given is None else rw.const(given)
    if given is not None and (bias is None or bias.shape != (count,)):
        return None
    return Linear(w, out, 1 - out, count, None if bias is None else bias.astype(work(bias.dtype)), w.ndim, 1, groups)


def scaled_out(lin: Linear, scale: np.ndarray) -> np.ndarray:
    """The weight with output channels multiplied."""
    weight = lin.weight.astype(work(lin.weight.dtype))
    scale = np.broadcast_to(scale, (lin.count,))
    if lin.groups > 1 and lin.out_axis == 1:  # ConvTranspose: [C_in, C_out/groups, ...], inputs in group order
        blocks = weight.reshape(lin.groups, -1, *weight.shape[1:])
        return (blocks * scale.reshape(lin.groups, 1, -1, *[1] * (weight.ndim - 2))).reshape(weight.shape)
    return weight * _along(scale, weight.ndim, lin.out_axis)


def scaled_in(lin: Linear, scale: np.ndarray) -> np.ndarray:
    """The weight with input channels multiplied. For a grouped Conv `scale` covers all groups."""
    weight = lin.weight.astype(work(lin.weight.dtype))
    if lin.groups > 1 and lin.out_axis == 0 and scale.size > 1:
        blocks = weight.reshape(lin.groups, -1, *weight.shape[1:])
        return (blocks * scale.reshape(lin.groups, 1, -1, *[1] * (weight.ndim - 2))).reshape(weight.shape)
    return weight * _along(scale, weight.ndim, lin.in_axis)


def _along(vector: np.ndarray, rank: int, axis: int) -> np.ndarray:
    return vector.reshape([-1 if k == axis else 1 for k in range(rank)])


def in_channels(lin: Linear) -> int:
    """Channels of the input of a linear node."""
    size = lin.weight.shape[lin.in_axis]
    return size * lin.groups if lin.out_axis == 0 else size


def writable(rw: Rewriter, node: gs.Node) -> bool:
    """Whether a new weight may take the place of the old one without leaving both in the file."""
    w = node.inputs[1]
    return (len(w.outputs) == 1 and not rw.is_output(w)) or w.values.nbytes <= COPY_LIMIT or is_fill(w.values)


def write(rw: Rewriter, node: gs.Node, lin: Linear, weight: np.ndarray, bias: np.ndarray | None) -> Outcome:
    """Give the node its new weight and bias; a reason where they cannot be stored."""
    dtype = lin.weight.dtype
    with np.errstate(all="ignore"):
        new = weight.astype(dtype)
        shift = None if bias is None else np.ascontiguousarray(np.broadcast_to(bias, (lin.count,)).astype(dtype))
    if not np.all(np.isfinite(new)) or (shift is not None and not np.all(np.isfinite(shift))):
        return "the combined weight would not be finite"
    if is_fill(lin.weight):
        new = compact(new)
        if not is_fill(new) and new.nbytes > COPY_LIMIT:
            return "the weight is one value many times, and would have to be stored in full"
    inputs = [node.inputs[0], rw.constant(node.inputs[1].name, new)]
    if shift is not None:
        given = edit.get(node, 2)
        inputs.append(rw.constant(given.name if given is not None else f"{node.name}_bias", shift))
        if node.op == "MatMul":
            node.op = "Gemm"
    return rw.rewire(node, inputs)


def _after(rw: Rewriter, node: gs.Node) -> Outcome:
    """Linear → BatchNormalization, Add, Sub, Mul or Div of a per-channel constant."""
    if not any(isinstance(t, gs.Constant) for t in node.inputs):
        return None  # before any weight is looked at: those may be large and still in the file
    for x in range(1 if node.op == "BatchNormalization" else len(node.inputs)):
        tensor = node.inputs[x]
        target = rw.maker(tensor, *LINEAR)
        if target is None:
            continue
        lin = linear(rw, target)
        if lin is None:
            continue
        affine = _map(rw, node, tensor, lin.rank, lin.axis, lin.count)
        if affine is None:
            continue
        return _absorb_after(rw, node, target, lin, affine)
    return None


def _map(rw: Rewriter, node: gs.Node, x: Any, rank: int, axis: int, count: int) -> Affine | None:
    if node.op == "BatchNormalization":
        return batch_norm(rw, node, count) if axis == 1 else None
    return arithmetic(rw, node, x, rank, axis, count)


def _absorb_after(rw: Rewriter, node: gs.Node, target: gs.Node, lin: Linear, affine: Affine) -> Outcome:
    middle = target.outputs[0]
    if not rw.sole(middle):
        return "the value before it is used elsewhere"
    if not rw.together(node, target):
        return "the linear operator stands in another graph"
    shifts = bool(np.any(affine.shift))
    if target.op == "MatMul" and shifts and (lin.rank != 2 or rw.opset < 7):
        return None  # a batched MatMul has no bias
    if target.op == "Gemm" and shifts and rw.opset < 7:
        return None
    scales = bool(np.any(affine.scale != 1))
    if scales and not writable(rw, target):
        return "the weight is shared"
    bias = np.zeros(1, affine.shift.dtype) if lin.bias is None else lin.bias
    with np.errstate(all="ignore"):
        bias = affine.scale * bias + affine.shift
    keep = lin.bias is not None or shifts
    if not rw.can_replace(node.outputs[0], middle):
        return "the name of a graph output cannot move"
    outcome: Outcome = True  # what neither scales nor shifts just goes
    if not scales and shifts:
        outcome = _write_bias(rw, target, lin, bias)
    elif scales:
        outcome = write(rw, target, lin, scaled_out(lin, affine.scale), bias if keep else None)
    if outcome is not True:
        return outcome
    return rw.replace(node.outputs[0], middle)


def _write_bias(rw: Rewriter, node: gs.Node, lin: Linear, bias: np.ndarray) -> Outcome:
    with np.errstate(all="ignore"):
        shift = np.ascontiguousarray(np.broadcast_to(bias, (lin.count,)).astype(lin.weight.dtype))
    if not np.all(np.isfinite(shift)):
        return "the combined bias would not be finite"
    if node.op == "MatMul":
        node.op = "Gemm"
    return rw.rewire(node, [node.inputs[0], node.inputs[1], rw.constant(f"{node.name}_bias", shift)])


def _before(rw: Rewriter, node: gs.Node) -> Outcome:
    """BatchNormalization, Add, Sub, Mul or Div of a per-channel constant → linear."""
    inner = rw.maker(node.inputs[0], "BatchNormalization", "Add", "Sub", "Mul", "Div")
    if inner is None or not any(isinstance(t, gs.Constant) for t in inner.inputs):
        return None
    lin = None if gelu.closes(rw, inner) else linear(rw, node)
    if lin is None:
        return None
    count = in_channels(lin)
    rank = rw.rank(node.inputs[0]) if node.op == "MatMul" else lin.rank
    axis = lin.axis
    for x in inner.inputs[:1] if inner.op == "BatchNormalization" else inner.inputs:
        if isinstance(x, gs.Constant) or rank is None or rw.rank(x) != rank:
            continue
        shape = rw.shape(x)
        if shape is None or shape[axis] != count:
            continue  # x itself might be broadcast along the channels
        affine = _map(rw, inner, x, rank, axis, count)
        if affine is not None:
            return _absorb_before(rw, node, inner, x, lin, affine)
    return None


def _padded(node: gs.Node) -> bool:
    return any(node.attrs.get("pads", [])) or node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")


def _absorb_before(rw: Rewriter, node: gs.Node, inner: gs.Node, x: Any, lin: Linear, affine: Affine) -> Outcome:
    if not rw.sole(node.inputs[0]):
        return "the value before it is used elsewhere"
    shifts = bool(np.any(affine.shift))
    if shifts and node.op == "ConvTranspose":
        return "a shift before a transposed convolution does not reach all of its outputs alike"
    if shifts and node.op == "Conv" and _padded(node):
        return "the convolution pads, and a shift before it does not reach the padding"
    if shifts and (rw.opset < 7 or (node.op == "MatMul" and lin.rank != 2)):
        return None
    if float(np.max(np.abs(affine.shift), initial=0.0)) > MOST_SHIFT[lin.weight.dtype.name] * affine.spread:
        return "the shift before it is so large that its product would be rounded more than what is left of it"
    if not writable(rw, node):
        return "the weight is shared"
    weight = scaled_in(lin, affine.scale)
    bias = lin.bias
    if shifts:
        moved = _contract(lin, np.broadcast_to(affine.shift, (in_channels(lin),)))
        bias = moved if bias is None else bias + moved
    outcome = write(rw, node, lin, weight, bias)
    if outcome is not True:
        return outcome
    return rw.rewire(node, [x, *list(node.inputs)[1:]])


def _contract(lin: Linear, shift: np.ndarray) -> np.ndarray:
    """W·t: what a constant input t per channel gives, per output channel (no padding)."""
    product = scaled_in(lin, shift.astype(np.float64))
    return product.sum(axis=tuple(k for k in range(product.ndim) if k != lin.out_axis))


RULES = (
    Rule("batch norms absorbed", ("BatchNormalization",), _after),
    Rule("scales and shifts absorbed", ("Mul", "Div", "Add", "Sub"), _after),
    Rule("scales and shifts absorbed", ("Conv", "ConvTranspose", "Gemm", "MatMul"), _before),
)
