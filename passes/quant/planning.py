"""The plan: statistics, sensitivities and timed candidates, from which every strength takes its nodes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import Model, order, shapes
from ...ir.spill import spill
from ...runtime import probe
from ...runtime.loading import is_large
from .. import opset
from ..base import Context, Skip
from ..target import Target
from . import eligible, equalise, outliers, placement, prepare, rounding, sensitivity, statistics, tuning
from .calibrate import METHODS, Seen
from .overrides import Overrides
from .placement import Placement
from .rounding import Rounded
from .statistics import Settings, Statistics


@dataclass(frozen=True)
class Choice:
    """Nodes that compute in integers, how much faster than float that was timed (None: not timed), and the label.

    banned: tensors that are too loud. aim: dB that the single noises were summed up to when the nodes were proposed.
    """

    nodes: frozenset[str]
    speedup: float | None
    label: str
    banned: frozenset[str] = frozenset()
    aim: float = -math.inf


@dataclass
class Plan:
    """What `apply` takes its decisions from.

    base: the float model at an opset that has per-channel pairs; None: weights are only stored, `why` says why.
    noise: {group of tensors: relative noise power at the outputs}, loudest first; loud: the same of weights, by
    name. rounded: weights rounded for their inputs, by name. costs: measured nanoseconds of nodes in float and in
    integers. kept: nodes that are not left float for being loud. tail: nodes that could compute in integers but gather
    what no layer reads any more, as the heads of detectors do. factors: channels scaled in `base` (see `equalise`).
    divided: Muls that `base` has for the same purpose (see `outliers`).
    aims: {way of choosing: dB that single noises are summed up to, so that the floor holds when they meet}.
    """

    base: Model | None
    target: Target
    why: str = ""
    able: Mapping[str, gs.Node] = field(default_factory=dict)
    full: Placement = field(default_factory=lambda: Placement(frozenset()))
    stats: Statistics | None = None
    noise: Mapping[str, float] = field(default_factory=dict)
    loud: Mapping[str, float] = field(default_factory=dict)
    rounded: Mapping[str, Rounded] = field(default_factory=dict)
    costs: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    kept: frozenset[str] = frozenset()
    tail: tuple[str, ...] = ()
    factors: Mapping[str, np.ndarray] = field(default_factory=dict)
    divided: tuple[outliers.Division, ...] = ()
    skips: tuple[Skip, ...] = ()
    aims: dict[str, float] = field(default_factory=dict)
    timed: dict[float, Choice] = field(default_factory=dict)
    table: list[dict[str, Any]] = field(default_factory=list)

    def describe(self) -> str:
        """What was decided for every tensor, for `inspect --quant`."""
        lines = [self.why] if self.why else []
        for name, decision in self.full.decisions.items():
            alone = self.noise.get(name)
            tail = f"  ({-10 * math.log10(alone):.1f} dB alone)" if alone else ""
            lines.append(f"{decision}{tail}")
        return "\n".join(lines)


def make(
    model: Model,
    ctx: Context,
    settings: Settings,
    excluded: Callable[[gs.Node], bool],
    overrides: Overrides,
) -> Plan:
    """Raise the opset if needed, place, calibrate and measure sensitivities. Does not edit `model`."""
    able, skips = eligible.find(model, ctx.target, excluded)
    if not any(eligible.is_linear(n) for n in able.values()):
        return stored_only(model, ctx, settings, "no layer of this model has an integer kernel on this target", skips)
    base, why = _base(model, ctx)
    if base is None:
        return stored_only(model, ctx, settings, why, skips)
    prepare.prepare(base, excluded)
    evens = settings.equalise and ctx.source != "random"
    factors, divided = _evened(base, excluded, ctx) if evens else ({}, ())
    if is_large(base):  # its layers were scaled: they are arrays of its own
        spill(base)
    able, skips = eligible.find(base, ctx.target, excluded)
    nodes = between(base, able)
    full = placement.place(base, nodes, ctx.target)
    apart = placement.place(base, nodes, replace(ctx.target, residual=True))  # what a residual leaves to its kernel now
    names = dict.fromkeys((*full.quantized(), *apart.quantized()))  # counts where the sum stays float
    seen = statistics.collect(base, names, settings, ctx, ctx.fit)
    unseen = _unseen(able, seen)
    if unseen:
        able = {n: node for n, node in able.items() if n not in unseen}
        skips = (*skips, *(Skip(n, why) for n, why in unseen.items() if n in nodes))
        nodes = between(base, able)
        full = placement.place(base, nodes, ctx.target)
        if not nodes:
            return stored_only(model, ctx, settings, "no layer that has an integer kernel met any data", skips)
    rounded = _rounded(base, ctx, settings)
    stats = Statistics(settings, seen, probe.shapes(base, ctx.fit.first()), rounded, _methods(base, overrides))
    noise = sensitivity.measure(base, full, stats, ctx.fit, ctx)
    if settings.tuned and ctx.source != "random":
        noise = tuning.tune(base, full, stats, noise, ctx.fit, ctx)
    loud = sensitivity.measure_weights(base, rounded, ctx.fit, ctx)
    kept = frozenset(n for n in nodes if overrides.of(n) == "int8")
    tail = tuple(n for n in able if n not in nodes and n not in {d.node for d in divided})
    chosen = {n: able[n] for n in nodes}
    return Plan(
        base, ctx.target, "", chosen, full, stats, noise, loud, rounded, {}, kept, tail, factors, divided, skips
    )


def _unseen(able: Mapping[str, gs.Node], seen: Mapping[str, Seen]) -> dict[str, str]:
    """{node: why} of nodes beside a tensor that was empty on every feed (in the second stage of a detector that found
    nothing): it has no range."""
    empty, found = {n for n, s in seen.items() if not s.counts.any()}, {}
    for name, node in able.items():
        beside = [t.name for t in (*(node.inputs[k] for k in eligible.activations(node)), *node.outputs)]
        lost = next((t for t in beside if t in empty), None)
        if lost is not None:
            found[name] = f"no values of '{lost}' were seen on any feed"
    return found


def _evened(
    base: Model, excluded: Callable[[gs.Node], bool], ctx: Context
) -> tuple[dict[str, np.ndarray], tuple[outliers.Division, ...]]:
    """Channels brought to like ranges in place: the factors that layers took, and the Muls for the others."""
    factors = equalise.factors(base, ctx.fit, ctx, excluded)
    equalise.apply(base, factors)
    return factors, outliers.divide(base, eligible.find(base, ctx.target, excluded)[0], factors, ctx.fit, ctx)


def _methods(model: Model, overrides: Overrides) -> dict[str, str]:
    """{tensor: the method that was asked for its maker, or for the layer that its maker folds into}."""
    found = {}
    for node in model.graph.nodes if overrides.rules else ():
        said = overrides.of(node.name)
        if said in METHODS:
            for tensor in node.outputs:
                found[tensor.name] = said
                for reader in tensor.outputs:
                    if reader.op in ("Relu", "Clip") and not overrides.of(reader.name):
                        found[reader.outputs[0].name] = said
    return found


def _rounded(model: Model, ctx: Context, settings: Settings) -> dict[str, Rounded]:
    """Weights rounded for their inputs; none without real data, whose moments would be of noise."""
    if settings.rounding == "nearest" or not settings.per_channel or ctx.source == "random":
        return {}
    return rounding.refine(model, ctx.fit, ctx)


def stored_only(model: Model, ctx: Context, settings: Settings, why: str, skips: tuple[Skip, ...] = ()) -> Plan:
    """A plan that only changes the storage of weights."""
    rounded = _rounded(model, ctx, settings)
    loud = sensitivity.measure_weights(model, rounded, ctx.fit, ctx)
    return Plan(None, ctx.target, why, loud=loud, rounded=rounded, skips=skips)


def _base(model: Model, ctx: Context) -> tuple[Model | None, str]:
    if model.opset >= opset.PER_CHANNEL:
        return model.copy(), ""
    base, why = opset.raised(model, ctx.fit)
    if base is not None:
        order.sort(base)
        shapes.refresh(base)
    return base, why


def between(model: Model, able: Mapping[str, gs.Node]) -> set[str]:
    """The linear nodes and what lies between them."""
    linear = [n for n, node in able.items() if eligible.is_linear(node)]
    return placement.between(model, able, linear)
