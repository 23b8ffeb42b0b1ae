"""How far a candidate is from the original: SQNR on the check feeds, and the drop that the user's limit is about.

The metric is the user's own code and usually the dearest thing in a run, so it is called only for candidates whose
SQNR leaves hope, and once for each content.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ir.errors import DataError, RefusedFeeds
from ..runtime.feeds import feed_bytes, wide
from ..runtime.loading import give_back, is_large
from ..runtime.numerics import UNSEEN
from ..runtime.session import Session
from .budget import EXACT_DB, TIES_DB, Allowance, Limits, Spent, noise

if TYPE_CHECKING:
    from ..ir import Model
    from ..runtime.numerics import Numerics

Feed = Mapping[str, np.ndarray]
Metric = Callable[[Callable[[Feed], dict[str, np.ndarray]]], float]
HOPELESS_DB = 3.0
"""Below this half of the output's power is noise: no metric is asked."""
BATCH = 2
"""Feeds of a metric that are more than so many times as large as the check feeds count in memory."""
NOWHERE = "the original's outputs are empty or not finite on all check feeds"
SLACK = 1e-9
"""Comparison of a drop with its limit, against rounding in the subtraction of two accuracies."""


class Judge:
    """Numerics, metric and limits of one run. Raises DataError when the metric fails on the original."""

    def __init__(self, reference: Any, limits: Limits, metric: Metric | None = None, threads: int = 1):
        self.limits = limits
        self.metric = metric
        self._reference = reference
        self._threads = threads
        self._scores: dict[str, float] = {}
        self.metric_before: float | None = None
        self.failed = ""
        self._own_noise: dict[str, float] | None = None
        self._recent: list[tuple[Any, Session]] = []

    def baseline(self, model: Any) -> None:
        """Evaluate the metric on the original."""
        if self.metric is None:
            return
        self.metric_before = self._evaluate(model)
        if self.limits.max_drop is not None and self.metric_before == 0:
            raise DataError("the metric of the original model is 0, so that a relative --max-drop means nothing")

    def session(self, model: Any) -> Session:
        """A session of the original or of a candidate; those used last are kept: three, or two of large models.

        Making one costs a serialisation and a second copy of the weights, and a candidate is run, scored and timed.
        A large model is loaded with nothing beside it: loading takes up to three times the memory of keeping.
        """
        return self._found(model) or self._started(model, beside=0)

    def takes(self, feeds: Iterable[Mapping[str, Any]]) -> bool:
        """Whether the original runs on all of these feeds."""
        session = self.session(self._reference.model)
        try:
            for feed in feeds:
                session.run(feed)
        except RefusedFeeds:
            return False
        return True

    def pair(self, before: Any, after: Any) -> tuple[Session, Session]:
        """Sessions of two models at once, to run in turns; the second is loaded first."""
        later = self.session(after)
        return self._found(before) or self._started(before, beside=1), later

    def _found(self, model: Any) -> Session | None:
        for k, (known, session) in enumerate(self._recent):
            if known is model:
                self._recent.insert(0, self._recent.pop(k))
                return session
        return None

    def _started(self, model: Any, beside: int) -> Session:
        """A new session. beside: how many others stay while a large model is loaded."""
        original = self._reference.model
        large = any(self.spares(m) for m in (model, *(known for known, _ in self._recent)))
        self._recent = self._recent[: beside if large else 2]
        if large:
            if not any(known is original for known, _ in self._recent):
                self._reference.release()
            give_back()
        session = self._reference.session if model is original else Session(model, threads=self._threads)
        self._recent.insert(0, (model, session))
        return session

    def spares(self, model: Any) -> bool:
        """Whether sessions of a model must be few: for its weights, or for the activations of large feeds.

        What is made of a large model is large: weights stored in 8 bits are floats again once they are loaded.
        """
        return self.wide or is_large(model) or is_large(self._reference.model)

    @cached_property
    def wide(self) -> bool:
        """Whether feeds are so large that no session may stay for later."""
        return wide(self._reference.feeds, self._reference.model)

    def release(self) -> None:
        """Let all sessions go; they come back when they are asked for."""
        self._recent = []
        self._reference.release()
        give_back()

    def numerics(self, model: Model) -> Numerics:
        """The candidate's outputs beside the original's on the check feeds."""
        if not self._reference.known:  # before there is anything beside it
            self.session(self._reference.model)
            self._reference.learn()
        return self._reference.compare(self.session(model))

    def score(self, model: Model) -> float | None:
        """The candidate's metric; None without one, NaN when the metric cannot cope with the candidate."""
        if self.metric is None:
            return None
        key = self.session(model).digest
        if key not in self._scores:
            try:
                self._scores[key] = self._evaluate(model)
            except DataError as e:
                self.failed = str(e)
                self._scores[key] = math.nan
        return self._scores[key]

    def drop(self, model: Model, numerics: Numerics) -> float:
        """How much worse than the original, as `--max-drop` counts it (negative when better)."""
        score = self.score(model)
        if score is not None and self.metric_before:
            return (self.metric_before - score) / abs(self.metric_before)
        return numerics.drop

    def spent(self, model: Model, numerics: Numerics | None) -> Spent:
        """Where a model is; the metric is asked only when a limit hangs on it."""
        if numerics is None:
            return Spent()
        drop = self.drop(model, numerics) if self.limits.max_drop is not None else 0.0
        return Spent(numerics.min_sqnr, max(0.0, drop))

    def reasons(self, model: Model, numerics: Numerics, allowed: Allowance) -> tuple[str, ...]:
        """Why the candidate is more than allowed; cheapest first, and only the first."""
        sqnr = numerics.min_sqnr
        if allowed.sqnr_db is not None and not sqnr >= allowed.sqnr_db:
            return (f"SQNR {sqnr:.1f} dB is below the {allowed.sqnr_db:.1f} dB left for it",)
        if allowed.drop is None:
            return ()
        if not sqnr >= HOPELESS_DB and self.metric is not None:
            return (f"SQNR {sqnr:.1f} dB: the output is mostly noise, so the metric was not asked",)
        drop = self.drop(model, numerics)
        if math.isnan(drop):
            return (self.failed or f"{self.drop_name} is not a number",)
        if not drop <= allowed.drop + SLACK:
            return (f"{self.drop_name} {drop:.2%} is above the {allowed.drop:.2%} left for it",)
        return ()

    def unknown(self, numerics: Numerics, allowed: Allowance) -> tuple[str, ...]:
        """Why no lossy change may be kept at any strength: what it may cost is bounded, and nothing shows it."""
        bounded = allowed.sqnr_db is not None or (allowed.drop is not None and self.metric is None)
        if not (numerics.blind and bounded) or allowed.blind:
            return ()
        return (f"{UNSEEN}: {NOWHERE}",)

    def exact_reasons(self, numerics: Numerics, before: Numerics | None) -> tuple[str, ...]:
        """Why a pass that promised to be exact was not: more noise in an output than it had before, and rounding."""
        had = {} if before is None else {o.name: noise(o.sqnr_db) for o in before.outputs}
        for output in numerics.outputs:
            added = noise(EXACT_DB if output.exact is None else TIES_DB)
            most = 1.05 * had.get(output.name, 0.0) + added
            if noise(output.sqnr_db) > most and noise(output.sqnr_db) > most + self._rounding(output.name):
                return (f"it should be exact, but took output {output.name!r} to SQNR {output.sqnr_db:.1f} dB",)
        return ()

    def _rounding(self, name: str) -> float:
        """Ten times the noise that ONNX Runtime's own rewriting of the original makes in an output.

        Some outputs are hardly more than rounding (a detector that sees nothing, a difference of large numbers).
        """
        if self._own_noise is None:
            plain = Session(self._reference.model, threads=self._threads, optimize=False)
            self._own_noise = {o.name: noise(o.sqnr_db) for o in self._reference.compare(plain).outputs}
        return 10 * self._own_noise.get(name, 0.0)

    def missed(self, score: float, same: bool) -> str:
        """Why a final metric breaks the limit on it, or ""; same: of the unchanged model, which it did not repeat."""
        before, most = self.metric_before, self.limits.max_drop
        if not before or most is None or (before - score) / abs(before) <= most + SLACK:
            return ""
        if same:
            return f"the metric gave {before:g} and then {score:g} for the unchanged model: it does not repeat"
        return f"{self.drop_name} {(before - score) / abs(before):.2%} is above the {most:.2%} that was allowed"

    @property
    def drop_name(self) -> str:
        """What `--max-drop` is about in this run."""
        return "metric drop" if self.metric is not None else "output change"

    def _evaluate(self, model: Any) -> float:
        session, largest = self.session(model), 0

        def run(feeds: Feed) -> dict[str, np.ndarray]:
            nonlocal largest
            found = session.run(feeds)
            largest = max(largest, feed_bytes(dict(feeds)))
            return found

        try:
            value = float(self.metric(run))  # type: ignore[misc]
        except Exception as e:  # the user's code
            raise DataError(f"the metric failed: {type(e).__name__}: {' '.join(str(e).split())}") from e
        if not math.isfinite(value):
            raise DataError(f"the metric returned {'NaN' if math.isnan(value) else value}; expected a finite number")
        if largest > BATCH * self._feed_bytes:
            self._forget(model)
        return value

    @cached_property
    def _feed_bytes(self) -> int:
        return feed_bytes(self._reference.feeds.first())

    def _forget(self, model: Any) -> None:
        """Let one session go: its arena keeps the activations of the largest batch that it ever ran."""
        self._recent = [(known, session) for known, session in self._recent if known is not model]
        if model is self._reference.model:
            self._reference.release()
        give_back()
