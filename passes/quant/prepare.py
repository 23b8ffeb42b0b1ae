"""What is spelled otherwise before placement, so that integers need not be left for it. Exact to rounding.

Pads and means over space have no integer kernel in ONNX Runtime, and a strided Slice has one but no blocked layout:
shortcuts that thin out a tensor and pad its channels are a 1×1 convolution with ones and zeros (exact in 8 bits), which
also lets the sum behind it fuse in float; a mean over all of space is a global pool. Dilated means are kept from
becoming integers, which ONNX Runtime would not load.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import Model, edit, order, shapes
from ..fuse import sums
from ..fuse.padding import pads_of
from ..operands import given_axes, slice_bounds
from ..rewrite import Outcome, Rewriter, Rule
from ..target import Target

WIDEST = 4096  # weights of such a convolution: beyond, its products cost more than the conversions


def prepare(model: Model, excluded: Callable[[gs.Node], bool]) -> int:
    """Edit `model` in place, but for excluded nodes; returns how many nodes became something else."""
    counts, _ = Rewriter(model).run((*(_but(rule, excluded) for rule in RULES), _ASIDE))
    if counts:
        order.sort(model)
        shapes.refresh(model)
    return sum(counts.values())


def finish(model: Model, target: Target) -> None:
    """What `prepare` took apart and placement left float, put together again for ONNX Runtime; and what OpenVINO would
    compute otherwise than the file says, spelled in another way."""
    integers = any(n.op == "QuantizeLinear" for n in model.graph.nodes)
    rules = [] if integers else [_BACK]
    if target.runtime == "onnxruntime":
        rules.append(sums.NORMALIZED)
    elif target.runtime == "openvino" and integers:
        rules.append(_KEPT)
    if rules and Rewriter(model).run(rules)[0]:
        order.sort(model)


def _but(rule: Rule, excluded: Callable[[gs.Node], bool]) -> Rule:
    """The rule for nodes that are not excluded, nor read from one that is."""

    def apply(rw: Rewriter, node: gs.Node) -> Outcome:
        near = (node, *(maker for tensor in node.inputs for maker in tensor.inputs))
        return None if any(excluded(n) for n in near) else rule.apply(rw, node)

    return replace(rule, apply=apply)


def _shortcut(rw: Rewriter, node: gs.Node) -> Outcome:
    """Zeros padded around the channels of every second row and column: a convolution that copies."""
    thin = rw.inner(node.inputs[0], "Slice")
    if thin is None or not rw.together(node, thin) or not _is_float(thin.inputs[0]):
        return None
    x = thin.inputs[0]
    pads, steps, shape = pads_of(rw, node, 4), _steps(rw, thin), rw.shape(x)
    if pads is None or steps is None or shape is None or len(shape) != 4 or not isinstance(shape[1], int):
        return None
    begin, end, value = pads
    outside = begin[:1] + begin[2:] + end[:1] + end[2:]
    if value != 0 or any(outside) or min(begin[1], end[1]) < 0 or rw.maker(x, "Conv", "Relu", "Add", "Clip") is None:
        return None
    width = begin[1] + shape[1] + end[1]
    if width * shape[1] > WIDEST:
        return f"a copying convolution of {shape[1]} to {width} channels would cost more"
    weight = np.zeros((width, shape[1], 1, 1), np.float32)
    weight[begin[1] + np.arange(shape[1]), np.arange(shape[1])] = 1
    attrs = {"kernel_shape": [1, 1], "strides": list(steps)}
    return rw.become(node, "Conv", [x, rw.constant(f"{node.name}_copy", weight)], attrs)


def _steps(rw: Rewriter, node: gs.Node) -> tuple[int, int] | None:
    """Strides along rows and columns of a Slice that begins at 0, runs to the end and cuts nothing else."""
    bounds = slice_bounds(rw, node)
    size = rw.static_tail(node.inputs[0], -2)
    if bounds is None:
        return None
    found = {2: 1, 3: 1}
    for start, end, axis, step in zip(*bounds):
        at = axis + 4 if axis < 0 else axis
        whole = end >= (2**31 - 1 if size is None else size[at - 2]) if at in found else False
        if not whole or start != 0 or step < 1:
            return None
        found[at] = step
    return found[2], found[3]


def _mean(rw: Rewriter, node: gs.Node) -> Outcome:
    """A mean over rows and columns that drops them: a global pool, flattened."""
    axes = given_axes(rw, node)
    if rw.rank(node.inputs[0]) != 4 or not axes or node.attrs.get("keepdims", 1) or not _is_float(node.inputs[0]):
        return None
    if sorted(a % 4 for a in axes) != [2, 3] or rw.is_output(node.outputs[0]):
        return None
    pooled = rw.insert(node, "GlobalAveragePool", [node.inputs[0]], out=rw.variable(node.inputs[0], node.name))
    return rw.become(node, "Flatten", [pooled], {"axis": 1})


def _biased(rw: Rewriter, node: gs.Node) -> Outcome:
    """[..., K] times a matrix, and a bias: a Gemm of rows, whose integer kernel adds the bias in 32 bits. As MatMul and
    Add the product is rounded to 8 bits before the bias, and the bias as well."""
    for at in (0, 1):
        product = rw.inner(node.inputs[at], "MatMul") if len(node.inputs) == 2 else None
        if product is None or not rw.together(node, product):
            continue
        x, w, bias = product.inputs[0], edit.const(product, 1), edit.const(node, 1 - at)
        shape = None if not _is_float(x) else rw.shape(x)
        if shape is None or len(shape) < 3 or w is None or w.ndim != 2 or bias is None:
            continue
        lead = [d if isinstance(d, int) else -1 for d in shape[:-1]]
        if bias.shape[-1:] != (w.shape[1],) or bias.size != w.shape[1] or bias.ndim > len(shape) or lead.count(-1) > 1:
            continue
        return _rows(rw, node, product, edit.constant(rw.model, f"{node.name}_bias", bias.reshape(-1)), lead)
    return None


def _rows(rw: Rewriter, node: gs.Node, product: gs.Node, bias: gs.Constant, lead: list[int]) -> bool:
    """The sum as Reshape, Gemm, (Relu,) Reshape: the Relu before the Reshape, so that it folds into the product."""
    x, w, out = product.inputs[0], product.inputs[1], product.outputs[0]
    relu = node.outputs[0].outputs[0] if rw.sole(node.outputs[0]) else None
    last = relu if relu is not None and relu.op == "Relu" and rw.together(node, relu) else node
    flat = next((r.outputs[0] for r in x.outputs if rw.together(node, r) and _flattens(rw, r, w.shape[0])), None)
    if flat is None:
        flat = rw.insert(node, "Reshape", [x, rw.constant("rows", np.array([-1, w.shape[0]]))])
        flat.dtype, flat.shape = x.dtype, [None, w.shape[0]]
    out.shape = [None, w.shape[1]]
    rw.become(product, "Gemm", [flat, w, bias])
    if last is not node:
        out = rw.insert(node, "Relu", [out], out=rw.variable(out, shape=out.shape))
    return rw.become(last, "Reshape", [out, rw.constant("shape", np.array([*lead, w.shape[1]]))])


def _undilated(rw: Rewriter, node: gs.Node) -> Outcome:
    """Dilations of one are none; ONNX Runtime's integer pool does not know the attribute."""
    if "dilations" not in node.attrs or set(node.attrs["dilations"]) != {1}:
        return None
    del node.attrs["dilations"]
    return True


def _aside(rw: Rewriter, node: gs.Node) -> Outcome:
    """A dilated mean stays float, but ONNX Runtime makes integers of every AveragePool between a DequantizeLinear and a
    QuantizeLinear, and then refuses the dilations: a Max with -∞, no copy to anyone, holds the two apart."""
    out = node.outputs[0]
    if "dilations" not in node.attrs or not _is_float(out) or any(_is_copy(rw, r) for r in rw.readers(out)):
        return None
    pooled = rw.insert(node, node.op, node.inputs, dict(node.attrs), rw.variable(out, shape=rw.shape(out)))
    return rw.become(node, "Max", [pooled, rw.constant(f"{node.name}_least", np.float32(-np.inf))])


def _back(rw: Rewriter, node: gs.Node) -> Outcome:
    if not _is_copy(rw, node) or rw.maker(node.inputs[0], "AveragePool") is None:
        return None
    return rw.replace(node.outputs[0], node.inputs[0]) or None


def _is_copy(rw: Rewriter, node: gs.Node) -> bool:
    return node.op == "Max" and len(node.inputs) == 2 and rw.scalar(node.inputs[1]) == -np.inf


def _kept(rw: Rewriter, node: gs.Node) -> Outcome:
    """A maximum that drops its axes, as one that keeps them and a Squeeze: OpenVINO 2026.4 hands values that are wrong
    (by 5 % RMS) to an integer product behind the first."""
    axes = given_axes(rw, node)
    if node.attrs.get("keepdims", 1) or not axes or not _is_float(node.inputs[0]) or rw.model.opset < 13:
        return None
    kept = rw.insert(node, node.op, node.inputs, {**node.attrs, "keepdims": 1}, rw.variable(node.outputs[0]))
    return rw.become(node, "Squeeze", [kept, rw.constant(f"{node.name}_axes", np.array(axes))])


def _flattens(rw: Rewriter, reader: gs.Node, width: int) -> bool:
    return reader.op == "Reshape" and rw.ints(edit.get(reader, 1)) == [-1, width]


def _is_float(tensor: Any) -> bool:
    return tensor.dtype is not None and np.dtype(tensor.dtype) == np.float32


RULES = (
    *sums.APART,
    Rule("biased products as rows", ("Add",), _biased),
    Rule("shortcuts as convolutions", ("Pad",), _shortcut),
    Rule("means as global pools", ("ReduceMean",), _mean),
    Rule("dilations of one dropped", ("AveragePool",), _undilated),
)
_ASIDE = Rule("dilated means kept apart", ("AveragePool",), _aside)  # of excluded nodes too: they would be integers
_BACK = Rule("dilated means as they were", ("Max",), _back)
_KEPT = Rule("maxima that keep their axes", ("ReduceMax",), _kept)
