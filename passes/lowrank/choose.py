"""From candidates to a plan: the options of a layer that are worth having, and one order over all layers.

Every layer has a lower convex hull of (milliseconds saved, damage). All steps along all hulls, sorted by damage per
millisecond, are a greedy order that is optimal at each of its prefixes (the linear relaxation of the multiple-choice
knapsack). A strength is a prefix, so damage and savings grow together with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .forms import Rank

DECADES = 5.0


@dataclass(frozen=True)
class Option:
    """One way to split one layer.

    error: relative output MSE on the fit feeds. damage: error times the layer's sensitivity. saved: what the saving is
    worth (`goal.Worth`): milliseconds, or shares of what the user wants saved. ms: of the chain, None when not timed.
    """

    form: str
    rank: Rank
    error: float
    saved: float
    macs: int
    params: int
    ms: float | None = None
    damage: float = 0.0


@dataclass(frozen=True)
class Step:
    """Going from one option of a layer to its next."""

    layer: str
    index: int
    saved: float
    damage: float


def hull(options: Sequence[Option]) -> list[Option]:
    """The options on the lower convex hull from (0, 0), in order of savings; damage per saving never falls."""
    kept: list[Option] = []
    for option in sorted(options, key=lambda o: (o.saved, o.damage, o.form, o.rank)):
        if option.saved <= 0:
            continue
        while kept and (kept[-1].damage >= option.damage or not _below(kept, option)):
            kept.pop()
        if not kept or option.saved > kept[-1].saved:
            kept.append(option)
    return kept


def _below(kept: Sequence[Option], option: Option) -> bool:
    """Whether the last kept option lies under the line from the one before it (or the origin) to the new one."""
    saved, damage = (kept[-2].saved, kept[-2].damage) if len(kept) > 1 else (0.0, 0.0)
    last = kept[-1]
    return (last.damage - damage) * (option.saved - saved) < (option.damage - damage) * (last.saved - saved)


def thinned(options: Sequence[Option], most: int) -> list[Option]:
    """At most so many of a hull's options, evenly over it, the last among them: still convex, and fewer to fit."""
    if len(options) <= most:
        return list(options)
    return [options[((k + 1) * len(options)) // most - 1] for k in range(most)]


def order(hulls: Mapping[str, Sequence[Option]]) -> list[Step]:
    """All steps along all hulls, cheapest damage per saving first; a layer's own steps stay in order."""
    steps: list[tuple[float, Step]] = []
    for layer, options in hulls.items():
        saved = damage = 0.0
        for index, option in enumerate(options):
            step = Step(layer, index, option.saved - saved, option.damage - damage)
            steps.append((step.damage / step.saved, step))
            saved, damage = option.saved, option.damage
    return [step for _, step in sorted(steps, key=lambda s: (s[0], s[1].index))]


def taken(steps: Sequence[Step]) -> dict[str, int]:
    """Option index by layer after all of these steps."""
    return {step.layer: step.index for step in steps}


def prefix(steps: Sequence[Step], strength: float) -> dict[str, int]:
    """Option index by layer after the steps whose damage adds up to what `strength` allows; all of them at 1.

    The allowance runs over `DECADES` orders of magnitude on a log scale, so that a solver that halves the strength
    finds its way in decibels rather than among a handful of large steps.
    """
    total = sum(s.damage for s in steps)
    allowed = total * 10.0 ** (DECADES * (strength - 1))
    chosen: dict[str, int] = {}
    damage = 0.0
    for step in steps:
        damage += step.damage
        if strength < 1 and damage > allowed:
            break
        chosen[step.layer] = step.index
    return chosen
