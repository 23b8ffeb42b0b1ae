"""Two models tensor by tensor: where they part, for `onnxslim compare`.

Memory: the common tensors of a wave in both models on one feed (at most half of `memory_mb`), and a few sums each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ..ir.model import Model
from . import probe
from .feeds import Feeds
from .numerics import Diff, OutputDiff, decibels
from .taps import Tap, outer_tensors, waves

FIT_DB = 6.0  # what a factor for each channel must gain before it is taken for one: any fit gains a little


@dataclass
class Channels:
    """Sums along one axis, for the SQNR that is left once b's channels are brought back to a's scale.

    Equalisation multiplies channels of inner tensors by factors that the next layer takes out again; the factor of a
    channel is its least-squares fit, Σab / Σa².
    """

    axis: int
    sums: np.ndarray | None = field(default=None, repr=False)

    def add(self, ref: Any, out: Any) -> None:
        """Take in the values of one feed; what is no float tensor with this axis is passed over."""
        if not (isinstance(ref, np.ndarray) and isinstance(out, np.ndarray) and ref.shape == out.shape):
            return
        if ref.dtype.kind != "f" or ref.ndim < 2 or ref.shape[self.axis] < 2:
            return
        a, b = (np.moveaxis(x, self.axis, 0).reshape(x.shape[self.axis], -1).astype(np.float64) for x in (ref, out))
        found = np.stack([np.einsum("cn,cn->c", x, y) for x, y in ((a, a), (a, b), (b, b))])
        if self.sums is None:
            self.sums = np.zeros_like(found)
        if self.sums.shape == found.shape:  # an open axis is none of channels
            self.sums += found

    def sqnr(self) -> float:
        """dB; -inf when nothing was seen, or not finite."""
        if self.sums is None or not np.isfinite(self.sums).all():
            return -np.inf
        signal, product, power = self.sums
        live = (signal > 0) & (product > 0)
        left = np.maximum(power[live] - product[live] ** 2 / signal[live], 0.0)
        noise = float((left * (signal[live] / product[live]) ** 2).sum() + signal[~live].sum())
        return decibels(float(signal.sum()), noise)


def common(a: Model, b: Model) -> list[str]:
    """Tensors that nodes of both models make, in a's topological order; of a's outputs also inputs and constants."""
    ours, theirs = outer_tensors(a), outer_tensors(b)
    outputs = {t.name for t in a.graph.outputs}
    return [n for n, t in ours.items() if n in theirs and (n in outputs or (_made(t) and _made(theirs[n])))]


def _made(tensor: gs.Tensor) -> bool:
    return isinstance(tensor, gs.Variable) and bool(tensor.inputs)


def compare_tensors(
    a: Model,
    b: Model,
    feeds: Feeds | Iterable[Mapping[str, Any]],
    names: Sequence[str] | None = None,
    *,
    memory_mb: int = 512,
    threads: int = 1,
) -> list[OutputDiff]:
    """How far each common tensor of b is from a's, over all feeds, in a's order.

    names: which tensors; all common ones when None. Every model runs as it stands, without ONNX Runtime's fusions,
    so that a difference is where it seems to be.
    """
    known = common(a, b)
    wanted = known if names is None else [n for n in known if n in set(names)]
    if not wanted:
        return []
    sizes = probe.sizes(a, next(iter(feeds)), wanted)
    found, scaled = {n: Diff(n) for n in wanted}, {n: (Channels(1), Channels(-1)) for n in wanted}
    for wave in waves(wanted, sizes, max(1, memory_mb << 20) // 4):
        left = Tap(a, wave, threads=threads, optimize=False)
        right = Tap(b, wave, threads=threads, optimize=False)
        for feed in feeds:
            ours, others = left.run(feed), right.run(feed)
            for name in wave:
                for sums in (found[name], *scaled[name]):
                    sums.add(ours[name], others[name])
    return [_rescaled(found[n].result(), scaled[n]) for n in wanted]


def _rescaled(row: OutputDiff, channels: Iterable[Channels]) -> OutputDiff:
    best = max(c.sqnr() for c in channels)
    return replace(row, rescaled_db=best) if not row.trouble and best > row.sqnr_db + FIT_DB else row


__all__ = ["Channels", "common", "compare_tensors"]
