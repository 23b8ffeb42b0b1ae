"""The order of removal when time is what counts: whole steps of a family, by loss per measured millisecond saved.

A layer's time is a staircase of its channels, so single channels save nothing or a whole step. What may go next is
therefore the cheapest channels of a family down to one of the counts on its ladder. The family's times are taken as
isotonic (keeping more never counts as faster), so a count that saves no more than a larger one is never chosen:
channels are given up only where that pays.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .amount import step_of
from .clock import ladder
from .grouping import Groups
from .order import MOST_OF_A_FAMILY, ROUNDS, Order, Work
from .score import Curvature
from .timetable import Timetable

COUNTS = 16  # steps on the ladder of a family
NEARLY = 1.5  # times the price of a step: what one may stop at on the way
LEAST = 1e-4  # of the model's time that a step must save to be worth a look


@dataclass(frozen=True)
class Step:
    """Units of one family that may go together: their losses, and the microseconds that it saves.

    ends: how many are gone at each count of the ladder where one may as well stop (see `_cheapest_of`).
    """

    units: tuple[int, ...]
    losses: tuple[float, ...]
    saved: float
    ends: tuple[int, ...] = ()

    @property
    def price(self) -> float:
        """Loss per microsecond."""
        return sum(self.losses) / self.saved


@dataclass
class Paced:
    """An order whose stops (numbers of units) are whole steps. us: predicted time at each stop; total: before any."""

    order: Order
    stops: list[int]
    us: list[float]
    total: float


def paced(
    groups: Groups,
    curvatures: Sequence[Curvature],
    extra: Mapping[int, float],
    table: Timetable,
    rounding: tuple[int, bool],
    enough: Callable[[float], bool],
    shares: Mapping[int, float] | None = None,
) -> Paced:
    """Remove steps until the predicted microseconds are few enough. rounding: the multiple of channels, and whether the
    user fixed it. shares: of families that lose just this share, before all others. Otherwise as `order.greedy`."""
    work = Work(groups, curvatures, extra, "macs", "global")
    for family, share in (shares or {}).items():
        work.settle(family, share)
    sizes = [(len(f.units), groups.ledger.span(int(f.units[0]))) for f in groups.families]
    ladders = [ladder(n, step_of(n, span, *rounding), COUNTS) for n, span in sizes]
    now = table.now()
    first = [len(work.order)] if len(work.order) else []  # what the user wants of single families is the first step
    result = Paced(work.order, first, [now] * len(first), table.total)
    while work.alive and not enough(now):
        chosen = _cheapest(work, table, ladders)
        if not chosen:
            break
        for step in chosen:
            for start, end in itertools.pairwise((0, *step.ends)):
                work.remove(list(zip(step.units[start:end], step.losses[start:end])))
                now = table.now()
                result.stops.append(len(work.order))
                result.us.append(now)
    return result


def _cheapest(work: Work, table: Timetable, ladders: Sequence[Sequence[int]]) -> list[Step]:
    """The best steps of different families, of about a sixtieth of the model's time together."""
    by_family: dict[int, list[int]] = {}
    losses = _shares(work) if not work.curvatures else work.losses()
    for unit in losses:
        by_family.setdefault(work.family[unit], []).append(unit)
    times, worth = table.times(), work.ledger.savings(table.rest)
    best = [
        _cheapest_of(found)
        for k, units in by_family.items()
        if (
            found := _steps(
                work, table, sorted(units, key=lambda u: (losses[u], u)), losses, ladders[k], k, times, worth
            )
        )
    ]
    chosen: list[Step] = []
    saved = 0.0
    for step in sorted(best, key=lambda s: (s.price, s.units[0])):
        chosen.append(step)
        saved += step.saved
        if saved >= table.total / ROUNDS:
            break
    return chosen


def _cheapest_of(found: Sequence[Step]) -> Step:
    """The step with the lowest price; its `ends` are those on the way that are nearly as cheap, so that a large step
    need not overshoot what is asked for."""
    best = min(found, key=lambda s: s.price)
    on_the_way = [s for s in found if s.saved <= best.saved and s.price <= NEARLY * best.price]
    return replace(best, ends=tuple(len(s.units) for s in on_the_way))


def _shares(work: Work) -> dict[int, float]:
    """Magnitudes have no common scale: each is taken as its share of what its family has left, squared, so that the
    last channels of a family are dear."""
    total: dict[int, float] = {}
    losses = {u: loss * loss for u, loss in work.losses().items()}
    for unit, loss in losses.items():
        total[work.family[unit]] = total.get(work.family[unit], 0.0) + loss
    return {u: loss / max(total[work.family[u]], 1e-30) for u, loss in losses.items()}


def _steps(
    work: Work,
    table: Timetable,
    ranked: Sequence[int],
    losses: Mapping[int, float],
    counts: Sequence[int],
    family: int,
    times: Sequence[float],
    worth: np.ndarray,
) -> list[Step]:
    """Down to every lower count of the ladder that saves more than the count above it."""
    left, size = work.left[family], work.size[family]
    found: list[Step] = []
    best, lost, taken = LEAST * table.total, dict[int, int](), 0
    for count in sorted((n for n in counts if n < left), reverse=True):
        if count < (1 - MOST_OF_A_FAMILY) * size or left - count > len(ranked):
            break
        for unit in ranked[taken : left - count]:
            for line, n in work.ledger.living(unit):
                lost[line] = lost.get(line, 0) + n
        taken = left - count
        saved = table.saved(times, worth, lost)
        if saved > best * (1 + 1e-3):
            units = tuple(ranked[:taken])
            found.append(Step(units, tuple(losses[u] for u in units), saved))
            best = saved
    return found
