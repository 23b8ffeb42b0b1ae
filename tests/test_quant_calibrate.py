"""Ranges, scales and integer weights, beside brute force and beside ONNX Runtime."""

import itertools

import numpy as np
import pytest
from onnxslim_opt.passes.quant import calibrate, rounding, saturation, weights
from onnxslim_opt.passes.quant.calibrate import Scale, Seen, to_scale
from onnxslim_opt.runtime.histograms import Histogram
from onnxslim_opt.runtime.ranges import Range
from quant_nets import Net, context, images, session


def seen(values, curve=None):
    r = Range(histogram=Histogram())
    r.add(np.asarray(values, np.float32))
    return Seen.of(r, curve)


def real_error(values, low, high, curve=lambda v: v):
    fake = to_scale(low, high, "u8").fake(values)
    return float(((curve(fake) - curve(values)) ** 2).mean())


@pytest.mark.parametrize("kind", ["u8", "s8"])
@pytest.mark.parametrize(("low", "high"), [(-1.3, 2.7), (0.0, 6.0), (-5.0, 0.0), (0.5, 2.0)])
def test_fake_quantization_is_what_onnx_runtime_does(kind, low, high):
    scale = to_scale(low, high, kind)
    net = Net()
    real, zero = net.const(np.float32(scale.scale)), net.const(np.asarray(scale.zero, scale.dtype))
    net.add("DequantizeLinear", net.add("QuantizeLinear", "x", real, zero), real, zero, out="y")
    x = np.random.default_rng(0).uniform(low - 1, high + 1, (4, 500)).astype(np.float32)
    out = session(net.model({"x": [4, 500]}, ["y"])).run(None, {"x": x})[0]
    np.testing.assert_array_equal(out, scale.fake(x))


def test_zero_is_exact_and_relu_starts_at_the_least_integer():
    for low, high in [(-3.1, 0.7), (0.0, 1.0), (0.2, 0.9), (-2.0, -1.0)]:
        for kind in ("u8", "s8"):
            assert to_scale(low, high, kind).fake(np.zeros(1, np.float32))[0] == 0.0
    assert to_scale(0.0, 6.0, "u8") == Scale(float(np.float32(6 / 255)), 0, "u8")
    assert to_scale(0.0, 6.0, "s8").zero == -128
    assert to_scale(-2.0, 6.0, "s8", symmetric=True) == Scale(float(np.float32(6 / 127)), 0, "s8")


def test_mse_is_as_good_as_brute_force():
    rng = np.random.default_rng(0)
    values = rng.laplace(0.5, 1.0, 20000).astype(np.float32)
    low, high = calibrate.choose("mse", [seen(values)], 0)
    seen_low, seen_high = float(values.min()), float(values.max())
    grid = [real_error(values, a, b) for a in np.linspace(seen_low, -2, 30) for b in np.linspace(2, seen_high, 30)]
    assert real_error(values, low, high) <= 1.03 * min(grid)
    assert real_error(values, low, high) < 0.97 * real_error(values, seen_low, seen_high)


def test_mse_counts_errors_after_the_curve():
    """Pre-activations of SiLU far below zero are clipped: they come out as zero anyway."""
    values = np.random.default_rng(1).normal(-20.0, 12.0, 40000).astype(np.float32)
    plain, curved = (calibrate.choose("mse", [seen(values, c)], 0) for c in (None, calibrate.silu))
    assert curved[0] > 0.5 * plain[0]
    assert real_error(values, *curved, calibrate.silu) < 0.5 * real_error(values, *plain, calibrate.silu)


def test_other_methods():
    rng = np.random.default_rng(2)
    values = np.concatenate([rng.standard_normal(100000), [50.0]]).astype(np.float32)
    assert calibrate.choose("minmax", [seen(values)], 0) == (float(values.min()), 50.0)
    low, high = calibrate.choose("percentile", [seen(values)], 99.9)
    assert low == pytest.approx(np.quantile(values, 0.0005), abs=0.1)
    assert high == pytest.approx(np.quantile(values, 0.9995), abs=0.1)
    low, high = calibrate.choose("entropy", [seen(values)], 0)
    assert -10 < low < -2 and 2 < high < 25


def test_average_is_the_mean_of_the_extremes_of_feeds():
    r = Range(histogram=Histogram())
    for high in (1.0, 2.0, 9.0):
        r.add(np.linspace(-high / 2, high, 100, dtype=np.float32))
    assert calibrate.choose("average", [Seen.of(r)], 0) == pytest.approx((-2.0, 4.0))
    assert calibrate.choose("average", [Seen.of(r), seen(np.linspace(0, 5, 50))], 0) == pytest.approx((-2.0, 5.0))


def test_shared_ranges_serve_every_tensor():
    a, b = np.linspace(0, 1, 5000), np.linspace(0, 9, 5000)
    assert calibrate.choose("minmax", [seen(a), seen(b)], 0) == (0.0, 9.0)
    assert calibrate.choose("mse", [seen(a), seen(b)], 0)[1] > 8.5


def test_nothing_seen_and_constants_do_not_break():
    assert calibrate.choose("mse", [seen(np.zeros(0))], 0) == (0.0, 0.0)
    assert to_scale(0.0, 0.0, "u8").scale == 1.0
    low, high = calibrate.choose("mse", [seen(np.full(10, 3.0))], 0)
    assert to_scale(low, high, "u8").fake(np.full(1, 3.0, np.float32))[0] == pytest.approx(3.0, abs=0.01)


@pytest.mark.parametrize("axis", [0, 1, None])
def test_weights_are_rounded_with_the_best_scale(axis):
    w = np.random.default_rng(3).standard_t(3, (8, 6, 3, 3)).astype(np.float32)
    packed = weights.nearest(w, axis)
    assert packed.values.dtype == np.int8 and packed.values.shape == w.shape
    assert np.abs(packed.values).max() <= 127
    best = ((packed.dequantized() - w) ** 2).sum()
    peaks = np.abs(weights.rows(w, axis)).max(axis=1).astype(np.float32) / 127
    plain = weights.Packed(packed.values, peaks, axis)
    grid = plain.broadcast()
    assert best <= ((np.rint(w / grid) * grid - w) ** 2).sum() * (1 + 1e-6)


def test_rows_and_back():
    w = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    for axis in (0, 1, 2, None):
        np.testing.assert_array_equal(weights.unrows(weights.rows(w, axis), w.shape, axis), w)


def test_second_order_rounding_loses_less_on_the_inputs_it_saw():
    rng = np.random.default_rng(4)
    x = rng.standard_normal((2, 500, 24)) @ rng.standard_normal((2, 24, 24))
    moment = np.swapaxes(x, 1, 2) @ x / 500
    w = rng.standard_normal((2, 10, 24))
    scale = np.abs(w).max(axis=2) / 7
    near = np.clip(np.rint(w / scale[..., None]), -7, 7)
    best = weights.second_order(w, scale, moment, top=7)
    loss = [float((((q * scale[..., None] - w) @ np.swapaxes(x, 1, 2)) ** 2).sum()) for q in (near, best)]
    assert loss[1] < 0.5 * loss[0]


def test_zeros_of_a_sparse_matrix_stay_zeros():
    rng = np.random.default_rng(6)
    x = rng.standard_normal((1, 500, 64)) @ rng.standard_normal((1, 64, 64))
    moment = np.swapaxes(x, 1, 2) @ x / 500
    w = rng.standard_normal((1, 10, 64))
    np.put_along_axis(w.reshape(160, 4), np.argsort(np.abs(w.reshape(160, 4)))[:, :2], 0, -1)  # 2:4
    scale = np.abs(w).max(axis=2) / 127
    passed = weights.second_order(w, scale, moment)
    best = weights.descend(w, scale, passed, moment)
    near = np.clip(np.rint(w / scale[..., None]), -127, 127)
    loss = [float((((q * scale[..., None] - w) @ np.swapaxes(x, 1, 2)) ** 2).sum()) for q in (near, passed, best)]
    assert not passed[w == 0].any() and not best[w == 0].any()
    assert loss[2] < 0.9 * loss[1] < 0.9 * loss[0]


def test_saturating_pairs_follow_the_kernels_packing():
    net = Net()
    net.conv("x", 4, 2, 1)
    node = net.model({"x": [1, 4, 3, 3]}, ["conv0"]).graph.nodes[0]
    values = np.zeros((2, 4, 1, 1), np.int8)
    values[0, :, 0, 0] = [100, 27, -90, -60]
    values[1, :, 0, 0] = [1, 127, 127, 1]
    assert saturation.largest_pair(node, values) == 150
    packed = weights.Packed(values, np.ones(2, np.float32), 0)
    full = Scale(1.0, 0, "u8")
    assert saturation.at_risk(node, packed, None, full)
    small = seen(np.linspace(0, 100, 5000))
    assert not saturation.at_risk(node, packed, small, full)
    assert not saturation.at_risk(node, packed, None, Scale(1.0, 0, "s8"))


def test_entropy_is_not_fooled_by_the_zeros_of_a_relu():
    values = np.maximum(np.random.default_rng(4).standard_normal(200_000), 0.0)
    low, high = calibrate.choose("entropy", [seen(values)], 99.99)
    assert low == 0.0 and high > 3.0  # half of all values are zeros; their bin once pulled the clip down to 2
    assert real_error(values, low, high) < 3 * real_error(values, *calibrate.choose("mse", [seen(values)], 99.99))


def test_entropy_tries_everything_that_was_seen():
    levels = np.repeat(np.linspace(-7.0, 7.0, 15) ** 3, 200)  # clipping any of them is worse than none
    assert calibrate.choose("entropy", [seen(levels)], 99.99)[1] == pytest.approx(343.0, rel=0.02)


def test_coordinate_descent_lowers_the_error_that_gptq_leaves():
    rng = np.random.default_rng(4)
    matrix = rng.standard_normal((2, 6, 24))
    mixed = rng.standard_normal((2, 24, 24)) @ np.diag(np.geomspace(3.0, 0.1, 24))
    moment = np.swapaxes(mixed, 1, 2) @ mixed
    scale = np.abs(matrix).max(axis=2) / 7

    def error(values):
        gap = matrix - values * scale[:, :, None]
        return np.einsum("grk,gkl,grl->gr", gap, moment, gap)

    first = weights.second_order(matrix, scale, moment, top=7)
    after = weights.descend(matrix, scale, first, moment, top=7, rounds=50)
    assert (error(after) <= error(first) * (1 + 1e-12)).all()
    assert error(after).sum() < 0.97 * error(first).sum()
    assert np.abs(after).max() <= 7
    for g, r, k in itertools.product(range(2), range(6), range(24)):  # no single step is left that would help
        for step in (-1, 1):
            other = after.copy()
            other[g, r, k] += step
            if abs(int(other[g, r, k])) <= 7:
                assert error(other)[g, r] >= error(after)[g, r] * (1 - 1e-9)


def test_a_moment_that_rounding_left_indefinite_is_damped_until_it_is_not():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    moment = (basis * np.array([3e-9, 1e-9, 1e-10, 1e-11, -1e-11, -9e-10])) @ basis.T
    upper = weights.inverse_factor(moment[None], 0.01)[0]
    assert np.isfinite(upper).all() and (np.diag(upper) > 0).all()


def test_a_layer_whose_input_hardly_varies_is_rounded_like_any_other():
    net = Net()
    still = net.add("Add", net.add("Mul", "x", net.const(np.float32(1e-6))), net.const(np.float32(0.3)), out="still")
    net.conv(net.add("Concat", *[still] * 4, axis=1, out="wide"), 12, 8, 1, out="y")
    model = net.model({"x": [1, 3, 12, 12]}, ["y"])
    ctx = context(model, images())
    (found,) = rounding.refine(model, ctx.fit, ctx).values()
    weight = model.graph.nodes[-1].inputs[1].values
    gap = (weight - found.packed.dequantized()).reshape(8, 12) @ np.full(12, 0.3) - found.shift
    assert np.abs(gap).max() < 1e-5, "the bias takes up what an input that stays the same makes of the error"
    assert np.abs(weight - found.packed.dequantized()).max() < 3 * found.packed.scale.max()
