"""From a plan to the nodes that compute in integers: sets that hold the floor, of which the fastest is taken.

Noise is predicted as the sum of what tensors and weights make alone, which is too little where errors meet. So every
set is run on a few fit feeds, and proposed again with less allowed when it falls short; only sets that hold are timed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import Model
from ...runtime import Session, latency
from ...runtime.feeds import wide
from ...runtime.loading import is_large
from ..base import Context
from . import clips, costs, eligible, equalise, insert, measured, outliers, placement, prepare, regions, sensitivity
from .insert import Recipe
from .planning import Choice, Plan

PAYS = 1.04  # a region must be this much faster than float in the pairwise timing: its own spread is 1 to 2 %
SECONDS = 2.0  # of timing for each candidate
ROUNDS, LOOKED_AT = 4, 8  # tries to hold the floor, and feeds that it is measured on
MISSED = 3.0  # dB below the floor beyond which a set is not used
BORDERS = (0.5, 1.0, 2.0, 4.0)  # factors on the cost of conversions: many small regions, few large ones
CLOSE, FARTHEST = 0.5, 10.0  # dB above the floor that are not worth another try, and that are tried at once
CHEAP, DEAR = -2.0, 10.0  # decades of the price of noise
HALVINGS = 12  # of that range
Propose = Callable[[float], set[str]]


def choose(plan: Plan, model: Model, ctx: Context, compute: str, floor_db: float, share: float) -> Choice:
    """The nodes that compute in integers, with so much less noise as leaving out the loudest `share` makes.

    model: the float model as it came. compute: "all" takes everything that is left; "auto" what is fastest when timed
    (on this machine) or by the cost table (elsewhere), and nothing when nothing beats float.
    """
    if share not in plan.timed:
        plan.timed[share] = _fastest(plan, model, ctx, compute, floor_db, share)
    return plan.timed[share]


def _fastest(plan: Plan, model: Model, ctx: Context, compute: str, floor_db: float, share: float) -> Choice:
    if compute != "all" and ctx.target.engine == "onnxruntime" and ctx.target.native and not plan.costs:
        plan.costs = _measured(plan, ctx)
    found = candidates(plan, ctx, compute, floor_db, share)
    if not found:
        return Choice(frozenset(), None, _nothing(plan, compute, floor_db, share))
    if compute == "all":
        return found[0]
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


def candidates(plan: Plan, ctx: Context, compute: str, floor_db: float, share: float) -> list[Choice]:
    """Different sets of nodes that hold the floor (where any does), everything possible first."""
    levels = _Levels(plan, ctx)
    unique: dict[frozenset[str], str] = {}
    for label, propose in ways(plan, compute, share).items():
        nodes = _held(plan, levels, label, propose, floor_db)
        if nodes:
            unique.setdefault(nodes, label)
    loud = {n for n in unique if levels.of(n) < floor_db}
    kept = [(n, label) for n, label in unique.items() if n not in loud or len(loud) == len(unique)]
    return [Choice(nodes, None, label, left_out(plan, nodes), plan.aims[label]) for nodes, label in kept]


def ways(plan: Plan, compute: str, share: float) -> dict[str, Propose]:
    """The ways of proposing nodes for an aim in dB, by label; share: of the loudest that is left out beyond the aim."""
    found: dict[str, Propose] = {"all": lambda aim: _everything(plan, aim, share)}
    if compute != "all":
        found |= {f"regions, borders ×{f:g}": _regions(plan, f, share) for f in BORDERS}
    return found


def _nothing(plan: Plan, compute: str, floor_db: float, share: float) -> str:
    """Why no set of nodes is left: there are no nodes, the strength takes all of them, or none comes near the floor."""
    if not plan.able:
        return "nothing is left for integers"
    if share and _proposed(plan, compute, floor_db, 0.0) and not _proposed(plan, compute, floor_db, share):
        return f"strength {1.0 - share:g} leaves nothing for integers"
    return f"integers do not come near the {floor_db:g} dB asked for"


def _proposed(plan: Plan, compute: str, aim: float, share: float) -> bool:
    assert plan.base is not None
    base = plan.base
    return any(regions.only_useful(base, propose(aim), plan.target) for propose in ways(plan, compute, share).values())


def left_out(plan: Plan, nodes: frozenset[str]) -> frozenset[str]:
    """Tensors whose noise alone would have broken the sum that was aimed at, and which these nodes leave float."""
    assert plan.base is not None
    loud = sensitivity.loudest(plan.noise, max(plan.aims.values(), default=math.inf))
    kept = {plan.full.decisions[t].group for t in placement.place(plan.base, nodes, plan.target).quantized()}
    groups = plan.full.groups()
    return frozenset(t for g in loud - kept for t in groups[g])


def _held(plan: Plan, levels: _Levels, label: str, propose: Propose, floor_db: float) -> frozenset[str]:
    """Proposed nodes that hold the floor with the lowest aim found; the quietest that were tried when none do,
    unless that is far below."""
    assert plan.base is not None
    aim, low, high = max(plan.aims.get(label, floor_db), floor_db), -math.inf, math.inf
    tried, best = dict[frozenset[str], float](), None
    for _ in range(ROUNDS):
        nodes = frozenset(regions.only_useful(plan.base, propose(aim), plan.target))
        spare = levels.of(nodes) - floor_db
        tried[nodes] = spare
        if not spare >= 0:  # NaN holds nothing
            low = max(aim, min(sensitivity.decibels(_noise(plan, nodes)), high))
            aim = low - spare + 0.5 if best is None else (low + high) / 2
        elif nodes == best or spare < CLOSE:
            best, high = nodes, aim
            break
        else:
            best, high = nodes, aim
            aim = (low + high) / 2 if low > -math.inf else high - min(spare, FARTHEST)
    plan.aims[label] = min(high, aim)
    if best is None:
        best = max(tried, key=lambda n: tried[n])
        return best if tried[best] >= -MISSED or plan.kept else frozenset()
    return best


class _Levels:
    """dB of output SQNR with a set of nodes in integers, on a few fit feeds; one session at a time."""

    def __init__(self, plan: Plan, ctx: Context) -> None:
        self.plan, self.feeds, self.threads = plan, list(ctx.fit.spread(LOOKED_AT)), ctx.workers
        self.known: dict[frozenset[str], float] = {frozenset(): math.inf}
        self.plain: list[dict[str, Any]] = []

    def of(self, nodes: frozenset[str]) -> float:
        """The level of one set, measured once."""
        if nodes not in self.known:
            assert self.plan.base is not None
            self.plain = self.plain or self._outputs(reference(self.plan))
            noise = sensitivity.noise_of(self.plain, self._outputs(build(self.plan, nodes)))
            self.known[nodes] = sensitivity.decibels(noise)
        return self.known[nodes]

    def _outputs(self, model: Model) -> list[dict[str, Any]]:
        session = Session(model, threads=self.threads)
        return [session.run(feed) for feed in self.feeds]


def _timed(plan: Plan, model: Model, found: list[Choice], ctx: Context) -> list[Choice]:
    """The candidates with how much faster than float they are, all in turns; large ones, and on large feeds, one after
    the other."""
    if is_large(model):
        return [replace(c, speedup=_alone(plan, model, c, ctx)) for c in found]
    rows, step = [], 1 if wide(ctx.fit, model) else len(found)
    for k in range(0, len(found), step):
        models = [model, *(build(plan, c.nodes) for c in found[k : k + step])]
        seconds = SECONDS * len(models)
        rows += latency.bench(models, ctx.fit, threads=ctx.threads, timings=ctx.timings, seconds=seconds)[1:]
    return [replace(c, speedup=r.speedup) for c, r in zip(found, rows)]


def _alone(plan: Plan, model: Model, choice: Choice, ctx: Context) -> float:
    """How much faster than float one candidate is, with no session beside those two, or none at all."""
    made = build(plan, choice.nodes)
    if latency.fit_together([model, made], ctx.memory_mb):
        other = latency.start(made, ctx.threads, ctx.timings)  # first: loading may fold it back to floats for a while
        pair = [latency.start(model, ctx.threads, ctx.timings), other]
        return latency.bench(pair, ctx.fit, threads=ctx.threads, timings=ctx.timings, seconds=2 * SECONDS)[1].speedup
    return latency.apart(model, made, ctx.fit.first(), threads=ctx.threads, timings=ctx.timings).speedup


def _measured(plan: Plan, ctx: Context) -> measured.Costs:
    """What nodes cost on this machine: the model as it is beside the model with everything in integers."""
    assert plan.base is not None and plan.stats is not None
    full = build(plan, frozenset(plan.able))
    return measured.measure(plan.base, full, plan.able, plan.stats.shapes, ctx)


def _everything(plan: Plan, aim: float, share: float) -> set[str]:
    """All nodes but those of the loudest tensors and weights."""
    assert plan.base is not None
    banned, deaf = _banned(plan, aim, share)
    folded = {n: r for n, r in placement.folds(plan.base, plan.target).items() if n in plan.able}
    quiet = regions.without(plan.able, banned, plan.target, folded)
    able = {n: node for n, node in quiet.items() if n not in deaf}
    linear = [n for n, node in able.items() if eligible.is_linear(node)]
    return _with_makers(plan, able, placement.between(plan.base, able, linear))


def _regions(plan: Plan, factor: float, share: float) -> Propose:
    """For an aim in dB: the fastest nodes by the costs whose summed noise stays below it."""

    def cut(price: float) -> set[str]:
        assert plan.base is not None and plan.stats is not None
        tolls, shapes = _tolls(plan, price), plan.stats.shapes
        found = regions.choose(plan.base, plan.able, plan.target, shapes, factor, plan.costs, tolls)
        return _with_makers(plan, plan.able, found)

    def propose(aim: float) -> set[str]:
        allowed = 10 ** (-aim / 10)
        nodes = cut(0.0)
        allowed = min(allowed, _noise(plan, nodes)) * (1.0 - share) ** 2
        if _noise(plan, nodes) <= allowed:
            return nodes
        low, high = CHEAP, DEAR
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if _noise(plan, cut(10**middle)) > allowed else (low, middle)
        return cut(10**high)

    return propose


def _tolls(plan: Plan, price: float) -> regions.Tolls:
    """Nanoseconds for the noise of tensors and weights; price: of noise as loud as the signal, in times of all float
    kernels."""
    assert plan.stats is not None
    known = plan.costs
    total = sum((known.get(n) or costs.of(node, plan.stats.shapes))[0] for n, node in plan.able.items())

    def toll(noise: float) -> float:
        return min(price * noise, 4.0) * total  # beyond the price of everything, more says nothing

    spared = {t.name for n in plan.kept for t in (*plan.able[n].outputs, *plan.able[n].inputs)}
    group = {t: d.group for t, d in plan.full.decisions.items() if d.how != "float" and t not in spared}
    groups = {g: toll(plan.noise.get(g, 0.0)) for g in group.values()}
    nodes = {n: toll(plan.loud.get(w, 0.0)) for n, w in weights(plan).items() if n not in plan.kept}
    return regions.Tolls(group, groups, nodes)


def weights(plan: Plan) -> dict[str, str]:
    """{linear node: the name of its weight, or of its second activation}."""
    return {n: node.inputs[1].name for n, node in plan.able.items() if eligible.is_linear(node)}


def _noise(plan: Plan, nodes: Collection[str]) -> float:
    """Sum of what the tensors and weights of these nodes make alone."""
    assert plan.base is not None
    placed = placement.place(plan.base, nodes, plan.target)
    groups = {plan.full.decisions[t].group for t in placed.quantized() if t in plan.full.decisions}
    held = {w for n, w in weights(plan).items() if n in nodes}
    return sum(plan.noise.get(g, 0.0) for g in groups) + sum(plan.loud.get(w, 0.0) for w in held)


def _banned(plan: Plan, aim: float, share: float) -> tuple[frozenset[str], set[str]]:
    """Tensors that are not quantized and nodes whose weight is not, so that the sum of the rest is quiet enough."""
    readers: dict[str, set[str]] = {}
    for node, weight in weights(plan).items():
        readers.setdefault(weight, set()).add(node)
    both = {("tensor", g): v for g, v in plan.noise.items()}
    both |= {("weight", w): v for w, v in plan.loud.items() if w in readers}
    keys = {f"{kind} {name}": (kind, name) for kind, name in both}
    chosen = [keys[k] for k in sensitivity.loudest({f"{a} {b}": v for (a, b), v in both.items()}, aim, share)]
    groups = plan.full.groups()
    spared = {t.name for n in plan.kept for t in (*plan.able[n].outputs, *plan.able[n].inputs)}
    tensors = frozenset(t for kind, g in chosen if kind == "tensor" for t in groups[g] if t not in spared)
    return tensors, {n for kind, w in chosen if kind == "weight" for n in readers[w]} - plan.kept


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
    prepare.finish(model, plan.target)
    return model


def start(plan: Plan, nodes: frozenset[str]) -> Model:
    """A copy of the float model, as it is before these nodes become integers."""
    assert plan.base is not None
    model = plan.base.copy()
    outliers.restore(model, plan.divided, nodes)
    equalise.apply(model, undone(plan, nodes))
    return model


def undone(plan: Plan, nodes: frozenset[str]) -> dict[str, np.ndarray]:
    """Factors that clipped tensors lose where these nodes compute in integers (see `clips`)."""
    assert plan.base is not None
    if not clips.undone(plan.base, plan.factors):
        return {}
    placed = placement.place(plan.base, nodes, plan.target)
    return clips.undone(plan.base, plan.factors, placed.quantized())


def reference(plan: Plan) -> Model:
    """The float model that levels are measured beside."""
    assert plan.base is not None
    return start(plan, frozenset()) if undone(plan, frozenset()) else plan.base
