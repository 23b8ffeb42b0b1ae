"""What calibration knows, and the scales and integer weights that follow from it for any placement."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import Model, edit, ops
from ...runtime import ranges
from ..base import Context
from . import calibrate, saturation
from .calibrate import Scale, Seen
from .eligible import is_linear
from .insert import Recipe
from .placement import Placement
from .rounding import Rounded
from .weights import Packed, nearest

FEEDS = 64  # looked at by calibration, spread over the data: more moves no range
_BIAS_ROOM = 2**30  # largest integer of a bias: half of int32, so that sums have room as well


@dataclass(frozen=True)
class Settings:
    """The options of the pass that decide numbers. activation: "u8" or "s8". tuned: the loudest ranges are chosen by
    the error of the outputs."""

    method: str = "mse"
    percentile: float = 99.99
    per_channel: bool = True
    activation: str = "u8"
    symmetric: bool = False
    saturates: bool = False
    rounding: str = "second_order"
    integer_biases: bool = True
    equalise: bool = True
    tuned: bool = False


@dataclass
class Statistics:
    """Everything seen, by tensor name; scales and weights are made on demand and kept.

    methods: of calibration, for tensors that have one of their own. limits: ranges of tensors that were chosen
    otherwise.
    """

    settings: Settings
    seen: Mapping[str, Seen]
    shapes: Mapping[str, tuple[int, ...]]
    rounded: Mapping[str, Rounded] = field(default_factory=dict)
    methods: Mapping[str, str] = field(default_factory=dict)
    limits: dict[str, tuple[float, float]] = field(default_factory=dict)
    _ranges: dict[tuple[str, ...], tuple[float, float]] = field(default_factory=dict)
    _packed: dict[tuple[str, float], Packed] = field(default_factory=dict)
    reduced: set[str] = field(default_factory=set)

    def scales(self, placement: Placement) -> dict[str, Scale]:
        """A scale for every quantized tensor; one for all tensors of a group."""
        found = {}
        for members in placement.groups().values():
            low, high = self._range(placement, members)
            scale = calibrate.to_scale(low, high, self.settings.activation, self.settings.symmetric)
            found.update(dict.fromkeys(members, scale))
        return found

    def ends(self, placement: Placement, group: str) -> tuple[float, float]:
        """Least and greatest value of a group's range, as calibration chose it."""
        return self._range(placement, placement.groups()[group])

    def _range(self, placement: Placement, members: list[str]) -> tuple[float, float]:
        if all(placement.decisions[n].how == "fixed" for n in members):
            return 0.0, 1.0
        tuned = [self.limits[n] for n in members if n in self.limits]
        if tuned:
            return min(low for low, _ in tuned), max(high for _, high in tuned)
        key = tuple(members)
        if key not in self._ranges:
            s = self.settings
            method = next((self.methods[n] for n in members if n in self.methods), s.method)
            self._ranges[key] = calibrate.choose(method, [self.seen[n] for n in members], s.percentile)
        return self._ranges[key]

    def recipe(self, model: Model, placement: Placement) -> Recipe:
        """Scales, integer weights and bias corrections of a placement. model: as it is before insertion."""
        scales, packed, shifts = self.scales(placement), {}, {}
        for node in model.graph.nodes:
            if node.name in placement.nodes and is_linear(node) and isinstance(node.inputs[1], gs.Constant):
                packed[node.name] = self.packed(node, scales[node.inputs[0].name])
                known = self.rounded.get(node.inputs[1].name)
                if known is not None and known.shift is not None and packed[node.name] is known.packed:
                    shifts[node.name] = known.shift
        return Recipe(placement, scales, packed, shifts, self.settings.integer_biases, self.settings.symmetric)

    def packed(self, node: gs.Node, x: Scale) -> Packed:
        """The integer weight of a linear node whose input has scale `x`."""
        key = (node.name, x.scale)
        if key not in self._packed:
            self._packed[key] = self._pack(node, x)
        return self._packed[key]

    def _pack(self, node: gs.Node, x: Scale) -> Packed:
        weight, axis = node.inputs[1].values, self._axis(node)
        floor = self._floor(node, x, axis, weight)
        known = self.rounded.get(node.inputs[1].name)
        if known is not None and (floor is None or bool((known.packed.scale >= floor).all())):
            packed = known.packed
        else:
            packed = nearest(weight, axis, 127, floor)
        if self.settings.saturates and saturation.at_risk(node, packed, self.seen.get(node.inputs[0].name), x):
            self.reduced.add(node.name)
            packed = nearest(weight, axis, saturation.SAFE, floor)
        return packed

    def _axis(self, node: gs.Node) -> int | None:
        weight = ops.facts(node).weight(node)
        rank = len(node.inputs[1].shape)
        if not self.settings.per_channel or weight is None or (node.op == "MatMul" and rank != 2):
            return None
        if node.op == "ConvTranspose" and weight.groups > 1:
            return None
        return int(weight.out_axis) % rank

    def _floor(self, node: gs.Node, x: Scale, axis: int | None, weight: np.ndarray) -> np.ndarray | None:
        """Least scale of each channel, so that the bias fits in int32 at the scale of the products."""
        bias = edit.const(node, 2)
        if bias is None:
            return None
        least = np.abs(bias.reshape(-1).astype(np.float64)) / (x.scale * _BIAS_ROOM)
        return np.array([least.max(initial=0.0)]) if axis is None else least


def collect(model: Model, names: Collection[str], settings: Settings, ctx: Context, feeds: Any) -> dict[str, Seen]:
    """Calibrate: histograms of tensors over the feeds, streamed."""
    found = ranges.collect(
        model,
        list(names),
        feeds.spread(FEEDS),
        memory_mb=ctx.memory_mb // 2,
        threads=ctx.workers,
        progress=ctx.on_progress,
    )
    curves = _curves(model)
    return {n: Seen.of(r, curves.get(n)) for n, r in found.items()}


def _curves(model: Model) -> dict[str, calibrate.Curve]:
    """Tensors that are read for their SiLU only: x in Mul(x, Sigmoid(x))."""
    outputs = edit.output_ids(model)
    found: dict[str, calibrate.Curve] = {}
    for node in model.graph.nodes:
        if node.op == "Sigmoid" and id(node.inputs[0]) not in outputs and _only_silu(node):
            found[node.inputs[0].name] = calibrate.silu
    return found


def _only_silu(sigmoid: gs.Node) -> bool:
    x, y = sigmoid.inputs[0], sigmoid.outputs[0]
    others: Iterable[gs.Node] = [r for r in x.outputs if r is not sigmoid]
    return all(r.op == "Mul" and {id(t) for t in r.inputs} == {id(x), id(y)} for r in others) and bool(others)
