"""Block-wise integers of a weight matrix: scales by search, rounding to nearest, by GPTQ, or after AWQ's scaling.

Everything here is in the layout [rows, columns], rows being output channels; a block is `block` neighbouring columns of
one row. Errors count as they appear at the layer's output, tr(ΔW H ΔWᵀ) with the second moment H of its input.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ..quant.weights import inverse_factor, movable

SHRINK = np.linspace(1.0, 0.6, 21)  # ranges tried, as shares of the widest of the block
ALPHAS = np.linspace(0.0, 1.0, 11)  # AWQ: exponents of the inputs' size (arXiv 2306.00978)
ROUNDS = 2  # of coordinate descent over all columns
STEP = 64  # columns between updates of the rest: keeps the inner loop in cache
SMALLEST_FP16 = 6.1e-5


@dataclass(frozen=True)
class Blocks:
    """Integers of a matrix: real value = (values - zero) · scale / divisor.

    values: [rows, columns], int16 in low..high. scale: [rows, blocks] float32; zero: [rows, blocks] int16, None where
    symmetric. divisor: [columns] float32 that the columns were multiplied with before rounding (AWQ), or None.
    """

    values: np.ndarray
    scale: np.ndarray
    zero: np.ndarray | None
    bits: int
    block: int
    divisor: np.ndarray | None = None

    @property
    def half(self) -> bool:
        """Whether every scale is a value of fp16."""
        return bool((self.scale.astype(np.float16).astype(np.float32) == self.scale).all())

    def real(self) -> np.ndarray:
        """The float32 matrix that the integers stand for."""
        q = self.values.astype(np.float32)
        if self.zero is not None:
            q -= spread(self.zero, self.block)
        wide = q * spread(self.scale, self.block)
        return wide if self.divisor is None else wide / self.divisor


@dataclass(frozen=True)
class Grid:
    """The integers to choose from. symmetric: without zero points."""

    bits: int
    block: int
    symmetric: bool

    @property
    def limits(self) -> tuple[int, int]:
        """Least and greatest integer: signed where symmetric, else unsigned."""
        half = 2 ** (self.bits - 1)
        return (-half, half - 1) if self.symmetric else (0, 2 * half - 1)


def spread(per_block: np.ndarray, block: int) -> np.ndarray:
    """[rows, blocks] → [rows, columns]."""
    return np.repeat(per_block, block, axis=1)


def block_of(columns: int, wanted: int, least: int = 16, powers: bool = False) -> int:
    """The largest block up to `wanted` that divides the columns; 0 when that is below `least`. powers: a power of two
    and no less than `least`, as MatMulNBits has them."""
    if powers:
        common = columns & -columns  # the largest power of two that divides the columns
        found = min(common, 1 << wanted.bit_length() - 1)
        return found if found >= least else 0
    found = max(k for k in range(1, min(columns, wanted) + 1) if columns % k == 0)
    return found if found >= min(least, columns) else 0


def search(matrix: np.ndarray, grid: Grid, importance: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(scale, zero) of every block, [rows, blocks], with the least squared error over ranges tried.

    importance: weights of the columns in the error, [columns].
    """
    rows, columns = matrix.shape
    w = matrix.reshape(rows, columns // grid.block, grid.block)
    weight = 1.0 if importance is None else importance.reshape(1, -1, grid.block)
    low, high = grid.limits
    best = np.full(w.shape[:2], np.inf)
    scale, zero = np.ones(w.shape[:2]), np.zeros(w.shape[:2])
    for s, z in _candidates(w, grid):
        q = np.clip(np.rint(w / s[..., None]) + z[..., None], low, high)
        error = (((q - z[..., None]) * s[..., None] - w) ** 2 * weight).sum(axis=-1)
        better = error < best
        best, scale, zero = np.where(better, error, best), np.where(better, s, scale), np.where(better, z, zero)
    return scale.astype(np.float32), zero.astype(np.int16)


def _candidates(w: np.ndarray, grid: Grid) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Scales and zero points to try; scales are values of fp16 where that holds them."""
    low, high = grid.limits
    top, bottom = np.maximum(w.max(axis=-1), 0.0), np.minimum(w.min(axis=-1), 0.0)
    for part in SHRINK:
        if grid.symmetric:  # the side with one integer more takes the larger side of the block
            for s in (np.maximum(top / high, bottom / low), np.maximum(top, -bottom) / high):
                s = _rounded(s * part)
                yield s, np.zeros_like(s)
        else:
            s = _rounded((top - bottom) * part / high)
            yield s, np.clip(np.rint(-bottom * part / s), low, high)


def _rounded(scale: np.ndarray) -> np.ndarray:
    scale = np.where(scale > 0, scale, 1.0)
    fits = (scale > SMALLEST_FP16) & (scale < 6e4)
    return np.where(fits, np.where(fits, scale, 1.0).astype(np.float16).astype(np.float64), scale)


def nearest(matrix: np.ndarray, grid: Grid, importance: np.ndarray | None = None) -> Blocks:
    """Round to nearest."""
    scale, zero = search(matrix, grid, importance)
    s, z = spread(scale, grid.block).astype(np.float64), spread(zero, grid.block)
    values = np.clip(np.rint(matrix / s) + z, *grid.limits).astype(np.int16)
    return _blocks(values, scale, zero, grid)


def gptq(matrix: np.ndarray, grid: Grid, moment: np.ndarray, damp: float = 0.01) -> Blocks:
    """Columns one by one, most important first, each error made up for by the columns left (arXiv 2210.17323).

    moment: H, [columns, columns]. Blocks and their scales stay those of the original order.
    """
    diagonal = np.maximum(np.diagonal(moment), 0.0)
    scale, zero = search(matrix, grid, diagonal + 1e-6 * diagonal.mean() + 1e-30)
    order = np.argsort(-diagonal, kind="stable")
    w = matrix[:, order].astype(np.float64)
    s, z = (spread(a, grid.block)[:, order].astype(np.float64) for a in (scale, zero))
    upper = inverse_factor(moment[None][:, order][:, :, order], damp)[0]
    (low, high), free = grid.limits, movable(w)
    out = np.empty(w.shape, np.int16)
    for start in range(0, w.shape[1], STEP):
        stop = min(start + STEP, w.shape[1])
        errors = np.empty((len(w), stop - start))
        for k in range(start, stop):
            q = np.where(free[:, k], np.clip(np.rint(w[:, k] / s[:, k]) + z[:, k], low, high), z[:, k])
            out[:, k] = q
            errors[:, k - start] = (w[:, k] - (q - z[:, k]) * s[:, k]) / upper[k, k]
            w[:, k + 1 : stop] -= np.outer(errors[:, k - start], upper[k, k + 1 : stop])
        w[:, stop:] -= errors @ upper[start:stop, stop:]
    values = np.empty_like(out)
    values[:, order] = out
    return descend(matrix, _blocks(values, scale, zero, grid), grid, moment)


def descend(matrix: np.ndarray, found: Blocks, grid: Grid, moment: np.ndarray, rounds: int = ROUNDS) -> Blocks:
    """Coordinate descent on the same error, from rounded integers on: each moves by one where that lowers it, one
    column at a time for all rows at once (as `quant` does, with a step for every block)."""
    low, high = grid.limits
    s, now = spread(found.scale, grid.block).astype(np.float64), found.values.astype(np.float64)
    pull = (matrix - found.real()) @ moment  # half the slope of the error's square, kept up to date
    free = movable(matrix)
    for _ in range(rounds):
        moved = False
        for k in range(now.shape[1]):
            step = np.sign(pull[:, k]) * free[:, k]
            gain = 2 * s[:, k] * np.abs(pull[:, k]) - s[:, k] ** 2 * moment[k, k]
            then = now[:, k] + step
            rows = np.flatnonzero((gain > 0) & (step != 0) & (then >= low) & (then <= high))
            if len(rows):
                moved = True
                now[rows, k] = then[rows]
                pull[rows] -= np.outer(step[rows] * s[rows, k], moment[k])
        if not moved:
            break
    return replace(found, values=now.astype(np.int16))


def awq(matrix: np.ndarray, grid: Grid, moment: np.ndarray) -> Blocks:
    """Columns with large inputs made larger before rounding, by the power of their size that loses least
    (arXiv 2306.00978); the inputs, or the restored weight, are divided by the same."""
    size = np.sqrt(np.maximum(np.diagonal(moment), 0.0))
    size = np.maximum(size / max(float(size.mean()), 1e-30), 1e-3)
    best: tuple[float, Blocks] | None = None
    for alpha in ALPHAS:
        s = (size**alpha).astype(np.float32)
        found = replace(nearest(matrix * s, grid), divisor=s if alpha else None)
        loss = error(matrix, found, moment)
        if best is None or loss < best[0]:
            best = loss, found
    assert best is not None
    return best[1]


def error(matrix: np.ndarray, found: Blocks, moment: np.ndarray) -> float:
    """tr(ΔW H ΔWᵀ), relative to tr(W H Wᵀ)."""
    delta = matrix - found.real()
    signal = float(np.einsum("rk,rk->", matrix @ moment, matrix))
    return float(np.einsum("rk,rk->", delta @ moment, delta)) / max(signal, 1e-30)


def _blocks(values: np.ndarray, scale: np.ndarray, zero: np.ndarray, grid: Grid) -> Blocks:
    return Blocks(values, scale, None if grid.symmetric else zero, grid.bits, grid.block)
