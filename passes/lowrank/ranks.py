"""Which ranks are worth trying: grids over MACs, sizes that kernels like, shares of output energy, EVBMF."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from . import evbmf
from .forms import Form, Rank, Spatial
from .layer import CONVOLUTIONS, Layer

# MACs of a split as a share of the layer's own, from hardly worth it to brutal
MACS_GRID = (0.85, 0.75, 0.65, 0.55, 0.45, 0.36, 0.28, 0.21, 0.15, 0.1)
FINE_GRID = (0.94, *MACS_GRID[:1], 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, *MACS_GRID[4:])  # where ranks may be close
ENERGY_GRID = 24


def rounded(rank: Rank, full: Rank, multiple: int, fine: bool = False) -> Rank:
    """Ranks on the staircase of the kernels: multiples of `multiple`, of 8 below it, anything below 8.

    fine: steps of a quarter of the rank at most, for products of matrices, which have no blocks of channels to fill.
    """
    return tuple(_round(r, top, multiple, fine) for r, top in zip(rank, full))


def _round(rank: int, full: int, multiple: int, fine: bool) -> int:
    step = multiple if rank >= multiple else 8 if rank >= 8 else 1
    while fine and step > 1 and 4 * step > rank:
        step //= 2
    return max(1, min(full, round(rank / step) * step))


def liked(form: Form, layer: Layer, rank: Rank, multiple: int) -> Rank:
    """A rank of this form on the staircase of the layer's kernels."""
    step, fine = 1 if form.letters == "t" else multiple, layer.op not in CONVOLUTIONS
    return rounded(rank, form.full(layer), step, fine)


def at_share(form: Form, layer: Layer, share: float) -> Rank:
    """The highest rank (a share of the full one in all directions) whose MACs stay within `share` of the layer's."""
    low, high, limit = 0.0, 1.0, share * layer.macs
    for _ in range(20):
        middle = (low + high) / 2
        if form.cost(layer, form.scaled(layer, middle))[0] <= limit:
            low = middle
        else:
            high = middle
    return form.scaled(layer, low)


def grid(form: Form, layer: Layer, multiple: int, most: float) -> list[Rank]:
    """Candidate ranks, highest first, none above `most` of the layer's MACs."""
    shares = FINE_GRID if layer.op not in CONVOLUTIONS else MACS_GRID[form.every - 1 :: form.every]
    ranks = [liked(form, layer, at_share(form, layer, s), multiple) for s in shares]
    return [r for r in dict.fromkeys(ranks) if form.cost(layer, r)[0] <= most * layer.macs]


def between(form: Form, layer: Layer, multiple: int) -> list[Rank]:
    """A fine grid up to the full rank, lowest first, for the search of an energy."""
    shares = np.geomspace(0.02, 1.0, ENERGY_GRID)
    return list(dict.fromkeys(liked(form, layer, form.scaled(layer, float(s)), multiple) for s in shares))


def given(form: Form, layer: Layer, rank: float, multiple: int) -> Rank:
    """The user's rank: a share of the full one below 1 (rounded to what kernels like), else that number exactly."""
    if rank < 1:
        return liked(form, layer, form.scaled(layer, rank), multiple)
    return tuple(min(int(rank), top) for top in form.full(layer))


def by_evbmf(form: Form, layer: Layer) -> Rank:
    """EVBMF of the matrices that the form cuts: the weight unfolded along each of its ranks."""
    found = [max(1, evbmf.rank(m)) for m in unfoldings(form, layer)]
    return tuple(min(r, top) for r, top in zip(found, form.full(layer)))


def unfoldings(form: Form, layer: Layer) -> Sequence[np.ndarray]:
    """One matrix for each entry of the form's rank."""
    w = layer.weight
    by_output, by_input = w.reshape(layer.outputs, -1), np.moveaxis(w, 1, 0).reshape(layer.inputs, -1)
    if form.name in ("svd", "channel"):
        return (by_output,)
    if form.name == "channel_in":
        return (by_input,)
    if isinstance(form, Spatial):
        return (form.unfolded(layer),)
    if form.name == "separable":
        return (np.moveaxis(w, 1, 0).reshape(-1, layer.taps),)
    if form.name == "heads":
        return (max(np.split(w, layer.outputs // form.shapes(layer, (1,))[1][1]), key=evbmf.rank),)
    if form.name == "cp":
        return (by_output if evbmf.rank(by_output) > evbmf.rank(by_input) else by_input,)
    return by_output, by_input
