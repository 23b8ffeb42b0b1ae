"""Ranges of the loudest tensors, chosen by the error of the outputs instead of their own.

A range that loses least of a tensor may clip just what the outputs hang on: detections are outliers. One session holds
every loud group with a switch and its scale and zero point as inputs, so that a range is tried by feeding it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...ir import Model, cost, edit, order
from ...runtime import Session
from ...runtime.feeds import Feeds
from ..base import Context
from . import calibrate, sensitivity
from .calibrate import Scale
from .placement import Placement
from .statistics import Statistics

LOUDEST, FEEDS = 16, 6
PART = 0.01  # of all noise: quieter groups are left as they are
BETTER = 0.9  # of the noise before: less gained on so few feeds is chance
PATIENCE = 2.0  # times the tensor's own least noise, over all feeds: a range that clips more was fitted to those few
MOVES = 8  # of one end in one direction, for as long as each gains
USUAL = 8  # runs a group: most gain nothing
BUDGET = 3 * 10**11  # multiply-accumulates spent on this: about ten seconds

Ends = tuple[float, float]


def tune(
    model: Model, placement: Placement, stats: Statistics, noise: Mapping[str, float], feeds: Feeds, ctx: Context
) -> dict[str, float]:
    """Put better ranges into `stats.limits`; returns the noise with these, loudest first."""
    runs = BUDGET // max(int(cost.of(model, stats.shapes).macs), 10**6)
    groups = {g: placement.groups()[g] for g in _loud(placement, stats, noise, runs // (FEEDS * USUAL))}
    found = dict(noise)
    if groups:
        trial = _Trial(model, groups, stats, feeds, ctx)
        for group in ctx.progress(list(groups), "ranges of the loudest", len(groups)):
            ends, level = _descend(trial, group, [stats.seen[n] for n in groups[group]], stats.ends(placement, group))
            if ends is not None:
                stats.limits.update(dict.fromkeys(groups[group], ends))
                found[group] *= level
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _loud(placement: Placement, stats: Statistics, noise: Mapping[str, float], most: int) -> list[str]:
    """Groups worth it: among the loudest, of ranges that calibration chose and nobody fixed."""
    total = sum(noise.values())
    named = {n for n in placement.decisions if n in stats.methods}
    free = [
        g
        for g, members in placement.groups().items()
        if noise.get(g, 0.0) > PART * total
        and not any(placement.decisions[n].how == "fixed" or n in named for n in members)
    ]
    return sorted(free, key=lambda g: (-noise[g], g))[: min(most, LOUDEST)]


def _descend(trial: _Trial, group: str, seen: Sequence[calibrate.Seen], ends: Ends) -> tuple[Ends | None, float]:
    """The best range found by moving first the upper end, then the lower, and what part of the noise it leaves; None
    when nothing is clearly better, on other feeds too."""
    extremes, own = calibrate.minmax(seen), PATIENCE * trial.own(seen, ends)
    first = least = trial.noise(group, ends)
    best = ends
    for side in (1, 0):
        for way in (_outward, _inward):
            for _ in range(MOVES):
                moved = way(best, extremes, side)
                worth = _differs(moved, best) and trial.own(seen, moved) <= own
                level = trial.noise(group, moved) if worth else least
                if level >= least:
                    break
                best, least = moved, level
    if least >= BETTER * first or trial.noise(group, best, unseen=True) >= trial.noise(group, ends, unseen=True):
        return None, 1.0
    return best, least / first


def _outward(ends: Ends, extremes: Ends, side: int) -> Ends:
    """Half the way to what was seen."""
    to = (ends[side] + extremes[side]) / 2
    return (ends[0], to) if side else (to, ends[1])


def _inward(ends: Ends, extremes: Ends, side: int) -> Ends:
    """A fifth closer to zero."""
    return (ends[0], 0.8 * ends[1]) if side else (0.8 * ends[0], ends[1])


def _differs(a: Ends, b: Ends) -> bool:
    return max(abs(a[0] - b[0]), abs(a[1] - b[1])) > 0.01 * (b[1] - b[0])


class _Trial:
    """The model with every group behind a switch, ready to be run with any range."""

    def __init__(
        self, model: Model, groups: Mapping[str, Sequence[str]], stats: Statistics, feeds: Feeds, ctx: Context
    ) -> None:
        copy, self.settings = model.copy(), stats.settings
        self.inputs, self.off = {}, dict[str, Any]()
        for group, members in groups.items():
            names = self.inputs[group] = self._open(copy, members)
            idle = Scale(1.0, 0, self.settings.activation)
            self.off |= self._fed(names, False, idle)
        order.sort(copy)
        self.session = Session(copy, threads=ctx.workers)
        chosen = list(feeds.spread(2 * FEEDS))
        self.feeds = {False: chosen[::2], True: chosen[1::2] or chosen}  # to choose by, and to confirm by
        self.plain = {k: [self.session.run({**f, **self.off}) for f in some] for k, some in self.feeds.items()}

    def _open(self, model: Model, members: Sequence[str]) -> tuple[str, str, str]:
        """Names of the inputs: switch, scale and zero point."""
        kind = Scale(1.0, 0, self.settings.activation).dtype
        made = [
            edit.variable(model, f"{members[0]}_{what}", dtype, [])
            for what, dtype in (("switch", np.bool_), ("scale", np.float32), ("zero", kind))
        ]
        model.graph.inputs.extend(made)
        for name in members:
            sensitivity.switched(model, name, made[0], made[1], made[2])
        return made[0].name, made[1].name, made[2].name

    @staticmethod
    def _fed(names: tuple[str, str, str], on: bool, scale: Scale) -> dict[str, np.ndarray]:
        kinds = (np.bool_, np.float32, scale.dtype)
        return {n: np.asarray(v, k) for n, v, k in zip(names, (on, scale.scale, scale.zero), kinds)}

    def _scale(self, ends: Ends) -> Scale:
        return calibrate.to_scale(*ends, self.settings.activation, self.settings.symmetric)

    def own(self, seen: Sequence[calibrate.Seen], ends: Ends) -> float:
        """Expected squared error of the tensors themselves."""
        return sum(calibrate.expected_noise(s, self._scale(ends))[1] for s in seen)

    def noise(self, group: str, ends: Ends, unseen: bool = False) -> float:
        """At the outputs, with this group alone quantized in the range. unseen: on feeds that chose nothing."""
        on = {**self.off, **self._fed(self.inputs[group], True, self._scale(ends))}
        runs = [self.session.run({**feed, **on}) for feed in self.feeds[unseen]]
        return sensitivity.noise_of(self.plain[unseen], runs)
