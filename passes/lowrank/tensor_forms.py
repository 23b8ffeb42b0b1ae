"""Splits that come from tensor decompositions: Tucker-2 by HOOI, and CP computed by tensorly.

Both run on the weight with its input channels whitened by the data (W ×₁ Lᵀ, L Lᵀ the channel moment), so that
HOOI and ALS minimise an output error rather than a weight error; the factors are refined afterwards on the full
moment of the unfolded input (`fit.improve`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import linalg

from .forms import Form, Rank, Shapes, kernel_letters
from .layer import Layer, Stage
from .norm import Array, Norm

HOOI_ITERATIONS = 4  # from HOSVD; `fit.improve` goes on in the norm of the unfolded input
CP_ITERATIONS, CP_FEWEST = 60, 8
CP_FLOPS = 1e11  # of one fit: a large layer gets fewer sweeps, its factors are refined afterwards anyway
CP_RIDGE = 1e-3  # relative; keeps ALS from the diverging, cancelling components of degenerate CP


class Tucker2(Form):
    """1×1 to r_in channels, the kernel to r_out, 1×1 to all (Kim et al., 1511.06530)."""

    name = "tucker2"
    letters = "rs"

    def refuse(self, layer: Layer) -> str | None:
        return None if layer.taps > 1 else "tucker2 serves convolutions with a kernel above 1"

    def spec(self, layer: Layer) -> str:
        k = kernel_letters(layer)
        return f"or,rs{k},sc->oc{k}"

    def full(self, layer: Layer) -> Rank:
        return (
            min(layer.outputs, layer.inputs * layer.taps),
            min(layer.inputs, layer.outputs * layer.taps),
        )

    def shapes(self, layer: Layer, rank: Rank) -> Shapes:
        return (layer.outputs, rank[0]), (*rank, *layer.kernel), (rank[1], layer.inputs)

    def sketch(self, layer: Layer, rank: Rank, norm: Norm) -> list[Array]:
        """HOSVD of the whitened weight: nested in both ranks, and within a few percent of HOOI's error."""
        weighted, lower = _whitened(layer, norm)
        core, left, right = _hosvd(weighted, rank)
        return [left, core, _unwhiten(right, lower)]

    def start(self, layer: Layer, rank: Rank, norm: Norm) -> list[Array]:
        weighted, lower = _whitened(layer, norm)
        core, left, right = hooi(weighted, rank)
        return [left, core, _unwhiten(right, lower)]

    def stages(self, layer: Layer, factors: Sequence[Array]) -> list[Stage]:
        outer, core, inner = factors
        return [
            Stage(inner.reshape(*inner.shape, *layer.ones)),
            Stage(core, layer.axes),
            Stage(outer.reshape(*outer.shape, *layer.ones)),
        ]


class Cp(Form):
    """1×1 to r channels, one depthwise convolution along each kernel axis, 1×1 to all (Lebedev, 1412.6553)."""

    name = "cp"
    nested = False
    every = 3

    def refuse(self, layer: Layer) -> str | None:
        if layer.taps == 1 or min(layer.kernel) < 2:
            return "cp serves convolutions with every kernel size above 1"
        return None

    def spec(self, layer: Layer) -> str:
        k = kernel_letters(layer)
        return f"or,{','.join('r' + c for c in reversed(k))},rc->oc{k}"

    def full(self, layer: Layer) -> Rank:
        # exact for sure: one component for every entry but those along the longest axis
        sizes = sorted(layer.weight.shape)
        return (int(np.prod(sizes[:-1])),)

    def scaled(self, layer: Layer, share: float) -> Rank:
        return (max(1, round(share * max(layer.inputs, layer.outputs))),)

    def shapes(self, layer: Layer, rank: Rank) -> Shapes:
        along = tuple((rank[0], k) for k in reversed(layer.kernel))
        return (layer.outputs, rank[0]), *along, (rank[0], layer.inputs)

    def start(self, layer: Layer, rank: Rank, norm: Norm) -> list[Array]:
        from tensorly.decomposition import parafac

        weighted, lower = _whitened(layer, norm)
        scale = float(np.abs(weighted).max()) or 1.0
        sweep = 2.0 * weighted.size * rank[0] * weighted.ndim
        cp = parafac(
            (weighted / scale).astype(np.float32),
            rank=rank[0],
            n_iter_max=int(np.clip(CP_FLOPS / sweep, CP_FEWEST, CP_ITERATIONS)),
            init="svd" if rank[0] <= min(weighted.shape[:2]) else "random",
            tol=1e-6,
            l2_reg=CP_RIDGE,
            random_state=0,
            normalize_factors=False,
        )
        outer, inner, *along = [np.asarray(f, np.float64) for f in cp.factors]
        outer = outer * (np.asarray(cp.weights) * scale)
        return [outer, *[f.T for f in reversed(along)], _unwhiten(inner, lower)]

    def stages(self, layer: Layer, factors: Sequence[Array]) -> list[Stage]:
        outer, *along, inner = factors
        rank = len(inner)
        chain = [Stage(inner.reshape(*inner.shape, *layer.ones))]
        for axis, factor in enumerate(reversed(along)):
            shape = [1] * layer.rank
            shape[axis] = factor.shape[1]
            chain.append(Stage(factor.reshape(rank, 1, *shape), (axis,), group=rank))
        chain.append(Stage(outer.reshape(*outer.shape, *layer.ones)))
        return chain


def hooi(weight: Array, rank: Rank, iterations: int = HOOI_ITERATIONS) -> tuple[Array, Array, Array]:
    """(core, U_out, U_in) of the two channel modes by higher-order orthogonal iteration from the HOSVD.

    The same iteration as tensorly's `partial_tucker`, which decomposes the unfoldings as a whole where only their left
    vectors are wanted.
    """
    core, left, right = _hosvd(weight, rank)
    for _ in range(iterations):
        left = _leading(np.einsum("oc...,cs->os...", weight, right, optimize=True), 0, rank[0])
        right = _leading(np.einsum("oc...,or->rc...", weight, left, optimize=True), 1, rank[1])
    core = np.einsum("oc...,or,cs->rs...", weight, left, right, optimize=True)
    return core, left, right


def _hosvd(weight: Array, rank: Rank) -> tuple[Array, Array, Array]:
    """(core, U_out, U_in) of the two channel modes, each by itself."""
    left, right = (_leading(weight, mode, rank[mode]) for mode in (0, 1))
    core = np.einsum("oc...,or,cs->rs...", weight, left, right, optimize=True)
    return core, left, right


def _leading(tensor: Array, mode: int, rank: int) -> Array:
    """The leading left singular vectors of a mode's unfolding, from its Gram matrix."""
    flat = np.moveaxis(tensor, mode, 0).reshape(tensor.shape[mode], -1)
    size = len(flat)
    _, vectors = linalg.eigh(flat @ flat.T, subset_by_index=[size - rank, size - 1], check_finite=False)
    return np.asarray(vectors[:, ::-1])


def _whitened(layer: Layer, norm: Norm) -> tuple[Array, Array]:
    """W ×₁ Lᵀ and the channel moment's factor L (C, C)."""
    lower = norm.marginal(layer.unfolded, (0,)).cholesky
    return np.einsum("oc...,cd->od...", layer.weight, lower, optimize=True), lower


def _unwhiten(factor: Array, lower: Array) -> Array:
    """(C, r) of the whitened weight to the first layer's (r, C): factorᵀ·L⁻¹."""
    return linalg.solve_triangular(lower, np.asarray(factor), lower=True, trans="T").T
