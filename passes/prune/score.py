"""What the loss of a unit costs: second-order with the data's moments, or magnitudes of the weights without.

`Curvature` follows Optimal Brain Surgeon for whole structures (OBC 2208.11580, OSSCAR 2403.12983): the least-squares
error that removing the columns S of a consumer leaves after the best refit of the rest is tr(W_S ([C⁻¹]_SS)⁻¹ W_Sᵀ), C
the covariance of its input (the mean goes into the bias). Removing S down-dates C⁻¹ and W, so the next losses count
what already went. Losses are relative to the variance of the tensor where the consumer's error is felt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...ir.labels import Cells

Array = np.ndarray
RIDGE = 1e-3  # of the mean of the diagonal
DENSE = 6144  # widest input whose inverse covariance is kept (8 · K² bytes)


@dataclass
class Curvature:
    """The losses of one consumer (`node`).

    mean: of its input, `[G, K]`. weight: `[G, T, K]`. inverse: C⁻¹ `[G, K, K]`, or None where K is too wide (`diagonal`
    then holds variances). columns: columns of each unit. scale: variance that losses are relative to, or what
    `sensitivity` makes of it.
    """

    node: str
    mean: Array
    weight: Array
    inverse: Array | None
    columns: dict[int, Array]
    scale: float
    diagonal: Array | None = None

    def copy(self) -> Curvature:
        """One that can be down-dated by itself."""
        inverse = None if self.inverse is None else self.inverse.copy()
        return replace(self, weight=self.weight.copy(), inverse=inverse, columns=dict(self.columns))

    def losses(self, units: Sequence[int]) -> dict[int, float]:
        """Relative loss of each unit if it alone went next."""
        found: dict[int, float] = {}
        by_size: dict[int, list[int]] = {}
        for unit in units:
            if unit in self.columns:
                by_size.setdefault(len(self.columns[unit]), []).append(unit)
        for size, same in by_size.items():
            for k in range(0, len(same), 64):
                part = same[k : k + 64]
                if size == 0:
                    found.update(dict.fromkeys(part, 0.0))
                else:
                    found.update(zip(part, self._losses(np.stack([self.columns[u] for u in part]))))
        return found

    def _losses(self, columns: Array) -> list[float]:
        """columns `[U, s]`."""
        total = np.zeros(len(columns))
        for g in range(len(self.weight)):
            w = self.weight[g][:, columns].transpose(1, 0, 2)  # [U, T, s]
            if self.inverse is None:
                assert self.diagonal is not None
                total += (np.square(w) * self.diagonal[g][columns][:, None, :]).sum((1, 2))
            else:
                block = self.inverse[g][columns[:, :, None], columns[:, None, :]]
                solved = np.linalg.solve(block, w.transpose(0, 2, 1))
                total += (w.transpose(0, 2, 1) * solved).sum((1, 2))
        return (np.maximum(total, 0.0) / self.scale).tolist()

    def remove(self, units: Sequence[int]) -> None:
        """Let units go: the rest is refitted, the inverse down-dated; their columns leave the other units."""
        mine = [u for u in units if u in self.columns]
        gone = np.unique(np.concatenate([self.columns[u] for u in mine])) if mine else np.zeros(0, int)
        if not len(gone):
            return
        for g in range(len(self.weight)):
            if self.inverse is not None:
                inverse = self.inverse[g]
                factor = np.linalg.solve(inverse[np.ix_(gone, gone)], inverse[gone])  # [s, K]
                self.weight[g] -= self.weight[g][:, gone] @ factor
                inverse -= inverse[:, gone] @ factor
            self.weight[g][:, gone] = 0.0
        dead = np.zeros(self.weight.shape[2], bool)
        dead[gone] = True
        for unit in mine:
            del self.columns[unit]
        for unit, columns in list(self.columns.items()):
            if dead[columns].any():
                self.columns[unit] = columns[~dead[columns]]


def curvature(
    node: str,
    weight: Array,
    mean: Array,
    second: Array | None,
    rows: Array | None,
    inner: Cells,
    free: Array,
    scale: float,
) -> Curvature:
    """Losses of a consumer from its input's moments (`second` E[x xᵀ], or sampled `rows`).

    weight `[G, T, K]`; inner: labels of the contracted axis; free: flags by atom of what may go.
    """
    groups, _, width = weight.shape
    mean = np.asarray(mean, np.float64).reshape(groups, -1)
    columns = columns_of(inner, free, width // len(inner))
    if width > DENSE or second is None:
        if rows is not None:
            spread = rows.reshape(groups, -1, width).var(1, dtype=np.float64)
        else:
            assert second is not None
            spread = np.diagonal(second.reshape(groups, width, width), axis1=1, axis2=2) - mean**2
        return Curvature(node, mean, weight.astype(np.float64), None, columns, scale, np.maximum(spread, 0.0))
    covariance = second.reshape(groups, width, width) - mean[:, :, None] * mean[:, None, :]
    ridge = np.maximum(np.trace(covariance, axis1=1, axis2=2) / width, 1e-12) * RIDGE
    inverse = np.linalg.inv(covariance + ridge[:, None, None] * np.eye(width))
    return Curvature(node, mean, weight.astype(np.float64), inverse, columns, scale)


def columns_of(inner: Cells, free: Array, each: int) -> dict[int, Array]:
    """unit -> columns of the weight that go with it; a position has `each` columns."""
    found: dict[int, list[int]] = {}
    for position, row in enumerate(inner):
        for atom in row:
            if atom and free[atom]:
                found.setdefault(int(atom), []).append(position)
    span = np.arange(each)
    return {u: (np.array(p)[:, None] * each + span).reshape(-1) for u, p in found.items()}
