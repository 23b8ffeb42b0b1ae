"""A histogram that never needs to know the range beforehand.

Bin edges are whole multiples of a width that is a power of two, so that widening (the width doubles, pairs of bins
merge) is exact, zero is always an edge, and histograms of different ranges merge without resampling. The number of
bins stays fixed; between half and all of them cover the values seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

BINS = 2048
FINEST = -126  # exponent of the smallest width: float32's smallest normal number


@dataclass
class Histogram:
    """counts[j] values lay in [(start + j)·width, (start + j + 1)·width), with width = 2**exponent."""

    bins: int = BINS
    exponent: int = FINEST
    start: int = 0
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def __post_init__(self) -> None:
        if not len(self.counts):
            self.counts = np.zeros(self.bins, np.int64)

    @property
    def width(self) -> float:
        """Width of a bin."""
        return math.ldexp(1.0, self.exponent)

    @property
    def low(self) -> float:
        """Lower edge of the first bin."""
        return self.start * self.width

    @property
    def high(self) -> float:
        """Upper edge of the last bin."""
        return (self.start + len(self.counts)) * self.width

    @property
    def edges(self) -> np.ndarray:
        """[bins + 1]."""
        return (self.start + np.arange(len(self.counts) + 1)) * self.width

    @property
    def centers(self) -> np.ndarray:
        """[bins]."""
        return (self.start + np.arange(len(self.counts)) + 0.5) * self.width

    @property
    def total(self) -> int:
        """Values counted."""
        return int(self.counts.sum())

    def add(self, values: np.ndarray) -> None:
        """Count finite values of any shape (each in its exact bin, but for specks 1e-38 of the width below an edge)."""
        if not values.size:
            return
        self._cover(float(values.min()), float(values.max()))
        flat = values.reshape(-1)
        if flat.dtype not in (np.float32, np.float64):
            flat = flat.astype(np.float64)
        scaled = np.floor(flat * flat.dtype.type(1 / self.width)).astype(np.int64)
        scaled -= self.start
        self.counts += np.bincount(scaled, minlength=self.bins)

    def merge(self, other: Histogram) -> None:
        """Count what another histogram has counted (exactly, at the coarser of both widths)."""
        used = np.flatnonzero(other.counts)
        if not len(used):
            return
        first, last = other.start + int(used[0]), other.start + int(used[-1])
        middle = other.width / 2
        self._cover(first * other.width + middle, last * other.width + middle)
        if self.exponent < other.exponent:
            self._widen(other.exponent)
            self._cover(first * other.width + middle, last * other.width + middle)
        place = ((other.start + used) >> (self.exponent - other.exponent)) - self.start
        np.add.at(self.counts, place, other.counts[used])

    def trimmed(self) -> Histogram:
        """Without the empty bins at both ends (the same width, fewer bins)."""
        used = np.flatnonzero(self.counts)
        if not len(used):
            return Histogram(0, self.exponent, self.start, np.zeros(1, np.int64))
        cut = self.counts[used[0] : used[-1] + 1]
        return Histogram(len(cut), self.exponent, self.start + int(used[0]), cut.copy())

    def quantile(self, q: float | np.ndarray) -> np.ndarray:
        """Values below which shares q of what was counted lie, linear within a bin."""
        used = self.trimmed()
        mass = np.concatenate([[0], np.cumsum(used.counts)])
        if not mass[-1]:
            return np.zeros_like(np.asarray(q, np.float64))
        return np.interp(np.asarray(q, np.float64) * mass[-1], mass, used.edges)

    def _cover(self, low: float, high: float) -> None:
        """Make room for values from low to high."""
        top = max(abs(low), abs(high))
        # Finer than a float32's own spacing (24 bits) says nothing, and would overflow the index.
        finest = max(FINEST, math.frexp(top)[1] - 24 if top else FINEST)
        exponent = max(self.exponent, finest)
        used = np.flatnonzero(self.counts)
        while True:
            width = math.ldexp(1.0, exponent)
            first, last = math.floor(low / width), math.floor(high / width)
            if len(used):
                shift = exponent - self.exponent
                first = min(first, (self.start + int(used[0])) >> shift)
                last = max(last, (self.start + int(used[-1])) >> shift)
            if last - first < self.bins:
                break
            exponent += max(1, math.floor(math.log2((last - first) / self.bins)))
        self._widen(exponent)
        if first < self.start or last >= self.start + self.bins:
            self._move(first if len(used) else first - (self.bins - 1 - (last - first)) // 2)

    def _widen(self, exponent: int) -> None:
        shift = exponent - self.exponent
        if shift <= 0:
            return
        used = np.flatnonzero(self.counts)
        start = (self.start + int(used[0])) >> shift if len(used) else self.start >> shift
        counts = np.zeros(self.bins, np.int64)
        np.add.at(counts, ((self.start + used) >> shift) - start, self.counts[used])
        self.exponent, self.start, self.counts = exponent, start, counts

    def _move(self, start: int) -> None:
        """Shift the window of bins; what was counted stays inside."""
        used = np.flatnonzero(self.counts)
        counts = np.zeros(self.bins, np.int64)
        counts[self.start + used - start] = self.counts[used]
        self.start, self.counts = start, counts


__all__ = ["BINS", "Histogram"]
