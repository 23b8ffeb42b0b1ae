"""Timing models against each other on a machine that others use too.

Models run in turns (A B, B A, …), so that a slow moment hits both, and what counts is the median of the pairwise
ratios. The order of a round is drawn anew, since who runs after a large model finds the caches cold (ResNet-50 in
integers, always behind its float form: 1.3 % slower than in other places). With one thread the clock is the thread's
own CPU time, which is the wall clock's on an idle machine and which other programs cannot stretch (a model beside its
twin, six runs on two cores with a load of seven: 1.00 to 1.02, by the wall clock 1.01 to 1.11). A measurement stops
when the median has settled or its time is used up. A decision never reads the clock itself: it asks `Timings`, which
replays what was recorded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from . import synthetic
from .feeds import Feeds
from .loading import size
from .session import ModelLike, Session, digest
from .specs import required
from .timings import Timings

WARMUP = 2
SETTLED = 0.01  # relative half-width of the median's spread at which measuring stops
INNER = 2e-3  # seconds that one sample should last at least; faster models run several times a sample
SHARE = 1.3  # what two sessions take beyond three times a model while the second is loaded, in models: up to 1.2
CACHED = 1e-2  # seconds below which a model may live in the caches, which the one before it has taken


@dataclass(frozen=True)
class Latency:
    """Two models timed in turns on one feed.

    before_ms, after_ms: medians. speedup: median of the pairwise ratios before / after. runs: pairs.
    """

    before_ms: float
    after_ms: float
    speedup: float
    runs: int
    threads: int

    def to_json(self) -> dict[str, Any]:
        """The report's `latency`."""
        return {
            "before_ms": round(self.before_ms, 4),
            "after_ms": round(self.after_ms, 4),
            "speedup": round(self.speedup, 4),
            "threads": self.threads,
            "runs": self.runs,
        }


@dataclass(frozen=True)
class Timed:
    """One of several models: its median in ms, the median ratio to the first (first / own), and the runs."""

    ms: float
    speedup: float
    runs: int


def compare(
    a: ModelLike | Session,
    b: ModelLike | Session,
    feeds: Feeds | Mapping[str, Any],
    *,
    threads: int = 1,
    timings: Timings | None = None,
    seconds: float = 2.0,
    min_runs: int = 7,
    max_runs: int = 200,
) -> Latency:
    """How much faster b runs than a, on the first feed as given."""
    before, after = bench(
        [a, b], feeds, threads=threads, timings=timings, seconds=seconds, min_runs=min_runs, max_runs=max_runs
    )
    return Latency(before.ms, after.ms, after.speedup, after.runs, threads)


def fit_together(models: Sequence[Any], memory_mb: int) -> bool:
    """Whether sessions of two of these models at once stay within the bound on memory."""
    return SHARE * max(map(size, models)) <= memory_mb << 20


def apart(
    a: ModelLike,
    b: ModelLike,
    feed: Mapping[str, Any],
    *,
    make: Callable[[Any], Any] | None = None,
    threads: int = 1,
    timings: Timings | None = None,
    seconds: float = 2.0,
    runs: int = 10,
) -> Latency:
    """`compare` for models that are too large to be in memory together: a, b, b, a, each loaded in its turn.

    make: the session of a model, where making it means letting go of others; `start` when None. runs: samples a turn.
    """
    digests = [digest(a), digest(b)]
    begin = make or partial(start, threads=threads, timings=timings)

    def run() -> list[Any]:
        if digests[0] == digests[1]:
            same = _turn(partial(begin, a), feed, runs, seconds)
            return [float(np.median(same) * 1e3)] * 2 + [1.0, len(same)]
        first, second, third, fourth = (_turn(partial(begin, m), feed, runs, seconds / 4) for m in (a, b, b, a))
        pairs = np.array([*zip(first, second), *zip(fourth, third)])
        before, after = np.median(pairs, axis=0) * 1e3
        return [float(before), float(after), float(np.median(pairs[:, 0] / pairs[:, 1])), len(pairs)]

    key = Timings.key("one after the other", digests, threads, [_shapes(feed)])
    before, after, speedup, count = run() if timings is None else timings.measure(key, run)
    return Latency(before, after, speedup, count, threads)


def start(model: ModelLike, threads: int = 1, timings: Timings | None = None) -> Any:
    """A session to time, of the runtime that `timings` are of: `Session`, or `OpenVinoSession` for "openvino"."""
    if timings is None or timings.engine == "onnxruntime":
        return Session(model, threads=threads)
    from .openvino import OpenVinoSession

    return OpenVinoSession(model, threads=threads)


def _turn(maker: Callable[[], Session], feed: Mapping[str, Any], runs: int, seconds: float) -> list[float]:
    """Seconds a run of a model that has just been loaded: at least three samples."""
    session = maker()
    plan = _warm_up(session, feed)
    samples: list[float] = []
    start = time.perf_counter()
    while len(samples) < runs and (len(samples) < 3 or time.perf_counter() - start < seconds):
        samples.append(_sample(session, feed, *plan))
    return samples


def bench(
    models: Sequence[ModelLike | Session],
    feeds: Feeds | Mapping[str, Any],
    *,
    threads: int = 1,
    timings: Timings | None = None,
    seconds: float = 2.0,
    min_runs: int = 7,
    max_runs: int = 200,
) -> list[Timed]:
    """Any number of models in turns, each on the same feed; `seconds` is the time for all together."""
    feed = feeds.first() if isinstance(feeds, Feeds) else dict(feeds)
    rows = _measured(models, [feed] * len(models), threads, timings, seconds, min_runs, max_runs)
    return [Timed(*row) for row in rows]


def time_models(
    models: Sequence[ModelLike],
    feeds: Sequence[Mapping[str, Any]] | None = None,
    *,
    threads: int = 1,
    timings: Timings | None = None,
    seconds: float = 0.3,
    min_runs: int = 7,
    max_runs: int = 200,
) -> list[float]:
    """Milliseconds of small models timed in turns, for choosing between forms of a layer.

    feeds: one feed a model; seeded random ones when None (all dimensions must then be fixed). The first model's
    figure is its median; every other's is that divided by its median pairwise speed-up, so that comparing the
    figures compares what was measured in turns.
    """
    rows = _measured(models, feeds, threads, timings, seconds, min_runs, max_runs)
    return [rows[0][0] / row[1] for row in rows]


def _measured(
    models: Sequence[Any],
    feeds: Sequence[Mapping[str, Any]] | None,
    threads: int,
    timings: Timings | None,
    seconds: float,
    min_runs: int,
    max_runs: int,
) -> list[list[Any]]:
    """[median ms, ratio to the first, runs] of each; recorded under the models' contents, threads and shapes."""
    digests = [m.digest if isinstance(m, Session) else digest(m) for m in models]

    def run() -> list[list[Any]]:
        sessions: dict[str, Session] = {}
        for key, model in zip(digests, models):
            if key not in sessions:
                sessions[key] = model if isinstance(model, Session) else start(model, threads, timings)
        actual = feeds if feeds is not None else [random_feed(sessions[d]) for d in digests]
        unique = {d: (sessions[d], actual[k]) for k, d in reversed(list(enumerate(digests)))}
        unique = {d: unique[d] for d in dict.fromkeys(digests)}
        rows = dict(zip(unique, _in_turns(list(unique.values()), seconds, min_runs, max_runs)))
        return [rows[d] for d in digests]  # the same content is the same speed, whatever the clock says

    shapes = None if feeds is None else [_shapes(f) for f in feeds]
    key = Timings.key("in turns", digests, threads, shapes)
    return run() if timings is None else timings.measure(key, run)


def _shapes(feed: Mapping[str, Any]) -> dict[str, Any]:
    """What of a feed time depends on; of a sequence, the shapes in it."""
    return {n: [list(np.shape(a)) for a in v] if isinstance(v, list) else list(np.shape(v)) for n, v in feed.items()}


def _in_turns(
    pairs: Sequence[tuple[Session, Mapping[str, Any]]], seconds: float, min_runs: int, max_runs: int
) -> list[list[Any]]:
    plans = [_warm_up(session, feed) for session, feed in pairs]
    order, samples = np.random.default_rng(0), list[np.ndarray]()
    start = time.perf_counter()
    while len(samples) < max_runs:
        row = np.empty(len(pairs))
        for k in order.permutation(len(pairs)):
            row[k] = _sample(*pairs[k], *plans[k])
        samples.append(row)
        late = time.perf_counter() - start > seconds
        if len(samples) >= min_runs and (late or _settled(np.array(samples))):
            break
    table = np.array(samples)
    ratios = np.median(table[:, :1] / table, axis=0)
    return [[float(np.median(table[:, k]) * 1e3), float(ratios[k]), len(table)] for k in range(len(pairs))]


def _warm_up(session: Session, feed: Mapping[str, Any]) -> tuple[int, bool]:
    """Run until memory is in place; returns how many runs a sample averages, and whether one goes before them."""
    best = min(_sample(session, feed, 1, False) for _ in range(WARMUP + 1))
    return int(min(50, max(1, np.ceil(INNER / best)))), best < CACHED


def _sample(session: Session, feed: Mapping[str, Any], repeats: int, cached: bool) -> float:
    """Seconds a run, after an untimed one where the caches matter."""
    clock = session.clock
    if cached:
        session.run(feed)
    start = clock()
    for _ in range(repeats):
        session.run(feed)
    return (clock() - start) / repeats


def _settled(table: np.ndarray) -> bool:
    """Whether the median ratios to the first are known to within `SETTLED`.

    The half-width of a 95 % interval of the median, from order statistics: ranks n/2 ± 0.98·sqrt(n).
    """
    n = len(table)
    if n < 20:
        return False
    ratios = np.sort(table[:, :1] / table, axis=0)
    low, high = int(n / 2 - 0.98 * np.sqrt(n)), min(n - 1, int(np.ceil(n / 2 + 0.98 * np.sqrt(n))))
    return bool(((ratios[high] - ratios[max(0, low)]) / 2 <= SETTLED * ratios[n // 2]).all())


def random_feed(session: Session, seed: int = 0) -> dict[str, Any]:
    """A seeded random feed for a model whose input shapes are all fixed (open dimensions become 1)."""
    needed = {s.name: s for s in required(session.inputs)}
    shapes = {n: tuple(d if isinstance(d, int) else 1 for d in s.shape or ()) for n, s in needed.items()}
    return synthetic.feed(needed, shapes, seed, 0, {})


__all__ = [
    "Latency",
    "Timed",
    "Timings",
    "apart",
    "bench",
    "compare",
    "fit_together",
    "random_feed",
    "start",
    "time_models",
]
