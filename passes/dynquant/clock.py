"""What a layer gains on this machine: alone, in float and in its dynamic form, in turns, at its real input size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ... import ir
from ...ir import Model, edit, shapes
from ...ir.model import Header
from ...runtime import latency
from ..quant import storage
from ..target import Target
from .emit import Emitter
from .layers import CONTRIB, Layer

SECONDS = 0.15
OPSET = 13


@dataclass
class Clock:
    """Gains of layers, one timing for all layers of a shape. sizes: {tensor: its shape on the first feed}."""

    threads: int
    timings: Any
    sizes: Mapping[str, tuple[int, ...]]
    known: dict[Any, tuple[float, float]] = field(default_factory=dict)

    def gain(self, layer: Layer) -> tuple[float, float] | None:
        """(float, dynamic) milliseconds; None when the size of the layer's input is not known."""
        x = layer.node.inputs[0]
        size = self.sizes.get(x.name) or shapes.of(x)
        if size is None or not shapes.is_static(size):
            return None
        node = layer.node
        weights = tuple(tuple(node.inputs[k].shape) for k in layer.weights)
        key = (node.op, tuple(size), weights, repr(sorted((k, str(v)) for k, v in node.attrs.items())))
        if key not in self.known:
            before = alone(layer, size)
            after = before.copy()
            dynamic(after)
            pair = [ir.to_bytes(before), ir.to_bytes(after)]
            self.known[key] = tuple(  # type: ignore[assignment]
                latency.time_models(pair, threads=self.threads, timings=self.timings, seconds=SECONDS)
            )
        return self.known[key]


def alone(layer: Layer, size: tuple[int, ...]) -> Model:
    """A model of nothing but this layer, with seeded weights."""
    node = layer.node
    x, y = gs.Variable("x", np.float32, list(size)), gs.Variable("y", np.float32, None)
    graph = gs.Graph([], [x], [y], name="layer", opset=OPSET)
    model = Model(graph, Header(ir_version=8, opsets={"": OPSET, CONTRIB: 1}))
    inputs: list[Any] = [x]
    for k in range(1, min(len(node.inputs), 4)):  # of an LSTM: without states, which are computed
        held = edit.get(node, k)
        inputs.append(
            edit.constant(model, f"c{k}", _noise(tuple(held.shape))) if isinstance(held, gs.Constant) else None
        )
    edit.add(graph, edit.node(model, node.op, inputs, dict(node.attrs), [y], "layer"))
    return model


def dynamic(model: Model) -> None:
    """Turn the one layer of a model into its dynamic form."""
    node = model.graph.nodes[0]
    layer = Layer(node, model.graph, (1, 2) if node.op == "LSTM" else (1,))
    integers = {layer.key(k): pack(layer, k, 127) for k in layer.weights}
    Emitter(model, integers).rewrite(layer)
    ir.order.sort(model)


def pack(layer: Layer, index: int, top: int) -> Any:
    """A weight rounded to nearest, one scale an output channel (or gate and unit)."""
    (axis,) = [a for k, a in storage.places(layer.node) if k == index]
    return storage.pack(layer.node.inputs[index].values, axis, top)


def greatest(target: Target) -> int:
    """Greatest integer of a weight: dynamic ranges use all 8 bits of the activation, so that where pairs of products
    saturate every layer is at risk."""
    from ..quant.saturation import SAFE

    return SAFE if target.saturates else 127


def _noise(shape: tuple[int, ...]) -> np.ndarray:
    fan = float(np.prod(shape[1:])) or 1.0
    return (np.random.default_rng(list(shape)).standard_normal(shape) / np.sqrt(fan)).astype(np.float32)
