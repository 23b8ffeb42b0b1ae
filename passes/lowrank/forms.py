"""The splits: each says what it can serve, its factors' shapes, where to start, and the chain of layers it becomes.

| form | chain | einsum | paper |
|---|---|---|---|
| svd | matmul, matmul (a 1×1 convolution is a matmul) | or,rc->oc | SVD-LLM 2403.07378 |
| channel | k×k to r channels, 1×1 | or,rcij->ocij | Zhang 1505.06798 |
| channel_in | 1×1 to r channels, k×k | orij,rc->ocij | |
| spatial, spatial_t | k×1 then 1×k, and 1×k then k×1 | orj,rci->ocij | Jaderberg 1405.3866 |
| separable | t depthwise kernels a channel, 1×1 | oct,ctij->ocij | network decoupling 1808.05517 |
| tucker2, cp | in `tensor_forms` | | |

Factors are listed from the last layer to the first, so that `fit.refit` always solves for the layer that writes
the output.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from scipy import linalg

from ..bands import bands
from .layer import Layer, Stage
from .norm import Array, Norm

LARGE = 1 << 18  # elements of a weight whose factors are kept in its own precision: views of them are all options

Rank = tuple[int, ...]
Shapes = tuple[tuple[int, ...], ...]


class Form(ABC):
    """One way to split a layer. Stateless; every method takes the layer.

    letters: the einsum's indices that count the rank, one for each entry of it. nested: the sketch at a lower rank is
    a slice of the sketch at a higher one. every: which of the grid's ranks are tried, where each is dear.
    closed: the start is the optimum, with nothing left to fit (see `components`).
    """

    name: ClassVar[str]
    letters: ClassVar[str] = "r"
    nested: ClassVar[bool] = True
    every: ClassVar[int] = 1
    closed: ClassVar[bool] = False

    @abstractmethod
    def refuse(self, layer: Layer) -> str | None:
        """Why this form cannot serve the layer; None when it can."""

    @abstractmethod
    def spec(self, layer: Layer) -> str:
        """The einsum from factors to the weight (O, C, *kernel)."""

    @abstractmethod
    def full(self, layer: Layer) -> Rank:
        """The rank at which the layer is reproduced exactly."""

    @abstractmethod
    def shapes(self, layer: Layer, rank: Rank) -> Shapes:
        """Factor shapes at a rank, in the einsum's order."""

    @abstractmethod
    def start(self, layer: Layer, rank: Rank, norm: Norm) -> list[Array]:
        """Factors to refine; the first may be a placeholder, since it is refitted at once."""

    def sketch(self, layer: Layer, rank: Rank, norm: Norm) -> list[Array]:
        """A cheaper start, good enough to estimate errors from."""
        return self.start(layer, rank, norm)

    def components(self, layer: Layer, rank: Rank, norm: Norm) -> list[Array]:
        """The factors of a closed form and the energy that each component explains; of other forms the sketch."""
        return self.sketch(layer, rank, norm)

    @abstractmethod
    def stages(self, layer: Layer, factors: Sequence[Array]) -> list[Stage]:
        """The chain of layers, in the order in which they run."""

    def scaled(self, layer: Layer, share: float) -> Rank:
        """The rank at a share of the full one, at least 1 in each direction."""
        return tuple(max(1, round(share * r)) for r in self.full(layer))

    def chain(self, layer: Layer, factors: Sequence[Array]) -> list[Stage]:
        """The stages, of all groups side by side where the layer has several: factors then lead with the group."""
        if layer.groups == 1:
            return self.stages(layer, factors)
        columns = zip(*(self.stages(part, [f[g] for f in factors]) for g, part in enumerate(layer.parts)))
        return [
            Stage(np.concatenate([s.weight for s in c]), c[0].axes, c[0].group * layer.groups)
            for c in map(list, columns)
        ]

    def empty(self, layer: Layer, rank: Rank) -> list[Stage]:
        """The chain at a rank with nothing in its weights, for counting and timing."""
        lead = () if layer.groups == 1 else (layer.groups,)
        return self.chain(layer, [np.broadcast_to(np.float32(0), (*lead, *s)) for s in self.shapes(layer, rank)])

    def cost(self, layer: Layer, rank: Rank) -> tuple[int, int]:
        """MACs of one run and parameters at a rank."""
        stages = self.empty(layer, rank)
        return layer.macs_of(stages), sum(s.weight.size for s in stages)


def kernel_letters(layer: Layer) -> str:
    """One letter for each kernel axis: "" for matmuls, "i", "ij" or "ijk"."""
    return "ijk"[: layer.rank]


def principal(matrix: Array, norm: Norm, rank: int, dtype: Any = np.float64) -> tuple[Array, Array, Array]:
    """(outer (m, r), rows (r, n), energies (r,)): the best rank-r approximation outer·rows of `matrix` (m, n).

    dtype: in which the first two are stored; computed in double precision, and besides them nothing is made that is
    larger than the smaller side squared.

    Eckart–Young in the norm of M: with matrix·L = P Σ Qᵀ and M = L Lᵀ it is P_r P_rᵀ·matrix (no inverse of L), or
    where columns are fewer than rows matrix·L·Q_r times Q_rᵀ·L⁻¹. Energies are those that each component explains.
    """
    m, n = matrix.shape
    rank = min(rank, m, n)
    if m <= n:
        values, turned = _leading(norm.inner(matrix), rank)
        rows = np.empty((rank, n), dtype)
        for part in bands((n, m)):
            rows[:, part] = turned @ np.asarray(matrix[:, part], np.float64)
        return turned.T.astype(dtype, copy=False), rows, values
    lower, gram = norm.cholesky, np.zeros((n, n))
    for part in bands((m, n)):
        weighted = np.asarray(matrix[part], np.float64) @ lower
        gram += weighted.T @ weighted
    values, turned = _leading(gram, rank)
    onto, outer = lower @ turned.T, np.empty((m, rank), dtype)
    for part in bands((m, n)):
        outer[part] = np.asarray(matrix[part], np.float64) @ onto
    rows = linalg.solve_triangular(lower, turned.T, lower=True, trans="T").T
    return outer, rows.astype(dtype, copy=False), values


def _leading(gram: Array, rank: int) -> tuple[Array, Array]:
    """The largest eigenvalues of a symmetric matrix, which is used up, and their vectors as rows."""
    size = len(gram)
    values, vectors = linalg.eigh(gram.T, subset_by_index=[size - rank, size - 1], overwrite_a=True)
    return values[::-1], np.ascontiguousarray(vectors[:, ::-1].T)


def rowspace(matrix: Array, norm: Norm, rank: int) -> Array:
    """(r, n) whose rows span the best rank-r approximation of `matrix` (m, n) in the norm of its columns."""
    return principal(matrix, norm, rank)[1]


class Svd(Form):
    """Two matmuls; for a convolution with a kernel of 1, two such convolutions."""

    name = "svd"
    closed = True

    def refuse(self, layer: Layer) -> str | None:
        return None if layer.taps == 1 else "svd serves matmuls and 1×1 convolutions"

    def spec(self, layer: Layer) -> str:
        k = kernel_letters(layer)
        return f"or,rc{k}->oc{k}"

    def full(self, layer: Layer) -> Rank:
        return (min(layer.outputs, layer.width),)

    def shapes(self, layer: Layer, rank: Rank) -> Shapes:
        return (layer.outputs, rank[0]), (rank[0], *layer.weight.shape[1:])

    def start(self, layer: Layer, rank: Rank, norm: Norm) -> list[Array]:
        return self.components(layer, rank, norm)[:2]

    def components(self, layer: Layer, rank: Rank, norm: Norm) -> list[Array]:
        """The optimum, and as a third array what each component explains."""
        dtype = layer.dtype if layer.weight.size >= LARGE else np.float64
        outer, inner, energies = principal(layer.flat, norm, rank[0], dtype)
        return [outer, inner.reshape(-1, *layer.weight.shape[1:]), energies]

    def stages(self, layer: Layer, factors: Sequence[Array]) -> list[Stage]:
        outer, inner = factors
        return [Stage(inner, layer.axes), Stage(outer.reshape(*outer.shape, *layer.ones))]


class Channel(Svd):
    """The kernel to r channels, then 1×1 to all: the same matrix problem as svd on the unfolded input."""

    name = "channel"

    def refuse(self, layer: Layer) -> str | None:
        return None if layer.taps > 1 else "channel serves convolutions with a kernel above 1"


class ChannelIn(Form):
    """1×1 from all channels to r, then the kernel."""

    name = "channel_in"

    def refuse(self, layer: Layer) -> str | None:
        return None if layer.taps > 1 else "channel_in serves convolutions with a kernel above 1"

    def spec(self, layer: Layer) -> str:
        k = kernel_letters(layer)
        return f"or{k},rc->oc{k}"

    def full(self, layer: Layer) -> Rank:
        return (min(layer.inputs, layer.outputs * layer.taps),)

    def shapes(self, layer: Layer, rank: Rank) -> Shapes:
        return (layer.outputs, rank[0], *layer.kernel), (rank[0], layer.inputs)

    def start(self, layer: Layer, rank: Rank, norm: Norm) -> list[Array]:
        matrix = np.moveaxis(layer.weight, 1, -1).reshape(-1, layer.inputs)
        inner = rowspace(matrix, norm.marginal(layer.unfolded, (0,)), rank[0])
        return [np.zeros((layer.outputs, rank[0], *layer.kernel)), inner]

    def stages(self, layer: Layer, factors: Sequence[Array]) -> list[Stage]:
        outer, inner = factors
        return [Stage(inner.reshape(*inner.shape, *layer.ones)), Stage(outer, layer.axes)]


class Spatial(Form):
    """k×1 to r channels, then 1×k; of three axes the first, then the other two."""

    name = "spatial"

    def split(self, layer: Layer) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The spatial axes of the first and of the second convolution."""
        return (0,), layer.axes[1:]

    def refuse(self, layer: Layer) -> str | None:
        if layer.rank < 2 or any(math.prod(layer.kernel[a] for a in part) < 2 for part in self.split(layer)):
            return f"{self.name} serves convolutions with kernels above 1 along both parts of their axes"
        return None

    def spec(self, layer: Layer) -> str:
        one, two = ("".join("ijk"[a] for a in part) for part in self.split(layer))
        return f"or{two},rc{one}->oc{kernel_letters(layer)}"

    def full(self, layer: Layer) -> Rank:
        one, two = (math.prod(layer.kernel[a] for a in part) for part in self.split(layer))
        return (min(layer.inputs * one, layer.outputs * two),)

    def shapes(self, layer: Layer, rank: Rank) -> Shapes:
        one, two = (tuple(layer.kernel[a] for a in part) for part in self.split(layer))
        return (layer.outputs, rank[0], *two), (rank[0], layer.inputs, *one)

    def start(self, layer: Layer, rank: Rank, norm: Norm) -> list[Array]:
        outer, inner = self.shapes(layer, rank)
        kept = norm.marginal(layer.unfolded, (0, *(a + 1 for a in self.split(layer)[0])))
        return [np.zeros(outer), rowspace(self.unfolded(layer), kept, rank[0]).reshape(inner)]

    def unfolded(self, layer: Layer) -> Array:
        """The weight as a matrix: outputs and the second part of its axes by inputs and the first."""
        one, two = self.split(layer)
        order = (0, *(a + 2 for a in two), 1, *(a + 2 for a in one))
        return layer.weight.transpose(order).reshape(layer.outputs * math.prod(layer.kernel[a] for a in two), -1)

    def stages(self, layer: Layer, factors: Sequence[Array]) -> list[Stage]:
        outer, inner = factors
        one, two = self.split(layer)
        first = np.expand_dims(inner, tuple(a + 2 for a in two))
        return [Stage(first, one), Stage(np.expand_dims(outer, tuple(a + 2 for a in one)), two)]


class SpatialT(Spatial):
    """1×k to r channels, then k×1; of three axes the last two, then the first."""

    name = "spatial_t"

    def split(self, layer: Layer) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return layer.axes[1:], (0,)


class Separable(Form):
    """t depthwise kernels for every input channel, then 1×1: a sum of t depthwise-separable convolutions."""

    name = "separable"
    letters = "t"

    def refuse(self, layer: Layer) -> str | None:
        return None if layer.taps > 1 else "separable serves convolutions with a kernel above 1"

    def spec(self, layer: Layer) -> str:
        k = kernel_letters(layer)
        return f"oct,ct{k}->oc{k}"

    def full(self, layer: Layer) -> Rank:
        return (min(layer.taps, layer.outputs),)

    def shapes(self, layer: Layer, rank: Rank) -> Shapes:
        return (layer.outputs, layer.inputs, rank[0]), (layer.inputs, rank[0], *layer.kernel)

    def start(self, layer: Layer, rank: Rank, norm: Norm) -> list[Array]:
        outer, inner = self.shapes(layer, rank)
        taps = norm.marginal((layer.inputs, layer.taps), (1,))
        slices = np.moveaxis(layer.weight.reshape(layer.outputs, layer.inputs, layer.taps), 1, 0)
        if layer.outputs < layer.taps:
            rows = np.stack([rowspace(matrix, taps, rank[0]) for matrix in slices])
        else:  # `rowspace` of all channels at once
            weighted = slices @ taps.cholesky
            _, vectors = np.linalg.eigh(np.swapaxes(weighted, 1, 2) @ weighted)
            rows = np.swapaxes(vectors[:, :, ::-1][:, :, : rank[0]], 1, 2) @ np.linalg.inv(taps.cholesky)
        return [np.zeros(outer), rows.reshape(inner)]

    def stages(self, layer: Layer, factors: Sequence[Array]) -> list[Stage]:
        outer, inner = factors
        depthwise = inner.reshape(-1, 1, *layer.kernel)
        pointwise = outer.reshape(layer.outputs, -1, *layer.ones)
        return [Stage(depthwise, layer.axes, group=layer.inputs), Stage(pointwise)]
