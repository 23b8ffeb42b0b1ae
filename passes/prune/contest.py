"""Several ways to weigh losses, and the one that prunes best: each order is cut and refitted on a few feeds in earnest,
and what the outputs are then off on other feeds decides.

How much a layer's error counts in the end, after everything behind it was fitted anew, no local measurement tells; how
far the truth lies from the trials' figures differs from model to model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ...ir import Model, cost
from ...ir import order as graph_order
from ...runtime.feeds import Feeds, spaced
from ...runtime.loading import give_back
from ...runtime.session import Session
from ..base import Context
from .cut import cut
from .grouping import Groups
from .layers import Layer
from .left import Left
from .refit import refit
from .stats import Target
from .trial import heads, spreads

Array = np.ndarray
MOST, FEWEST = 32, 12  # feeds of a contest; with fewer there is none
CHECK = 4  # every so manieth of them is not fitted on
WORK = 2e11  # MACs that all runs of a contest may take


class Contest:
    """Measures what pruned models put out.

    kept: what is left of every layer's outputs when units are gone (`refit`).
    """

    def __init__(
        self,
        groups: Groups,
        layers: Sequence[Layer],
        goals: Mapping[str, Target],
        feeds: Feeds,
        kept: Callable[[Array], Mapping[str, Left]],
        ctx: Context,
    ):
        self.groups, self.layers, self.kept, self.ctx = groups, layers, kept, ctx
        self.model: Model = groups.flow.model
        at = spaced(range(len(feeds)), MOST)
        mine = [k for i, k in enumerate(at) if i % CHECK != CHECK - 1]
        self.fit, self.check = feeds.pick(mine), feeds.pick([k for k in at if k not in set(mine)])
        self.goals = {n: _of(goal, mine) for n, goal in goals.items()}
        self.heads = [t.name for t in heads(self.model)]
        reference = Session(self.model, outputs=self.heads, threads=ctx.workers)
        self.reference = [reference.run(f) for f in self.check]
        self.spread = spreads(self.reference)

    def error(self, gone: Array) -> float:
        """Squared error of the heads, each relative to its variance, on feeds that were not fitted on."""
        give_back()  # the entrant before, whose weights are its own
        small = self.model.copy()
        cut(small, self.groups.flow, gone)
        graph_order.sort(small)
        quiet = replace(self.ctx, on_progress=lambda items, label, total: items)
        refit(small, self.layers, self.fit, self.goals, self.kept(gone), quiet)
        session = Session(small, outputs=self.heads, threads=self.ctx.workers)
        total = dict.fromkeys(self.spread, 0.0)
        for feed, reference in zip(self.check, self.reference):
            found = session.run(feed)
            for head in total:
                apart = np.subtract(found[head], reference[head], dtype=np.float64)
                total[head] += float(np.square(apart).mean()) / len(self.reference)
        return float(np.mean([e / self.spread[h] for h, e in total.items()])) if total else 0.0


def affordable(model: Model, feeds: Feeds, entrants: int) -> bool:
    """Whether a contest of so many orders is worth its time."""
    runs = float(cost.of(model).macs) * min(len(feeds), MOST) * entrants
    return len(feeds) >= FEWEST and runs <= WORK


def _of(goal: Target, at: Sequence[int]) -> Target:
    weights = [goal.weights[k] for k in at] if goal.weights else []
    read = [goal.read[k] for k in at] if goal.read else []
    sizes = [goal.sizes[k] for k in at]
    return Target([goal.places[k] for k in at], [goal.rows[k] for k in at], weights, read, sizes)
