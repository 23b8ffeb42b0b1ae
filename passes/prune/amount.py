"""How much goes: from a ratio, or targets in MACs or parameters, and a strength, to the units that are removed.

Channel counts are rounded by giving units back, the costliest first, so that no family is thinned below what was asked;
the prefix of the order then grows until the amount is met all the same, and with it what the user wants of single
groups. Steps that the amount does without come back.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .grouping import Groups
from .order import Order

TRIES = 200_000  # units that attempts to spare some may look at
STEPS = ((64, 1), (32, 2), (0, 4))  # families of at least so many channels are rounded to the multiple / this


@dataclass(frozen=True)
class Amount:
    """What strength 1 removes: a share of the MACs or parameters of the model, or of the units that may go (the first
    that is given)."""

    ratio: float | None
    macs: float | None = None
    params: float | None = None

    def reached(self, order: Order, at: int, total: int, strength: float) -> bool:
        """Whether the first `at` units of the order are enough at this strength."""
        if at == 0:
            return False
        if self.macs is not None:
            return order.macs[at - 1] >= strength * self.macs
        if self.params is not None:
            return order.params[at - 1] >= strength * self.params
        return at >= round(strength * (self.ratio or 0.0) * total)

    def met(self, groups: Groups, units: Sequence[int], strength: float) -> bool:
        """Whether these units are enough at this strength."""
        if self.macs is None and self.params is None:
            return len(units) >= round(strength * (self.ratio or 0.0) * len(groups.units))
        return self.share(groups, units) >= strength * self.wanted

    @property
    def wanted(self) -> float:
        """The share that is to go, of what the amount counts."""
        return next((x for x in (self.macs, self.params, self.ratio) if x is not None), 0.0)

    @property
    def counts(self) -> str:
        """What the amount counts, in words."""
        return "MACs" if self.macs is not None else "parameters" if self.params is not None else "channels"

    def share(self, groups: Groups, units: Sequence[int]) -> float:
        """The share that goes with these units, of what the amount counts."""
        if self.macs is None and self.params is None:
            return len(units) / max(len(groups.units), 1)
        groups.ledger.reset()
        for unit in units:
            groups.ledger.remove(unit)
        params, macs = groups.ledger.gone_shares()
        return macs if self.macs is not None else params


def step_of(size: int, span: int, multiple: int, fixed: bool) -> int:
    """What the count of a family of `size` units is a multiple of, so that channels are multiples of `multiple`.

    span: channels that a unit is. Finer for small families unless the user fixed it.
    """
    if multiple <= 1:
        return 1
    if fixed:
        return multiple // math.gcd(multiple, span)
    part = max(1, next(multiple // part for least, part in STEPS if size * span >= least))
    return max(1, min(part // math.gcd(part, span), size // 4))


def chosen(groups: Groups, order: Order, amount: Amount, strength: float, multiple: int, fixed: bool) -> np.ndarray:
    """Units to remove at a strength, rounded."""
    due = _due(groups, order, strength, multiple, fixed)

    def enough(units: list[int]) -> bool:
        found = by_family(groups, units) if due else {}
        return all(found.get(k, 0) >= n for k, n in due.items()) and amount.met(groups, units, strength)

    low, high = 0, len(order)
    while low < high:  # the smallest prefix that is enough after rounding: what rounding leaves grows with the prefix
        middle = (low + high) // 2
        if enough(rounded(groups, order.units[:middle], multiple, fixed)):
            high = middle
        else:
            low = middle + 1
    units = rounded(groups, order.units[:low], multiple, fixed)
    if multiple > 1:
        units = _spared(groups, units, multiple, fixed, enough)
    return np.array(units, np.int64)


def _due(groups: Groups, order: Order, strength: float, multiple: int, fixed: bool) -> dict[int, int]:
    """How many units a family whose share the user set loses at a strength, whatever the amount."""
    settled = order.units[: order.settled]
    counts = by_family(groups, settled)
    left = {k: round(strength * n) for k, n in counts.items()}
    first = []
    for unit, k in zip(settled, _families_of(groups, settled)):
        if left[k]:
            left[k] -= 1
            first.append(unit)
    return by_family(groups, rounded(groups, first, multiple, fixed))


def _families_of(groups: Groups, units: Sequence[int]) -> list[int]:
    """The family that each unit belongs to."""
    family = {int(u): k for k, f in enumerate(groups.families) for u in f.units}
    return [family[u] for u in units]


def by_family(groups: Groups, units: Sequence[int]) -> dict[int, int]:
    """How many of these units each family has, by its place in `groups.families`."""
    return Counter(_families_of(groups, units))


def _spared(
    groups: Groups, units: list[int], multiple: int, fixed: bool, enough: Callable[[list[int]], bool]
) -> list[int]:
    """The units, less whole steps of families that the amount does without: the last step of a large family may have
    gone far beyond it. What was costliest comes back first."""
    family = {int(u): k for k, f in enumerate(groups.families) for u in f.units}
    last = {family[u]: at for at, u in enumerate(units)}
    steps = _steps(groups, multiple, fixed)
    for k in sorted(last, key=lambda k: -last[k])[: max(4, TRIES // max(len(units), 1))]:
        mine = [u for u in units if family[u] == k]
        back = set(mine[-steps[k] :])
        less = [u for u in units if u not in back]
        if less and enough(less):
            units = less
    return units


def _steps(groups: Groups, multiple: int, fixed: bool) -> list[int]:
    """What the count of each family is a multiple of."""
    spans = (groups.ledger.span(int(f.units[0])) for f in groups.families)
    return [step_of(len(f.units), span, multiple, fixed) for f, span in zip(groups.families, spans)]


def rounded(groups: Groups, units: list[int], multiple: int, fixed: bool) -> list[int]:
    """The units, less those that are given back to make channel counts round; in their order."""
    if multiple <= 1:
        return list(units)
    family = {int(u): k for k, f in enumerate(groups.families) for u in f.units}
    sizes = [len(f.units) for f in groups.families]
    gone = [0] * len(sizes)
    for unit in units:
        gone[family[unit]] += 1
    allowed = []
    for step, size, lost in zip(_steps(groups, multiple, fixed), sizes, gone):
        allowed.append(max(0, size - -(-(size - lost) // step) * step))
    kept, used = [], [0] * len(sizes)
    for unit in units:
        k = family[unit]
        if used[k] < allowed[k]:
            used[k] += 1
            kept.append(unit)
    return kept
