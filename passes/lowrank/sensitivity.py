"""What a layer's error does to the model's outputs: measured once a layer, by splitting that layer alone.

A layer's output error says little about the damage: some layers feed a residual stream that drowns it, others the
classifier. One option in the middle of each hull is put into the model on its own; the relative change of the model's
outputs over the option's error is the layer's sensitivity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...ir import Model, order
from ...runtime.session import Session
from ..base import Context
from . import siblings

if TYPE_CHECKING:
    from .planning import Found

SAMPLES, MOST = 4, 64  # as few where the model is large, up to as many where all trials together stay within `WORK`
WORK = 3e11  # MACs
FEWEST = 2  # feeds, however large their batches
FLOOR = 1e-9  # a layer without any effect is split first, not infinitely gladly
REFERENCE_ERROR = 0.05


def sensitivities(model: Model, found: Mapping[str, Found], macs: int, ctx: Context) -> dict[str, float]:
    """Relative output MSE of the model for each unit of relative output MSE of the layer, by node name.

    macs: of the model on one feed.
    """
    feeds = list(ctx.fit.spread(feeds_for(ctx.fit.first(), macs * (len(found) + 1))))
    reference = outputs(model, feeds, ctx.workers)
    out = {}
    for name in ctx.progress(list(found), "sensitivity", len(found)):
        row = found[name]
        split = min(row.splits, key=lambda s: abs(np.log(max(s.option.error, 1e-12) / REFERENCE_ERROR)))
        trial = model.copy()
        layer = siblings.reader(trial)(row.names, row.size)
        siblings.put(trial, layer, split.form.chain(layer, split.factors), split.shift, split.form.name)
        order.sort(trial)
        moved = change(reference, outputs(trial, feeds, ctx.workers))
        out[name] = max(moved / max(split.option.error, 1e-12), FLOOR)
    return out


def feeds_for(feed: Mapping[str, Any], macs: int) -> int:
    """How many feeds to look at, each of which costs so many MACs: fewer where each of them is a batch."""
    arrays = [v for v in feed.values() if isinstance(v, np.ndarray)]
    batch = max(1, min((len(v) for v in arrays if v.ndim > 1), default=1))
    affordable = min(int(WORK // max(macs, 1)), -(-MOST // batch))
    return max(FEWEST, -(-SAMPLES // batch), affordable)


def outputs(model: Model, feeds: Sequence[Mapping[str, Any]], threads: int) -> list[list[np.ndarray]]:
    """Float outputs of the model, feed by feed."""
    session = Session(model, threads=threads)
    rows = [[v for v in session.run(feed).values() if isinstance(v, np.ndarray)] for feed in feeds]
    return [[v.astype(np.float64) for v in row if v.dtype.kind == "f"] for row in rows]


def change(reference: Sequence[Sequence[np.ndarray]], other: Sequence[Sequence[np.ndarray]]) -> float:
    """The worst output's relative squared change over all feeds; 1 where it is not finite or changes shape."""
    worst = 0.0
    for k in range(len(reference[0])):
        pairs = [(a[k], b[k]) for a, b in zip(reference, other)]
        if any(a.shape != b.shape for a, b in pairs):
            return 1.0
        total = sum(float((a**2).sum()) for a, _ in pairs)
        lost = sum(float(((a - b) ** 2).sum()) for a, b in pairs)
        worst = max(worst, lost / total if total > 0 else 0.0)
    return worst if np.isfinite(worst) else 1.0
