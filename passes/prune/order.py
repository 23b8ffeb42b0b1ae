"""In which order units go: greedily, by the loss that each adds for what it saves, losses down-dated.

What a unit saves is counted in what the user's amount is counted in: channels, MACs or parameters.

The order is made once; every strength takes a prefix of it, so damage grows with strength.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import sparse

from .grouping import Groups
from .score import Curvature

Array = np.ndarray
ROUNDS = 60  # times that losses are down-dated while all units go
MOST_OF_A_FAMILY = 0.9  # a global order does not empty a family that the data call cheap


@dataclass
class Order:
    """Units in the order of their removal, with the share of MACs and parameters, and the loss, after each.

    settled: how many of the first are there because the user set the share of their family.
    """

    units: list[int] = field(default_factory=list)
    macs: list[float] = field(default_factory=list)
    params: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    settled: int = 0

    def __len__(self) -> int:
        return len(self.units)


def greedy(
    groups: Groups,
    curvatures: Sequence[Curvature],
    extra: Mapping[int, float],
    scope: str,
    enough: Callable[[Order], bool],
    currency: str = "macs",
    shares: Mapping[int, float] | None = None,
) -> Order:
    """Remove units until it is enough. extra: losses that do not change (units without a linear consumer, or all
    units when there are no curvatures). currency: "channels", "macs" or "params", what savings are counted in. shares:
    of families that lose just this share, before all others."""
    work = Work(groups, curvatures, extra, currency, scope)
    for family, share in (shares or {}).items():
        work.settle(family, share)
    while work.alive and not enough(work.order):
        chosen = work.cheapest() if scope == "global" else work.cheapest_of_each()
        if not chosen:
            break
        work.remove(chosen)
    return work.order


class Work:
    """What is left while units go: their losses, what each family has left, the ledger, and the order so far."""

    def __init__(
        self, groups: Groups, curvatures: Sequence[Curvature], extra: Mapping[int, float], currency: str, scope: str
    ):
        self.currency = currency
        self.ledger = groups.ledger
        self.ledger.reset()
        self.curvatures = curvatures
        units = groups.units.tolist()
        self.alive = dict.fromkeys(units)
        self.family = {int(u): k for k, f in enumerate(groups.families) for u in f.units}
        self.left = [len(f.units) for f in groups.families]
        self.size = list(self.left)
        self.pool = structures(groups) if scope == "isomorphic" else list(range(len(self.size)))
        self.pool_size = [sum(s for s, p in zip(self.size, self.pool) if p == k) for k in range(len(self.size))]
        self.row = {u: k for k, u in enumerate(units)}
        self.counts = self._counts(units)
        self.parts: list[dict[int, float]] = [c.losses(units) for c in curvatures]
        self.extra = {u: extra.get(u, 0.0) for u in units}
        self.scored = {u for p in self.parts for u in p} | set(extra)
        self.chunk = max(1, len(units) // ROUNDS)
        self.order = Order()
        self.sum = 0.0

    def _counts(self, units: Sequence[int]) -> sparse.csr_matrix:
        rows, columns, values = [], [], []
        for u in units:
            for line, places in self.ledger.places(u):
                rows.append(self.row[u])
                columns.append(line)
                values.append(len(places))
        return sparse.csr_matrix((values, (rows, columns)), (len(units), self.ledger.lines))

    def losses(self) -> dict[int, float]:
        """Of every living unit with a score, if it alone went next."""
        total = {u: self.extra[u] for u in self.alive if u in self.scored}
        for part in self.parts:
            for u, loss in part.items():
                if u in total:
                    total[u] += loss
        return total

    def savings(self) -> Array:
        """What each unit saves now, as a share; a little of the other cost counts too, so that none is free.

        Magnitudes are no losses: divided by what they save they would empty the widest layers. They count alone.
        """
        if not self.curvatures or self.currency == "channels":
            return np.ones(self.counts.shape[0])
        params = self.counts @ self.ledger.savings(self.ledger.params) / self.ledger.whole[0]
        macs = self.counts @ self.ledger.savings(self.ledger.macs) / self.ledger.whole[1]
        return (params + 0.05 * macs if self.currency == "params" else macs + 0.05 * params) + 1e-12

    def cheapest(self) -> list[tuple[int, float]]:
        """The next units of a global order, with their losses."""
        losses, savings = self.losses(), self.savings()
        ranked = sorted(losses, key=lambda u: (losses[u] / savings[self.row[u]], u))
        chosen: list[tuple[int, float]] = []
        taken = [0] * len(self.left)
        for u in ranked:
            k = self.family[u]
            if len(chosen) >= self.chunk:
                break
            if self.left[k] - taken[k] - 1 >= (1 - MOST_OF_A_FAMILY) * self.size[k]:
                chosen.append((u, losses[u]))
                taken[k] += 1
        return chosen

    def cheapest_of_each(self) -> list[tuple[int, float]]:
        """The same share of every pool: a family, or all families of one structure."""
        losses = self.losses()
        by_pool: dict[int, list[int]] = {}
        for u in losses:
            by_pool.setdefault(self.pool[self.family[u]], []).append(u)
        done = 1 + len(self.order.units) * ROUNDS / max(sum(self.size), 1)
        chosen = []
        for k, units in by_pool.items():
            left = sum(n for n, pool in zip(self.left, self.pool) if pool == k)
            due = int(np.ceil(self.pool_size[k] * done / ROUNDS)) - (self.pool_size[k] - left)
            for u in sorted(units, key=lambda u: (losses[u], u))[: max(due, 0)]:
                chosen.append((u, losses[u]))
        return chosen or [(u, losses[u]) for u in sorted(losses, key=lambda u: (losses[u], u))[:1]]

    def settle(self, family: int, share: float) -> None:
        """Take the cheapest of a family until this share is gone, and leave the rest of it alone."""
        due = round(share * self.size[family])
        while due:
            losses = {u: loss for u, loss in self.losses().items() if self.family[u] == family}
            chosen = sorted(losses, key=lambda u: (losses[u], u))[: min(due, max(1, self.size[family] // 8))]
            if not chosen:
                break
            self.remove([(u, losses[u]) for u in chosen])
            due -= len(chosen)
        self.alive = {u: None for u in self.alive if self.family[u] != family}
        self.order.settled = len(self.order)

    def remove(self, chosen: Sequence[tuple[int, float]]) -> None:
        """Let units go, log them, and down-date the losses of the others."""
        gone = []
        for u, loss in chosen:
            del self.alive[u]
            if self.ledger.remove(u):
                gone.append(u)
                self.left[self.family[u]] -= 1
                self.sum += loss
                self.log(u)
        for k, curvature in enumerate(self.curvatures):
            if any(curvature.concerns(u) for u in gone):
                curvature.remove(gone)
                self.parts[k] = curvature.losses(list(curvature.columns))

    def log(self, unit: int) -> None:
        """Note that a unit went."""
        order = self.order
        params, macs = self.ledger.gone_shares()
        order.units.append(unit)
        order.macs.append(macs)
        order.params.append(params)
        order.loss.append(self.sum)


def logged(groups: Groups, units: Sequence[int]) -> Order:
    """An order of these units, with what is gone after each; those that an axis cannot spare are left out."""
    work = Work(groups, [], {}, "channels", "global")
    for unit in units:
        if work.ledger.remove(unit):
            work.log(unit)
    return work.order


def structures(groups: Groups) -> list[int]:
    """Families with one structure (the same operators, cut at the same inputs and axes) get one number
    (isomorphic pruning, arXiv 2407.04616)."""
    ops = {n.name: n.op for n in groups.flow.model.graph.nodes}
    known: dict[object, int] = {}
    shapes = [tuple(sorted((ops[n], index, axis) for n, index, axis in f.members)) for f in groups.families]
    return [known.setdefault(shape, len(known)) for shape in shapes]
