"""`speedup=`: an order of removal by measured time, and how far along it the whole model is as fast as asked.

Predictions add up what layers save alone; where to stop is measured on whole models, in pairs with the model as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...ir import Model
from ...ir import order as graph_order
from ...runtime import latency
from ...runtime.session import Session
from ..base import Context
from .amount import step_of
from .blocks import Paced, paced
from .clock import Clock
from .cut import cut
from .grouping import Groups
from .score import Curvature
from .timetable import timetable

MARGIN = 1.01  # measured in the search above the speed-up asked for, so that the next measurement still shows it
TRIES = 7
SECONDS = 1.5


@dataclass
class Pace:
    """Steps in their order, and how many of them are as fast as asked. measured: speed-up there."""

    steps: Paced
    count: int
    measured: float

    def units(self, strength: float) -> list[int]:
        """What goes at a strength: so much of the predicted time that goes at full strength."""
        taken = self._taken(strength)
        return self.steps.order.units[: self.steps.stops[taken - 1]] if taken else []

    def _taken(self, strength: float) -> int:
        """Steps at a strength."""
        if not self.count or strength >= 1:
            return self.count
        saved = strength * (self.steps.total - self.steps.us[self.count - 1])
        enough = (k for k in range(self.count) if self.steps.total - self.steps.us[k] >= saved * (1 - 1e-9))
        return next(enough, self.count - 1) + 1

    def to_json(self, strength: float) -> dict[str, float]:
        """For the report: steps taken, and the speed-up that the tables predict (and that was measured, at 1)."""
        taken = self._taken(strength)
        predicted = self.steps.total / self.steps.us[taken - 1] if taken else 1.0
        found = {"steps": taken, "predicted": round(predicted, 4)}
        return found | {"measured": round(self.measured, 4)} if taken == self.count else found


def pace(
    model: Model,
    groups: Groups,
    curvatures: Sequence[Curvature],
    extra: Mapping[int, float],
    wanted: float,
    multiple: int,
    fixed: bool,
    ctx: Context,
    shares: Mapping[int, float] | None = None,
) -> Pace:
    """Choose what goes so that the model runs `wanted` times as fast here."""
    if not ctx.target.native:
        ctx.note("prune: speedup= is measured on this machine, whatever the target")
    feed = ctx.fit.first()
    clock = Clock(ctx.threads, ctx.timings, lambda n: step_of(n, 1, multiple, fixed))
    table = timetable(model, groups, feed, clock)
    far = 1.2 * wanted + 0.2
    steps = paced(groups, curvatures, extra, table, (multiple, fixed), lambda us: table.total >= far * us, shares)
    original = Session(model, threads=ctx.threads)

    def speedup(count: int) -> float:
        trial = model.copy()
        cut(trial, groups.flow, np.array(steps.order.units[: steps.stops[count - 1]], np.int64))
        graph_order.sort(trial)
        return latency.compare(original, trial, feed, threads=ctx.threads, timings=ctx.timings, seconds=SECONDS).speedup

    count, found = fewest([steps.total / max(us, 1e-9) for us in steps.us], wanted * MARGIN, speedup)
    if found < wanted:
        ctx.note(f"prune: all that may go makes the model {found:.2f} times as fast, not {wanted:g}")
    return Pace(steps, count, found)


def fewest(predicted: Sequence[float], wanted: float, measure: Callable[[int], float]) -> tuple[int, float]:
    """The fewest steps that measure as fast as wanted, and their speed-up; all of them when none do.

    predicted: speed-up after each step. Looks first where the predictions, corrected by what was measured, say.
    """
    low, high, best, correction = 0, len(predicted), 0.0, 1.0
    if not predicted:
        return 0, 1.0
    for attempt in range(TRIES):
        if high - low <= 1 and best:
            break
        guess = next((k + 1 for k, p in enumerate(predicted) if 1 + (p - 1) * correction >= wanted), high)
        guess = (low + high) // 2 if best and attempt % 2 else guess  # a wrong slope would creep
        guess = min(max(guess, low + 1), max(high - 1, low + 1) if best else high)
        found = measure(guess)
        correction = (found - 1) / max(predicted[guess - 1] - 1, 1e-9)
        if found >= wanted:
            high, best = guess, found
        elif guess == len(predicted):
            return guess, found
        else:
            low = guess
    return (high, best) if best else (high, measure(high))
