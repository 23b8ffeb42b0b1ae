"""The dynamic form of a layer, in standard operators that ONNX Runtime fuses into one kernel.

    DynamicQuantizeLinear(x) → MatMulInteger(x_q, W_q, x_zero) → Cast(float) → Mul(x_scale · w_scale) → Add(bias)

A tensor that several layers read is quantized once in each graph. Convolutions have weights with zero point 128,
because ONNX Runtime's ConvInteger is several times slower with signed ones. An LSTM becomes ONNX Runtime's own
DynamicQuantizeLSTM, with a scale for every gate and unit.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from ...ir import Model, edit
from ..quant.weights import Packed
from .layers import CONTRIB, Layer

Key = tuple[str, bool]
LSTM_ATTRS = ("activation_alpha", "activation_beta", "activations", "clip", "direction", "hidden_size", "input_forget")


@dataclass
class Emitter:
    """Rewrites layers of one model. integers: {`Layer.key`: integers and scales of a weight}.

    shifts: the same, what a bias takes up of its error.
    """

    model: Model
    integers: dict[Key, Packed]
    shifts: dict[Key, np.ndarray] = field(default_factory=dict)
    _quantized: dict[tuple[int, int], list[gs.Variable]] = field(default_factory=dict)
    _constants: dict[tuple[Key, str], gs.Constant] = field(default_factory=dict)

    def rewrite(self, layer: Layer) -> None:
        """Put the dynamic form in the layer's place; its output tensor stays."""
        if layer.node.op == "LSTM":
            self._lstm(layer)
        else:
            self._product(layer)

    def _product(self, layer: Layer) -> None:
        node, graph = layer.node, layer.graph
        x, held = node.inputs[0], node.inputs[1]
        key, name, conv = layer.key(1), node.name, node.op == "Conv"
        packed = self.integers[key]
        xq, scale_x, zero_x = self._input(graph, x)
        values = packed.values if conv or not node.attrs.get("transB", 0) else packed.values.T
        inputs = [xq, self._constant(key, "int8", _unsigned(values) if conv else values), zero_x]
        attrs = dict(node.attrs) if conv else {}
        if conv:
            inputs.append(self._constant(key, "zero", np.asarray(128, np.uint8)))
        out, shape = node.outputs[0], node.outputs[0].shape
        rank = len(held.shape)
        w_scale = packed.scale.reshape(-1, *[1] * (rank - 2)) if conv else packed.scale
        sums = edit.variable(self.model, f"{name}_int32", np.int32, shape)
        wide = edit.variable(self.model, f"{name}_wide", np.float32, shape)
        both = edit.variable(self.model, f"{name}_scales", np.float32, list(w_scale.shape))
        real = edit.variable(self.model, f"{name}_real", np.float32, shape)
        bias = self._bias(layer, rank - 2 if conv else 0)
        last = out if bias is None else real
        edit.unlink(node)
        graph.nodes = [n for n in graph.nodes if n is not node]
        made = [
            self._node("ConvInteger" if conv else "MatMulInteger", inputs, sums, name, attrs),
            self._node("Cast", [sums], wide, f"{name}_Cast", {"to": int(TensorProto.FLOAT)}),
            self._node("Mul", [scale_x, self._constant(key, "scale", w_scale)], both, f"{name}_Scales"),
            self._node("Mul", [wide, both], last, f"{name}_Mul"),
        ]
        if bias is not None:
            made.append(self._node("Add", [real, bias], out, f"{name}_Add"))
        edit.add(graph, *made)

    def _bias(self, layer: Layer, spatial: int) -> gs.Tensor | None:
        """What is added behind the product: the layer's bias with the mean of its weight's error."""
        node = layer.node
        bias, shift = edit.get(node, 2), self.shifts.get(layer.key(1))
        if bias is None and shift is None:
            return None
        if isinstance(bias, gs.Variable):
            return bias  # of a Gemm: it broadcasts as the Add does
        values = np.zeros(1, np.float32) if bias is None else bias.values
        if node.op == "Conv":
            values = values.reshape(-1, *[1] * spatial)
        if shift is not None:
            values = values + shift.astype(np.float32).reshape(-1, *[1] * spatial)
        return edit.constant(self.model, f"{node.name}_bias", np.asarray(values, np.float32))

    def _input(self, graph: gs.Graph, x: gs.Variable) -> list[gs.Variable]:
        """Integers, scale and zero point of an activation, made once a graph."""
        key = (id(graph), id(x))
        if key not in self._quantized:
            outs = [
                edit.variable(self.model, f"{x.name}_q", np.uint8, x.shape),
                edit.variable(self.model, f"{x.name}_scale", np.float32, []),
                edit.variable(self.model, f"{x.name}_zero", np.uint8, []),
            ]
            edit.add(graph, edit.node(self.model, "DynamicQuantizeLinear", [x], None, outs, f"{x.name}_Q"))
            self._quantized[key] = outs
        return self._quantized[key]

    def _constant(self, key: Key, what: str, values: np.ndarray) -> gs.Constant:
        """A constant that belongs to a weight, made once."""
        if (key, what) not in self._constants:
            self._constants[key, what] = edit.constant(self.model, f"{key[0]}_{what}", np.ascontiguousarray(values))
        return self._constants[key, what]

    def _node(
        self, op: str, inputs: list[gs.Tensor], out: gs.Variable, name: str, attrs: dict[str, object] | None = None
    ) -> gs.Node:
        return edit.node(self.model, op, inputs, attrs, [out], name)

    def _lstm(self, layer: Layer) -> None:
        node = layer.node
        given = [edit.get(node, k) for k in range(8)]
        scales = []
        for k in (1, 2):
            key = layer.key(k)
            packed = self.integers[key]
            # [directions, 4·hidden, inputs] → [directions, inputs, 4·hidden], one scale for each of 4·hidden
            values = np.ascontiguousarray(np.swapaxes(packed.values, 1, 2))
            scale = packed.scale.reshape(values.shape[0], -1)
            given[k] = self._constant(key, "int8", values)
            scales += [
                self._constant(key, "scale", scale),
                self._constant(key, "zero", np.zeros(scale.shape, np.int8)),
            ]
        attrs = {k: v for k, v in node.attrs.items() if k in LSTM_ATTRS}
        outputs, name = list(node.outputs), node.name
        edit.unlink(node)
        layer.graph.nodes = [n for n in layer.graph.nodes if n is not node]
        new = edit.node(
            self.model, "DynamicQuantizeLSTM", [*given, *scales], attrs, outputs, f"{name}_int8", domain=CONTRIB
        )
        edit.add(layer.graph, new)
        self.model.header.opsets.setdefault(CONTRIB, 1)


def _unsigned(values: np.ndarray) -> np.ndarray:
    """Signed integers with zero point 128."""
    return (values.astype(np.int16) + 128).astype(np.uint8)
