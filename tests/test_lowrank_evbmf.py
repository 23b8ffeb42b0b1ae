"""EVBMF against planted ranks and against the paper's formulas, written down a second time by another route."""

from __future__ import annotations

import numpy as np
import pytest
from onnxslim_opt.passes.lowrank import evbmf

CASES = [  # rows, columns, planted rank, noise
    (50, 80, 5, 0.1),
    (60, 60, 10, 0.3),
    (100, 400, 20, 0.5),
    (64, 576, 8, 1.0),
    (30, 1000, 3, 2.0),
    (40, 45, 1, 0.5),
    (128, 128, 30, 0.2),
    (20, 200, 12, 0.1),
    (90, 150, 40, 0.05),
    (64, 64, 4, 0.8),
]


def planted(rows, columns, rank, noise, seed):
    rng = np.random.default_rng(seed)
    signal = rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, columns))
    return signal + noise * rng.standard_normal((rows, columns))


def reference(matrix):
    """Rank by Nakajima et al. 2013: Corollary 1 with τ̄ ≈ 2.5129·√α, σ² by brute force over Theorem 3's Ω.

    Ω is summed component by component: ψ0(x) = x − log x for noise, and ψ0 + ψ1 for signal with
    ψ1(x) = log(τ(x) + 1) + α·log(τ(x)/α + 1) − τ(x).
    """
    low, high = sorted(matrix.shape)
    gamma = np.linalg.svd(matrix, compute_uv=False)
    alpha = low / high
    bar = 2.5129 * np.sqrt(alpha)
    threshold = (1 + bar) * (1 + alpha / bar)

    def omega(variance):
        total = 0.0
        for g in gamma:
            x = g * g / (high * variance)
            total += x - np.log(x)
            if x > threshold:
                tau = (x - (1 + alpha) + np.sqrt((x - (1 + alpha)) ** 2 - 4 * alpha)) / 2
                total += np.log(tau + 1) + alpha * np.log(tau / alpha + 1) - tau
        return total

    h_max = int(np.ceil(low / (1 + alpha)) - 1)
    upper = (gamma**2).sum() / (low * high)
    lower = max(gamma[h_max] ** 2 / (high * threshold), (gamma[h_max:] ** 2).sum() / (high * (low - h_max)))
    grid = np.geomspace(lower, upper, 3000)
    variance = grid[int(np.argmin([omega(v) for v in grid]))]
    return int((gamma > np.sqrt(high * variance * threshold)).sum()), variance


@pytest.mark.parametrize(("rows", "columns", "rank", "noise"), CASES)
def test_rank_equals_the_planted_one_and_the_reference(rows, columns, rank, noise):
    matrix = planted(rows, columns, rank, noise, seed=rows + rank)
    expected, variance = reference(matrix)
    assert expected == rank
    assert evbmf.rank(matrix) == expected
    assert evbmf.rank(matrix.T) == expected
    squares = np.linalg.svd(matrix, compute_uv=False) ** 2
    found = evbmf.noise_variance(squares, *sorted(matrix.shape))
    assert found == pytest.approx(variance, rel=0.02)


def test_threshold_of_the_paper():
    # the paper's own approximation, and its value at α = 1
    assert evbmf.crossing(1.0) == pytest.approx(2.5129, abs=1e-3)
    for alpha in (0.05, 0.2, 0.5, 0.8):
        tau = evbmf.crossing(alpha)
        assert tau == pytest.approx(2.5129 * np.sqrt(alpha), rel=0.08)
        phi = [np.log(z + 1) / z - 0.5 for z in (tau, tau / alpha)]
        assert sum(phi) == pytest.approx(0.0, abs=1e-9)


def test_noise_has_no_rank():
    rng = np.random.default_rng(0)
    assert evbmf.rank(rng.standard_normal((50, 70))) == 0
    assert evbmf.rank(np.zeros((5, 9))) == 0


def test_known_noise_is_taken():
    matrix = planted(40, 60, 6, 0.2, seed=3)
    assert evbmf.rank(matrix, variance=0.04) == 6
    assert evbmf.rank(matrix, variance=1e4) == 0
