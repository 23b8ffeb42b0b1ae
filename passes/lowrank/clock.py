"""What a split would cost on this machine: the layer and its chain as two little models, timed in turns.

Weights and feeds of the little models depend on shapes alone (seeded), so a timing is found again under its content
key for every layer of the same shape, and in the `--timings` file of an earlier run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ... import ir
from ...ir import Model, edit
from ...ir.model import Header
from ...ir.spill import spill
from ...runtime import latency
from ...runtime.loading import ModelLike, size
from ..bands import bands
from ..target import Target
from . import emit, heads
from .integers import SOURCE, kind_of, quantized
from .layer import CONVOLUTIONS, Layer, Stage
from .views import View, known

SECONDS = 0.1  # for one pair; the median of pairwise ratios settles sooner where the machine is quiet
SLOW_MACS = 3e8  # tens of milliseconds: three pairs say as much as seven short ones
ENOUGH_MACS = 1e8  # a batch is cut to samples that make as much: from there on the time of a sample stays the same
STRIP = 64  # rows of an image that are kept at least: its borders must not count
HELD = 4  # copies of inputs and outputs in two sessions: as they are, and blocked as kernels like them
LITTLE = 4 << 20  # bytes of weights that may be held several times over
OPSET, IR_VERSION = 13, 8  # Conv, MatMul and Gemm have not changed since


@dataclass
class Clock:
    """Times chains with `threads` threads; every timing goes through `timings`.

    integers: the target, where INT8 follows: a chain then has to pay in float and in integers.
    known: what was asked before, by shapes: layers of a network are much alike, and to build their models only to find
    their timings again would take as long as to time them. whole: the layers by themselves.
    """

    threads: int
    timings: Any
    integers: Target | None = None
    memory_mb: int = 512
    known: dict[Any, tuple[float, float]] = field(default_factory=dict)
    whole: dict[Any, ModelLike] = field(default_factory=dict)

    def pair(self, layer: Layer, stages: Sequence[Stage]) -> tuple[float, float]:
        """(layer, chain) in milliseconds a run, in pairs; in the precision in which the chain saves less."""
        layer, times = _fewer(layer, self._room)
        key = (_shape(layer), tuple((s.weight.shape, s.axes, s.group) for s in stages))
        if key not in self.known:
            found = [self._time(layer, stages, None)]
            if self.integers is not None and layer.op in self.integers.linear and np.dtype(layer.dtype) == np.float32:
                found.append(self._time(layer, stages, self.integers))
            slowest = max(after / before for before, after in found)
            self.known[key] = found[-1][0], found[-1][0] * slowest
        return self.known[key][0] * times, self.known[key][1] * times

    def _time(self, layer: Layer, stages: Sequence[Stage], integers: Target | None) -> tuple[float, float]:
        shape = _shape(layer), integers is None
        if shape not in self.whole:
            self.whole[shape] = _model(layer, [layer.whole], integers)
        slow, models = layer.macs > SLOW_MACS, (self.whole[shape], _model(layer, stages, integers))
        feed = _feed(layer, integers)
        if not self._fit_together(layer, models):
            found = latency.apart(
                models[0], models[1], feed, threads=self.threads, timings=self.timings, seconds=4 * SECONDS
            )
            return found.before_ms, found.before_ms / found.speedup
        before, after = latency.time_models(
            models,
            [feed, feed],
            threads=self.threads,
            timings=self.timings,
            seconds=SECONDS,
            min_runs=3 if slow else 7,
        )
        return before, after

    @property
    def _room(self) -> int:
        """Bytes for activations: the moments of all layers are there as well."""
        return (self.memory_mb << 20) // 4

    def _fit_together(self, layer: Layer, models: Sequence[Any]) -> bool:
        """Whether sessions of both may be in memory at once."""
        return _held(layer) <= self._room and latency.fit_together(models, self.memory_mb)


def _model(layer: Layer, stages: Sequence[Stage], integers: Target | None) -> ModelLike:
    """The little model, as bytes, or where it is not little with its weights in a file."""
    model = alone(layer if integers is None else replace(layer, members=()), stages)  # integers: one wide product
    model = model if integers is None else quantized(model, integers)
    if size(model) <= LITTLE:
        return ir.to_bytes(model)
    spill(model)
    return model


def _feed(layer: Layer, integers: Target | None) -> dict[str, np.ndarray]:
    """One input for both little models: any values will do."""
    values = np.random.default_rng(0).integers(0, 8, layer.size, np.int8)
    name, kind = ("x", layer.dtype) if integers is None else (SOURCE, kind_of(integers))
    return {name: values.astype(kind, copy=False)}


def _held(layer: Layer) -> int:
    """Bytes of inputs and outputs in two sessions."""
    elements = math.prod(layer.size) + layer.macs * layer.outputs // layer.weight.size
    return HELD * elements * np.dtype(layer.dtype).itemsize


def _fewer(layer: Layer, room: int) -> tuple[Layer, float]:
    """The layer on as few samples of its batch as tell its time, of images too large for `room` bytes on a strip; and
    how many times as much there is."""
    batch = layer.size[0]
    kept = min(batch, max(1, math.ceil(ENOUGH_MACS * batch / max(layer.macs, 1))))
    cut = replace(layer, size=(kept, *layer.size[1:]))
    if layer.op in CONVOLUTIONS and _held(cut) > room:
        rows = max(STRIP, cut.size[2] * room // _held(cut))
        cut = replace(cut, size=(*cut.size[:2], min(rows, cut.size[2]), *cut.size[3:]))
    return cut, layer.macs / max(cut.macs, 1)


def _shape(layer: Layer) -> tuple[Any, ...]:
    """All of a layer that its time depends on."""
    flipped = bool(layer.node.attrs.get("transB", 0))
    apart = tuple(m.outputs for m in layer.members)
    kind = np.dtype(layer.dtype).str
    views = tuple((v.heads, v.size, v.order, v.lead) for v in known(layer) if isinstance(v, View))
    return layer.op, layer.groups, apart, flipped, kind, layer.size, layer.weight.shape, layer.geometry, views


def alone(layer: Layer, stages: Sequence[Stage]) -> Model:
    """A model of nothing but this chain, at the layer's input size, with random weights; an output for each member.

    What makes heads of an output is behind it where that is known, for some chains go on behind that.
    """
    dtype = np.dtype(layer.dtype)
    x, y = gs.Variable("x", dtype, list(layer.size)), gs.Variable("y", dtype, None)
    graph = gs.Graph([], [x], [y], name="layer", opset=OPSET)
    model = Model(graph, Header(ir_version=IR_VERSION, opsets={"": OPSET}))
    node = gs.Node(layer.op, "layer", dict(layer.node.attrs), [x], [])
    plain = replace(layer, node=node, bias=None, adjustable=True, slot=None)
    edit.unlink(node)
    chain = [replace(s, weight=_noise(s.weight.shape)) for s in stages]
    last, outputs = chain[-1], [y]
    if layer.members:
        outputs = [gs.Variable(f"y{k}", dtype, None) for k in range(len(layer.members))]
    graph.outputs = outputs
    if heads.apart(layer, chain):
        _by_head(model, plain, chain, outputs)
        return model
    if len(outputs) > 1 and len(chain) > 1:
        common = edit.variable(model, "shared", dtype)
        edit.add(graph, *emit.chain(model, plain, chain[:-1], x, common, "", None))
        x, chain = common, chain[-1:]
    for k, (out, rows, view) in enumerate(zip(outputs, _rows(layer, last.weight), known(layer))):
        out = heads.shown(model, layer, view, out, f"{k}") if isinstance(view, View) else out
        bias = None if layer.op == "MatMul" else edit.constant(model, "bias", np.zeros(len(rows), dtype))
        stages = [*chain[:-1], replace(last, weight=rows)]
        edit.add(graph, *emit.chain(model, plain, stages, x, out, f"{k}_", bias))
    return model


def _by_head(model: Model, layer: Layer, stages: Sequence[Stage], outputs: Sequence[Any]) -> None:
    """The chains of single heads; only of a Gemm is the bias a part of what is timed."""
    source = model.graph.inputs[0]
    views = [v for v in known(layer) if isinstance(v, View)]  # all of them, or the form would have refused
    for k, (chain, view, out) in enumerate(zip(heads.each(layer, stages), views, outputs)):
        rank, size = chain[1].weight.shape[2], view.count * view.size
        bias = None if layer.op == "MatMul" else np.zeros(size)
        target = edit.constant(model, "shape", np.array(heads.concrete(layer, view, rank), np.int64))
        edit.add(
            model.graph,
            *heads.nodes(model, view, chain, source, target, out, f"{k}_", bias, layer.dtype, {}),
        )


def _rows(layer: Layer, weight: np.ndarray) -> list[np.ndarray]:
    """A last weight, member by member where the layer stands for several."""
    ends = np.cumsum([m.outputs for m in layer.members])[:-1]
    return np.split(weight, ends) if layer.members else [weight]


def _noise(shape: tuple[int, ...]) -> np.ndarray:
    """Weights whose outputs neither vanish (denormals are slow) nor overflow."""
    fan, rng = float(np.prod(shape[1:])) or 1.0, np.random.default_rng(shape)
    out = np.empty(shape, np.float32)
    for part in bands(shape):
        out[part] = rng.standard_normal(out[part].shape) / np.sqrt(fan)
    return out
