"""Little models as INT8 would run them: what pays in float may lose in integers, where layers take a third of the time
and each link of a chain costs a requantization."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import Model, edit, order
from ..target import Target

SOURCE = "integers_in"
ACTIVATION = np.float32(1 / 32)  # any scale will do: time does not depend on it


def kind_of(target: Target) -> Any:
    """The integer type of activations."""
    return np.dtype(np.uint8 if target.activation == "u8" else np.int8)


def quantized(model: Model, target: Target) -> Model:
    """A chain of Conv, Gemm and MatMul as quantize/dequantize pairs around integers, from integer input to output.

    The model (edited in place) must be nothing but this chain, with one float input and output.
    """
    kind = kind_of(target)
    zero = edit.constant(model, "zero", np.asarray(128 if kind == np.uint8 else 0, kind))
    scale = edit.constant(model, "scale", ACTIVATION)
    graph, x, y = model.graph, model.graph.inputs[0], model.graph.outputs[0]
    source = edit.variable(model, SOURCE, kind, list(x.shape))
    links = list(graph.nodes)
    edit.add(graph, edit.node(model, "DequantizeLinear", [source, scale, zero], None, [x]))
    for node in links:
        _weights(model, node)
        out = node.outputs[0]
        integers = edit.variable(model, "integers", kind)
        edit.add(graph, edit.node(model, "QuantizeLinear", [out, scale, zero], None, [integers]))
        if out is y:
            graph.outputs = [integers]
            continue
        back = edit.variable(model, "floats", np.float32)
        for reader in [n for n in out.outputs if n.op != "QuantizeLinear"]:
            edit.set_input(reader, 0, back)
        edit.add(graph, edit.node(model, "DequantizeLinear", [integers, scale, zero], None, [back]))
    graph.inputs = [source]
    order.sort(model)
    return model


def _weights(model: Model, node: gs.Node) -> None:
    """8-bit weights with a scale a channel and 32-bit biases."""
    values = np.asarray(node.inputs[1].values)
    axis = 0 if node.op == "Conv" or node.attrs.get("transB", 0) else values.ndim - 1
    scale = np.full(values.shape[axis], max(float(np.abs(values).max()) / 127, 1e-8), np.float32)
    edit.set_input(node, 1, _constant(model, np.rint(values / scale[0]).astype(np.int8), scale, axis))
    if len(node.inputs) > 2:
        bias = np.asarray(node.inputs[2].values)
        edit.set_input(node, 2, _constant(model, np.zeros(bias.shape, np.int32), ACTIVATION * scale, 0))


def _constant(model: Model, values: np.ndarray, scale: np.ndarray, axis: int) -> Any:
    out = edit.variable(model, "weight", np.float32, list(values.shape))
    inputs = [edit.constant(model, "held", values), edit.constant(model, "scale", scale)]
    if values.dtype == np.int8:
        inputs.append(edit.constant(model, "zero", np.zeros(scale.shape, np.int8)))
    edit.add(model.graph, edit.node(model, "DequantizeLinear", inputs, {"axis": axis}, [out]))
    return out
