"""The norm in which a layer is approximated: the expected squared error of its *output*, not of its weights.

For y = W x with second moment H = E[x xᵀ], E‖(W − W')x‖² = tr(ΔW H ΔWᵀ). Where the layer's bias may be adjusted
(b' = b + ΔW·m, m = E[x]), the mean costs nothing and H gives way to the covariance H − m mᵀ. Without data H is
the identity, and every method here becomes the plain decomposition of the weights.

Ridge: H + λ·(tr H / D)·I with λ = max(1e-7, 1e-2·D/n), D the width of x and n the samples that were seen, at most
1e-2. Few samples say little about the directions they did not visit, where the ridge falls back on plain
least squares of the weights; with many samples it only keeps factorizations positive definite.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from ..bands import bands

Array = NDArray[Any]

RIDGE_FLOOR = 1e-7
RIDGE_PER_SAMPLE = 1e-2
RIDGE_CEILING = 1e-2
BLOCK = 1024  # rows in a product
SUMS = 1e-6  # relative error of sums of products in single precision


def ridge(width: int, samples: int) -> float:
    """Relative ridge λ for a moment of `width` columns estimated from `samples` rows."""
    return float(np.clip(RIDGE_PER_SAMPLE * width / max(samples, 1), RIDGE_FLOOR, RIDGE_CEILING))


@dataclass(frozen=True)
class Norm:
    """tr(X M Xᵀ), M = core + diagonal·I; `core` is a dense (D, D) matrix, FᵀF of a thin factor (n, D), or nothing.

    mean: (D,) when the error's mean is folded into the bias (then M is a covariance), else None.
    """

    width: int
    diagonal: float
    dense: Array | None = None
    thin: Array | None = None
    mean: Array | None = None

    @classmethod
    def identity(cls, width: int) -> Norm:
        """The plain decomposition's norm: all inputs alike."""
        return cls(width, 1.0)

    @classmethod
    def of(
        cls, mean: Array, samples: int, *, second: Array | None = None, thin: Array | None = None, centre: bool = True
    ) -> Norm:
        """From the moments of an input: `second` (D, D) = E[x xᵀ], used up; or `thin` (n, D), its rows over √n."""
        mean = np.asarray(mean, np.float64)
        width = len(mean)
        if thin is not None and 2 * len(thin) > width:  # every product with the matrix is cheaper
            second = _product(thin)
        if second is not None:
            core = np.asarray(second, np.float64)
            noise = SUMS * float(np.trace(core)) / width
            if centre:
                _centre(core, mean)
            energy, parts = float(np.trace(core)), {"dense": evened(core)}
        else:
            rows = np.asarray(thin, np.float64)
            rows = rows - mean / np.sqrt(len(rows)) if centre else rows
            energy, noise, parts = float((rows**2).sum()), 0.0, {"thin": rows}
        level = (ridge(width, samples) * max(energy, 0.0) / width) or noise or 1.0
        found = cls(width, level, mean=mean if centre else None, **parts)
        while not found.definite:  # the input hardly varies: what is left of the mean's square is rounding
            found = replace(found, diagonal=max(10 * found.diagonal, noise))
        return found

    @property
    def definite(self) -> bool:
        """Whether rounding has left M positive definite."""
        if self.dense is None:
            return True
        try:
            linalg.cholesky(self.full.T, overwrite_a=True, check_finite=False)
        except linalg.LinAlgError:
            return False
        return True

    @property
    def full(self) -> Array:
        """M itself (D, D)."""
        if self.thin is not None:
            out = self.thin.T @ self.thin
        else:
            out = np.zeros((self.width, self.width)) if self.dense is None else self.dense.copy()
        np.einsum("ii->i", out)[:] += self.diagonal
        return out

    def apply(self, x: Array) -> Array:
        """X M for X (k, D), in double precision."""
        x = np.asarray(x, np.float64)
        out = self.diagonal * x
        if self.dense is not None:
            out += x @ self.dense
        elif self.thin is not None:
            out += (x @ self.thin.T) @ self.thin
        return out

    @cached_property
    def single(self) -> Array:
        """The core, or its thin factor, in single precision."""
        return np.asarray(self.thin if self.dense is None else self.dense, np.float32)

    def inner(self, x: Array) -> Array:
        """X M Xᵀ (k, k), symmetric."""
        out, parts = np.empty((len(x), len(x))), list(bands(x.shape))
        for k, rows in enumerate(parts):
            left = self.apply(x[rows])
            for columns in parts[: k + 1]:
                out[rows, columns] = left @ np.asarray(x[columns], np.float64).T
                out[columns, rows] = out[rows, columns].T
        return evened(out)

    def energy(self, x: Array) -> float:
        """tr(X M Xᵀ) of what was seen, without the ridge."""
        bare = self if self.dense is None and self.thin is None else replace(self, diagonal=0.0)
        return bare.inner_energy(x)

    def inner_energy(self, x: Array) -> float:
        """tr(X M Xᵀ), ridge included: what the fits minimise."""
        return sum(float(np.einsum("ij,ij->", self.apply(x[part]), x[part])) for part in bands(x.shape))

    def marginal(self, shape: tuple[int, ...], keep: tuple[int, ...]) -> Norm:
        """The norm of some axes of x (reshaped to `shape`), averaged over the others' diagonal."""
        width = int(np.prod([shape[i] for i in keep]))
        rest = tuple(i for i in range(len(shape)) if i not in keep)
        count = self.width // width
        dense = None
        if self.dense is not None:
            dense = _trace_out(self.dense, shape, keep, rest) / count
        elif self.thin is not None:
            rows = self.thin.reshape(-1, *shape)
            rows = np.moveaxis(rows, [i + 1 for i in keep], range(rows.ndim - len(keep), rows.ndim))
            flat = rows.reshape(-1, width)
            dense = flat.T @ flat / count
        return Norm(width, self.diagonal, dense=dense)

    def repeated(self, times: int) -> Norm:
        """The norm of each entry of x taken so many times over, all alike and apart: M ⊗ I / times."""
        core = None if self.dense is None else np.kron(self.dense, np.eye(times)) / times
        return Norm(self.width * times, self.diagonal / times, dense=core)

    @cached_property
    def cholesky(self) -> Array:
        """Lower triangular L (D, D) with M = L Lᵀ."""
        return linalg.cholesky(self.full.T, lower=True, overwrite_a=True, check_finite=False)

    def plain(self) -> Norm:
        """The same bookkeeping with all inputs alike; for comparison."""
        return replace(self, diagonal=1.0, dense=None, thin=None)


def _centre(second: Array, mean: Array) -> None:
    """H − m mᵀ, in place."""
    for part in bands(second.shape):
        second[part] -= np.outer(mean[part], mean)


def evened(matrix: Array) -> Array:
    """(A + Aᵀ) / 2, in place."""
    for k in range(0, len(matrix), BLOCK):
        one = slice(k, k + BLOCK)
        for other in (slice(j, j + BLOCK) for j in range(0, k + 1, BLOCK)):
            block = (matrix[one, other] + matrix[other, one].T) / 2
            matrix[one, other], matrix[other, one] = block, block.T
    return matrix


def _product(thin: Array) -> Array:
    """FᵀF in double precision from products of a block of rows in single."""
    out = np.zeros((thin.shape[1], thin.shape[1]))
    for k in range(0, len(thin), BLOCK):
        block = thin[k : k + BLOCK].astype(np.float32)
        out += block.T @ block
    return out


def _trace_out(matrix: Array, shape: tuple[int, ...], keep: tuple[int, ...], rest: tuple[int, ...]) -> Array:
    """Partial trace of a (D, D) matrix over the axes `rest` of both of its indices."""
    n = len(shape)
    left = list(range(n))
    right = [i if i in rest else n + i for i in range(n)]
    out = list(keep) + [n + i for i in keep]
    width = int(np.prod([shape[i] for i in keep]))
    return np.einsum(matrix.reshape(*shape, *shape), left + right, out).reshape(width, width)
