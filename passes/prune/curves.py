"""Loss against ratio, group by group: what taking a share of one group away does to the outputs, in trials.

Every reader of the group gets the best refit of what stays; nothing else is fitted. So the figures compare groups; a
real pruning, which refits every layer behind, loses less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...ir import Model
from ..base import Context
from . import grouping, plan, sensitivity
from .grouping import Family, Groups
from .score import Curvature
from .trial import Trials

STEPS = 12  # down-dates on the way through a whole group


@dataclass(frozen=True)
class Curve:
    """A group by its first member, its channels, and the relative output error after each ratio of them went.

    errors: None for a group that no linear layer with a constant weight reads.
    """

    node: str
    channels: int
    macs: int
    errors: tuple[float, ...] | None


def curves(model: Model, ctx: Context, ratios: Sequence[float]) -> list[Curve]:
    """Measured on `ctx.fit`, for every group that may go; the most costly first, unread ones last."""
    groups = grouping.find(model, ctx.fit.first(), ctx.excluded)
    feeds, layers = plan.fitting_feeds(ctx), plan.layers(model, gates=True)
    found = plan.curvatures(model, groups, layers, plan.goals(model, layers, feeds, ctx), feeds, ctx)
    names = {c.node for c in found}
    few = sensitivity.spare(model, len(groups.families) * len(ratios), feeds)
    trials = Trials(model, [x for x in layers if x.node in names], [], few, ctx.workers)
    rows = [_curve(groups, f, found, ratios, trials) for f in ctx.progress(groups.families, "sensitivity")]
    return sorted(rows, key=lambda r: (r.errors is None, -max(r.errors or (0.0,)), r.node))


def _curve(
    groups: Groups, family: Family, every: Sequence[Curvature], ratios: Sequence[float], trials: Trials
) -> Curve:
    units = family.units.tolist()
    mine = [_only(c, units) for c in every if any(u in c.columns for u in units)]
    full = {c.node: c for c in every}
    errors: list[float] = []
    gone = 0
    for ratio in ratios:
        wanted = min(round(ratio * len(units)), len(units) - 1)
        while gone < wanted:
            gone += _take(mine, min(wanted - gone, max(1, len(units) // STEPS)))
        errors.append(trials.error({c.node: sensitivity.change(full[c.node], c) for c in mine}))
    _, macs = groups.ledger.carried(family.units)
    return Curve(family.members[0][0], len(units), macs // groups.samples, tuple(errors) if mine else None)


def _only(curve: Curvature, units: Sequence[int]) -> Curvature:
    copy = curve.copy()
    copy.columns = {u: copy.columns[u] for u in units if u in copy.columns}
    return copy


def _take(mine: Sequence[Curvature], count: int) -> int:
    """Let the cheapest units go; how many went."""
    total: dict[int, float] = {}
    for curve in mine:
        for unit, loss in curve.losses(list(curve.columns)).items():
            total[unit] = total.get(unit, 0.0) + loss
    chosen = sorted(total, key=lambda u: (total[u], u))[:count]
    for curve in mine:
        curve.remove(chosen)
    return max(len(chosen), 1)
