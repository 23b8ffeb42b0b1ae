"""A measured run: every pass beside the original, within its allowance, kept only where it pays.

This is the pipeline of the command line. For each pass: a copy, the pass (a lossy one through the solver), order,
shapes, verification, numerics on the check feeds, timing, and then it is kept or rolled back with the reason. At the
end the whole is held against the original once more, and steps are undone from the last until it is no worse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ..ir.errors import RefusedFeeds
from .base import Context, LossyPass, Pass
from .budget import LOSSLESS_DB, Allowance, Spent, allowance, own_db
from .judge import Judge
from .pace import Pace
from .pipeline import Event, Observer, following
from .second import reconsider
from .solver import Solver
from .transaction import Step, Stopwatch, Trial, attempt, failure, is_users, peak_mb

if TYPE_CHECKING:
    from ..ir import Model
    from ..ir.cost import Cost
    from ..runtime.latency import Latency
    from ..runtime.numerics import Numerics


@dataclass
class Run:
    """The state of a run: the model so far, what was done, and the models before each kept step.

    strict: raise PassError when a pass fails, instead of going on with the model before it.
    granted: what single steps may do, by their number, instead of their share of the limits.
    """

    model: Model
    ctx: Context
    judge: Judge
    pace: Pace
    observers: tuple[Observer, ...] = ()
    strict: bool = False
    steps: list[Step] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    numerics: Numerics | None = None
    granted: dict[int, Allowance] = field(default_factory=dict)
    _history: list[tuple[Step, Model, Numerics | None]] = field(default_factory=list)
    _heard: list[str] = field(default_factory=list)

    def go(self, passes: Sequence[tuple[Pass, bool]]) -> None:
        """Run the passes (with whether each was added by `arrange`). What fails is rolled back and told."""
        self.ctx = replace(self.ctx, on_note=self.note)
        for k in range(len(passes)):
            self.one(k, passes)
        if self.judge.limits.given:
            reconsider(self, passes)

    def one(self, k: int, passes: Sequence[tuple[Pass, bool]]) -> None:
        """Run the pass at position k, with those after it still to come."""
        p, automatic = passes[k]
        step = self._step(p, [q for q, _ in passes[k + 1 :]])
        step.automatic = automatic
        self.steps.append(step)
        self._tell(Event("done", self.model, p, step))
        if k == 0 and not isinstance(p, LossyPass):
            self.ctx = replace(self.ctx, original=self.model)

    def before(self, k: int) -> Run:
        """The run as it was before its step k, to go on in another way; nobody hears of it."""
        at, model, numerics = self._at(k)
        known = [n for n in self.notes if not any(n in s.notes for s in self.steps[k:])]
        other = Run(model, self.ctx, self.judge, self.pace, (), self.strict, self.steps[:k], known, numerics)
        other._history = self._history[:at]
        other.ctx = replace(self.ctx, on_note=other.note)
        return other

    def spent(self) -> Spent:
        """Where the model is, beside the original."""
        return self.judge.spent(self.model, self.numerics)

    def spent_after(self, k: int) -> Spent:
        """Where the model was after step k."""
        _, model, numerics = self._at(k + 1)
        return self.judge.spent(model, numerics)

    def _at(self, k: int) -> tuple[int, Model, Numerics | None]:
        """How many kept steps lie before step k, and the model that it was given."""
        later = {id(step) for step in self.steps[k:]}
        for at, (step, model, numerics) in enumerate(self._history):
            if id(step) in later:
                return at, model, numerics
        return len(self._history), self.model, self.numerics

    def become(self, other: Run, k: int) -> None:
        """Take over what `before(k)` has led to, and tell of it."""
        self.model, self.numerics, self._history = other.model, other.numerics, other._history
        self.steps, self.notes = other.steps, other.notes
        after = [*(model for _, model, _ in self._history[1:]), self.model]
        made = {id(step): model for (step, _, _), model in zip(self._history, after)}
        for step in self.steps[k:]:
            self._tell(Event("done", made.get(id(step), self.model), step.p, step))

    def note(self, text: str) -> None:
        """Keep a line for the report and show it once."""
        self._heard.append(text)
        if text not in self.notes:
            self.notes.append(text)
            self._tell(Event("note", self.model, text=text))

    def settle(self, original: Model) -> tuple[Latency, tuple[str, ...]]:
        """Hold the result against the original; undo steps from the last while it is slower, bigger or over a limit.

        Returns the final timing and the limits that even the original misses (none, usually).
        """
        while True:
            latency, trouble = self.pace.judge(original, self.model) if self._history else (None, "")
            broken = self.over_limits()
            if not (trouble or broken) or not self._history:
                return latency or self.pace.compare(original, self.model), broken
            step, self.model, self.numerics = self._history.pop()
            step.kept, step.after = False, step.before
            step.reason = f"rolled back at the end: {trouble or broken[0]}"
            self.note(f"{step.p.name}: {step.reason}")

    def cost(self, model: Model) -> Cost:
        """Cost with the sizes that the check feeds give to dynamic dimensions."""
        return self.pace.cost(model)

    def over_limits(self) -> tuple[str, ...]:
        """Which of the user's limits the model misses, and by how much."""
        limits = self.judge.limits
        if not limits.given or self.numerics is None:
            return ()
        return self.judge.reasons(self.model, self.numerics, Allowance(limits.min_sqnr, limits.max_drop))

    def _step(self, p: Pass, later: Sequence[Pass]) -> Step:
        self._tell(Event("start", self.model, p))
        self._heard = []
        watch, before = Stopwatch(), self.cost(self.model)
        step = Step(p, before, before, numerics=self.numerics)
        try:
            self._work(p, later, step)
        except Exception as e:
            if is_users(e) and not self._is_ours(e):
                raise
            error = failure(p, [s.p for s in self.steps], e)
            if self.strict:
                raise error from e
            step.error, step.reason = str(error), "rolled back: it failed"
            step.cause = e
        step.seconds, step.peak_mb, step.notes = watch.seconds(), peak_mb(), tuple(self._heard)
        return step

    def _is_ours(self, error: Exception) -> bool:
        """Whether a model that a pass made for itself refuses feeds that the original takes."""
        return isinstance(error, RefusedFeeds) and self.judge.takes(self.ctx.fit)

    def _work(self, p: Pass, later: Sequence[Pass], step: Step) -> None:
        ctx = following(self.ctx, later)
        trial = self._lossy(p, later, ctx, step) if isinstance(p, LossyPass) else self._exact(p, ctx, step)
        if trial is None:
            return
        self._history.append((step, self.model, self.numerics))
        self.model, self.numerics = trial.model, trial.numerics
        step.kept, step.result, step.numerics = True, trial.result, trial.numerics
        step.strength, step.latency, step.after = trial.strength, trial.latency, self.cost(self.model)

    def _exact(self, p: Pass, ctx: Context, step: Step) -> Trial | None:
        trial = attempt(self.model, lambda m: p.run(m, ctx), self.judge)
        step.result = trial.result
        if not trial.result.changed:
            return None
        if trial.numerics is not None:
            trial.reasons = self.judge.exact_reasons(trial.numerics, self.numerics)
        if not trial.reasons and self.ctx.timings.engine != "onnxruntime":
            # What ONNX Runtime does at load all the same seldom slows it, so there the end result is judged as a whole;
            # another runtime has patterns of its own to lose.
            trial.latency, slow = self.pace.judge(self.model, trial.model)
            trial.reasons = (slow,) if slow else ()
        if trial.reasons:
            step.reason = f"rolled back: {trial.reasons[0]}"
            return None
        return trial

    def _lossy(self, p: LossyPass, later: Sequence[Pass], ctx: Context, step: Step) -> Trial | None:
        real = ctx.source != "random" or self.judge.metric is not None
        granted = self.granted.get(len(self.steps))
        allowed = granted or allowance(p, later, self.spent(), self.judge.limits, real)
        step.allowed = allowed
        if self.judge.limits.min_sqnr is not None and allowed.sqnr_db is not None:
            ctx = replace(ctx, own_db=own_db(allowed.sqnr_db, self.spent().sqnr_db))
        outcome = Solver(p, self.model, ctx, self.judge, self.pace, allowed).solve()
        step.reason, step.tried = outcome.reason, tuple(outcome.tried)
        if outcome.result is not None:
            step.result = outcome.result
        if outcome.reason and not (real or self.judge.limits.given) and allowed.sqnr_db == LOSSLESS_DB:
            step.reason += "; without real data (--data) only lossless changes are made"
        if step.reason:
            self.note(f"{p.name}: {step.reason}")
        return outcome.trial

    def _tell(self, event: Event) -> None:
        for observer in self.observers:
            observer(event)
