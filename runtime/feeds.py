"""Feeds: the user's data as dicts {input name: array}, read when needed and as often as needed.

A `Feeds` is a view (some indices) of a source. Sources are read lazily; decoded feeds are kept up to a memory cap
(`cache_mb`, 128 MB by default) and read again beyond it, so that JPEG files are not decoded for every pass over the
data and no data set can fill the memory. Every feed is validated against the model's inputs when it is read.
"""

from __future__ import annotations

import itertools
import math
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ..ir import shapes
from ..ir.errors import DataError, SlimError
from ..ir.model import Model

Feed = dict[str, Any]
DEFAULT_SAMPLES = 512  # feeds that are used of a larger data set when nobody says; statistics converge far earlier
WIDE = 8 << 20  # bytes of a feed from which on the activations of sessions count, see `wide`
ACTIVE = 192 << 20  # bytes of activations, all together, from which on they do
SPACED = 1 << 18  # entries of an array that a checksum looks at: about a millisecond


class Source(Protocol):
    """Where feeds come from."""

    def read(self, wanted: Sequence[int] | None) -> Iterator[tuple[int, Feed]]:
        """(index, raw feed) in order: all, or those of the sorted indices `wanted`."""


@dataclass
class Indexed:
    """A source whose feeds can be made one by one: `load(i)` for 0 <= i < count."""

    count: int
    load: Callable[[int], Any]

    def read(self, wanted: Sequence[int] | None) -> Iterator[tuple[int, Feed]]:
        """Load what is wanted, nothing else."""
        for i in range(self.count) if wanted is None else wanted:
            yield i, self.load(i)


@dataclass
class Stream:
    """A source that can only be run through: `start()` gives a new iterator every time."""

    start: Callable[[], Iterable[Any]]
    label: str = "the data"

    def read(self, wanted: Sequence[int] | None) -> Iterator[tuple[int, Feed]]:
        """Run through from the start, up to the last index that is wanted."""
        keep = None if wanted is None else frozenset(wanted)
        last = None if wanted is None else max(wanted, default=-1)
        for i, feed in enumerate(self._steps(last)):
            if keep is None or i in keep:
                yield i, feed

    def _steps(self, last: int | None) -> Iterator[Any]:
        stop = None if last is None else last + 1
        count = 0
        try:
            for feed in itertools.islice(self.start(), stop):
                count += 1
                yield feed
        except SlimError:
            raise
        except Exception as error:
            raise DataError(f"{self.label} raised {type(error).__name__} at feed {count}: {error}") from error


@dataclass
class Store:
    """A source with validation and a cache that all views share.

    sums: checksums of the feeds that are not cached, which must come again as they were.
    """

    source: Source
    check: Callable[[Any, int], Feed]
    cache_bytes: int
    cached: dict[int, Feed] = field(default_factory=dict)
    sums: dict[int, int] = field(default_factory=dict)
    used: int = 0
    count: int | None = None

    def read(self, wanted: Sequence[int]) -> Iterator[Feed]:
        """The validated feeds of these sorted indices."""
        if all(i in self.cached for i in wanted):
            yield from (dict(self.cached[i]) for i in wanted)
            return
        if isinstance(self.source, Indexed):
            for i in wanted:
                yield dict(self.cached[i]) if i in self.cached else dict(self._take(i, self.source.load(i)))
            return
        left = len(wanted)
        for i, raw in self.source.read(wanted):
            left -= 1
            yield dict(self.cached[i]) if i in self.cached else dict(self._take(i, raw))
        if left:
            raise DataError(f"the data gave {len(wanted) - left} feeds, but {len(wanted)} when it was read before")

    def measure(self, most: int | None) -> int:
        """Count, validating and caching on the way; `most` bounds how many are read."""
        if isinstance(self.source, Indexed):
            self.count = self.source.count
        if self.count is None:
            count = 0
            for i, raw in itertools.islice(self.source.read(None), most):
                self._take(i, raw)
                count = i + 1
            self.count = count
        return self.count

    def _take(self, index: int, raw: Any) -> Feed:
        feed = self.check(raw, index)
        if isinstance(self.source, Stream):
            feed = owned(feed)  # what yields it may fill the same buffer again
        size = feed_bytes(feed)
        if index not in self.cached and self.used + size <= self.cache_bytes:
            self.cached[index] = feed
            self.used += size
        elif index not in self.cached:
            self._compare(index, checksum(feed))
        return feed

    def _compare(self, index: int, found: int) -> None:
        if self.sums.setdefault(index, found) != found:
            raise DataError(
                f"the data gave other values for feed {index} when it was read again; "
                "what makes it must give the same each time: seed its random numbers"
            )


class Feeds:
    """Re-iterable feeds. Iterating yields dicts {input name: array} that are ready to run; do not edit the arrays.

    source: "data" for the user's own, "random" for seeded random ones.
    notes: what the user should know (renamed inputs, conversions, data left out), each said once.
    shared: this part and its counterpart of `split` are the same feeds, because there were too few.
    """

    def __init__(
        self,
        store: Store,
        *,
        source: str = "data",
        notes: list[str] | None = None,
        indices: Sequence[int] | None = None,
        samples: int | None = None,
        shared: bool = False,
    ):
        self._store, self._indices, self._samples = store, indices, samples
        self.source = source
        self.notes: list[str] = [] if notes is None else notes
        self.shared = shared

    def __iter__(self) -> Iterator[Feed]:
        return self._store.read(self._known())

    def __len__(self) -> int:
        return len(self._known())

    def first(self) -> Feed:
        """The first feed."""
        return next(iter(self.take(1)))

    def take(self, n: int) -> Feeds:
        """The first n feeds (fewer when there are fewer)."""
        return self._view(self._known()[:n])

    def spread(self, n: int) -> Feeds:
        """At most n feeds, evenly spaced over all."""
        return self._view(spaced(self._known(), n))

    def pick(self, at: Sequence[int]) -> Feeds:
        """The feeds at these positions, in this order."""
        known = self._known()
        return self._view([known[k] for k in at])

    def split(self, check: float = 0.25, *, interleaved: bool = True) -> tuple[Feeds, Feeds]:
        """(fit, check): disjoint and deterministic, both non-empty, about `check` of the feeds in the second.

        interleaved: every k-th feed is a check feed, so that data sorted by class or by time splits evenly;
        otherwise the last ones are. With fewer than 4 feeds both parts are all feeds, and `shared` is True.
        """
        known = self._known()
        if len(known) < 4:
            return self._view(known, shared=True), self._view(known, shared=True)
        count = min(len(known) - 1, max(1, round(len(known) * check)))
        if interleaved:
            picked = {((2 * k + 1) * len(known)) // (2 * count) for k in range(count)}
        else:
            picked = set(range(len(known) - count, len(known)))
        fit = [i for k, i in enumerate(known) if k not in picked]
        return self._view(fit), self._view([i for k, i in enumerate(known) if k in picked])

    def note(self, text: str) -> None:
        """Record a line for the user, once."""
        if text not in self.notes:
            self.notes.append(text)

    def _view(self, indices: Sequence[int], shared: bool = False) -> Feeds:
        return Feeds(
            self._store, source=self.source, notes=self.notes, indices=list(indices), shared=shared or self.shared
        )

    def _known(self) -> list[int]:
        if self._indices is None:
            self._indices = self._choose()
        return list(self._indices)

    def _choose(self) -> list[int]:
        """Which feeds of the whole source are used: all up to `samples`, spread where one can choose."""
        most = DEFAULT_SAMPLES if self._samples is None else min(self._samples, sys.maxsize - 1)
        count = self._store.measure(most + 1)
        if not count:
            raise DataError("the data is empty: no feed came from it")
        if count > most and self._samples is None:
            self.note(f"more than {most} feeds: {most} of them are used (--samples N uses more)")
        return spaced(range(count), most) if isinstance(self._store.source, Indexed) else list(range(min(count, most)))


def spaced(items: Sequence[int], n: int) -> list[int]:
    """At most n of the items, evenly spaced, in order."""
    if len(items) <= n:
        return list(items)
    return [items[(2 * k + 1) * len(items) // (2 * n)] for k in range(n)]


def owned(value: Any) -> Any:
    """A feed, or a value of one, with arrays and tensors of its own."""
    if isinstance(value, Mapping):
        return {k: owned(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [owned(v) for v in value]
    if hasattr(value, "numpy"):  # a torch or tensorflow tensor
        return np.array(value.numpy())
    return np.array(value) if hasattr(value, "__array__") or isinstance(value, (memoryview, bytearray)) else value


def feed_bytes(feed: Feed) -> int:
    """Memory that a feed's arrays take."""
    return sum(int(np.asarray(a).nbytes) for v in feed.values() for a in (v if isinstance(v, list) else [v]))


def checksum(feed: Feed) -> int:
    """CRC-32 of a feed's values, of large arrays at even spaces: values made anew differ nearly everywhere."""
    total = 0
    for value in feed.values():
        for item in value if isinstance(value, list) else [value]:
            flat = np.asarray(item).reshape(-1)
            part = flat[:: 1 + flat.size // SPACED]
            total = zlib.crc32(repr(part.tolist()).encode() if part.dtype.hasobject else part.tobytes(), total)
    return total


def wide(feeds: Feeds, model: Any) -> bool:
    """Whether the activations of each session count: an arena keeps them, or up to ten times a feed's bytes, for as
    long as its session lives. model: one whose shapes are inferred, or anything else that a session takes."""
    feed = feeds.first()
    return feed_bytes(feed) >= WIDE or (isinstance(model, Model) and _activations(model, feed) >= ACTIVE)


def _activations(model: Model, feed: Feed) -> int:
    """Bytes of the tensors of the main graph whose sizes are known but for the batch, which is the feed's."""
    arrays = [a for a in feed.values() if isinstance(a, np.ndarray) and a.ndim]
    batch, total = max((len(a) for a in arrays), default=1), 0
    for tensor in (t for node in model.graph.nodes for t in node.outputs):
        first, *rest = shapes.of(tensor) or (None,)
        if tensor.dtype is not None and all(isinstance(d, int) for d in rest):
            sizes = [first if isinstance(first, int) else batch, *rest]
            total += math.prod(sizes) * np.dtype(tensor.dtype).itemsize
    return total


def resolve(spec: Any, model: Any, options: Any = None) -> Feeds:
    """Feeds from any source of `--data`; see `sources.resolve`."""
    from .sources import resolve as from_any

    return from_any(spec, model, options)


__all__ = [
    "DEFAULT_SAMPLES",
    "Feed",
    "Feeds",
    "Indexed",
    "Source",
    "Store",
    "Stream",
    "checksum",
    "feed_bytes",
    "owned",
    "resolve",
    "spaced",
    "wide",
]
