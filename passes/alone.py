"""A second look at a run under limits: would the last lossy pass make more of the whole allowance?

Passes share a limit in the order they run, so what the first ones take is missing at the end (squeezenet1_1 with one
percent to lose: pruned and split a little, 1.02 times faster; quantized alone, 2.3 times). Where the last lossy pass
was weakened for want of allowance, it is run once more without those before it, and the better of the two stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .base import LossyPass, Pass
from .transaction import Step

if TYPE_CHECKING:
    from .run import Run


def reconsider(run: Run, passes: Sequence[tuple[Pass, bool]]) -> None:
    """Put the last lossy pass alone in place of the run's passes where that gives a faster or smaller model."""
    last = _starved(run.steps)
    earlier = [] if last is None else [k for k, s in enumerate(run.steps[:last]) if s.kept and _lossy(s)]
    if last is None or not earlier:
        return
    other = run.before(earlier[0])
    for k in range(earlier[0], len(passes)):
        p, automatic = passes[k]
        if k < last and isinstance(p, LossyPass):
            cost = other.cost(other.model)
            reason = f"left out: within the limits, {passes[last][0].name} alone gives more"
            other.note(f"{p.name}: {reason}")
            other.steps.append(Step(p, cost, cost, reason=reason, automatic=automatic))
        else:
            other.one(k, passes)
    if other.steps[last].kept and run.pace.prefers(run.model, other.model):
        run.become(other, earlier[0])


def _starved(steps: Sequence[Step]) -> int | None:
    """The last lossy pass, where full strength was more than it was allowed."""
    last = max((k for k, s in enumerate(steps) if _lossy(s)), default=None)
    if last is None or not steps[last].tried or steps[last].tried[0].get("fits") is not False:
        return None
    return last


def _lossy(step: Step) -> bool:
    return isinstance(step.p, LossyPass)
