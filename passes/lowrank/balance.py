"""Several budgets at once: what a millisecond, a MAC and a parameter have to be worth for none to be overshot.

The Lagrangian of "least damage, all budgets met" has one multiplier a budget, and at the optimum a budget that is more
than met has none. With multipliers of one over each target (`goal.Worth`) the budget that is met first goes on being
paid for. Here a multiplier falls by as much as its budget is overshot, over and over, and of all the orders of steps
seen on the way the one that meets the budgets at the least damage is taken. It is arithmetic on figures that the layers
have already, and takes no measurement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from . import choose
from .choose import Option
from .goal import Whole, savings

ROUNDS = 24
EVEN = 1.01  # ratio of the largest surplus to the smallest at which nothing is left to balance


def balanced(
    wanted: Sequence[float], options: Mapping[str, Sequence[Option]], whole: Mapping[str, Whole]
) -> dict[str, list[Option]]:
    """Hulls whose order meets all that is `wanted` (ms, MACs, parameters; 0 for no matter) at the least damage.

    Those of equal multipliers where one budget alone is given, or where not even all steps meet them.
    """
    goal = np.asarray(wanted, np.float64)
    given = goal > 0
    weights = np.divide(1.0, goal, out=np.zeros(3), where=given)
    best: tuple[float, dict[str, list[Option]]] | None = None
    for _ in range(ROUNDS if given.sum() > 1 else 1):
        hulls = {name: choose.hull(_worth(table, whole[name], weights)) for name, table in options.items()}
        steps = choose.order(hulls)
        sums = np.array(savings(steps, hulls, whole), np.float64)
        met = np.flatnonzero((sums[:, given] >= goal[given]).all(axis=1))
        if best is not None and not len(met):
            break
        damage = sum(s.damage for s in steps[: met[0]]) if len(met) else np.inf
        if best is None or damage < best[0]:
            best = damage, hulls
        if not len(met):
            break
        surplus = np.divide(sums[met[0]], goal, out=np.ones(3), where=given)
        if surplus[given].max() < EVEN * surplus[given].min():
            break
        weights = weights * surplus[given].min() / surplus
    return {} if best is None else best[1]


def _worth(options: Sequence[Option], layer: Whole, weights: np.ndarray) -> list[Option]:
    return [replace(o, saved=float(weights @ np.array(layer.saving(o)))) for o in options]
