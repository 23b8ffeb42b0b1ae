"""How much, when the user counts in MACs, parameters or time: what a saving is worth, and where the steps may stop.

Each goal that is given makes one unit of worth of what it wants saved over the whole model, and the units add up: steps
then go by damage per worth, which is the Lagrangian of the budgets with their multipliers set to one over the targets.
Without a goal worth is milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .choose import Option, Step

MARGIN = 1.01  # measured in the search above the speed-up asked for, so that the next measurement still shows it


@dataclass(frozen=True)
class Goal:
    """Shares of the model's MACs and parameters to save, and how many times faster it is to run; None: no matter."""

    macs: float | None = None
    params: float | None = None
    speedup: float | None = None

    @property
    def given(self) -> bool:
        """Whether there is any."""
        return any(x is not None for x in (self.macs, self.params, self.speedup))


@dataclass(frozen=True)
class Totals:
    """Of the whole model, on one feed. ms: 0 where it was not timed."""

    macs: int
    params: int
    ms: float = 0.0


@dataclass(frozen=True)
class Worth:
    """What one millisecond, one MAC and one parameter less are worth. ms_per_mac: the guess before the clock speaks."""

    ms: float = 1.0
    mac: float = 0.0
    param: float = 0.0
    ms_per_mac: float = 1e-6

    @classmethod
    def towards(cls, goal: Goal, totals: Totals) -> Worth:
        """Worth under a goal; milliseconds without one."""
        per_mac = (totals.ms or totals.macs * 1e-6) / max(totals.macs, 1)
        if not goal.given:
            return cls(ms_per_mac=per_mac)
        wanted = 0.0 if goal.speedup is None else per_mac * totals.macs * (1 - 1 / goal.speedup)
        return cls(
            _per(wanted), _per((goal.macs or 0.0) * totals.macs), _per((goal.params or 0.0) * totals.params), per_mac
        )

    def of(self, ms: float, macs: int, params: int) -> float:
        """The worth of a saving."""
        return self.ms * ms + self.mac * macs + self.param * params


def _per(wanted: float) -> float:
    return 1 / wanted if wanted > 0 else 0.0


def enough(
    goal: Goal,
    totals: Totals,
    steps: Sequence[Step],
    hulls: Mapping[str, Sequence[Option]],
    whole: Mapping[str, tuple[int, int]],
    speedup: Callable[[Sequence[Step]], float],
) -> tuple[int, str]:
    """How many of the steps meet the goal, and what is missing when not even all do ("" when the goal is met).

    whole: (MACs, parameters) of each layer as it is. speedup: measures the model after some steps.
    """
    saved = {"MACs": 0, "params": 0}
    wanted = {"MACs": (goal.macs or 0.0) * totals.macs, "params": (goal.params or 0.0) * totals.params}
    count, at = 0, dict(whole)
    while count < len(steps) and any(saved[k] < wanted[k] for k in wanted):
        step = steps[count]
        option = hulls[step.layer][step.index]
        saved["MACs"] += at[step.layer][0] - option.macs
        saved["params"] += at[step.layer][1] - option.params
        at[step.layer] = option.macs, option.params
        count += 1
    total = {"MACs": totals.macs, "params": totals.params}
    short = [f"{saved[k] / max(total[k], 1):.0%} of the {k}" for k in wanted if saved[k] < wanted[k]]
    if goal.speedup is None:
        return count, _missing(short)
    count, found = _fast_enough(goal.speedup * MARGIN, steps, count, speedup)
    return count, _missing(short + ([] if found >= goal.speedup else [f"a speed-up of {found:.2f}"]))


def _missing(short: Sequence[str]) -> str:
    return f"all that may be split saves only {' and '.join(short)}" if short else ""


def _fast_enough(
    wanted: float, steps: Sequence[Step], least: int, speedup: Callable[[Sequence[Step]], float]
) -> tuple[int, float]:
    """The fewest steps, at least `least`, that measure as fast as wanted, by bisection; all when none do."""
    measured = {len(steps): speedup(steps)}
    low, high = least, len(steps)
    if measured[high] < wanted:
        return high, measured[high]
    while low < high:
        middle = (low + high) // 2
        measured[middle] = speedup(steps[:middle])
        if measured[middle] >= wanted:
            high = middle
        else:
            low = middle + 1
    return high, measured[high]
