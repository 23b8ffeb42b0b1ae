"""The options of one layer: every form at every rank worth trying, its output error, and its measured time.

Errors come first (a layer's ranks share one factorization); the clock is asked only about options that can still be
on the hull of time saved against error. An unmeasured option is taken at its MACs, which is about the best a chain
ever does, so what is left off the hull unmeasured would have been off it measured, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ...ir.spill import aside
from . import fit, ranks
from .choose import Option, hull
from .forms import Form, Rank
from .goal import Worth
from .layer import Layer, Stage
from .norm import Array, Norm

WORST = 0.5  # nobody wants a layer that loses more than half of its output's energy
ROUNDS = 8
OVERHEAD_KEPT = 0.8  # of the time above MACs that one rank of a form showed, assumed for its other ranks
REFINE_FLOPS = 2e10
IN_A_FILE = 16 << 20  # bytes of a weight: together, its factors are about as large

Pair = Callable[[Layer, Sequence[Stage]], tuple[float, float]]


@dataclass(frozen=True)
class Demand:
    """What an option must offer: `gain` of the layer's time, at most `macs` of its MACs, at most `error`.

    clock: None when time is not asked (a MAC then stands for `worth.ms_per_mac`).
    """

    gain: float
    macs: float
    error: float
    clock: Pair | None
    worth: Worth = field(default_factory=Worth)


@dataclass(frozen=True)
class Trial:
    """A form at a rank before the clock has spoken. sketch: of `sketched`."""

    form: Form
    rank: Rank
    error: float
    macs: int
    params: int
    sketch: tuple[Array, ...] = ()


def trials(layer: Layer, norm: Norm, forms: Sequence[Form], pick: Callable[[Form], Sequence[Rank]]) -> list[Trial]:
    """Every form that serves the layer at the ranks that `pick` gives, with errors after the refit."""
    found: list[Trial] = []
    total = norm.inner_energy(layer.flat)
    for form in forms:
        if form.refuse(layer) is None:
            chosen = list(pick(form))
            for some in [chosen] if form.nested else [[rank] for rank in chosen]:
                sketch = sketched(form, layer, norm, some)
                for rank, error in zip(some, errors(form, layer, norm, some, sketch, total)):
                    found.append(Trial(form, rank, error, *form.cost(layer, rank), sketch))
    return found


def sketched(form: Form, layer: Layer, norm: Norm, chosen: Sequence[Rank]) -> tuple[Array, ...]:
    """The `components` at the highest of the ranks, which hold those at the others where the form is nested."""
    if not chosen or not (form.nested or len(chosen) == 1):
        return ()
    found = form.components(layer, tuple(max(column) for column in zip(*chosen)), norm)
    return tuple(aside(found) if layer.weight.nbytes > IN_A_FILE else found)


def errors(
    form: Form,
    layer: Layer,
    norm: Norm,
    chosen: Sequence[Rank],
    sketch: Sequence[Array] = (),
    total: float | None = None,
) -> list[float]:
    """Relative output error of a form at several ranks, the last factor refitted. total: the layer's energy."""
    if not chosen:
        return []
    total = norm.inner_energy(layer.flat) if total is None else total
    spec, sizes = form.spec(layer), [dict(zip(form.letters, r)) for r in chosen]
    if form.nested:
        sketch = sketch or sketched(form, layer, norm, chosen)
        if form.closed:
            explained = np.cumsum(sketch[-1])
            return [float(max(0.0, 1 - explained[r[0] - 1] / total)) if total > 0 else 0.0 for r in chosen]
        if len(form.letters) == 1:
            return fit.errors(spec, sketch, layer.weight, norm, sizes, total)
        return [fit.errors(spec, fit.cut(spec, sketch, s), layer.weight, norm, [{}], total)[0] for s in sizes]
    begun = [sketch or form.sketch(layer, r, norm) for r in chosen]  # a sketch is given for one rank only
    return [fit.errors(spec, b, layer.weight, norm, [{}], total)[0] for b in begun]


def factors(form: Form, layer: Layer, norm: Norm, rank: Rank, sketch: Sequence[Array] = ()) -> list[Array]:
    """The factors of one option, refined as far as the flops allow. sketch: of `sketched`."""
    spec = form.spec(layer)
    if form.closed:
        return fit.cut(spec, sketch or form.start(layer, rank, norm), dict(zip(form.letters, rank)))
    if sketch and not form.nested:
        start = fit.refit(spec, sketch, layer.weight, norm)
    elif form.nested and len(form.letters) == 1:
        begun = fit.cut(spec, sketch, dict(zip(form.letters, rank))) if sketch else form.start(layer, rank, norm)
        start = fit.refit(spec, begun, layer.weight, norm)
    else:
        start = fit.refit(spec, form.start(layer, rank, norm), layer.weight, norm)
    if len(form.letters) > 1:  # HOOI's norm is not quite the layer's: its own starting point may be the better one
        begun = fit.cut(spec, sketch, dict(zip(form.letters, rank))) if sketch else form.sketch(layer, rank, norm)
        other = fit.refit(spec, begun, layer.weight, norm)
        start = min(start, other, key=lambda f: fit.error(layer.weight, fit.compose(spec, f), norm))
    step = 4.0 * layer.outputs * layer.width**2 * (len(start) - 1)
    sweeps = 2 if 12 * step <= REFINE_FLOPS else 1
    steps = int(min(6, REFINE_FLOPS / (sweeps * step)))
    return fit.improve(spec, start, layer.weight, norm, sweeps=sweeps, steps=steps) if steps else start


def survey(layer: Layer, tried: Sequence[Trial], demand: Demand) -> tuple[list[Option], float | None]:
    """The hull of what meets the demand, and the layer's own time in ms (None when the clock was not asked)."""
    fair = [t for t in tried if t.error <= demand.error and t.macs <= demand.macs * layer.macs]
    base = layer.macs * demand.worth.ms_per_mac
    ratio = {id(t): t.macs / layer.macs for t in fair}

    def best(among: Sequence[Trial]) -> list[Option]:
        return hull([_option(t, layer, demand, base, ratio[id(t)]) for t in among])

    if demand.clock is None:
        return [replace(o, ms=None) for o in best(fair)], None
    measured: dict[int, float] = {}
    befores: list[float] = []
    for _ in range(ROUNDS):
        on = {(o.form, o.rank) for o in best(fair)}
        pending = [t for t in fair if (t.form.name, t.rank) in on and id(t) not in measured]
        if not pending:
            break
        for trial in pending:
            before, after = demand.clock(layer, stages(trial, layer))
            befores.append(before)
            ratio[id(trial)] = measured[id(trial)] = after / before
            _learn(trial, fair, ratio, measured, layer.macs)
        base = float(np.median(befores))  # pairs are sound, single times are not: the machine may have been busy
    return best([t for t in fair if id(t) in measured]), base if befores else None


def stages(trial: Trial, layer: Layer) -> list[Stage]:
    """The chain of an option with nothing in its weights, for the clock."""
    return trial.form.empty(layer, trial.rank)


def _learn(trial: Trial, fair: Sequence[Trial], ratio: dict[int, float], measured: dict[int, float], macs: int) -> None:
    """Carry the measured overhead over to the form's other ranks, discounted so that estimates stay optimistic."""
    over = OVERHEAD_KEPT * max(0.0, measured[id(trial)] - trial.macs / macs)
    for other in fair:
        if other.form is trial.form and id(other) not in measured:
            ratio[id(other)] = other.macs / macs + over


def _option(t: Trial, layer: Layer, demand: Demand, base: float, ratio: float) -> Option:
    """An option that takes `ratio` of the layer's `base` ms; worth nothing where that saves less than the demand."""
    fewer = layer.macs - t.macs, layer.params - t.params
    worth = demand.worth.of(base * (1 - ratio), *fewer) if 1 - ratio >= demand.gain else 0.0
    return Option(t.form.name, t.rank, t.error, worth, t.macs, t.params, ms=base * ratio, damage=t.error)


def at_energy(form: Form, layer: Layer, norm: Norm, energy: float, multiple: int) -> Rank:
    """The lowest rank that keeps `energy` of the output; the full rank when none below does."""
    tried = ranks.between(form, layer, multiple)
    if not form.nested:
        return _bisect(form, layer, norm, energy, tried)
    for rank, error in zip(tried, errors(form, layer, norm, tried)):
        if error <= 1 - energy:
            return rank
    return form.full(layer)


def _bisect(form: Form, layer: Layer, norm: Norm, energy: float, tried: Sequence[Rank]) -> Rank:
    low, high = 0, len(tried) - 1
    while low < high:
        middle = (low + high) // 2
        if errors(form, layer, norm, [tried[middle]])[0] <= 1 - energy:
            high = middle
        else:
            low = middle + 1
    return tried[low]
