"""What the loss of a unit costs: second-order with the data's moments, or magnitudes of the weights without.

`Curvature` follows Optimal Brain Surgeon for whole structures (OBC 2208.11580, OSSCAR 2403.12983): the least-squares
error that removing the columns S of a consumer leaves after the best refit of the rest is tr(W_S ([C⁻¹]_SS)⁻¹ W_Sᵀ), C
the covariance of its input (the mean goes into the bias). Removing S down-dates C⁻¹ and W, so the next losses count
what already went. Losses are relative to the variance of the tensor where the consumer's error is felt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ...ir.labels import Cells
from ...ir.spill import let_go, scratch
from .triangles import invert, subtract_product

Array = np.ndarray
RIDGE = 1e-3  # of the mean of the diagonal
DENSE = 6144  # widest input whose inverse covariance is kept (8 · K² bytes)
TOGETHER = 1 << 20  # weights whose losses are computed at once
IN_A_FILE = 16 << 20  # bytes of an inverse: together, those of wide layers are several times a model


@dataclass
class Curvature:
    """The losses of one consumer (`node`).

    mean: of its input, `[G, K]`. weight: `[G, T, K]`. inverse: C⁻¹ `[G, K, K]`, or None where K is too wide (`diagonal`
    then holds variances). columns: living columns of each unit. scale: variance that losses are relative to, or what
    `sensitivity` makes of it. rows: outputs `[G · T]` that go with each unit; what nobody reads any more is no loss.
    emphasis: `[G, T]`, what an error of each output counts (`fisher`). gone: columns of the units that went.

    A removal is a principal pivot of [C⁻¹; W] on the unit's columns. So nothing is lost: where columns went, the arrays
    hold [C⁻¹_SS]⁻¹ and -W_S [C⁻¹_SS]⁻¹, and the same pivot brings a unit back.
    """

    node: str
    mean: Array
    weight: Array
    inverse: Array | None
    columns: dict[int, Array]
    scale: float
    diagonal: Array | None = None
    rows: Mapping[int, Array] = field(default_factory=dict)
    emphasis: Array | None = None
    gone: dict[int, Array] = field(default_factory=dict)
    unread: set[int] = field(default_factory=set)

    def copy(self) -> Curvature:
        """One that can be down-dated by itself."""
        found = replace(self, columns=dict(self.columns))
        if self.inverse is not None:  # nothing else changes the weights
            found.weight, found.inverse = self.weight.copy(), _own(self.inverse)
            self._rest()
        found.gone, found.unread = dict(self.gone), set(self.unread)
        return found

    @property
    def fitted(self) -> Array:
        """The weights as refitted so far, zero where columns went."""
        return self.fitted_rows(slice(None))

    def fitted_rows(self, outputs: slice) -> Array:
        """`fitted` of some outputs of every group."""
        found = self.weight[:, outputs].copy()
        if self.gone:
            found[:, :, np.concatenate(list(self.gone.values()))] = 0.0
        return found

    def losses(self, units: Iterable[int]) -> dict[int, float]:
        """Relative loss of each unit if it alone went next."""
        return self._by_unit({u: self.columns[u] for u in units if u in self.columns})

    def gains(self, units: Iterable[int]) -> dict[int, float]:
        """How much of the loss each unit that went would make good if it alone came back."""
        return self._by_unit({u: self.gone[u] for u in units if u in self.gone})

    def _by_unit(self, wanted: Mapping[int, Array]) -> dict[int, float]:
        found: dict[int, float] = {}
        by_size: dict[int, list[int]] = {}
        for unit, columns in wanted.items():
            by_size.setdefault(len(columns), []).append(unit)
        counts = self._counts()
        for size, same in by_size.items():
            step = min(64, max(1, TOGETHER // max(1, size * self.weight.shape[1])))
            for k in range(0, len(same), step):
                part = same[k : k + step]
                if size == 0:
                    found.update(dict.fromkeys(part, 0.0))
                else:
                    found.update(zip(part, self._losses(np.stack([wanted[u] for u in part]), counts)))
        self._rest()
        return found

    def _counts(self) -> Array:
        """What an error of each output counts now `[G, T]`."""
        counts = np.ones(self.weight.shape[:2]) if self.emphasis is None else self.emphasis.copy()
        if self.unread:
            counts.reshape(-1)[np.concatenate([self.rows[u] for u in self.unread])] = 0.0
        return counts

    def _losses(self, columns: Array, counts: Array) -> list[float]:
        """columns `[U, s]`."""
        total = np.zeros(len(columns))
        for g, count in enumerate(counts):
            felt = np.flatnonzero(count)
            w = self.weight[g][felt[:, None, None], columns] * np.sqrt(count[felt])[:, None, None]
            w = w.transpose(1, 0, 2)  # [U, T, s]
            if self.inverse is None:
                assert self.diagonal is not None
                total += (np.square(w) * self.diagonal[g][columns][:, None, :]).sum((1, 2))
            else:
                block = self.inverse[g][columns[:, :, None], columns[:, None, :]]
                solved = np.linalg.solve(block, w.transpose(0, 2, 1))
                total += (w.transpose(0, 2, 1) * solved).sum((1, 2))
        return (np.maximum(total, 0.0) / self.scale).tolist()

    def concerns(self, unit: int) -> bool:
        """Whether the losses here change when a unit goes."""
        return unit in self.columns or unit in self.rows

    def remove(self, units: Sequence[int]) -> None:
        """Let units go: the rest is refitted, the inverse down-dated; their columns leave the other units, and errors
        of outputs that went with them count no more."""
        self.unread.update(u for u in units if u in self.rows)
        mine = {u: self.columns.pop(u) for u in units if u in self.columns}
        dead = np.zeros(self.weight.shape[2], bool)
        for unit, columns in mine.items():
            self.gone[unit] = columns[~dead[columns]]
            dead[columns] = True
        if not dead.any():
            return
        self._pivot(np.flatnonzero(dead))
        for unit, columns in list(self.columns.items()):
            if dead[columns].any():
                self.columns[unit] = columns[~dead[columns]]

    def restore(self, unit: int) -> None:
        """Bring a unit back that shares no columns with others."""
        self.unread.discard(unit)
        if unit in self.gone:
            self.columns[unit] = self.gone.pop(unit)
            self._pivot(self.columns[unit])

    def _pivot(self, at: Array) -> None:
        """Principal pivot of [C⁻¹; W] on columns; the same pivot again undoes it."""
        if self.inverse is None or not len(at):
            return
        for w, inverse in zip(self.weight, self.inverse):
            block = np.linalg.inv(inverse[np.ix_(at, at)])
            across = block @ inverse[at]  # [s, K]
            across[:, at] = 0.0
            for array in (w, inverse):
                left = array[:, at].copy()
                subtract_product(array, left, across)
                array[:, at] = -left @ block
            inverse[at] = across
            inverse[np.ix_(at, at)] = block
        self._rest()

    def _rest(self) -> None:
        """Between two uses an inverse that lies in a file takes no memory."""
        if self.inverse is not None and self.inverse.nbytes >= IN_A_FILE:
            let_go(self.inverse)


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
        return Curvature(node, mean, weight, None, columns, scale, np.maximum(spread, 0.0))
    covariance = second.reshape(groups, width, width) - mean[:, :, None] * mean[:, None, :]
    ridge = np.maximum(np.trace(covariance, axis1=1, axis2=2) / width, 1e-12) * RIDGE
    np.einsum("gkk->gk", covariance)[:] += ridge[:, None]
    for matrix in covariance:
        invert(matrix)
    return Curvature(node, mean, weight.astype(np.float64, order="C"), _own(covariance), columns, scale)


def _own(inverse: Array) -> Array:
    """One of its own to down-date, in a file where it is large."""
    return scratch(inverse) if inverse.nbytes >= IN_A_FILE else inverse.copy()


def columns_of(inner: Cells, free: Array, each: int) -> dict[int, Array]:
    """unit -> columns of the weight that go with it; a position has `each` columns."""
    found: dict[int, list[int]] = {}
    for position, row in enumerate(inner):
        for atom in row:
            if atom and free[atom]:
                found.setdefault(int(atom), []).append(position)
    span = np.arange(each)
    return {u: (np.array(p)[:, None] * each + span).reshape(-1) for u, p in found.items()}
