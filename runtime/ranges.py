"""Streamed statistics of tensors: extremes, per channel where asked, moments and histograms.

Memory: one feed's activations of the current wave (at most half of `memory_mb`, or a single tensor) and 16 KB a
tensor for its histogram. Statistics do not depend on how the tensors fall into waves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..ir.model import Model
from . import probe
from .feeds import Feeds
from .histograms import BINS, Histogram
from .loading import give_back
from .specs import kind_of
from .taps import Tap, outer_tensors, waves

Progress = Callable[[Iterable[Any], str, "int | None"], Iterable[Any]]


@dataclass
class Range:
    """What was seen of a tensor over all feeds.

    min, max: of the finite values (inf, -inf when there were none). mean_min, mean_max: means over the feeds of each
    feed's extremes. count: values seen. mean, square: E[x], E[x²].
    nonfinite: NaN and infinite values, in no other figure. channel_min, channel_max: [channels] along `axis`, where
    one was given. histogram: None when not asked for.
    """

    min: float = float("inf")
    max: float = float("-inf")
    count: int = 0
    mean: float = 0.0
    square: float = 0.0
    nonfinite: int = 0
    axis: int | None = None
    channel_min: np.ndarray | None = None
    channel_max: np.ndarray | None = None
    histogram: Histogram | None = None
    _sums: list[float] = field(default_factory=lambda: [0.0, 0.0], repr=False)
    _ends: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0], repr=False)

    @property
    def mean_min(self) -> float:
        """Mean over the feeds of the least value; 0 when nothing was seen."""
        return self._ends[0] / max(1.0, self._ends[2])

    @property
    def mean_max(self) -> float:
        """Mean over the feeds of the greatest value; 0 when nothing was seen."""
        return self._ends[1] / max(1.0, self._ends[2])

    @property
    def std(self) -> float:
        """Standard deviation."""
        return float(np.sqrt(max(0.0, self.square - self.mean**2)))

    def add(self, values: Any) -> None:
        """Take in one feed's values (numbers or booleans; others are passed over)."""
        if isinstance(values, (list, dict)) or values is None or np.asarray(values).dtype == object:
            return
        array = np.asarray(values)
        if array.dtype not in (np.float32, np.float64):
            array = array.astype(np.float32 if kind_of(array.dtype) in "fb" else np.float64)
        if not array.size:
            return
        low, high = array.min(), array.max()
        if not (np.isfinite(low) and np.isfinite(high)):
            good = np.isfinite(array)
            self.nonfinite += int(array.size - good.sum())
            self._channels(np.where(good, array, np.nan))
            array = array[good]
            if not array.size:
                return
            low, high = array.min(), array.max()
        else:
            self._channels(array)
        self.min, self.max = min(self.min, float(low)), max(self.max, float(high))
        self._ends = [a + b for a, b in zip(self._ends, (float(low), float(high), 1.0))]
        self._moments(array)
        if self.histogram is not None:
            self.histogram.add(array)

    def _moments(self, array: np.ndarray) -> None:
        self.count += array.size
        flat = array.reshape(-1)
        self._sums[0] += float(flat.sum(dtype=np.float64))
        self._sums[1] += float(np.einsum("i,i->", flat, flat, dtype=np.float64))
        self.mean, self.square = self._sums[0] / self.count, self._sums[1] / self.count

    def _channels(self, array: np.ndarray) -> None:
        if self.axis is None or not -array.ndim <= self.axis < array.ndim:
            return
        rest = tuple(k for k in range(array.ndim) if k != self.axis % array.ndim)
        low, high = np.fmin.reduce(array, axis=rest), np.fmax.reduce(array, axis=rest)
        if self.channel_min is None or self.channel_max is None:
            self.channel_min, self.channel_max = low.copy(), high.copy()
        elif self.channel_min.shape == low.shape:
            self.channel_min, self.channel_max = np.fmin(self.channel_min, low), np.fmax(self.channel_max, high)
        else:  # a size that changes from feed to feed is no channel axis
            self.axis, self.channel_min, self.channel_max = None, None, None


def collect(
    model: Model,
    names: Sequence[str],
    feeds: Feeds | Iterable[Mapping[str, Any]],
    *,
    bins: int | None = BINS,
    axes: Mapping[str, int] | None = None,
    memory_mb: int = 512,
    threads: int = 1,
    progress: Progress | None = None,
) -> dict[str, Range]:
    """Statistics of tensors of the main graph over all feeds, {name: Range} in the order of `names`.

    bins: of the histograms; None makes none. axes: {name: channel axis} where extremes per channel are wanted.
    progress: wraps an iterable, with a label and a total (`Context.progress`).
    Raises ModelError for a name that the main graph does not have.
    """
    axes = axes or {}
    found = {
        n: Range(axis=axes.get(n), histogram=None if bins is None else Histogram(bins)) for n in dict.fromkeys(names)
    }
    for wave in plan(model, found, feeds, memory_mb):
        give_back()
        tap = Tap(model, wave, threads=threads)
        for feed in _shown(feeds, progress, "ranges"):
            for name, value in tap.run(feed).items():
                found[name].add(value)
    return found


def plan(model: Model, names: Iterable[str], feeds: Any, memory_mb: int) -> list[list[str]]:
    """Waves in the order of the graph, so that the early ones run only the front of the model."""
    wanted, known = set(names), outer_tensors(model)
    unknown = [n for n in names if n not in known]
    ordered = [*unknown, *(n for n in known if n in wanted)] if wanted else []
    if not ordered:
        return []
    sizes = {} if unknown else probe.sizes(model, next(iter(feeds)), ordered)
    return waves(ordered, sizes, max(1, memory_mb << 20) // 2)


def _shown(feeds: Any, progress: Progress | None, label: str) -> Iterable[Any]:
    return feeds if progress is None else progress(feeds, label, len(feeds))


__all__ = ["Range", "collect", "plan"]
