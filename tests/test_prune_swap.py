"""The swap search against brute force over all choices of the same size."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from onnxslim_opt.passes.prune import groups as grouped
from onnxslim_opt.passes.prune.amount import Amount, chosen
from onnxslim_opt.passes.prune.grouping import Family
from onnxslim_opt.passes.prune.order import logged
from onnxslim_opt.passes.prune.score import Curvature, curvature
from onnxslim_opt.passes.prune.swap import _search, swapped
from prune_nets import Net, residual

WIDTH, GONE = 8, 4


def problem(seed: int, outputs: int) -> Curvature:
    """A consumer of eight correlated inputs."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((500, WIDTH)) @ rng.standard_normal((WIDTH, WIDTH))
    w = rng.standard_normal((1, outputs, WIDTH))
    cells = np.arange(1, WIDTH + 1)[:, None]
    return curvature("layer", w, x.mean(0), x.T @ x / len(x), None, cells, np.ones(WIDTH + 1, bool), 1.0)


def total(curves: list[Curvature], units: tuple[int, ...]) -> float:
    """The loss when these units go, from the closed form for all of them at once."""
    found, at = 0.0, np.array(units) - 1
    for curve in curves:
        w = curve.weight[0][:, at]
        found += float(np.trace(w @ np.linalg.solve(curve.inverse[0][np.ix_(at, at)], w.T)))
    return found


def greedy(curves: list[Curvature]) -> tuple[int, ...]:
    gone: list[int] = []
    for _ in range(GONE):
        each = [c.losses(range(1, WIDTH + 1)) for c in curves]
        gone.append(min(each[0], key=lambda u: sum(e[u] for e in each)))
        for curve in curves:
            curve.remove([gone[-1]])
    return tuple(gone)


def test_swaps_come_near_the_best_choice() -> None:
    better = left_greedy = left_swapped = 0.0
    for seed in range(30):
        start = [problem(seed, 2), problem(seed + 1000, 3)]
        best = min(total(start, c) for c in combinations(range(1, WIDTH + 1), GONE))
        work = [c.copy() for c in start]
        first = greedy(work)
        pairs = _search(Family(np.arange(1, WIDTH + 1), ()), set(first), work, {})
        after = tuple((set(first) - set(pairs)) | set(pairs.values()))
        assert len(after) == GONE and total(start, after) <= total(start, first) * (1 + 1e-9)
        better += total(start, after) < total(start, first) * 0.999
        left_greedy += total(start, first) / best - 1
        left_swapped += total(start, after) / best - 1
    assert better >= 3 and left_swapped < 0.6 * left_greedy


def test_an_order_with_swaps_removes_as_much() -> None:
    found = grouped(residual())
    family = max(found.families, key=lambda f: len(f.units))
    units = family.units.tolist()
    rng = np.random.default_rng(0)
    square = rng.standard_normal((len(units), len(units)))
    shape = (1, 3, len(units))
    curve = Curvature(
        "n", np.zeros((1, len(units))), rng.standard_normal(shape), (square @ square.T)[None] + np.eye(len(units)),
        {u: np.array([k]) for k, u in enumerate(units)}, 1.0,
    )  # fmt: skip
    worst = sorted(units, key=lambda u: -curve.losses(units)[u])[: len(units) // 2]
    order = logged(found, worst)
    for unit in order.units:
        curve.remove([unit])
    new = swapped(found, order, order.units[:-1], [curve], {})
    assert set(new.units[: len(worst) - 1]) != set(order.units[:-1]) and set(order.units) <= set(new.units)
    at = len(worst) - 2
    assert new.macs[at] == pytest.approx(order.macs[at]) and new.params[at] == pytest.approx(order.params[at])
    assert len(set(new.units)) == len(new.units)


def test_rounding_goes_no_further_than_a_step_beyond_the_amount() -> None:
    """A large family's step overshoots; steps of small families that are not needed then come back."""
    net = Net(x=[1, 4, 8, 8])
    x, cin = "x", 4
    for cout in (16, 64, 16, 32):
        x, cin = net.op("Relu", net.conv(x, cin, cout)), cout
    found = grouped(net.head(x, cin))
    order = logged(found, np.random.default_rng(0).permutation(found.units).tolist())
    for macs in (0.2, 0.3, 0.4, 0.5):
        amount = Amount(None, macs)
        units = chosen(found, order, amount, 1.0, 16, True).tolist()
        went = logged(found, units)
        assert went.macs[-1] >= macs
        counts = [sum(u in set(f.units.tolist()) for u in units) for f in found.families]
        assert all(c % 16 == 0 for c in counts)
        for family, count in zip(found.families, counts):
            less = [u for u in units if u not in set([u for u in units if u in family.units][-16:])]
            assert not count or not less or logged(found, less).macs[-1] < macs
