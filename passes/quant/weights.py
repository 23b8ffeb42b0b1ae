"""8-bit weights: symmetric, one scale a channel, with the range that loses least and the rounding that hurts least.

The scale of a channel is searched so that its squared error is least (weighted by the second moment of the inputs,
where that is known); rounding is to the nearest, or column by column with the error passed on to the columns that
are still float (GPTQ, arXiv 2210.17323).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..bands import bands

_CELLS = 1 << 15  # elements that are searched together: they fit in the cache, as every clip goes through them again
_SHRINK = np.linspace(1.0, 0.6, 33)  # clips tried, as shares of the largest weight of the channel
SPARSE = 0.25  # share of zeros from which on they were put there: by `sparsify`, or by training


@dataclass(frozen=True)
class Packed:
    """int8 values with a scale along `axis` (None: one scale); real value = values * scale.

    gain: what the real values are multiplied with where they are stored for float layers (see `outliers`), in a shape
    that broadcasts.
    """

    values: np.ndarray
    scale: np.ndarray
    axis: int | None
    gain: np.ndarray | None = None

    def dequantized(self) -> np.ndarray:
        """The float32 weight that the integers stand for."""
        wide = self.values.astype(np.float32)
        wide *= self.broadcast()
        return wide

    def broadcast(self) -> np.ndarray:
        """The scale in a shape that multiplies the values."""
        if self.axis is None:
            return self.scale.astype(np.float32).reshape(())
        shape = [1] * self.values.ndim
        shape[self.axis] = -1
        return self.scale.astype(np.float32).reshape(shape)


def rows(weight: np.ndarray, axis: int | None) -> np.ndarray:
    """The weight as [channels, rest] along `axis` ([1, all] for None)."""
    if axis is None:
        return weight.reshape(1, -1)
    return np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)


def unrows(matrix: np.ndarray, shape: tuple[int, ...], axis: int | None) -> np.ndarray:
    """Inverse of `rows`."""
    if axis is None:
        return matrix.reshape(shape)
    moved = (shape[axis], *(s for k, s in enumerate(shape) if k != axis % len(shape)))
    return np.ascontiguousarray(np.moveaxis(matrix.reshape(moved), 0, axis))


def search_scale(
    matrix: np.ndarray, top: int, importance: np.ndarray | None = None, shrink: np.ndarray = _SHRINK
) -> np.ndarray:
    """The scale of each row, [rows], with the least squared error over clips; top: greatest integer (127, 63).

    importance: weights of the columns in the error, [columns] or [rows, columns].
    """
    chosen = np.empty(len(matrix), np.float32)
    for part in bands(matrix.shape, _CELLS):
        weighed = importance[part] if importance is not None and importance.ndim == 2 else importance
        chosen[part] = _search(matrix[part].astype(np.float64), top, weighed, shrink)
    return chosen


def _search(matrix: np.ndarray, top: int, importance: np.ndarray | None, shrink: np.ndarray) -> np.ndarray:
    peak = np.abs(matrix).max(axis=1, initial=0.0)
    best = np.full(len(matrix), np.inf)
    scale = np.where(peak > 0, peak, 1.0) / top
    chosen = scale.copy()
    for part in shrink:
        s = (scale * part)[:, None]
        error = (np.clip(np.rint(matrix / s), -top, top) * s - matrix) ** 2
        total = (error if importance is None else error * importance).sum(axis=1)
        better = total < best
        best, chosen = np.where(better, total, best), np.where(better, s[:, 0], chosen)
    return chosen


def nearest(weight: np.ndarray, axis: int | None, top: int = 127, floor: np.ndarray | None = None) -> Packed:
    """Round to nearest with a searched scale. floor: least scale of each channel (so that the bias fits in int32)."""
    matrix = rows(weight, axis)
    scale = search_scale(matrix, top, shrink=_SHRINK if top <= 127 else _SHRINK[:1])
    if floor is not None:
        scale = np.maximum(scale, floor.astype(np.float32))
    values = np.empty(matrix.shape, np.int8 if top <= 127 else np.int16)
    for part in bands(matrix.shape, _CELLS):
        ratio = matrix[part].astype(np.float64) / scale[part, None].astype(np.float64)
        values[part] = np.clip(np.rint(ratio), -top, top)
    return Packed(unrows(values, weight.shape, axis), scale, axis)


def second_order(
    matrix: np.ndarray, scale: np.ndarray, moment: np.ndarray, top: int = 127, damp: float = 0.01
) -> np.ndarray:
    """GPTQ: integers, [groups, rows, columns], with the least error in W·x for inputs with second moment H.

    matrix: [groups, rows, columns]; scale: [groups, rows]; moment: [groups, columns, columns]. Columns go in order
    of falling diag(H); after each, the columns left are moved to make up for its error.
    """
    return passed_on(matrix, scale, *ordered_factor(moment, damp), top)


def ordered_factor(moment: np.ndarray, damp: float = 0.01) -> tuple[np.ndarray, np.ndarray]:
    """The order of the columns, [groups, columns], and the `inverse_factor` of H in that order: of all rows alike."""
    order = np.argsort(-np.diagonal(moment, axis1=1, axis2=2), axis=1, kind="stable")
    turned = np.take_along_axis(np.take_along_axis(moment, order[:, :, None], 1), order[:, None, :], 2)
    return order, inverse_factor(turned, damp)


def passed_on(
    matrix: np.ndarray, scale: np.ndarray, order: np.ndarray, upper: np.ndarray, top: int = 127
) -> np.ndarray:
    """`second_order` of some rows, with the `ordered_factor` of the moment."""
    w = np.take_along_axis(matrix, order[:, None, :], axis=2).astype(np.float64)
    free = movable(w)
    out = np.empty(w.shape, np.int8)
    s = scale.astype(np.float64)
    for start in range(0, w.shape[2], _BLOCK):
        stop = min(start + _BLOCK, w.shape[2])
        errors = np.empty((*w.shape[:2], stop - start))
        for k in range(start, stop):
            q = np.clip(np.rint(w[:, :, k] / s), -top, top) * free[:, :, k]
            out[:, :, k] = q.astype(np.int8)
            errors[:, :, k - start] = (w[:, :, k] - q * s) / upper[:, None, k, k]
            w[:, :, k + 1 : stop] -= errors[:, :, k - start, None] * upper[:, None, k, k + 1 : stop]
        w[:, :, stop:] -= errors @ upper[:, start:stop, stop:]
    back = np.empty_like(out)
    np.put_along_axis(back, np.broadcast_to(order[:, None, :], out.shape), out, axis=2)
    return back


def movable(matrix: np.ndarray) -> np.ndarray:
    """Which weights may take any value, 0 or 1: in a sparse matrix zeros stay, or its pattern (2:4) would be lost."""
    some = matrix != 0
    return some if some.size and some.mean() <= 1 - SPARSE else np.ones_like(some)


def descend(
    matrix: np.ndarray, scale: np.ndarray, values: np.ndarray, moment: np.ndarray, top: int = 127, rounds: int = 2
) -> np.ndarray:
    """Coordinate descent on the same error, from rounded integers on: each moves by one where that lowers it.

    This is AdaRound's problem (arXiv 2004.10568: up or down, least e·H·e), solved one column at a time for all rows
    at once. Shapes as in `second_order`; values: [groups, rows, columns].
    """
    s = scale.astype(np.float64)
    now = values.astype(np.float64)
    h = moment.astype(np.float64)
    error = matrix - now * s[:, :, None]
    pull = error @ h  # half the slope of the error's square, kept up to date
    bend, free = np.einsum("gkk->gk", h), movable(matrix)
    for _ in range(rounds):
        moved = False
        for k in range(now.shape[2]):
            step = np.sign(pull[:, :, k]) * free[:, :, k]  # towards less error
            gain = 2 * s * np.abs(pull[:, :, k]) - s * s * bend[:, None, k]
            step = np.where((gain > 0) & (np.abs(now[:, :, k] + step) <= top), step, 0.0)
            if not step.any():
                continue
            moved = True
            now[:, :, k] += step
            pull -= (step * s)[:, :, None] * h[:, None, k, :]
        if not moved:
            break
    return now.astype(np.int8)


def inverse_factor(moment: np.ndarray, damp: float) -> np.ndarray:
    """Upper triangular U with UᵀU = H⁻¹, [groups, columns, columns], of the damped H.

    damp: part of the mean of the diagonal that is added to it; tenfold for as long as rounding leaves H indefinite.
    """
    for _ in range(_TRIES - 1):
        try:
            return _factor(moment, damp)
        except np.linalg.LinAlgError:
            damp *= 10
    return _factor(moment, damp)


def _factor(moment: np.ndarray, damp: float) -> np.ndarray:
    h = moment.astype(np.float64)
    diagonal = np.einsum("gkk->gk", h)  # a view into h
    mean = diagonal.mean(axis=1, keepdims=True)
    diagonal += damp * np.where(mean > 0, mean, 1.0) + np.where(diagonal <= 0, 1.0, 0.0)
    return np.swapaxes(np.linalg.cholesky(np.linalg.inv(h)), 1, 2)


_TRIES = 6  # from 1 % of the diagonal to a thousand times it
_BLOCK = 64  # columns between updates of the rest: keeps the inner loop in cache
