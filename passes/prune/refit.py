"""Closed-form recovery: what stays of every layer is fitted anew to what the original computes there.

W' = argmin Σ ‖y − W'x̂ − b'‖² + λ‖W' − W_K‖², with y from the original, x̂ from the pruned model as fitted so far, and
W_K the weights that the cut left (He 2017, arXiv:1707.06168; with an intercept, so that the mean of what went is in
b'). λ is chosen on held-out feeds, for each layer by itself; its largest value leaves all but the bias as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from scipy.linalg import lapack

from ...ir import Model
from ...ir.spill import let_go
from ...runtime.feeds import Feeds
from ..bands import bands
from ..base import Context
from . import thin
from .layers import Layer, matrix, readers, store, tied
from .left import Left
from .march import March
from .stats import BLOCK, Sums, Target, against
from .triangles import mirror

Array = np.ndarray
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e3)  # of the mean of the diagonal
DISTRUST = (1.0, 1e3)  # where the feeds are made up
DEFAULT_RIDGE = 1e-2  # where no feed can be held out


def refit(
    model: Model,
    layers: Sequence[Layer],
    feeds: Feeds,
    goals: Mapping[str, Target],
    kept: Mapping[str, Left],
    ctx: Context,
    ridges: Sequence[float] = RIDGES,
    finish: Callable[[Layer, Array, Any], Array] | None = None,
) -> int:
    """Fit every layer in place, level by level; returns of how many the weights were changed.

    Weights that several nodes read stay one constant, as they are, unless they are small (`layers.tied`): only a bias
    that a layer has for itself is fitted.
    finish: what is made of the fitted weights `[G, M/G, D]` of a layer, given the sums that they were fitted on, before
    the next level sees them; the bias then keeps the mean.
    """
    nodes = {n.name: n for n in model.graph.nodes}
    shared = tied(model, layers)
    layers = [x for x in layers if x.node not in shared or _own_bias(x, nodes)]
    march = March(model, layers, feeds, ctx.workers, (ctx.memory_mb << 20) // 8)
    waves: dict[int, list[Layer]] = {}
    for layer in layers:
        waves.setdefault(march.level[layer.node], []).append(layer)
    count = 0
    for level in ctx.progress(sorted(waves), "refit", len(waves)):
        wave = waves[level]
        walk = march.to(level, list(dict.fromkeys(n for x in wave for n in (x.x, x.other) if n)))
        sums = against(wave, nodes, walk, goals, kept, ctx.memory_mb << 20)
        let_go()  # the rows of this level's targets
        for layer in wave:
            fit, check = sums.pop(layer.node)
            if not fit.rows and not check.rows:
                continue  # all the rows that were sampled went
            if layer.node in shared:
                _recentre(model, layer, nodes, fit + check if isinstance(fit, thin.Rows) else fit.take(check))
                continue
            intercept = layer.bias is not None
            found, bias, every = fitted(matrix(nodes[layer.node]), fit, check, intercept, ridges)
            if finish is not None and np.isfinite(found).all():
                found = finish(layer, found, every)
                bias = mended(found, every) if intercept else None
            if np.isfinite(found).all():
                store(model, layer, nodes, found, bias)
                count += 1
    march.relay.shelf.close()
    return count


def _own_bias(layer: Layer, nodes: Mapping[str, gs.Node]) -> bool:
    """Whether a layer has a bias that no other node reads."""
    return layer.bias is not None and len(readers(nodes[layer.bias[0]], layer.bias[1])) == 1


def _recentre(model: Model, layer: Layer, nodes: dict[str, gs.Node], sums: Any) -> None:
    """Let a layer's bias keep the mean of the outputs with its weights as they are."""
    bias = mended(matrix(nodes[layer.node]), sums)
    if np.isfinite(bias).all():
        store(model, layer, nodes, None, bias)


def fitted(
    prior: Array, fit: Any, check: Any, intercept: bool, ridges: Sequence[float] = RIDGES
) -> tuple[Array, Array | None, Any]:
    """Weights `[G, M/G, D]` and bias `[M]`, with the ridge that does best on the held-out rows; and all rows together,
    fit and check being used up."""
    best = max(DEFAULT_RIDGE, ridges[0])
    if isinstance(fit, thin.Rows):
        return *thin.fitted(prior, fit, check, intercept, ridges, best), fit + check
    if check.rows and fit.rows:
        problem = Normal(prior, fit, intercept)
        errors = [error(*problem.solve(ridge), check) for ridge in ridges]
        best = ridges[int(np.argmin(np.nan_to_num(errors, nan=np.inf)))]
        problem.undo()
    problem = Normal(prior, fit.take(check), intercept)
    found, bias = problem.solve(best)
    problem.undo()
    return found, bias, problem.sums


def mended(weights: Array, sums: Any) -> Array:
    """The bias `[M]` with which these weights keep the mean of the outputs."""
    mean_x, mean_y = sums.means()
    return np.asarray((mean_y - np.einsum("gmd,gd->gm", weights, mean_x)).reshape(-1))


class Normal:
    """The normal equations of a ridge regression towards `prior`, solved in the memory of the sums themselves.

    Cholesky's method reads and overwrites one triangle of the centred covariance; the other keeps what it was, for the
    next ridge. Of a layer with 4,608 columns every copy saved is 170 MB.
    """

    def __init__(self, prior: Array, sums: Sums, intercept: bool):
        self.prior, self.sums, self.intercept = prior, sums, intercept
        self._center(-1)
        self.diagonal = np.einsum("gii->gi", sums.xx).copy()

    def solve(self, ridge: float) -> tuple[Array, Array | None]:
        """Weights and bias (None without an intercept); NaN where rounding left the covariance indefinite."""
        size = self.diagonal.shape[1]
        damping = np.maximum(self.diagonal.sum(1) / size, 1e-12 * self.sums.rows) * ridge
        found = np.empty(self.prior.shape)
        for g, (xx, more) in enumerate(zip(self.sums.xx, damping)):
            self._restore(g)
            np.einsum("ii->i", xx)[:] += more
            factor, info = lapack.dpotrf(xx.T, lower=1, clean=0, overwrite_a=1)
            for part in bands(found[g].shape):
                right = self._crossed(g, part) + more * self.prior[g, part].T.astype(np.float64)
                found[g, part] = np.nan if info else lapack.dpotrs(factor, right, lower=1)[0].T
        self._restore()
        return found, mended(found, self.sums) if self.intercept else None

    def _crossed(self, group: int, outputs: slice) -> Array:
        """Σ x yᵀ `[D, outputs]` of one group, centred where there is an intercept."""
        xy, sums = self.sums.xy[group][:, outputs], self.sums
        return xy - np.outer(sums.x[group], sums.y[group, outputs] / sums.rows) if self.intercept else xy

    def undo(self) -> None:
        """Leave the sums as they came."""
        self._center(1)

    def _center(self, sign: int) -> None:
        if self.intercept:
            for xx, x in zip(self.sums.xx, self.sums.x):
                for k in range(0, len(xx), BLOCK):
                    xx[k : k + BLOCK] += sign / self.sums.rows * x[k : k + BLOCK, None] * x[None, :]

    def _restore(self, group: int | None = None) -> None:
        """Copy the kept triangle (the lower one, in rows) over the factor, and put the diagonal back."""
        for g in range(len(self.sums.xx)) if group is None else [group]:
            mirror(self.sums.xx[g], self.diagonal[g])


def error(weights: Array, bias: Array | None, sums: Sums) -> float:
    """Summed squared error of a fit on the rows behind the sums."""
    b = np.zeros(weights.shape[:2]) if bias is None else bias.reshape(weights.shape[:2])
    quadratic = cross = 0.0
    for w, xx, xy in zip(weights, sums.xx, sums.xy):
        for part in bands(w.shape):
            quadratic += ((w[part] @ xx) * w[part]).sum()
            cross += (w[part] * xy[:, part].T).sum()
    linear = np.einsum("gmd,gd,gm->", weights, sums.x, b)
    constant = sums.rows * (b * b).sum() - 2 * (b * sums.y).sum() + sums.yy
    return float(quadratic - 2 * cross + 2 * linear + constant)
