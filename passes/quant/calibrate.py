"""From a histogram of an activation to the range, scale and zero point that its 8-bit integers get.

The histograms come streamed from `runtime.ranges`; nothing here sees a sample. Methods: `minmax` (everything seen),
`average` (the mean of each feed's extremes: a moving average that does not depend on the order), `percentile`, `mse`
(least expected squared error of rounding and clipping together: OMSE, arXiv 1902.06822) and `entropy` (least
Kullback-Leibler divergence, as in TensorRT's calibrator, on absolute values).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...runtime.ranges import Range

METHODS = ("mse", "minmax", "average", "percentile", "entropy")
_CANDIDATES = 64  # clip values tried on each side by mse: steps of 1.2 % of the range seen


Curve = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Seen:
    """A tensor as calibration sees it.

    low, high: extremes. centers, counts: of equal bins, [bins]; zeros: values in the bin of zero, taken as exact
    zeros. curve: the function of the tensor that its readers compute, where they compute only one (SiLU): errors
    count after it. None counts them as they are. usual: means of the feeds' extremes; None: those of all feeds.
    """

    low: float
    high: float
    centers: np.ndarray
    counts: np.ndarray
    zeros: float = 0.0
    curve: Curve | None = None
    usual: tuple[float, float] | None = None

    @staticmethod
    def of(seen: Range, curve: Curve | None = None) -> Seen:
        """From a streamed range with its histogram."""
        if seen.histogram is None or seen.count == 0:
            return Seen(0.0, 0.0, np.zeros(1), np.zeros(1))
        h = seen.histogram.trimmed()
        counts, centers = h.counts.astype(np.float64), h.centers
        at = int(np.searchsorted(centers, 0.0))
        zeros = float(counts[at]) if at < len(counts) and abs(centers[at]) <= h.width else 0.0
        return Seen(seen.min, seen.max, centers, counts, zeros, curve, (seen.mean_min, seen.mean_max))


@dataclass(frozen=True)
class Scale:
    """Real value = (integer - zero) * scale; kind is "u8" or "s8"."""

    scale: float
    zero: int
    kind: str

    @property
    def dtype(self) -> type:
        """The integers' numpy type."""
        return np.uint8 if self.kind == "u8" else np.int8

    @property
    def limits(self) -> tuple[int, int]:
        """Least and greatest integer."""
        return (0, 255) if self.kind == "u8" else (-128, 127)

    def fake(self, x: np.ndarray) -> np.ndarray:
        """Quantize and dequantize, as QuantizeLinear and DequantizeLinear do (round half to even)."""
        low, high = self.limits
        q = np.clip(np.rint(x / np.float32(self.scale)) + self.zero, low, high)
        return ((q - self.zero) * np.float32(self.scale)).astype(np.float32)


def to_scale(low: float, high: float, kind: str, symmetric: bool = False) -> Scale:
    """Scale and zero point of a range, which is widened to contain 0 (0 must be exact: padding, Relu)."""
    low, high = min(low, 0.0), max(high, 0.0)
    if high - low < 1e-30:
        return Scale(1.0, 0 if kind == "s8" or not symmetric else 128, kind)
    if symmetric:
        scale = float(np.float32(max(-low, high) / 127))
        return Scale(scale, 128 if kind == "u8" else 0, kind)
    least = 0 if kind == "u8" else -128
    scale = float(np.float32((high - low) / 255))
    return Scale(scale, least + int(np.clip(np.rint(-low / scale), 0, 255)), kind)


def minmax(hists: Sequence[Seen], percentile: float = 100.0) -> tuple[float, float]:
    """Everything that was seen."""
    return min(h.low for h in hists), max(h.high for h in hists)


def average(hists: Sequence[Seen], percentile: float = 100.0) -> tuple[float, float]:
    """The mean of each feed's extremes, widest over the tensors."""
    ends = [h.usual or (h.low, h.high) for h in hists]
    return min(low for low, _ in ends), max(high for _, high in ends)


def percentile(hists: Sequence[Seen], percentile: float = 99.99) -> tuple[float, float]:
    """The middle `percentile` per cent of the values of each tensor, widest over the tensors."""
    tail = (100.0 - percentile) / 200.0
    lows, highs = [], []
    for h in hists:
        share = np.cumsum(h.counts) / max(1.0, h.counts.sum())
        first, last = int(np.searchsorted(share, tail)), int(np.searchsorted(share, 1 - tail))
        half = (h.centers[1] - h.centers[0]) / 2 if len(h.centers) > 1 else 0.0
        lows.append(max(h.low, h.centers[min(first, len(share) - 1)] - half))
        highs.append(min(h.high, h.centers[min(last, len(share) - 1)] + half))
    return float(min(lows)), float(max(highs))


def mse(hists: Sequence[Seen], percentile: float = 100.0) -> tuple[float, float]:
    """The range with the least expected squared error over all tensors that share it."""
    low, high = min(min(h.low for h in hists), 0.0), max(max(h.high for h in hists), 0.0)
    shrink = np.linspace(1.0, 0.2, _CANDIDATES)
    for _ in range(2):  # a coarse grid, then a fine one around its best
        lows, highs = np.unique(low * shrink), np.unique(high * shrink)
        grid = np.sum([_errors(h, lows, highs) for h in hists], axis=0)
        a, b = np.unravel_index(int(np.argmin(grid)), grid.shape)
        low, high, shrink = float(lows[a]), float(highs[b]), np.linspace(1.01, 0.98, _CANDIDATES // 2)
    seen_low, seen_high = minmax(hists)
    return max(low, min(seen_low, 0.0)), min(high, max(seen_high, 0.0))


def _errors(h: Seen, lows: np.ndarray, highs: np.ndarray) -> np.ndarray:
    """Expected squared error of every pair of limits, [lows, highs]: step²/12 within, clipping outside."""
    x, c = h.centers, h.counts
    curve: Curve = h.curve or (lambda v: v)
    y, at_low, at_high = curve(x), curve(lows), curve(highs)
    slope = np.ones_like(x) if h.curve is None or len(x) < 3 else np.gradient(y, x) ** 2
    s0, s1, s2, inner = (np.concatenate([[0.0], np.cumsum(c * v)]) for v in (np.ones_like(y), y, y * y, slope))
    below, above = np.searchsorted(x, lows), np.searchsorted(x, highs)
    left = s2[below] - 2 * at_low * s1[below] + at_low**2 * s0[below]
    right = (s2[-1] - s2[above]) - 2 * at_high * (s1[-1] - s1[above]) + at_high**2 * (s0[-1] - s0[above])
    inside = np.maximum(inner[above][None, :] - inner[below][:, None] - h.zeros, 0.0)
    step = (highs[None, :] - lows[:, None]) / 255
    return left[:, None] + right[None, :] + inside * step**2 / 12


def silu(x: np.ndarray) -> np.ndarray:
    """x · sigmoid(x)."""
    return x / (1.0 + np.exp(-np.clip(x, -60.0, 60.0)))


def expected_noise(h: Seen, scale: Scale) -> tuple[float, float]:
    """(signal, noise) of a tensor under a scale, as mean squares, from its histogram."""
    low, high = ((q - scale.zero) * scale.scale for q in scale.limits)
    error = float(_errors(h, np.array([low]), np.array([high]))[0, 0])
    y = h.centers if h.curve is None else h.curve(h.centers)
    total = max(1.0, float(h.counts.sum()))
    return float((h.counts * y * y).sum()) / total, error / total


def entropy(hists: Sequence[Seen], percentile: float = 100.0) -> tuple[float, float]:
    """The clip of absolute values with the least Kullback-Leibler divergence, widest over the tensors."""
    clip = max(_entropy_clip(h) for h in hists)
    low, high = minmax(hists)
    return max(low, -clip), min(high, clip)


def _entropy_clip(h: Seen) -> float:
    top = max(abs(h.low), abs(h.high))
    bins = max(len(h.counts), 512)
    place = np.minimum((np.abs(h.centers) / max(top, 1e-30) * bins).astype(int), bins - 1)
    counts = np.bincount(place, weights=h.counts, minlength=bins).astype(np.float64)
    counts[0] = counts[1]  # zeros of Relu and padding cost nothing to represent, but would outweigh all the rest
    best, clip = np.inf, top
    for size in (*range(128, bins, max(1, bins // 256)), bins):
        divergence = _divergence(counts, size)
        if divergence < best:
            best, clip = divergence, (size + 0.5) * top / bins
    return clip


def _divergence(counts: np.ndarray, size: int, levels: int = 128) -> float:
    """Divergence of the histogram clipped to `size` bins from its `levels`-level version."""
    p = counts[:size].copy()
    p[-1] += counts[size:].sum()
    group = (np.arange(size) * levels // size).astype(int)
    held = counts[:size] > 0
    total = np.bincount(group, weights=counts[:size], minlength=levels)
    filled = np.maximum(np.bincount(group, weights=held, minlength=levels), 1)
    q = np.where(held, (total / filled)[group], 0.0)
    p, q = p / max(p.sum(), 1e-30), q / max(q.sum(), 1e-30)
    live = p > 0
    return float(np.sum(p[live] * np.log(p[live] / np.maximum(q[live], 1e-12))))


_BY_NAME: dict[str, Callable[..., tuple[float, float]]] = {
    "minmax": minmax,
    "average": average,
    "percentile": percentile,
    "mse": mse,
    "entropy": entropy,
}


def choose(method: str, hists: Sequence[Seen], percentile: float) -> tuple[float, float]:
    """The range of tensors that share one, by the named method; (0, 0) when nothing was seen."""
    seen = [h for h in hists if h.counts.sum() > 0 and np.isfinite([h.low, h.high]).all()]
    if not seen:
        return 0.0, 0.0
    if all(h.high - h.low <= 0 for h in seen):
        return minmax(seen)
    return _BY_NAME[method]([h for h in seen if h.high > h.low], percentile)
