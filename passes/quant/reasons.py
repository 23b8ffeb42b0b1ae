"""Why a layer that could compute in integers stays float: told by proposing the chosen set again with less asked of it.

What is not proposed where noise costs nothing does not gain time; what is proposed there, but not for the aim, would
make too much noise; and what is proposed for the aim was left out by the strength.
"""

from __future__ import annotations

import math

from ..base import Skip
from . import choosing, eligible, placement, regions, sensitivity
from .planning import Choice, Plan


def left_float(plan: Plan, choice: Choice, strength: float, floor_db: float) -> tuple[Skip, ...]:
    """A reason for every linear layer that could compute in integers and does not.

    floor_db: dB at the outputs that the choice was to hold at full strength.
    """
    assert plan.base is not None
    could = [n.name for n in plan.base.graph.nodes if n.name in plan.able and eligible.is_linear(n)]
    left = [n for n in could if n not in choice.nodes]
    if not left:
        return ()
    propose = choosing.ways(plan, "auto", 0.0)[choice.label]
    fast, quiet, loudest = propose(-math.inf), propose(choice.aim), _loudest(plan)
    skips = []
    for name in left:
        if name not in fast:
            why = f"stays float: {_slower(plan)}"
        else:
            when = f"at strength {strength:g}" if strength < 1 and name in quiet else f"to hold {floor_db:g} dB"
            why = f"stays float {when}{loudest.get(name, '')}"
        skips.append(Skip(name, why))
    return tuple(skips)


def _slower(plan: Plan) -> str:
    """That integers gain nothing, and how that is known."""
    if plan.costs:
        return "integers with their conversions are not faster here"
    return "integers with their conversions would not be faster, by the table of costs"


def _loudest(plan: Plan) -> dict[str, str]:
    """{layer: the loudest of its weight and of the tensors that are quantized with it, in words}."""
    assert plan.base is not None
    folded = {n: r for n, r in placement.folds(plan.base, plan.target).items() if n in plan.able}
    weights, found = choosing.weights(plan), {}
    for name, tensors in regions.rounded_beside(plan.able, plan.target, folded).items():
        groups = {t: plan.full.decisions[t].group for t in sorted(tensors) if t in plan.full.decisions}
        noises = {f"quantizing '{t}'": plan.noise.get(g, 0.0) for t, g in groups.items()}
        noises["rounding its weight"] = plan.loud.get(weights.get(name, ""), 0.0)
        what = max(noises, key=lambda w: noises[w])
        if noises[what] > 0:
            found[name] = f": {what} alone leaves {sensitivity.decibels(noises[what]):.0f} dB"
    return found
