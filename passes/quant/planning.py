"""The plan: statistics, sensitivities and timed candidates, from which every strength takes its nodes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import Model, order, shapes
from ...runtime import Session, latency, probe
from ...runtime.feeds import wide
from .. import opset
from ..base import Context, Skip
from ..target import Target
from . import (
    eligible,
    equalise,
    insert,
    measured,
    outliers,
    placement,
    prepare,
    regions,
    rounding,
    sensitivity,
    statistics,
)
from .calibrate import METHODS
from .insert import Recipe
from .overrides import Overrides
from .placement import Placement
from .rounding import Rounded
from .statistics import Settings, Statistics

PAYS = 1.04  # a region must be this much faster than float in the pairwise timing: its own spread is 1 to 2 %
SECONDS = 2.0  # of timing for each candidate
ROUNDS, LOOKED_AT = 3, 4  # tries to hold the floor, and feeds that it is measured on
MISSED = 3.0  # dB below the floor beyond which nothing computes in integers
BORDERS = (0.5, 1.0, 2.0)  # factors on the cost of conversions: many small regions, few large ones


@dataclass(frozen=True)
class Choice:
    """Nodes that compute in integers, how much faster than float that was timed (None: not timed), and the label."""

    nodes: frozenset[str]
    speedup: float | None
    label: str
    banned: frozenset[str] = frozenset()


@dataclass
class Plan:
    """What `apply` takes its decisions from.

    base: the float model at an opset that has per-channel pairs; None: weights are only stored, `why` says why.
    noise: {group of tensors: relative noise power at the outputs}, loudest first; loud: the same of weights, by
    name. rounded: weights rounded for their inputs, by name. costs: measured nanoseconds of nodes in float and in
    integers. kept: nodes that are not left float for being loud. tail: nodes that could compute in integers but gather
    what no layer reads any more, as the heads of detectors do. factors: channels scaled in `base` (see `equalise`).
    divided: Muls that `base` has for the same purpose (see `outliers`).
    aim: dB that single noises are summed up to, so that the floor holds when they meet.
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
    aim: float = -math.inf
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
    able, skips = eligible.find(base, ctx.target, excluded)
    nodes = between(base, able)
    full = placement.place(base, nodes, ctx.target)
    seen = statistics.collect(base, full.quantized(), settings, ctx, ctx.fit)
    rounded = _rounded(base, ctx, settings)
    stats = Statistics(settings, seen, probe.shapes(base, ctx.fit.first()), rounded, _methods(base, overrides))
    noise = sensitivity.measure(base, full, stats, ctx.fit, ctx)
    loud = sensitivity.measure_weights(base, rounded, ctx.fit, ctx)
    kept = frozenset(n for n in nodes if overrides.of(n) == "int8")
    tail = tuple(n for n in able if n not in nodes and n not in {d.node for d in divided})
    chosen = {n: able[n] for n in nodes}
    return Plan(
        base, ctx.target, "", chosen, full, stats, noise, loud, rounded, {}, kept, tail, factors, divided, skips
    )


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


def choose(plan: Plan, model: Model, ctx: Context, compute: str, floor_db: float, share: float) -> Choice:
    """The nodes that compute in integers with the loudest `share` of tensors left float as well.

    model: the float model as it came. compute: "all" takes everything that is left; "auto" what is fastest when timed
    (on this machine) or by the cost table (elsewhere), and nothing when nothing beats float.
    """
    if share not in plan.timed:
        plan.timed[share] = _choose(plan, model, ctx, compute, floor_db, share)
    return plan.timed[share]


def _choose(plan: Plan, model: Model, ctx: Context, compute: str, floor_db: float, share: float) -> Choice:
    """The fastest candidate that holds the floor on a few fit feeds: errors that meet add up to more than their sum."""
    plan.aim = max(plan.aim, floor_db)
    best = _fastest(plan, model, ctx, compute, plan.aim, share)
    for _ in range(ROUNDS):
        level = quality(plan, best.nodes, ctx) if best.nodes else math.inf
        if level >= floor_db:
            break
        plan.aim += floor_db - level + 1.0
        best = _fastest(plan, model, ctx, compute, plan.aim, share)
    else:
        level = quality(plan, best.nodes, ctx) if best.nodes else math.inf
    if level < floor_db - MISSED and not plan.kept:
        return Choice(frozenset(), None, f"integers reach {level:.0f} dB of the {floor_db:g} asked for", best.banned)
    return best


def quality(plan: Plan, nodes: frozenset[str], ctx: Context) -> float:
    """dB of output SQNR with these nodes in integers, on a few fit feeds."""
    assert plan.base is not None
    feeds = list(ctx.fit.spread(LOOKED_AT))
    outputs = []
    for made in (lambda: plan.base, lambda: build(plan, nodes)):  # one session at a time
        session = Session(made(), threads=ctx.workers)
        outputs.append([session.run(f) for f in feeds])
        del session
    noise = sensitivity.noise_of(*outputs)
    return -10 * math.log10(max(noise, 1e-30))


def _fastest(plan: Plan, model: Model, ctx: Context, compute: str, floor_db: float, share: float) -> Choice:
    if compute != "all" and ctx.target.native and not plan.costs:
        plan.costs = _measured(plan, ctx)
    found = candidates(plan, ctx, floor_db, share)
    if compute == "all" or not found:
        return found[0] if found else Choice(frozenset(), None, "nothing is left to compute in integers")
    if not ctx.target.native:
        return found[1] if len(found) > 1 and ctx.target.runtime == "onnxruntime" else found[0]
    timed = _timed(plan, model, found, ctx)
    plan.table += [
        {"share": share, "what": c.label, "nodes": len(c.nodes), "speedup": round(c.speedup or 0.0, 4)} for c in timed
    ]
    best = max(timed, key=lambda c: c.speedup or 0.0)
    if (best.speedup or 0.0) < PAYS:
        return Choice(frozenset(), best.speedup, "integers are not faster than float here", best.banned)
    return best


def _timed(plan: Plan, model: Model, found: list[Choice], ctx: Context) -> list[Choice]:
    """The candidates with how much faster than float they are, all in turns; on large feeds one after the other."""
    rows, step = [], 1 if wide(ctx.fit) else len(found)
    for k in range(0, len(found), step):
        models = [model, *(build(plan, c.nodes) for c in found[k : k + step])]
        seconds = SECONDS * len(models)
        rows += latency.bench(models, ctx.fit, threads=ctx.threads, timings=ctx.timings, seconds=seconds)[1:]
    return [Choice(c.nodes, r.speedup, c.label, c.banned) for c, r in zip(found, rows)]


def _measured(plan: Plan, ctx: Context) -> measured.Costs:
    """What nodes cost on this machine: the model as it is beside the model with everything in integers."""
    assert plan.base is not None and plan.stats is not None
    full = build(plan, frozenset(plan.able))
    return measured.measure(plan.base, full, plan.able, plan.stats.shapes, ctx)


def candidates(plan: Plan, ctx: Context, floor_db: float, share: float) -> list[Choice]:
    """Different sets of nodes worth timing, everything possible first."""
    assert plan.base is not None and plan.stats is not None
    banned, deaf = _banned(plan, floor_db, share)
    readers = placement.folds(plan.base, ctx.target)
    inner = {r.inputs[0].name: r.outputs[0].name for n, r in readers.items() if n in plan.able}
    able = {n: node for n, node in regions.without(plan.able, banned, inner).items() if n not in deaf}
    able = {n: able[n] for n in _with_makers(plan, able, between(plan.base, able))}
    sets = [("all", set(able))]
    for factor in BORDERS:
        chosen = regions.choose(plan.base, able, ctx.target, plan.stats.shapes, factor, plan.costs)
        sets.append((f"regions, borders ×{factor:g}", _with_makers(plan, able, chosen)))
    unique: dict[frozenset[str], str] = {}
    for label, nodes in sets:
        useful = frozenset(regions.only_useful(plan.base, nodes, ctx.target))
        if useful:
            unique.setdefault(useful, label)
    return [Choice(nodes, None, label, banned) for nodes, label in unique.items()]


def _banned(plan: Plan, floor_db: float, share: float) -> tuple[frozenset[str], set[str]]:
    """Tensors that are not quantized and nodes whose weight is not, so that the sum of the rest is quiet enough."""
    readers = {n.inputs[1].name: n.name for n in plan.able.values() if eligible.is_linear(n)}
    both = {("tensor", g): v for g, v in plan.noise.items()}
    both |= {("weight", w): v for w, v in plan.loud.items() if w in readers}
    keys = {f"{kind} {name}": (kind, name) for kind, name in both}
    chosen = [keys[k] for k in sensitivity.loudest({f"{a} {b}": v for (a, b), v in both.items()}, floor_db, share)]
    groups = plan.full.groups()
    spared = {t.name for n in plan.kept for t in (*plan.able[n].outputs, *plan.able[n].inputs)}
    tensors = frozenset(t for kind, g in chosen if kind == "tensor" for t in groups[g] if t not in spared)
    return tensors, {readers[w] for kind, w in chosen if kind == "weight"} - plan.kept


def _with_makers(plan: Plan, able: Mapping[str, gs.Node], nodes: set[str]) -> set[str]:
    """Without activations whose maker, into which they would have folded, stays float."""
    assert plan.base is not None
    makers = {r.inputs[0].name: r for r in able.values() if r.op in ("Relu", "Clip")}
    inner = {n for n, d in plan.full.decisions.items() if d.how == "float"}
    orphans = {
        r.name
        for t, r in makers.items()
        if t in inner and r.inputs[0].inputs and r.inputs[0].inputs[0].name not in nodes
    }
    return nodes - orphans


def recipe(plan: Plan, nodes: frozenset[str]) -> Recipe:
    """Placement, scales and weights of a set of nodes."""
    assert plan.base is not None and plan.stats is not None
    return plan.stats.recipe(plan.base, placement.place(plan.base, nodes, plan.target))


def build(plan: Plan, nodes: frozenset[str]) -> Model:
    """A new model with these nodes in integers."""
    model = start(plan, nodes)
    insert.insert(model, recipe(plan, nodes))
    return model


def start(plan: Plan, nodes: frozenset[str]) -> Model:
    """A copy of the float model, as it is before these nodes become integers."""
    assert plan.base is not None
    model = plan.base.copy()
    outliers.restore(model, plan.divided, nodes)
    return model
