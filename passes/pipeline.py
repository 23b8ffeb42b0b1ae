"""Passes in a row, each one a transaction; itself a pass, so that pipelines nest.

`Pipeline.run` is the plain form: every pass runs on a copy that is sorted, verified and only then kept, and an error
names the pass, its options and what ran before it. The measured form, with numerics, limits and timing around every
pass, is `run.Run`. `arrange` puts the passes that a user lists into the order in which they work best.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from .. import ir
from .base import Context, LossyPass, Pass, PassResult
from .registry import registry
from .transaction import Step, Stopwatch, adopt, attempt, failure, is_users

if TYPE_CHECKING:
    from ..ir import Model

SIMPLIFY, QUANT = "simplify", "quant"


@dataclass(frozen=True)
class Event:
    """Something that happened in a run, for observers.

    kind: "start" (a pass begins), "done" (it ended: `step` says how), "note" (a line for the user: `text`).
    model: the model as it stands.
    """

    kind: str
    model: Model
    p: Pass | None = None
    step: Step | None = None
    text: str = ""


Observer = Callable[[Event], None]


@dataclass(frozen=True)
class Pipeline(Pass):
    """A tuple of passes, run in order; up to `repeat` rounds, until a round changes nothing."""

    name: ClassVar[str] = "pipeline"
    passes: tuple[Pass, ...] = ()
    repeat: int = 1
    observers: tuple[Observer, ...] = ()

    def run(self, model: Model, ctx: Context) -> PassResult:
        """Run every pass in a transaction. Raises PassError at the first that fails; what was done before stays."""
        done: list[Pass] = []
        results: list[PassResult] = []
        for _ in range(max(1, self.repeat)):
            before = len(results)
            for p in self.passes:
                results.append(self._one(p, model, ctx, done))
                done.append(p)
            if not any(r.changed for r in results[before:]):
                break
        return merge(results)

    def _one(self, p: Pass, model: Model, ctx: Context, done: list[Pass]) -> PassResult:
        self._tell(Event("start", model, p))
        watch = Stopwatch()
        step = Step(p, now := ir.cost.of(model), now) if self.observers else None
        try:
            trial = attempt(model, lambda m: p.run(m, ctx))
        except Exception as e:
            if is_users(e):
                raise
            raise failure(p, done, e) from e
        if trial.result.changed:
            adopt(model, trial.model)
        if step is not None:
            step.result, step.kept, step.seconds = trial.result, trial.result.changed, watch.seconds()
            step.after = ir.cost.of(model)
            self._tell(Event("done", model, p, step))
        return trial.result

    def _tell(self, event: Event) -> None:
        for observer in self.observers:
            observer(event)


def merge(results: Sequence[PassResult]) -> PassResult:
    """One result for several: counts added, the refusals of the last word on each node kept once."""
    did: dict[str, Any] = {}
    details: dict[str, Any] = {}
    skipped = {}
    for result in results:
        for key, value in result.did.items():
            number = isinstance(value, (int, float)) and isinstance(did.get(key, 0), (int, float))
            did[key] = did.get(key, 0) + value if number else value
        details.update(result.details)
        skipped.update({(s.node, s.reason): s for s in result.skipped})
    return PassResult(any(r.changed for r in results), did, tuple(skipped.values()), details)


def arrange(passes: Sequence[Pass]) -> list[tuple[Pass, bool]]:
    """The passes in running order, each with whether it was added here.

    `simplify` runs first, and again right before `quant` (reductions that become poolings and pads that go into
    convolutions would else stay float islands). A list of exact passes alone is run as it stands.
    """
    if not any(isinstance(p, LossyPass) for p in passes):
        return [(p, False) for p in passes]
    order: list[tuple[Pass, bool]] = []
    for p in passes:
        needed = not order or p.name == QUANT
        if needed and p.name != SIMPLIFY and not (order and order[-1][0].name == SIMPLIFY):
            order.extend((s, True) for s in _simplify())
        order.append((p, False))
    return order


def _simplify() -> list[Pass]:
    cls = registry().passes.get(SIMPLIFY)
    return [cls()] if cls else []


@dataclass(frozen=True)
class Dump:
    """An observer that writes the model as it stands after every kept pass: `03-prune.onnx`."""

    folder: Path

    def __call__(self, event: Event) -> None:
        """Save on "done"."""
        if event.kind == "done" and event.step is not None and event.step.kept and event.p is not None:
            ir.save(event.model, self.folder / f"{self._number():02d}-{event.p.name}.onnx")

    def _number(self) -> int:
        """One behind all that is there, which may be the model of this very run: no file is written over."""
        numbers = (re.match(r"(\d+)-", path.name) for path in self.folder.iterdir())
        return 1 + max((int(n[1]) for n in numbers if n), default=0)


def following(ctx: Context, passes: Sequence[Pass]) -> Context:
    """The context of a pass that `passes` come after."""
    return replace(ctx, follows=tuple(p.name for p in passes))
