"""Planning: from a model and its data to a list of splits in the order in which they pay.

Moments are streamed in waves that fit the memory budget; of each layer only the factors of the options on its hull
are kept, so `apply` is assembly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...ir import Model, cost, edit
from ...ir.spill import aside
from ...runtime import latency, probe
from ...runtime.loading import is_large
from ..base import Context
from ..pace import samples
from . import budgets, choose, groups, ranks, relu, search, siblings
from .choose import Option, Step
from .clock import Clock
from .forms import Form, Rank
from .goal import Totals, Worth
from .layer import Layer, candidates, read, refusal
from .norm import Array, Norm
from .sensitivity import sensitivities
from .statistics import norms
from .views import seen

if TYPE_CHECKING:
    from .lowrank import LowRank

SMALL_SHARE = 0.002  # of the model's MACs: a layer below it cannot repay the call of another node
MOST_MACS = 0.95
OPTIONS = 6  # along one layer's hull, at most: each has to be fitted (twice as many where kernels are 1)


@dataclass(frozen=True)
class Split:
    """An option with its factors.

    shift: (O,) what the bias takes over of the mean error, or None. unseen: relative output MSE on the check feeds.
    behind: error behind the ReLU on held-out rows before and after the fit that knows of it, where that was kept.
    """

    form: Form
    option: Option
    factors: tuple[Array, ...]
    shift: Array | None
    unseen: float | None = None
    behind: tuple[float, float] | None = None


@dataclass(frozen=True)
class Found:
    """What was found about one layer: splits along its hull, or the reason why there are none.

    names: of the nodes, several where products with one input share a first factor.
    """

    splits: tuple[Split, ...] = ()
    reason: str = ""
    names: tuple[str, ...] = ()
    size: tuple[int, ...] = ()
    macs: int = 0
    params: int = 0
    ms: float | None = None


@dataclass(frozen=True)
class Plan:
    """Everything that `apply` needs: layers by node name, and all steps in the order in which they pay.

    reason: why there is nothing to do, or what a budget asks that cannot be had, or "". macs: of one run of the whole
    model, on this many `samples`.
    """

    layers: Mapping[str, Found] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    reason: str = ""
    macs: int = 0
    samples: int = 1


def nothing(reason: str) -> Plan:
    """A plan that leaves the model alone."""
    return Plan(reason=reason)


def make(model: Model, ctx: Context, options: LowRank, forms: Sequence[Form]) -> Plan:
    """The plan of one run; deterministic given the feeds and the timings."""
    if "quant" in ctx.follows and any(form.name == "heads" for form in forms):
        ctx.note("lowrank: heads are not split one by one where quant follows: their chains are timed in float only")
        forms = [form for form in forms if form.name != "heads"]
    sizes = probe.shapes(model, ctx.fit.first())
    found: dict[str, Found] = {}
    ready: list[Layer] = []
    totals, results = _totals(model, sizes, ctx, options), edit.output_ids(model)
    for node in candidates(model):
        layer = None if _refused(node, ctx) else read(node, sizes[node.inputs[0].name], results)
        reason = _refused(node, ctx) if layer is None else _small(layer, totals.macs, options)
        found[node.name] = Found(reason=reason or "", names=(node.name,))
        if layer is not None and not reason:
            ready.append(layer)
    if any(form.name == "heads" for form in forms):
        ready = [seen(model, layer) for layer in ready]
    ready = siblings.bundled(ready)
    for name in (n for layer in ready for n in layer.names[1:]):
        found.pop(name)
    eligible = Totals(sum(layer.macs for layer in ready), sum(layer.params for layer in ready))
    demand = _demand(ctx, options, Worth.towards(options.goal, totals, eligible))
    table = norms(model, ready, ctx) if ready else iter(())
    for layer, parts in ctx.progress(table, "low rank", len(ready)):
        one = _layer(layer, parts, forms, demand, options, ctx.target.channel_multiple)
        found[layer.node.name] = _in_a_file(one) if is_large(model) else one
        parts.clear()  # before the next wave of moments
    found = _weigh(model, found, totals.macs, ctx)
    plan = Plan(found, tuple(choose.order(budgets.hulls(found))), "", totals.macs, samples(model, sizes))
    if not plan.steps:
        return replace(plan, reason="nothing pays here" if found else "no layer that could be split")
    plan = budgets.within(plan, model, options.goal, totals, ctx) if options.goal.given else plan
    wanted: dict[str, list[int]] = {}
    for step in plan.steps:
        wanted.setdefault(step.layer, []).append(step.index)
    return replace(plan, layers=relu.refine(model, plan.layers, wanted, options.relu, ctx))


def _totals(model: Model, sizes: Mapping[str, tuple[int, ...]], ctx: Context, options: LowRank) -> Totals:
    whole, goal = cost.of(model, sizes), options.goal
    ms = 0.0
    if goal.speedup is not None or (goal.alone and options.min_gain >= 0 and ctx.target.native):
        ms = latency.bench([model], ctx.fit.first(), threads=ctx.threads, timings=ctx.timings)[0].ms
    return Totals(whole.macs, whole.params, ms)


def _refused(node: Any, ctx: Context) -> str | None:
    return "excluded" if ctx.excluded(node) else refusal(node)


def _small(layer: Layer, total: int, options: LowRank) -> str | None:
    if layer.macs < SMALL_SHARE * total and not options.explicit:
        return f"only {layer.macs / max(total, 1):.2%} of the model's MACs"
    return None


def _demand(ctx: Context, options: LowRank, worth: Worth) -> search.Demand:
    integers = ctx.target if "quant" in ctx.follows else None
    clock = Clock(ctx.threads, ctx.timings, integers, ctx.memory_mb).pair if options.min_gain >= 0 else None
    worst = np.inf if options.explicit else search.WORST
    return search.Demand(max(options.min_gain, 0.0), MOST_MACS, worst, clock, worth)


def _layer(
    layer: Layer, norms: Sequence[Norm], forms: Sequence[Form], demand: search.Demand, options: LowRank, multiple: int
) -> Found:
    """The hull of one layer with its factors."""
    tried = groups.trials(layer, norms, forms, _picker(layer, norms, demand, options, multiple))
    about = Found(names=layer.names, size=layer.size, macs=layer.macs, params=layer.params)
    if not tried:
        alone = forms[0].refuse(layer) if len(forms) == 1 else None
        return replace(about, reason="no form serves it" + (f": {alone}" if alone else ""))
    hull, ms = search.survey(layer, tried, demand)
    if not hull:
        return replace(about, ms=ms, reason=_why(layer, tried, demand, ms))
    hull = (
        [_best(hull, options)] if options.ranked else choose.thinned(hull, OPTIONS if layer.taps > 1 else 2 * OPTIONS)
    )
    table = {(t.form.name, t.rank): t for t in tried}
    total = groups.energy(layer, norms)
    splits = tuple(_split(layer, norms, table[o.form, o.rank], o, total) for o in hull)
    return replace(about, ms=ms, splits=splits)


def _picker(
    layer: Layer, norms: Sequence[Norm], demand: search.Demand, options: LowRank, multiple: int
) -> Callable[[Form], Sequence[Rank]]:
    if options.rank is not None:
        return lambda form: [ranks.given(form, layer, float(options.rank or 0), multiple)]
    if options.energy is not None:
        energy, parts = float(options.energy), list(zip(layer.parts, norms))
        return lambda form: [groups.widest([search.at_energy(form, p, n, energy, multiple) for p, n in parts])]
    if options.evbmf:
        return lambda form: [groups.widest([ranks.by_evbmf(form, p) for p in layer.parts])]
    return lambda form: ranks.grid(form, layer, multiple, demand.macs)


def _best(hull: Sequence[Option], options: LowRank) -> Option:
    """One option of an explicit amount: the fastest at equal energy, else the most accurate."""
    if options.energy is not None:
        return max(hull, key=lambda o: (o.saved, -o.error))
    return min(hull, key=lambda o: (o.error, -o.saved))


def _split(layer: Layer, norms: Sequence[Norm], trial: search.Trial, option: Option, total: float) -> Split:
    found = groups.factors(layer, norms, trial)
    lost = groups.missing(layer, trial.form, found)
    error = groups.error(lost, norms, total)
    single = tuple(f.astype(layer.dtype, copy=False) for f in found)
    return Split(trial.form, replace(option, error=error, damage=error), single, groups.shift(lost, norms))


def _in_a_file(found: Found) -> Found:
    """With factors that take no memory until they are read: those of all options are several times a model."""
    kept = iter(aside([f for s in found.splits for f in s.factors]))
    return replace(found, splits=tuple(replace(s, factors=tuple(next(kept) for _ in s.factors)) for s in found.splits))


def _why(layer: Layer, tried: Sequence[search.Trial], demand: search.Demand, ms: float | None) -> str:
    """The reason for leaving a layer whole, in one line."""
    fair = [t for t in tried if t.macs <= demand.macs * layer.macs]
    if not fair:
        return "nothing pays here: no form at this rank has fewer MACs"
    good = [t for t in fair if t.error <= demand.error]
    if not good:
        best = min(fair, key=lambda t: t.error)
        return f"nothing pays here: not low-rank, {best.form.name} loses {best.error:.0%} of the output"
    took = f" of {ms:.3g} ms" if ms is not None else ""
    return f"nothing pays here: no form saved {demand.gain:.0%}{took}"


def _weigh(model: Model, found: Mapping[str, Found], macs: int, ctx: Context) -> dict[str, Found]:
    """Errors times sensitivities: damage to the model's outputs that can be compared between layers."""
    split = {name: f for name, f in found.items() if f.splits}
    if len(split) > 1:
        weights = sensitivities(model, split, macs, ctx)
    else:
        weights = dict.fromkeys(split, 1.0)
    out = dict(found)
    for name, f in split.items():
        weighed = [replace(s, option=replace(s.option, damage=s.option.error * weights[name])) for s in f.splits]
        kept = choose.hull([s.option for s in weighed])
        out[name] = replace(f, splits=tuple(s for o in kept for s in weighed if s.option is o))
    return out
