"""How much, when the user counts in MACs, parameters or time: what a saving is worth, and where the steps may stop.

Each goal that is given makes one unit of worth of what it wants saved over the whole model, and the units add up: steps
then go by damage per worth, which is the Lagrangian of the budgets with their multipliers set to one over the targets
(`balance` moves them where there are several). Without a goal worth is milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .choose import Option, Step

MARGIN = 1.01  # measured in the search above the speed-up asked for, so that the next measurement still shows it
LEAST_TRUST = 0.1
GUESSES = 4  # of the count of steps from what layers save alone, before it is halved blindly
Saving = tuple[float, int, int]  # milliseconds, MACs, parameters


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

    @property
    def alone(self) -> bool:
        """Whether parameters are all that is asked for."""
        return self.params is not None and self.macs is None and self.speedup is None

    def wanted(self, totals: Totals) -> tuple[float, float, float]:
        """Milliseconds, MACs and parameters to save; 0 where there is no goal."""
        ms = 0.0 if self.speedup is None else totals.time * (1 - 1 / self.speedup)
        return ms, (self.macs or 0.0) * totals.macs, (self.params or 0.0) * totals.params


@dataclass(frozen=True)
class Totals:
    """Of the whole model, on one feed. ms: 0 where it was not timed."""

    macs: int
    params: int
    ms: float = 0.0

    @property
    def time(self) -> float:
        """Milliseconds, guessed where the model was not timed."""
        return self.ms or self.macs * 1e-6

    @property
    def ms_per_mac(self) -> float:
        """The guess before the clock speaks of single layers."""
        return self.time / max(self.macs, 1)


@dataclass(frozen=True)
class Worth:
    """What one millisecond, one MAC and one parameter less are worth. ms_per_mac: the guess before the clock speaks."""

    ms: float = 1.0
    mac: float = 0.0
    param: float = 0.0
    ms_per_mac: float = 1e-6

    @classmethod
    def towards(cls, goal: Goal, totals: Totals, eligible: Totals | None = None) -> Worth:
        """Worth under a goal; milliseconds without one.

        eligible: of the layers that may be split. Parameters and time lie in different layers, and a model that only
        gets smaller is not what a split is for: where parameters alone are asked for and the model was timed, the same
        share of the layers' time is worth as much as that of their parameters.
        """
        if not goal.given:
            return cls(ms_per_mac=totals.ms_per_mac)
        ms, mac, param = (1 / w if w > 0 else 0.0 for w in goal.wanted(totals))
        if eligible is not None and goal.alone and totals.ms:
            share = min(1.0, (goal.params or 0.0) * totals.params / max(eligible.params, 1))
            ms = 1 / max(share * totals.ms_per_mac * eligible.macs, 1e-9)
        return cls(ms, mac, param, totals.ms_per_mac)

    def of(self, ms: float, macs: int, params: int) -> float:
        """The worth of a saving."""
        return self.ms * ms + self.mac * macs + self.param * params


@dataclass(frozen=True)
class Whole:
    """A layer as it is. ms: None where nothing was timed; a MAC then stands for `ms_per_mac`."""

    macs: int
    params: int
    ms: float | None = None
    ms_per_mac: float = 1e-6

    def saving(self, option: Option) -> Saving:
        """What an option of this layer saves."""
        macs = self.macs - option.macs
        timed = None if self.ms is None or option.ms is None else self.ms - option.ms
        return macs * self.ms_per_mac if timed is None else timed, macs, self.params - option.params


def savings(steps: Sequence[Step], hulls: Mapping[str, Sequence[Option]], whole: Mapping[str, Whole]) -> list[Saving]:
    """What none, one, two ... of the steps save by the layers' own figures; one entry more than there are steps."""
    at: dict[str, Saving] = {}
    ms, macs, params = 0.0, 0, 0
    sums: list[Saving] = [(ms, macs, params)]
    for step in steps:
        old, new = at.get(step.layer, (0.0, 0, 0)), whole[step.layer].saving(hulls[step.layer][step.index])
        ms, macs, params = ms + new[0] - old[0], macs + new[1] - old[1], params + new[2] - old[2]
        sums.append((ms, macs, params))
        at[step.layer] = new
    return sums


def enough(
    goal: Goal, totals: Totals, steps: Sequence[Step], sums: Sequence[Saving], speedup: Callable[[int], float]
) -> tuple[int, str]:
    """How many of the steps meet the goal, and what is missing when not even all do ("" when the goal is met).

    sums: of `savings`. speedup: measures the model after so many steps.
    """
    _, macs, params = goal.wanted(totals)
    least = next((k for k, s in enumerate(sums) if s[1] >= macs and s[2] >= params), len(steps))
    short = []
    for name, wanted, got, total in (
        ("MACs", macs, sums[least][1], totals.macs),
        ("params", params, sums[least][2], totals.params),
    ):
        short += [f"{got / max(total, 1):.0%} of the {name}"] if got < wanted else []
    if goal.speedup is None:
        return least, _missing(short)
    count, found = fast_enough(goal.speedup * MARGIN, least, [s[0] for s in sums], totals.time, speedup)
    return count, _missing(short + ([] if found >= goal.speedup else [f"a speed-up of {found:.2f}"]))


def _missing(short: Sequence[str]) -> str:
    return f"all that may be split saves only {' and '.join(short)}" if short else ""


def fast_enough(
    wanted: float, least: int, saved: Sequence[float], total: float, speedup: Callable[[int], float]
) -> tuple[int, float]:
    """The fewest steps, at least `least`, that measure as fast as wanted, and how fast; all when none do.

    saved: milliseconds of `total` that none, one, two ... steps save by the layers' own figures. Layers alone do not
    quite add up, so each measurement says by how much they are to be trusted, and where to look next.
    """
    low, high, most = least, None, len(saved) - 1
    due, trust, measured = total * (1 - 1 / wanted), 1.0, dict[int, float]()
    while (high is None and low <= most) or (high is not None and low < high):
        limit = most if high is None else high - 1
        guess = (low + limit) // 2
        if len(measured) < GUESSES:
            guess = next((k for k in range(low, limit + 1) if trust * saved[k] >= due), limit)
        measured[guess] = speedup(guess)
        if saved[guess] > 0:
            trust = max(total * (1 - 1 / measured[guess]) / saved[guess], LEAST_TRUST)
        if measured[guess] >= wanted:
            high = guess
        else:
            low = guess + 1
    count = most if high is None else high
    return count, measured[count]
