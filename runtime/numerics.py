"""How far a model's outputs are from the original's, over all feeds, streamed.

Sums run over the feeds, so that nothing but one feed's outputs is held, besides the original's outputs, which are
kept up to a memory cap and computed again beyond it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..ir.errors import DataError, ModelError
from .feeds import Feed, Feeds, feed_bytes
from .session import ModelLike, Session
from .specs import kind_of

DB_CAP = 999.0  # how ±infinite dB is written in JSON, where comparing must work and inf is not a number
BROKEN_DROP = 1e9  # drop of an output that is broken
SILENCE = 1e-6  # root mean square at which noise is measured when the reference is exactly zero
UNSEEN = "nothing to compare"  # trouble of an output that is empty, or nowhere finite, in the original on all feeds


def json_db(value: float) -> float:
    """Decibels for JSON: rounded to 0.01, ±inf as ±999."""
    return DB_CAP if value == math.inf else -DB_CAP if value == -math.inf else round(float(value), 2)


def decibels(signal: float, noise: float) -> float:
    """10 · log10(signal / noise); inf without noise, -inf when noise is not a number."""
    if not math.isfinite(noise):
        return -math.inf
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


@dataclass(frozen=True)
class OutputDiff:
    """One output over all feeds.

    sqnr_db: 10·log10(Σ ref² / Σ (ref - out)²); inf when equal (or `unseen`), -inf when the candidate has NaN or
        infinity where the original has none, or another shape. For outputs that are not floats every element counts
        as signal 1 and every mismatch as noise 1, so 20 dB are 1 % mismatches.
    cosine: Σ ref·out / sqrt(Σ ref² Σ out²); None for outputs that are not floats.
    max_abs: the largest absolute difference; None likewise.
    argmax_agreement: share of rows with the same largest entry, for [rows, classes] floats; else None.
    exact: share of equal elements, for outputs that are not floats; else None.
    trouble: why it is broken: "other shape", or "NaN or infinite"; `UNSEEN` when nothing was compared; else "".
    rescaled_db: SQNR once each channel is brought back to the reference's scale, where that explains most of the
        difference (see `differences`); None otherwise.
    """

    name: str
    sqnr_db: float
    cosine: float | None = None
    max_abs: float | None = None
    argmax_agreement: float | None = None
    exact: float | None = None
    trouble: str = ""
    rescaled_db: float | None = None

    @property
    def unseen(self) -> bool:
        """Whether no element was compared, so that the figures say nothing."""
        return self.trouble == UNSEEN

    @property
    def drop(self) -> float:
        """Damage without labels, 0 for none: 1 - argmax agreement where there is one, else the relative error.

        Of values that are not floats (classes, indices), the share that differs.
        """
        if self.sqnr_db == -math.inf:
            return BROKEN_DROP
        same = self.exact if self.cosine is None else self.argmax_agreement
        if same is not None:
            return 1.0 - same
        return 0.0 if self.sqnr_db == math.inf else min(BROKEN_DROP, 10 ** (-self.sqnr_db / 20))

    def to_json(self) -> dict[str, Any]:
        """For the report; see `json_db` for infinities. SQNR is None where nothing was compared."""
        row: dict[str, Any] = {"name": self.name, "sqnr_db": None if self.unseen else json_db(self.sqnr_db)}
        row["cosine"] = None if self.cosine is None else round(self.cosine, 6)
        finite = self.max_abs is not None and math.isfinite(self.max_abs)
        row["max_abs"] = float(f"{self.max_abs:.6g}") if finite else None
        row["argmax_agreement"] = None if self.argmax_agreement is None else round(self.argmax_agreement, 6)
        if self.exact is not None:
            row["exact"] = round(self.exact, 6)
        if self.trouble:
            row["trouble"] = self.trouble
        return row


@dataclass(frozen=True)
class Numerics:
    """All outputs of a candidate beside the original's.

    source: where the feeds came from. shared: statistics were fitted on the same feeds, because there were too few.
    """

    outputs: tuple[OutputDiff, ...]
    feeds: int
    source: str
    shared: bool = False

    @property
    def unseen(self) -> tuple[str, ...]:
        """The outputs of which no element was compared."""
        return tuple(o.name for o in self.outputs if o.unseen)

    @property
    def blind(self) -> bool:
        """Whether that is all of them, so that nothing is known of what the candidate costs."""
        return bool(self.outputs) and len(self.unseen) == len(self.outputs)

    @property
    def min_sqnr(self) -> float:
        """The worst output's SQNR in dB (inf for a model without outputs, or when `blind`)."""
        return min((o.sqnr_db for o in self.outputs), default=math.inf)

    @property
    def drop(self) -> float:
        """Damage without labels, 0 for none: that of the worst output."""
        return max((o.drop for o in self.outputs), default=0.0)

    def to_json(self) -> dict[str, Any]:
        """The report's `numerics`."""
        row = {"source": self.source, "feeds": self.feeds, "outputs": [o.to_json() for o in self.outputs]}
        return row | ({"shared": True} if self.shared else {})


@dataclass
class Diff:
    """Running sums for one tensor; `add` a pair of values, then ask for `result`.

    seen: floats that are finite in the reference. compared: values of other types.
    """

    name: str
    signal: float = 0.0
    noise: float = 0.0
    power: float = 0.0
    product: float = 0.0
    count: int = 0
    seen: int = 0
    max_abs: float = 0.0
    rows: int = 0
    agreed: int = 0
    equal: int = 0
    compared: int = 0
    floats: bool = False
    broken: bool = False
    trouble: str = ""

    def add(self, ref: Any, out: Any) -> None:
        """Take in the values of one feed: arrays, lists of them (sequences), dicts (maps) or None (optionals)."""
        if isinstance(ref, (list, tuple)) or isinstance(out, (list, tuple)):
            self._sequence(list(ref or ()), list(out or ()))
        elif isinstance(ref, Mapping) and isinstance(out, Mapping):
            self._sequence([ref[k] for k in ref], [out.get(k) for k in ref])
        elif ref is None or out is None:
            self.compared += 1
            self.equal += ref is out
        else:
            self._arrays(np.asarray(ref), np.asarray(out))

    def _sequence(self, ref: list[Any], out: list[Any]) -> None:
        if len(ref) != len(out):
            self.broken = True
        for a, b in zip(ref, out):
            self.add(a, b)

    def _arrays(self, ref: np.ndarray, out: np.ndarray) -> None:
        floats = kind_of(ref.dtype) in "fc"
        self.floats |= floats
        if ref.shape != out.shape:
            self._misshapen(ref, out, floats)
        elif floats:
            self._floats(_wide(ref), _wide(out))
        else:
            self.compared += ref.size
            self.equal += int(np.count_nonzero(ref == out))

    def _misshapen(self, ref: np.ndarray, out: np.ndarray, floats: bool) -> None:
        """How many boxes a detector lists depends on its values; for lists of indices that is a mismatch each."""
        if floats:
            self.broken, self.trouble = True, "other shape"
        else:
            self.compared += max(ref.size, out.size)

    def _floats(self, ref: np.ndarray, out: np.ndarray) -> None:
        good = np.isfinite(ref)
        seen = int(np.count_nonzero(good))
        self.seen, whole = self.seen + seen, seen == good.size
        if not whole:
            ref, out = np.where(good, ref, 0), np.where(good, out, 0)
        if not np.isfinite(out).all():
            self.broken, self.trouble = True, self.trouble or "NaN or infinite"
            return
        gap = ref - out
        self.signal += _energy(ref, ref)
        self.noise += _energy(gap, gap)
        self.power += _energy(out, out)
        self.product += _energy(ref, out)
        self.count += ref.size
        self.max_abs = max(self.max_abs, float(np.abs(gap).max(initial=0)))
        if ref.ndim == 2 and ref.shape[1] >= 2 and ref.dtype.kind == "f":
            self._classes(ref, out, None if whole else good)

    def _classes(self, ref: np.ndarray, out: np.ndarray, good: np.ndarray | None) -> None:
        """Rows with the same largest entry; good: what is finite in the reference, None for all."""
        if good is not None:
            rows = good.any(1)
            ref, out = (np.where(good, x, -np.inf)[rows] for x in (ref, out))
        self.rows += len(ref)
        self.agreed += int((ref.argmax(1) == out.argmax(1)).sum())

    def result(self) -> OutputDiff:
        """The figures over everything added."""
        if not (self.broken or self.seen or self.compared):
            return OutputDiff(self.name, math.inf, trouble=UNSEEN)
        signal = self.signal or self.count * SILENCE**2
        parts = [] if not self.floats else [decibels(signal, self.noise)]
        if self.compared:
            parts.append(decibels(self.compared, self.compared - self.equal))
        sqnr = -math.inf if self.broken else min(parts, default=math.inf)
        agreement = self.agreed / self.rows if self.rows else None
        exact = self.equal / self.compared if self.compared else None
        if not self.floats:
            return OutputDiff(self.name, sqnr, exact=exact)
        top = math.inf if self.broken else self.max_abs
        return OutputDiff(self.name, sqnr, self._cosine(), top, agreement, exact, self.trouble)

    def _cosine(self) -> float:
        if self.broken:
            return 0.0
        norm = math.sqrt(self.signal * self.power)
        return self.product / norm if norm else float(self.signal == self.power)


def _wide(array: np.ndarray) -> np.ndarray:
    """float64 (or complex128)."""
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def _energy(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.vdot(a, b).real)


@dataclass
class Reference:
    """The original's outputs on some feeds, to compare candidates with.

    memory_mb: what may be kept of the outputs; the rest is computed again for every candidate.
    """

    model: ModelLike | Session
    feeds: Feeds
    threads: int = 1
    memory_mb: int = 128
    _session: Session | None = field(default=None, repr=False)
    _kept: dict[int, Feed] = field(default_factory=dict, repr=False)
    _used: int = field(default=0, repr=False)
    _outputs: list[str] = field(default_factory=list, repr=False)

    @property
    def session(self) -> Session:
        """The original, ready to run."""
        if self._session is None:
            own = isinstance(self.model, Session)
            self._session = self.model if own else Session(self.model, threads=self.threads)  # type: ignore[assignment, arg-type]
        return self._session  # type: ignore[return-value]

    @property
    def known(self) -> bool:
        """Whether the original has been run."""
        return bool(self._outputs)

    def learn(self) -> None:
        """Run the original on all feeds now, so that what `memory_mb` holds of its outputs needs no session later."""
        self._outputs = self.session.outputs
        for _ in self.pairs():
            pass

    def release(self) -> None:
        """Let the session go until it is needed again, which outputs that are kept do not ask for."""
        if self._session is not self.model:
            self._session = None

    def pairs(self) -> Iterator[tuple[Feed, Feed]]:
        """(feed, the original's outputs on it), in order."""
        for i, feed in enumerate(self.feeds):
            outputs = self._kept.get(i)
            if outputs is None:
                outputs = self.session.run(feed)
                self._keep(i, outputs)
            yield feed, outputs

    def _keep(self, index: int, outputs: Feed) -> None:
        size = feed_bytes(outputs)
        if self._used + size <= self.memory_mb << 20:
            self._kept[index] = outputs
            self._used += size

    def compare(self, candidate: ModelLike | Session) -> Numerics:
        """Run the candidate on all feeds. Raises ModelError when it does not run or lacks an output."""
        session = candidate if isinstance(candidate, Session) else Session(candidate, threads=self.threads)
        self._outputs = self._outputs or self.session.outputs
        diffs = {name: Diff(name) for name in self._outputs}
        missing = [n for n in diffs if n not in session.outputs]
        if missing:
            raise ModelError(f"the candidate lacks the output '{missing[0]}'")
        count = 0
        for feed, reference in self.pairs():
            count += 1
            try:
                outputs = session.run(feed)
            except DataError as error:  # the original took this feed, so it is not the user's to mend
                raise ModelError(f"the candidate fails on a feed that the original takes: {error}") from error
            for name, diff in diffs.items():
                diff.add(reference[name], outputs[name])
        rows = tuple(d.result() for d in diffs.values())
        return Numerics(rows, count, self.feeds.source, self.feeds.shared)


def compare(a: ModelLike | Session, b: ModelLike | Session, feeds: Feeds, threads: int = 1) -> Numerics:
    """The outputs of b beside those of a, over the feeds."""
    return Reference(a, feeds, threads=threads, memory_mb=0).compare(b)


__all__ = ["DB_CAP", "UNSEEN", "Diff", "Numerics", "OutputDiff", "Reference", "compare", "decibels", "json_db"]
