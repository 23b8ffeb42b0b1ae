"""Bands of rows: they cover a matrix, and what is made through them is what is made at once."""

import numpy as np
import pytest
from onnxslim_opt.passes import bands as module
from onnxslim_opt.passes.bands import bands, energy, mapped
from onnxslim_opt.passes.lowrank.fit import Lost
from onnxslim_opt.passes.lowrank.forms import principal
from onnxslim_opt.passes.lowrank.norm import Norm
from onnxslim_opt.passes.prune import criteria, refit, stats
from onnxslim_opt.passes.quant import rounding


@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (1000, 1), (5, 4096), (3, 64, 3, 3), (0, 4), (6,)])
@pytest.mark.parametrize("cells", [1, 100, 1 << 20])
def test_bands_cover_every_row_once(shape, cells):
    rows = [k for part in bands(shape, cells) for k in range(part.start, part.stop)]
    assert rows == list(range(shape[0]))
    each = int(np.prod(shape[1:]))
    assert all((part.stop - part.start) * each <= max(cells, each) for part in bands(shape, cells))


def test_what_is_made_in_bands_is_what_is_made_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    weight, over, under = rng.standard_normal((50, 40)).astype(np.float32), rng.random((50, 1)), rng.random((1, 40)) + 1
    whole = (weight.astype(np.float64) * over / under).astype(np.float32)
    monkeypatch.setattr(module, "CELLS", 64)
    for held in (weight, np.asfortranarray(weight)):
        found = mapped(lambda v, a, b: v.astype(np.float64) * a / b, held, over, under)
        np.testing.assert_array_equal(found, whole)
        assert found.dtype == np.float32
    assert energy(weight) == pytest.approx(float((weight.astype(np.float64) ** 2).sum()), rel=1e-14)


def both(monkeypatch, work):
    """What `work` gives at once, and in bands of a few rows."""
    whole = work()
    monkeypatch.setattr(module, "CELLS", 200)
    return whole, work()


@pytest.mark.parametrize("kind", ["identity", "dense", "thin"])
@pytest.mark.parametrize("shape", [(30, 64), (64, 30)])
def test_the_best_approximation_is_the_same_in_bands(monkeypatch, kind, shape):
    rng = np.random.default_rng(1)
    x, weight = rng.standard_normal((12, shape[1])), rng.standard_normal(shape).astype(np.float32)
    given = {"dense": {"second": x.T @ x / 12}, "thin": {"thin": x / np.sqrt(12)}}.get(kind)
    norm = Norm.identity(shape[1]) if given is None else Norm.of(x.mean(0), 12, **given)

    def work():
        outer, rows, energies = principal(weight, norm, 5)
        lost = Lost("or,rc->oc", [outer, rows], weight)
        return outer @ rows, energies, np.asarray(lost), lost @ np.ones(shape[1]), lost.energy(norm)

    for a, b in zip(*both(monkeypatch, work)):
        np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-9)
    outer, rows, _ = principal(weight, norm, 5)
    np.testing.assert_allclose(np.asarray(Lost("or,rc->oc", [outer, rows], weight)), weight - outer @ rows, atol=1e-12)


def test_rounding_for_inputs_is_the_same_in_bands(monkeypatch):
    rng = np.random.default_rng(2)
    x = rng.standard_normal((500, 24)) @ rng.standard_normal((24, 24))
    wide = rng.standard_normal((2, 40, 24)).astype(np.float32)
    second = np.stack([x.T @ x / 500] * 2)
    (values, scale), (again, scales) = both(monkeypatch, lambda: rounding._for_inputs(wide, second))
    np.testing.assert_array_equal(again, values)
    np.testing.assert_array_equal(scales, scale)


def test_distances_and_ridges_are_the_same_in_bands(monkeypatch):
    rng = np.random.default_rng(3)
    values = rng.standard_normal((40, 30)).astype(np.float32)
    apart = np.linalg.norm(values[:, None].astype(np.float64) - values[None], axis=2).sum(1)
    x, prior = rng.standard_normal((1, 200, 30)).astype(np.float32), rng.standard_normal((1, 40, 30))
    y = (x @ prior.swapaxes(1, 2) + rng.standard_normal((1, 200, 40))).astype(np.float32)

    def work():
        sums = stats.Sums()
        sums.add(x, y)
        problem = refit.Normal(prior, sums, True)
        found, bias = problem.solve(1e-2)
        problem.undo()
        return criteria._apart(values), found, bias, refit.error(found, bias, sums)

    whole, banded = both(monkeypatch, work)
    for a, b in zip(whole, banded):
        np.testing.assert_allclose(b, a, rtol=1e-9)
    np.testing.assert_allclose(whole[0], apart, rtol=1e-6)
