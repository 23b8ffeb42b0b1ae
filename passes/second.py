"""A second look at a run under limits: what the shares of a limit kept from a pass that would have made more of them.

Passes share a limit in the order they run, and nobody knows beforehand what each of them needs. Two things are tried
once the run is over, and each stays only where the model gets faster, or smaller and no slower:

- the last lossy pass alone, where it was weakened for want of what the first ones took (squeezenet1_1 with one percent
  to lose: pruned and split a little, 1.02 times faster; quantized alone, 2.3 times);
- the first pass that was weakened or rolled back for want of its share once more, with what the later ones left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .base import LossyPass, Pass
from .budget import Allowance, decibel, noise
from .transaction import Step

if TYPE_CHECKING:
    from .run import Run

WORTH = 1.5
"""A share must grow by so much to be worth running a pass, and all behind it, again."""


def reconsider(run: Run, passes: Sequence[tuple[Pass, bool]]) -> None:
    """Try the last lossy pass alone, and the first starved one with what is left over."""
    _last_alone(run, passes)
    _hand_back(run, passes)


def _last_alone(run: Run, passes: Sequence[tuple[Pass, bool]]) -> None:
    """Put the last lossy pass alone in place of the run's passes where that gives more."""
    last = max(_lossy(run.steps), default=None)
    if last is None or not _starved(run.steps[last]):
        return
    earlier = [k for k in _lossy(run.steps[:last]) if run.steps[k].kept]
    if not earlier:
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


def _hand_back(run: Run, passes: Sequence[tuple[Pass, bool]]) -> None:
    """Give the first starved pass what the passes behind it left of the limits, where that gives more."""
    lossy = _lossy(run.steps)
    k = next((k for k in lossy[:-1] if _starved(run.steps[k])), None)
    if k is None:
        return
    more = _left_over(run, k)
    if not _worth(run.steps[k].allowed, more):
        return
    other = run.before(k)
    other.granted[k] = more
    other.one(k, passes)
    if not other.steps[k].kept or (other.steps[k].strength or 0) <= (run.steps[k].strength or 0):
        return
    for j in range(k + 1, len(passes)):
        other.one(j, passes)
    if not other.over_limits() and run.pace.prefers(run.model, other.model):
        other.note(f"{passes[k][0].name}: run once more with what the passes behind it left of the limits")
        run.become(other, k)


def _left_over(run: Run, k: int) -> Allowance:
    """Where step k may go if the passes behind it do again the damage that they did."""
    limits, end, then = run.judge.limits, run.spent(), run.spent_after(k)
    floor = drop = None
    if limits.min_sqnr is not None:
        floor = decibel(noise(limits.min_sqnr) - _later(noise(end.sqnr_db), noise(then.sqnr_db)))
    if limits.max_drop is not None:
        drop = limits.max_drop - _later(end.drop, then.drop)
    return Allowance(floor, drop)


def _later(end: float, then: float) -> float:
    return max(0.0, end - then)


def _worth(old: Allowance | None, new: Allowance) -> bool:
    """Whether every limit leaves so much more that another result can be expected."""
    if old is None:
        return False
    shares = []
    if old.sqnr_db is not None and new.sqnr_db is not None:
        shares.append((noise(old.sqnr_db), noise(new.sqnr_db)))
    if old.drop is not None and new.drop is not None:
        shares.append((old.drop, new.drop))
    return bool(shares) and all(after >= WORTH * before for before, after in shares)


def _starved(step: Step) -> bool:
    """Whether full strength was more than the pass was allowed."""
    return bool(step.tried) and step.tried[0].get("fits") is False


def _lossy(steps: Sequence[Step]) -> list[int]:
    return [k for k, step in enumerate(steps) if isinstance(step.p, LossyPass)]
