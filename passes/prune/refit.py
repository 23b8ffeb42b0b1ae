"""Closed-form recovery: what stays of every layer is fitted anew to what the original computes there.

W' = argmin Σ ‖y − W'x̂ − b'‖² + λ‖W' − W_K‖², with y from the original, x̂ from the pruned model as fitted so far, and
W_K the weights that the cut left (He 2017, arXiv:1707.06168; with an intercept, so that the mean of what went is in
b'). λ is chosen on held-out feeds, for each layer by itself; its largest value leaves all but the bias as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ...ir import Model
from ...runtime.feeds import Feeds
from ..base import Context
from .layers import Layer, matrix, store
from .march import March
from .stats import WIDEST, Sums, Target, against

Array = np.ndarray
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e3)  # of the mean of the diagonal
DISTRUST = (1.0, 1e3)  # where the feeds are made up
DEFAULT_RIDGE = 1e-2  # where no feed can be held out


def refit(
    model: Model,
    layers: Sequence[Layer],
    feeds: Feeds,
    goals: Mapping[str, Target],
    kept: Mapping[str, Array],
    ctx: Context,
    ridges: Sequence[float] = RIDGES,
    finish: Callable[[Layer, Array, Sums], Array] | None = None,
) -> int:
    """Fit every layer in place, level by level; returns how many were changed.

    finish: what is made of the fitted weights `[G, M/G, D]` of a layer, given the sums that they were fitted on, before
    the next level sees them; the bias then keeps the mean.
    """
    nodes = {n.name: n for n in model.graph.nodes}
    march = March(model, layers, feeds, ctx.workers, (ctx.memory_mb << 20) // 8)
    waves: dict[int, list[Layer]] = {}
    for layer in layers:
        waves.setdefault(march.level[layer.node], []).append(layer)
    count = 0
    for level in ctx.progress(sorted(waves), "refit", len(waves)):
        wave = waves[level]
        walk = march.to(level, list(dict.fromkeys(n for x in wave for n in (x.x, x.other) if n)))
        sums = against(wave, nodes, walk, goals, kept)
        for layer in wave:
            prior = matrix(nodes[layer.node]).astype(np.float64)
            found, bias = fitted(prior, *sums[layer.node], layer.bias is not None, ridges)
            if finish is not None and np.isfinite(found).all():
                every = sums[layer.node][0] + sums[layer.node][1]
                found = finish(layer, found, every)
                bias = None if layer.bias is None else mended(found, every)
            if np.isfinite(found).all():
                store(model, layer, nodes, found, bias)
                count += 1
    return count


def fitted(
    prior: Array, fit: Sums, check: Sums, intercept: bool, ridges: Sequence[float] = RIDGES
) -> tuple[Array, Array | None]:
    """Weights `[G, M/G, D]` and bias `[M]`, with the ridge that does best on the held-out sums."""
    if prior.shape[2] > WIDEST:
        return prior, mended(prior, fit + check) if intercept else None
    if not check.rows or not fit.rows:
        return solve(prior, fit + check, max(DEFAULT_RIDGE, ridges[0]), intercept)
    errors = [error(*solve(prior, fit, ridge, intercept), check) for ridge in ridges]
    return solve(prior, fit + check, ridges[int(np.argmin(errors))], intercept)


def mended(weights: Array, sums: Sums) -> Array:
    """The bias `[M]` with which these weights keep the mean of the outputs."""
    return np.asarray((sums.y - np.einsum("gmd,gd->gm", weights, sums.x)).reshape(-1) / sums.rows)


def solve(prior: Array, sums: Sums, ridge: float, intercept: bool) -> tuple[Array, Array | None]:
    """The ridge regression towards `prior`; without an intercept the bias comes back as None."""
    mean_x, mean_y = sums.x / sums.rows, sums.y / sums.rows
    xx, xy = sums.xx / sums.rows, sums.xy / sums.rows
    if intercept:
        xx = xx - mean_x[:, :, None] * mean_x[:, None, :]
        xy = xy - mean_x[:, :, None] * mean_y[:, None, :]
    size = xx.shape[-1]
    scale = np.maximum(np.trace(xx, axis1=1, axis2=2) / size, 1e-12)[:, None, None] * ridge
    turned = np.linalg.solve(xx + scale * np.eye(size), xy + scale * np.swapaxes(prior, 1, 2))
    found = np.swapaxes(turned, 1, 2)
    if not intercept:
        return found, None
    return found, mended(found, sums)


def error(weights: Array, bias: Array | None, sums: Sums) -> float:
    """Summed squared error of a fit on the rows behind the sums."""
    b = np.zeros(weights.shape[:2]) if bias is None else bias.reshape(weights.shape[:2])
    quadratic = ((weights @ sums.xx) * weights).sum()
    cross = (weights * np.swapaxes(sums.xy, 1, 2)).sum()
    linear = np.einsum("gmd,gd,gm->", weights, sums.x, b)
    constant = sums.rows * (b * b).sum() - 2 * (b * sums.y).sum() + sums.yy
    return float(quadratic - 2 * cross + 2 * linear + constant)
