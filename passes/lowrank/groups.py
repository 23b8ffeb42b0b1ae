"""Layers of several groups: each is a small layer of its own, and all are split in the same form at one rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from . import fit, search
from .forms import Form, Rank
from .layer import Layer
from .norm import Array, Norm
from .search import Trial


def trials(
    layer: Layer, norms: Sequence[Norm], forms: Sequence[Form], pick: Callable[[Form], Sequence[Rank]]
) -> list[Trial]:
    """`search.trials` over all groups: errors weighed by the energy of each group's output, costs of the whole."""
    if layer.groups == 1:
        return search.trials(layer, norms[0], forms, pick)
    energies = np.array([n.inner_energy(p.flat) for p, n in zip(layer.parts, norms)])
    shares = energies / (energies.sum() or 1.0)
    columns = zip(*(search.trials(p, n, forms, pick) for p, n in zip(layer.parts, norms)))
    found = []
    for column in map(list, columns):
        first = column[0]
        error = float(sum(s * t.error for s, t in zip(shares, column)))
        macs, params = first.form.cost(layer, first.rank)
        found.append(replace(first, error=error, macs=macs, params=params, sketch=()))
    return found


def widest(found: Sequence[Rank]) -> Rank:
    """The rank that serves every group, from what each of them needs."""
    return tuple(map(max, zip(*found)))


def factors(layer: Layer, norms: Sequence[Norm], trial: Trial) -> list[Array]:
    """Factors of an option, [group, ...] where there are several groups."""
    form, rank = trial.form, trial.rank
    if layer.groups == 1:
        return search.factors(form, layer, norms[0], rank, trial.sketch)
    each = [search.factors(form, p, n, rank) for p, n in zip(layer.parts, norms)]
    return [np.stack(column) for column in zip(*each)]


def missing(layer: Layer, form: Form, found: Sequence[Array]) -> list[fit.Lost]:
    """What the factors lack of each group's weight, (O, C·taps)."""
    each = [found] if layer.groups == 1 else [[f[g] for f in found] for g in range(layer.groups)]
    return [fit.Lost(form.spec(layer), f, p.weight) for p, f in zip(layer.parts, each)]


def energy(layer: Layer, norms: Sequence[Norm]) -> float:
    """Energy of the layer's output, all groups."""
    return sum(n.energy(p.flat) for p, n in zip(layer.parts, norms))


def error(lost: Sequence[fit.Lost], norms: Sequence[Norm], total: float) -> float:
    """Relative output error of what is `missing`, all groups, of the `energy`; 0 for an output that is constant."""
    return sum(d.energy(n) for d, n in zip(lost, norms)) / total if total > 0 else 0.0


def shift(lost: Sequence[fit.Lost], norms: Sequence[Norm]) -> Array | None:
    """What the bias takes over of the mean error, (G·O,); None where it may not."""
    moved = [d @ n.mean for d, n in zip(lost, norms) if n.mean is not None]
    return np.concatenate(moved) if moved else None
