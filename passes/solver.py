"""How much, when nobody says: the strength of a lossy pass, bisected until it fits what it may do and pays.

The plan (statistics, candidates) is made once. Each try applies it to a fresh copy at one strength and judges the copy
beside the original. Damage grows with strength, so bisection finds the most that fits; the first try is full strength,
which is all that most runs need.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..ir.errors import ModelError
from ..runtime.loading import give_back
from .base import Context, LossyPass, PassResult
from .budget import Allowance
from .judge import Judge
from .pace import Pace
from .transaction import Trial, attempt

if TYPE_CHECKING:
    from ..ir import Model

ROUNDS = 5
"""Halvings of the strength: the result is within 1/32 of the most that fits."""


@dataclass
class Outcome:
    """The try to keep, or None, with the reason for anything less than full strength and what was tried."""

    trial: Trial | None
    reason: str = ""
    tried: list[dict[str, Any]] = field(default_factory=list)
    result: PassResult | None = None


@dataclass
class Solver:
    """Tries one lossy pass on one model at different strengths."""

    p: LossyPass
    model: Model
    ctx: Context
    judge: Judge
    pace: Pace
    allowed: Allowance
    tried: list[dict[str, Any]] = field(default_factory=list)
    _plan: Any = None

    def solve(self) -> Outcome:
        """Bisect the strength, then make sure that the result pays; weaken or give up with the reason."""
        self.judge.release()  # a plan makes sessions of its own, and each keeps the activations of a run
        self._plan = self.p.plan(self.model, self.ctx)
        full = self._try(1.0)
        if not full.result.changed:
            return Outcome(None, "", self.tried, full.result)
        best: Trial | None = full
        reason = ""
        if full.reasons:
            reason, full.model = full.reasons[0], self.model  # what is given up must not take memory
            best = None if self._unknown(full) else self._bisect()
        if best is None:
            return Outcome(None, self._give_up(reason), self.tried, full.result)
        return self._must_pay(best, f"weakened: at full strength {reason}" if reason else "", full)

    def _try(self, strength: float) -> Trial:
        if self.judge.spares(self.model):  # `apply` holds what it makes, and times candidates of its own
            self.judge.release()
        give_back()  # what the last try has freed lies in pieces between what is kept
        trial = attempt(self.model, lambda m: self.p.apply(m, self._plan, strength, self.ctx), self.judge)
        trial.strength = strength
        row: dict[str, Any] = {"strength": strength}
        if trial.result.changed and trial.numerics is not None:
            trial.reasons = self._unknown(trial) or self.judge.reasons(trial.model, trial.numerics, self.allowed)
            row |= {"sqnr_db": trial.numerics.min_sqnr, "fits": not trial.reasons}
        self.tried.append(row)
        return trial

    def _unknown(self, trial: Trial) -> tuple[str, ...]:
        return () if trial.numerics is None else self.judge.unknown(trial.numerics, self.allowed)

    def _bisect(self) -> Trial | None:
        low, high, best = 0.0, 1.0, None
        for _ in range(ROUNDS):
            middle = (low + high) / 2
            trial = self._try(middle)
            if trial.reasons:
                high = middle
                continue
            low = middle
            best = trial if trial.result.changed else best
        return best

    def _must_pay(self, best: Trial, reason: str, full: Trial) -> Outcome:
        trouble = self._trouble(best)
        if not trouble:
            return Outcome(best, reason, self.tried)
        weaker = self._try((best.strength or 1.0) / 2)
        if weaker.result.changed and not weaker.reasons and not self._trouble(weaker):
            return Outcome(weaker, f"weakened: at strength {best.strength:g} {trouble}", self.tried)
        return Outcome(None, f"rolled back: {trouble}", self.tried, full.result)

    def _trouble(self, trial: Trial) -> str:
        try:
            trial.latency, trouble = self.pace.judge(self.model, trial.model)
        except ModelError as error:  # the runtime that is timed does not take what ONNX Runtime does
            return str(error)
        return trouble

    def _give_up(self, reason: str) -> str:
        if len(self.tried) == 1:
            return f"rolled back: {reason}"
        return f"rolled back: even the smallest amount tried does not fit; at full strength {reason}"
