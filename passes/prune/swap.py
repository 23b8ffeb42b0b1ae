"""Swaps after the greedy order: a unit that went comes back if another one of its family costs less now.

The greedy order never looks back, and what was cheap at first may be missed later, when its substitutes went (OSSCAR,
arXiv 2403.12983, searches likewise). Here the unit that would make most good comes back, then the cheapest of the
family goes; as long as that is another one, the loss has fallen. Counts stay, so the amount stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .grouping import Family, Groups
from .order import Order, logged
from .score import Curvature

MOST = 0.25  # swaps a family, as a share of its units
SURE = 1e-3  # share of a gain by which the loss has to fall


def swapped(
    groups: Groups, order: Order, chosen: Sequence[int], curvatures: Sequence[Curvature], extra: Mapping[int, float]
) -> Order:
    """The order with better units in place of the `chosen` ones, which come first in it.

    curvatures: with everything in `order` removed, in that order; used up.
    """
    kept = set(chosen)
    for unit in reversed([u for u in order.units if u not in kept]):
        for curve in curvatures:
            curve.restore(unit)
    tangled = _tangled(groups, curvatures)
    replaced: dict[int, int] = {}
    for family in groups.families:
        units = family.units.tolist()
        if tangled.isdisjoint(units) and any(any(u in c.gone for u in units) for c in curvatures):
            replaced.update(_search(family, set(units) & kept, curvatures, extra))
    if not replaced:
        return order
    first = [u for u in order.units if u in kept and u not in replaced] + sorted(set(replaced.values()))
    there = set(first)
    return logged(groups, first + [u for u in order.units if u not in there])


def _tangled(groups: Groups, curvatures: Sequence[Curvature]) -> set[int]:
    """Units that share a position with another one: columns that went with one would come back with the other."""
    owner: dict[tuple[int, int], int] = {}
    found: set[int] = set()
    for unit in groups.units.tolist():
        for line, places in groups.ledger.places(unit):
            for place in places.tolist():
                other = owner.setdefault((line, place), unit)
                if other != unit:
                    found |= {unit, other}
    return found


def _search(
    family: Family, gone: set[int], curvatures: Sequence[Curvature], extra: Mapping[int, float]
) -> dict[int, int]:
    """unit that comes back -> unit that goes in its place."""
    mine = [c for c in curvatures if any(u in c.gone or u in c.columns for u in family.units.tolist())]
    concerned = [c for c in curvatures if any(u in c.gone or c.concerns(u) for u in family.units.tolist())]
    units = family.units.tolist()
    start = set(gone)
    tried: set[int] = set()
    for _ in range(int(np.ceil(MOST * len(units)))):
        if len(gone) == len(units) or not gone - tried:
            break
        gains = _summed([c.gains(gone - tried) for c in mine], extra, gone - tried)
        back = max(sorted(gains), key=lambda u: gains[u])
        for curve in concerned:
            curve.restore(back)
        losses = _summed([c.losses(set(units) - gone | {back}) for c in mine], extra, set(units) - gone | {back})
        away = min(sorted(losses), key=lambda u: losses[u])
        if losses[away] > (1 - SURE) * gains[back]:
            away = back
        for curve in concerned:
            curve.remove([away])
        tried |= {back, away}
        gone = (gone - {back}) | {away}
    return dict(zip(sorted(start - gone), sorted(gone - start)))


def _summed(parts: Sequence[Mapping[int, float]], extra: Mapping[int, float], units: set[int]) -> dict[int, float]:
    return {u: extra.get(u, 0.0) + sum(p.get(u, 0.0) for p in parts) for u in units}
