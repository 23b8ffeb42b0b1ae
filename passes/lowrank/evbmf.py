"""How many components of a noisy matrix are signal: the global analytic solution of empirical variational Bayes.

Nakajima, Sugiyama, Babacan, Tomioka, "Global analytic solution of fully-observed variational Bayesian matrix
factorization", JMLR 14 (2013). For an L × M matrix, L ≤ M, noise of variance σ² and α = L / M, a singular value γ
is kept when γ² > M σ² (1 + τ̄)(1 + α / τ̄), where τ̄ is the zero of Φ(τ) + Φ(τ / α), Φ(z) = log(z + 1) / z − 1/2
(Theorem 2). An unknown σ² is the one that minimises the free energy Ω(σ⁻²) (Theorem 3), searched between bounds
that the theorem gives.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy import optimize

from .norm import Array

GRID = 400


@lru_cache(maxsize=256)
def crossing(alpha: float) -> float:
    """τ̄(α): the zero of Φ(τ) + Φ(τ / α); about 2.5129·√α."""

    def phi(z: float) -> float:
        return float(np.log1p(z) / z - 0.5)

    guess = 2.5129 * np.sqrt(alpha)
    return float(optimize.brentq(lambda t: phi(t) + phi(t / alpha), guess / 4, guess * 4, xtol=1e-14))


def free_energy(squares: Array, rows: int, columns: int, variance: float) -> float:
    """Ω of the noise variance, up to a constant, for squared singular values in descending order (rows ≤ columns)."""
    alpha = rows / columns
    bar = crossing(alpha)
    edge = (1 + bar) * (1 + alpha / bar)
    x = np.asarray(squares, np.float64) / (columns * variance)
    noise, signal = x[x <= edge], x[x > edge]
    t = _tau(signal, alpha)
    below = float(np.sum(noise - np.log(np.maximum(noise, 1e-300))))
    above = float(np.sum(signal - t + np.log((t + 1) / signal) + alpha * np.log(t / alpha + 1)))
    return below + above


def noise_variance(squares: Array, rows: int, columns: int) -> float:
    """The σ² that minimises the free energy, between the bounds of Theorem 3."""
    squares = np.sort(np.asarray(squares, np.float64))[::-1]
    squares = np.maximum(squares, 1e-14 * squares[0])
    alpha = rows / columns
    bar = crossing(alpha)
    edge = (1 + bar) * (1 + alpha / bar)
    most = max(int(np.ceil(rows / (1 + alpha))) - 1, 1)  # no more components than this can be signal
    upper = float(squares.sum()) / (rows * columns)
    tail = squares[min(most, rows - 1) :]
    lower = max(float(tail[0]) / (columns * edge), float(tail.mean()) / columns)
    if not lower < upper:
        return upper
    # Ω is smooth only between the values where a component changes sides: a grid first, then a local search
    grid = np.exp(np.linspace(np.log(lower), np.log(upper), GRID))
    values = [free_energy(squares, rows, columns, v) for v in grid]
    best = int(np.argmin(values))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, GRID - 1)]
    found = optimize.minimize_scalar(
        lambda v: free_energy(squares, rows, columns, v), bounds=(low, high), method="bounded"
    )
    return float(found.x) if found.fun <= values[best] else float(grid[best])


def rank(matrix: Array, variance: float | None = None) -> int:
    """Components of `matrix` (any 2-D shape) that stand out of its noise; 0 when none does."""
    matrix = np.asarray(matrix, np.float64)
    if matrix.shape[0] > matrix.shape[1]:
        matrix = matrix.T
    rows, columns = matrix.shape
    squares = np.linalg.svd(matrix, compute_uv=False) ** 2
    if squares[0] <= 0:
        return 0
    variance = noise_variance(squares, rows, columns) if variance is None else variance
    bar = crossing(rows / columns)
    return int(np.sum(squares > columns * variance * (1 + bar) * (1 + rows / columns / bar)))


def _tau(x: Array, alpha: float) -> Array:
    shifted = x - (1 + alpha)
    return 0.5 * (shifted + np.sqrt(np.maximum(shifted**2 - 4 * alpha, 0.0)))
