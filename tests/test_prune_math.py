"""The closed forms of pruning against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from onnxslim_opt.ir.labels import Atoms, join
from onnxslim_opt.passes.prune import score, thin, triangles
from onnxslim_opt.passes.prune.layers import layers
from onnxslim_opt.passes.prune.march import March
from onnxslim_opt.passes.prune.refit import RIDGES, Normal, error, fitted
from onnxslim_opt.passes.prune.score import curvature
from onnxslim_opt.passes.prune.stats import Sums
from onnxslim_opt.runtime.session import Session
from prune_nets import image, residual

from onnxslim_opt import ir

RNG = np.random.default_rng(3)
ROWS, WIDTH, OUT = 400, 6, 4


def data() -> tuple[np.ndarray, np.ndarray]:
    """Correlated rows with a mean, and a weight."""
    x = RNG.standard_normal((ROWS, WIDTH)) @ RNG.standard_normal((WIDTH, WIDTH)) + RNG.standard_normal(WIDTH)
    return x, RNG.standard_normal((OUT, WIDTH))


def least_squares(x: np.ndarray, y: np.ndarray) -> float:
    """Mean squared residual, summed over outputs, of the best affine fit."""
    wide = np.c_[x, np.ones(len(x))]
    return float(np.square(y - wide @ np.linalg.lstsq(wide, y, rcond=None)[0]).sum() / len(x))


def losses(x: np.ndarray, w: np.ndarray, each: int = 1):
    cells = np.arange(1, WIDTH // each + 1)[:, None]
    free = np.ones(WIDTH + 1, bool)
    second = x.T @ x / len(x)
    return curvature("layer", w[None].copy(), x.mean(0), second, None, cells, free, 1.0)


def test_a_loss_is_the_least_squares_error_without_the_unit() -> None:
    x, w = data()
    found = losses(x, w).losses(range(1, WIDTH + 1))
    for k in range(WIDTH):
        expected = least_squares(np.delete(x, k, 1), x @ w.T)
        assert found[k + 1] == pytest.approx(expected, rel=0.05)  # the ridge of the inverse


def test_an_inverse_in_its_own_memory() -> None:
    root = np.random.default_rng(0).standard_normal((1200, 700))  # more than one block
    matrix = root.T @ root
    held = matrix.copy()
    triangles.invert(held)
    np.testing.assert_allclose(held @ matrix, np.eye(700), atol=1e-9)
    assert np.array_equal(held, held.T)


def test_an_indefinite_matrix_is_inverted_by_elimination() -> None:
    matrix = np.array([[1.0, 2, 3], [2, 1, 0], [3, 0, 5]])
    held = matrix.copy()
    triangles.invert(held)
    assert np.linalg.eigvalsh(matrix).min() < 0
    np.testing.assert_allclose(held, np.linalg.inv(matrix), rtol=1e-14)
    with pytest.raises(np.linalg.LinAlgError):
        triangles.invert(np.ones((3, 3)))


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_product_is_subtracted_in_place(order: str) -> None:
    rng = np.random.default_rng(0)
    array, left, right = (rng.standard_normal(shape) for shape in ((5, 7), (5, 3), (3, 7)))
    held = np.array(array, order=order)  # type: ignore[call-overload]
    triangles.subtract_product(held, left, right)
    np.testing.assert_allclose(held, array - left @ right, atol=1e-12)


def test_losses_after_a_removal_add_up() -> None:
    x, w = data()
    curve = losses(x, w, each=2)
    total = curve.losses([2])[2]
    curve.remove([2])
    total += curve.losses([1])[1]
    assert total == pytest.approx(least_squares(x[:, 4:], x @ w.T), rel=0.05)


def test_the_fit_is_ordinary_least_squares_without_a_ridge() -> None:
    x, w = data()
    y = x @ w.T + 0.1 * RNG.standard_normal((ROWS, OUT))
    sums = Sums()
    sums.add(x[None].astype(np.float32), y[None].astype(np.float32))
    zero = np.zeros((1, OUT, WIDTH))
    problem = Normal(zero, sums, True)
    weights, bias = problem.solve(1e-9)
    problem.undo()
    assert error(weights, bias, sums) / ROWS == pytest.approx(least_squares(x, y), rel=1e-3)
    prior = w[None] + 1.0
    assert np.allclose(Normal(prior, sums, True).solve(1e9)[0], prior, atol=1e-5)


def plain_ridge(prior, x, y, weights, ridge, intercept):
    """Weights and bias by the augmented least-squares problem, one group, float64."""
    share = weights / weights.sum()
    mean_x, mean_y = (share @ x, share @ y) if intercept else (np.zeros(x.shape[1]), np.zeros(y.shape[1]))
    rows, goal = np.sqrt(share)[:, None] * (x - mean_x), np.sqrt(share)[:, None] * (y - mean_y)
    damping = np.sqrt(ridge * np.square(rows).sum() / x.shape[1])
    stacked = np.concatenate([rows, damping * np.eye(x.shape[1])])
    found = np.linalg.lstsq(stacked, np.concatenate([goal, damping * prior.T]), rcond=None)[0].T
    return found, mean_y - found @ mean_x


def regression(groups, width, weighted, parts=5, rows=12):
    rng = np.random.default_rng(groups + width)
    prior = rng.standard_normal((groups, 3, width)).astype(np.float32)
    x = (rng.standard_normal((parts, groups, rows, width)) + 0.5).astype(np.float32)
    y = (x @ np.swapaxes(prior, 1, 2) + rng.standard_normal((parts, groups, rows, 3))).astype(np.float32)
    weights = rng.uniform(0.1, 2, (parts, rows)).astype(np.float32) if weighted else None
    return prior, x, y, weights


@pytest.mark.parametrize("kind", [Sums, lambda: thin.Rows(1000)], ids=["moments", "rows"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("width", [9, 100])  # fewer and more columns than rows
@pytest.mark.parametrize("groups", [1, 3])
def test_a_layer_is_fitted_as_least_squares_say(kind, weighted, intercept, width, groups) -> None:
    prior, x, y, weights = regression(groups, width, weighted)
    fit, check = kind(), kind()
    for k in range(5):
        (check if k == 4 else fit).add(x[k], y[k], None if weights is None else weights[k])
    found, bias, every = fitted(prior, fit, check, intercept)
    assert every.rows == pytest.approx(60 if weights is None else weights.sum())
    w = np.ones(x.shape[::2][:2]) if weights is None else weights.astype(np.float64)

    def reference(parts, ridge):
        joined = [(x[parts, g].reshape(-1, width), y[parts, g].reshape(-1, 3)) for g in range(groups)]
        pairs = zip(prior, joined)
        return [
            plain_ridge(p, *(a.astype(np.float64) for a in j), w[parts].reshape(-1), ridge, intercept) for p, j in pairs
        ]

    def held_out(ridge):
        made = reference(slice(0, 4), ridge)
        rest = (y[4, g] - x[4, g] @ m.T - b for g, (m, b) in enumerate(made))
        return sum((np.square(r) * w[4][:, None]).sum() for r in rest)

    expected = reference(slice(0, 5), min(RIDGES, key=held_out))
    assert np.allclose(found, np.stack([m for m, _ in expected]), atol=3e-4)
    assert (bias is None) != intercept
    if bias is not None:
        assert np.allclose(bias, np.concatenate([b for _, b in expected]), atol=1e-3)


def test_rows_are_thinned_evenly_to_what_may_be_kept() -> None:
    kept = thin.Rows(3)
    kept.add(np.arange(10, dtype=np.float32).reshape(1, 10, 1), np.zeros((1, 10, 2), np.float32))
    assert kept.group(0)[0].ravel().tolist() == [0, 4, 9] and kept.rows == 3


def test_the_march_sees_what_a_whole_run_sees() -> None:
    model = residual()
    feeds = [image(2, 3, 8, 8), image(1, 3, 8, 8)]
    found = layers(model)
    march = March(model, found, feeds, 1, budget=2000)  # some tensors in files
    for level in sorted({march.level[x.node] for x in found}):
        names = [x.x for x in found if march.level[x.node] == level]
        whole = Session(model, outputs=names, optimize=False)
        for feed, values in zip(feeds, march.to(level, names), strict=True):
            expected = whole.run(feed)
            assert all(np.allclose(values[n], expected[n], atol=1e-5) for n in names)


def test_the_sum_behind_a_residual_branch_is_its_witness() -> None:
    branch = [x for x in layers(residual()) if x.other]
    assert len(branch) == 1 and branch[0].other != branch[0].y and branch[0].witness != branch[0].y


class TestAtoms:
    """Labels by themselves."""

    def test_united_atoms_resolve_to_one(self) -> None:
        atoms = Atoms()
        a, b = atoms.fresh(3), atoms.fresh(3)
        atoms.unify(a, b, "")
        assert np.array_equal(atoms.resolve(a), atoms.resolve(b))

    def test_pins_spread_to_everything_united(self) -> None:
        atoms = Atoms()
        a, b = atoms.fresh(2), atoms.fresh(2)
        atoms.unify(a, b, "")
        atoms.pin(b[:1], "reason")
        found = atoms.resolve(a)
        assert found is not None and found[0] == 0 and found[1] != 0
        assert atoms.pinned(int(a[0, 0])) == "reason" and atoms.pinned(int(a[1, 0])) is None

    def test_a_grid_gives_rows_and_columns(self) -> None:
        atoms = Atoms()
        flat = atoms.fresh(6)
        rows, columns = atoms.factor(flat.reshape(2, 3, 1), "t")
        again = atoms.resolve(flat)
        assert rows is not None and columns is not None and again is not None and again.shape == (6, 2)
        assert len(np.unique(rows)) == 2 and len(np.unique(columns)) == 3

    def test_two_grids_of_one_axis_find_their_common_refinement(self) -> None:
        atoms = Atoms()
        flat = atoms.fresh(12)
        atoms.factor(flat.reshape(3, 4, 1), "t")
        rows, columns = atoms.factor(atoms.resolve(flat).reshape(6, 2, -1), "t")
        assert rows is not None and columns is not None
        assert len(np.unique(columns)) == 2 and rows.shape == (6, 2)  # 3 x 2 rows

    def test_heads_match_heads_when_grids_meet(self) -> None:
        atoms = Atoms()
        one, two = atoms.fresh(6), atoms.fresh(6)
        a, b = atoms.factor(one.reshape(2, 3, 1), "t")
        c, d = atoms.factor(two.reshape(2, 3, 1), "t")
        atoms.unify(one, two, "")
        assert np.array_equal(atoms.resolve(a), atoms.resolve(c))
        assert np.array_equal(atoms.resolve(b), atoms.resolve(d))
        assert join(None, None) is None


def test_a_unit_that_comes_back_leaves_no_trace() -> None:
    x, w = data()
    curve, again = losses(x, w), losses(x, w)
    for unit in (2, 5, 1):
        curve.remove([unit])
    assert curve.gains([5])[5] > 0
    for unit in (5, 2, 1):
        curve.restore(unit)
    assert np.allclose(curve.inverse, again.inverse, rtol=1e-8) and np.allclose(curve.weight, w, rtol=1e-8)
    assert curve.losses(range(1, WIDTH + 1)) == pytest.approx(again.losses(range(1, WIDTH + 1)))


def test_the_gain_of_a_unit_is_the_loss_that_it_made() -> None:
    x, w = data()
    curve = losses(x, w, each=2)
    curve.remove([2])
    loss = curve.losses([1])[1]
    curve.remove([1])
    assert curve.gains([1])[1] == pytest.approx(loss)
    assert curve.gains([2])[2] == pytest.approx(
        least_squares(x[:, 4:], x @ w.T) - least_squares(x[:, 2:], x @ w.T), rel=0.05
    )
    refitted = np.linalg.lstsq(x[:, 4:] - x[:, 4:].mean(0), (x - x.mean(0)) @ w.T, rcond=None)[0].T
    assert np.allclose(curve.fitted[0, :, :4], 0) and np.allclose(curve.fitted[0, :, 4:], refitted, atol=0.05)


def test_outputs_count_by_their_emphasis_until_they_go() -> None:
    x, w = data()
    curve = losses(x, w)
    curve.emphasis, curve.rows = np.array([[4.0, 1.0, 0.5, 2.0]]), {9: np.array([0, 3])}
    without = np.delete(x, 0, 1)
    each = [least_squares(without, x @ w[[t]].T) for t in range(OUT)]
    assert curve.losses([1])[1] == pytest.approx(4 * each[0] + each[1] + 0.5 * each[2] + 2 * each[3], rel=0.05)
    assert curve.concerns(9) and not curve.concerns(10)
    curve.remove([9])
    assert curve.losses([1])[1] == pytest.approx(each[1] + 0.5 * each[2], rel=0.05)


def test_weighted_sums_are_those_of_repeated_rows() -> None:
    x, w = data()
    y = x @ w.T
    counts = RNG.integers(0, 4, ROWS)
    weighted, repeated = Sums(), Sums()
    weighted.add(x[None].astype(np.float32), y[None].astype(np.float32), counts.astype(np.float32))
    repeated.add(x[None].repeat(counts, 1).astype(np.float32), y[None].repeat(counts, 1).astype(np.float32))
    for name in ("rows", "x", "y", "xx", "xy", "yy"):
        assert np.allclose(getattr(weighted, name), getattr(repeated, name), rtol=1e-3, atol=0.1)


@pytest.mark.parametrize("widest", [WIDTH, WIDTH - 1])
def test_kept_rows_tell_what_their_sums_tell(widest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thin, "WIDEST", widest)
    x, w = data()
    sums, rows = Sums(), thin.Rows(ROWS)
    for part in np.array_split(np.arange(ROWS), 3):
        weights = RNG.uniform(0.1, 2, len(part)).astype(np.float32)
        for kept in (sums, rows):
            kept.add(x[None, part].astype(np.float32), (x[None, part] @ w.T).astype(np.float32), weights)
    assert all(np.allclose(a, b, atol=1e-4) for a, b in zip(sums.means(), rows.means()))
    (full, spread), (thinned, same) = sums.covariance(0), rows.covariance(0)
    assert np.allclose(spread, same, rtol=1e-3)
    assert (thinned is None) == (widest < WIDTH) and (thinned is None or np.allclose(full, thinned, atol=1e-3))


def test_inputs_may_be_left_to_their_defaults_on_the_march() -> None:
    model = ir.text.parse("""g (float[1,4] x, float[1] s) => (float[1,4] y)
        <float[1] s = {2}, float[4,4] w = {1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1}>
        { h = Mul(x, s)  r = Relu(h)  y = MatMul(r, w) }""")
    assert "s" in model.header.defaults
    march = March(model, layers(model), [{"x": np.ones((1, 4), np.float32)}], 1, budget=2000)
    assert [v["r"].tolist() for v in march.to(1, ["r"])] == [[[2.0] * 4]]


def test_a_sequence_may_lie_between_two_levels_of_the_march() -> None:
    """The refit failed: a list of arrays has no size of its own."""
    model = ir.text.parse("""g (float[N,2] x) => (float[M,2] y) <float[2,2] w = {1,2,3,4}, float[2,2] v = {1,0,2,1}> {
        r = Relu(x)  s = SequenceConstruct(r)  h = MatMul(r, w)  q = Relu(h)  t = SequenceInsert(s, q)
        c = ConcatFromSequence<axis=0>(t)  y = MatMul(c, v) }""")
    found, feeds = layers(model), [image(3, 2), image(1, 2)]
    march = March(model, found, feeds, 1, budget=0)
    assert [len(v["r"]) for v in march.to(1, ["r"])] == [3, 1]
    whole = Session(model, outputs=["c"])
    for feed, values in zip(feeds, march.to(2, ["c"]), strict=True):
        np.testing.assert_allclose(values["c"], whole.run(feed)["c"], rtol=1e-6)


def test_a_sequence_may_be_empty_on_the_march() -> None:
    """Its type was taken from what it held."""
    model = ir.text.parse("""g (float[N,2] x, bool c) => (float[M,2] y)
        <float[2,2] w = {1,2,3,4}, float[2,2] v = {1,0,2,1}> {
        r = Relu(x)  s = SequenceEmpty()
        t = If(c) <then_branch = yes () => (seq(float[N,2]) p) { p = SequenceInsert(s, r) },
                   else_branch = no () => (seq(float[N,2]) q) { q = Identity(s) }>
        h = MatMul(r, w)  u = SequenceInsert(t, h)  d = ConcatFromSequence<axis=0>(u)  y = MatMul(d, v) }""")
    feeds = [{**image(3, 2), "c": np.array(False)}, {**image(1, 2), "c": np.array(True)}]
    march = March(model, layers(model), feeds, 1, budget=0)
    assert [len(v["r"]) for v in march.to(1, ["r"])] == [3, 1]
    assert [len(v["d"]) for v in march.to(2, ["d"])] == [3, 2]


def test_a_constant_added_in_a_branch_is_no_bias() -> None:
    model = ir.text.parse("""g (float[1,2] x, bool c) => (float[1,2] y) <float[2,2] w = {1,2,3,4}, float[2] b = {1,2}> {
        h = MatMul(x, w)
        y = If(c) <then_branch = t () => (float[1,2] p) { p = Add(h, b) }, else_branch = e () => (float[1,2] q) {
            q = Add(h, b) }>
    }""")
    (found,) = layers(model)
    assert found.bias is None and found.y == found.witness == "h"


def test_one_value_for_all_outputs_is_no_bias() -> None:
    model = ir.text.parse(
        "g (float[1,2] x) => (float[1,3] y) <float[2,3] w = {1,2,3,4,5,6}, float[1] c = {1}> { y = Gemm(x, w, c) }"
    )
    assert layers(model) == []


def test_an_inverse_in_a_file_says_the_same(monkeypatch) -> None:
    x, w = data()
    there = losses(x, w, each=2)
    monkeypatch.setattr(score, "IN_A_FILE", 0)
    away = losses(x, w, each=2)
    copy = away.copy()
    assert not np.shares_memory(copy.inverse, away.inverse)
    before = away.losses([1, 2, 3])
    for curve in (there, copy):
        curve.remove([2])
    assert copy.losses([1, 3]) == there.losses([1, 3])
    assert away.losses([1, 2, 3]) == before, "a copy is down-dated by itself"
    np.testing.assert_array_equal(copy.fitted, there.fitted)
