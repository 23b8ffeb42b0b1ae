"""The refit of layers with more columns than rows were seen: ridge regression in its dual form, on the rows themselves.

A linear layer behind a Flatten sees one row a sample, a few dozen in all, but has tens of thousands of columns: their
second moments would be gigabytes (8·D² bytes), the rows are a few megabytes. With the change Δ of the weights towards
the targets, X the centred rows and R = Y − X·priorᵀ what the prior leaves,

    argmin ‖R − XΔᵀ‖² + nλ‖Δ‖²  =  Rᵀ(XXᵀ + nλI)⁻¹X

(Saunders, Gammerman and Vovk 1998), the same solution as that of the normal equations, from one eigendecomposition of
an n × n matrix for every λ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..bands import bands

Array = np.ndarray
BLOCK = 256  # rows of a weight that are made at once
WIDEST = 4096  # columns whose covariance is formed when asked for (8 · D² bytes)


@dataclass
class Rows:
    """Rows x `[G, P, D]` and y `[G, P, T]`, float32, with the weight `[P]` of each; the thin counterpart of `Sums`.

    most: how many rows of a feed are kept, evenly over those that come (a bound on memory: 4·D bytes a row).
    """

    most: int
    x: list[Array] = field(default_factory=list)
    y: list[Array] = field(default_factory=list)
    weights: list[Array] = field(default_factory=list)

    @property
    def rows(self) -> float:
        """The sum of the weights."""
        return float(sum(w.sum(dtype=np.float64) for w in self.weights))

    def add(self, x: Array, y: Array, weights: Array | None = None) -> None:
        """Rows of one feed; a weight of 1 each when None."""
        keep = np.linspace(0, x.shape[1] - 1, min(self.most, x.shape[1])).astype(int)
        self.x.append(np.ascontiguousarray(x[:, keep]))
        self.y.append(np.ascontiguousarray(y[:, keep]))
        self.weights.append(np.ones(len(keep), np.float32) if weights is None else weights[keep])

    def __add__(self, other: Rows) -> Rows:
        return Rows(self.most, self.x + other.x, self.y + other.y, self.weights + other.weights)

    def means(self) -> tuple[Array, Array]:
        """Of x `[G, D]` and y `[G, T]`."""
        found = [tuple(w / w.sum() @ part for part in (x, y)) for x, y, w in map(self.group, range(self.x[0].shape[0]))]
        return np.stack([x for x, _ in found]), np.stack([y for _, y in found])

    def covariance(self, group: int, centred: bool = True) -> tuple[Array | None, Array]:
        """Of one group's x `[D, D]`, None where that is too wide to be formed; and its diagonal; about zero unless
        centred."""
        x, _, weights = self.group(group)
        share = weights / weights.sum()
        mean = (share @ x).astype(np.float32) if centred else np.zeros(x.shape[1], np.float32)
        if x.shape[1] > WIDEST:
            return None, share @ np.square(x - mean)
        rows = np.sqrt(share).astype(np.float32)[:, None] * (x - mean)
        found = (rows.T @ rows).astype(np.float64)
        return found, np.diagonal(found)

    def group(self, g: int) -> tuple[Array, Array, Array]:
        """x `[n, D]` (float32), y `[n, T]` and weights `[n]` of one group of columns."""
        y = np.concatenate([part[g] for part in self.y]).astype(np.float64)
        return np.concatenate([part[g] for part in self.x]), y, np.concatenate(self.weights).astype(np.float64)


@dataclass
class Fit:
    """One group's regression: weights prior + coefficients · x, with x the centred and weighted rows `[n, D]`.

    Nothing of the size of the weights is made before the ridge is known: a large layer can be most of a model.
    expected: what the prior gives for the mean of x.
    """

    prior: Array
    x: Array
    mean_x: Array
    mean_y: Array
    values: Array
    vectors: Array
    turned: Array
    intercept: bool
    expected: Array

    @classmethod
    def of(cls, prior: Array, rows: tuple[Array, Array, Array], intercept: bool) -> Fit:
        """prior `[T, D]`; rows x `[n, D]`, y `[n, T]`, weights `[n]`."""
        x, y, weights = rows
        share = weights / weights.sum()
        mean_x = share @ x if intercept else np.zeros(x.shape[1])
        mean_y = share @ y if intercept else np.zeros(y.shape[1])
        root = np.sqrt(share)[:, None]
        x = (x - mean_x.astype(np.float32)) * root.astype(np.float32)
        rest = root * (y - mean_y) - x @ prior.T
        values, vectors = np.linalg.eigh((x @ x.T).astype(np.float64))
        expected = np.concatenate([prior[part].astype(np.float64) @ mean_x for part in bands(prior.shape)])
        return cls(prior, x, mean_x, mean_y, np.maximum(values, 0), vectors, vectors.T @ rest, intercept, expected)

    def coefficients(self, ridge: float) -> tuple[Array, Array]:
        """`[T, n]` and the bias `[T]`; the ridge counts in means of the diagonal of the covariance."""
        scale = max(self.values.sum() / self.x.shape[1], 1e-12)
        found = (self.turned / (self.values + ridge * scale)[:, None]).T @ self.vectors.T
        if not self.intercept:
            return found, np.zeros(len(found))
        return found, self.mean_y - self.expected - found @ (self.x @ self.mean_x)

    def errors(self, rows: tuple[Array, Array, Array], ridges: Sequence[float]) -> Array:
        """Weighted squared error on other rows, for each ridge."""
        x, y, weights = rows
        rest, cross = y - x @ self.prior.T, (x @ self.x.T).astype(np.float64)
        pairs = (self.coefficients(ridge) for ridge in ridges)
        return np.array([(np.square(rest - cross @ found.T - bias) * weights[:, None]).sum() for found, bias in pairs])

    def weights(self, ridge: float) -> tuple[Array, Array]:
        """Weights `[T, D]`, float32 and laid out in memory as the prior, and the bias `[T]`."""
        found, bias = self.coefficients(ridge)
        made = np.empty_like(self.prior, np.float32)
        for k in range(0, len(made), BLOCK):
            made[k : k + BLOCK] = self.prior[k : k + BLOCK] + found[k : k + BLOCK].astype(np.float32) @ self.x
        return made, bias


def fitted(
    prior: Array, fit: Rows, check: Rows, intercept: bool, ridges: Sequence[float], default: float
) -> tuple[Array, Array | None]:
    """Weights `[G, T, D]`, float32, and bias `[G·T]`, with the ridge that does best on the held-out rows."""
    groups, best = range(len(prior)), default
    if check.rows and fit.rows:
        errors = sum(Fit.of(prior[g], fit.group(g), intercept).errors(check.group(g), ridges) for g in groups)
        best = ridges[int(np.argmin(errors))]
    made = [Fit.of(prior[g], (fit + check).group(g), intercept).weights(best) for g in groups]
    weights = made[0][0][None] if len(made) == 1 else np.stack([w for w, _ in made])
    return weights, np.concatenate([b for _, b in made]) if intercept else None
