"""From a chain of stages back to nodes: the layer's own geometry, its bias on the last stage, its output's name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import Model, edit
from .layer import CONVOLUTIONS, Layer, Stage
from .norm import Array


def put(
    model: Model, layer: Layer, stages: Sequence[Stage], shift: Array | None, label: str, source: Any | None = None
) -> list[gs.Node]:
    """Replace `layer.node` by the chain; `shift` (O,) is added to the bias. Returns the new nodes.

    source: what the chain reads, when it is not the layer's own input.

    The chain's last node writes the layer's own output tensor, so names and graph outputs stay.
    """
    node, output = layer.node, layer.node.outputs[0]
    source = node.inputs[0] if source is None else source
    bias = _bias(model, layer, shift)
    if layer.op == "MatMul" and shift is not None:
        _shift_add(model, layer, shift)
    edit.unlink(node)
    made = chain(model, layer, stages, source, output, label, bias)
    place = next(i for i, n in enumerate(model.graph.nodes) if n is node)
    model.graph.nodes = [*model.graph.nodes[:place], *made, *model.graph.nodes[place + 1 :]]
    return made


def chain(
    model: Model, layer: Layer, stages: Sequence[Stage], source: Any, output: Any, label: str, bias: Any | None
) -> list[gs.Node]:
    """Nodes of the chain from `source` to `output`, the last one with `bias` (or None); not yet in a graph."""
    made: list[gs.Node] = []
    for k, stage in enumerate(stages):
        last = k == len(stages) - 1
        name = f"{layer.node.name}_{label}{k}"
        inputs = [source, edit.constant(model, f"{name}_weight", _stored(layer, stage))]
        if last and bias is not None:
            inputs.append(bias)
        to = output if last else edit.variable(model, f"{name}_out", np.dtype(layer.dtype))
        op = layer.op if stage.axes or layer.op != "ConvTranspose" else "Conv"
        made.append(edit.node(model, op, inputs, _attrs(layer, stage, last), [to], name))
        source = to
    return made


def _stored(layer: Layer, stage: Stage) -> Array:
    """The stage's weight in the layout of the layer's own."""
    values = stage.weight.astype(layer.dtype, copy=False)
    if layer.op == "ConvTranspose" and stage.axes:
        blocks = values.reshape(stage.group, -1, *values.shape[1:])
        return np.ascontiguousarray(np.swapaxes(blocks, 1, 2)).reshape(-1, blocks.shape[1], *values.shape[2:])
    return np.ascontiguousarray(values if layer.op in CONVOLUTIONS or _transposed(layer) else values.T)


def _transposed(layer: Layer) -> bool:
    return layer.op == "Gemm" and bool(layer.node.attrs.get("transB", 0))


def _attrs(layer: Layer, stage: Stage, last: bool) -> dict[str, Any]:
    if layer.op in CONVOLUTIONS:
        return conv_attrs(layer, stage)
    return _gemm_attrs(layer, last) if layer.op == "Gemm" else {}


def conv_attrs(layer: Layer, stage: Stage) -> dict[str, Any]:
    """Attributes of one stage: stride, pads and dilation of the axes that it carries, nothing along the others."""
    g = layer.geometry
    own = [i in stage.axes for i in range(layer.rank)]
    attrs: dict[str, Any] = {
        "kernel_shape": [int(k) for k in stage.weight.shape[2:]],
        "strides": [s if o else 1 for s, o in zip(g.strides, own)],
        "dilations": [d if o else 1 for d, o in zip(g.dilations, own)],
        "group": stage.group,
    }
    if g.auto_pad != "NOTSET" and stage.axes:
        attrs["auto_pad"] = g.auto_pad
    elif g.auto_pad == "NOTSET":
        begin = [p[0] if o else 0 for p, o in zip(g.pads, own)]
        attrs["pads"] = begin + [p[1] if o else 0 for p, o in zip(g.pads, own)]
    if g.transposed and stage.axes and any(g.extra):
        attrs["output_padding"] = [e if o else 0 for e, o in zip(g.extra, own)]
    return attrs


def _gemm_attrs(layer: Layer, last: bool) -> dict[str, Any]:
    """alpha is in the weight; beta stays only with a C that could not be read as one bias a column."""
    attrs: dict[str, Any] = {"transB": int(_transposed(layer))}
    if last and not layer.adjustable:
        attrs["beta"] = float(layer.node.attrs.get("beta", 1.0))
    return attrs


def _bias(model: Model, layer: Layer, shift: Array | None) -> Any | None:
    """The bias input of the last stage."""
    if layer.op == "MatMul":
        return None
    if layer.bias is None and not layer.adjustable:
        return edit.get(layer.node, 2)
    total = layer.bias if shift is None else shift + (0.0 if layer.bias is None else layer.bias)
    if total is None:
        return None
    return edit.constant(model, f"{layer.node.name}_bias", np.asarray(total).astype(layer.dtype))


def _shift_add(model: Model, layer: Layer, shift: Array) -> None:
    """Move the constant of the Add behind a MatMul."""
    add = layer.slot
    if add is None:
        return
    index = next(i for i, t in enumerate(add.inputs) if isinstance(t, gs.Constant))
    old = add.inputs[index].values
    values = (old.reshape(-1) + shift).astype(old.dtype).reshape(old.shape)
    edit.set_input(add, index, edit.constant(model, f"{layer.node.name}_bias", values))
