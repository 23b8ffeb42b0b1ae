"""SmoothQuant: the strength is chosen by the error of the products, and norms in every spelling take the factors."""

import numpy as np
import pytest
from onnxslim_opt.passes.quant import Quant, eligible, equalise, outliers, smooth
from onnxslim_opt.passes.transaction import tidy
from quant_nets import Net, context, session, sqnr

from onnxslim_opt import ir

WIDTH = 32


def weight(rng, columns):
    """[WIDTH, columns], small where the activations are large, as trained products are."""
    w = (rng.standard_normal((WIDTH, columns)) / 8).astype(np.float32)
    w[[3, 11, 20]] /= 50
    return w


def spiked(rng, rows=256):
    """Activations with three channels a hundred times larger than the others."""
    x = rng.standard_normal((rows, WIDTH)).astype(np.float32)
    x[:, [3, 11, 20]] *= 100
    return x


def test_the_strength_that_errs_least_is_taken():
    rng = np.random.default_rng(0)
    x, w = spiked(rng), [weight(rng, 48) for _ in range(2)]
    peak, ones = np.abs(x).max(axis=0).astype(np.float64), np.ones(WIDTH)
    found = smooth.best(x, w, peak)
    errors = [smooth.error(x, w, f) for f in smooth.candidates(peak, w)]
    assert smooth.error(x, w, found) == min(errors) < 0.1 * smooth.error(x, w, ones)
    assert found[[3, 11, 20]].max() < 0.2 * np.median(found)


def test_channels_that_are_zero_on_one_side_keep_the_middle():
    rng = np.random.default_rng(1)
    x, w = spiked(rng), weight(rng, 8)
    x[:, 7], w[9] = 0, 0
    for factor in smooth.candidates(np.abs(x).max(axis=0).astype(np.float64), [w]):
        assert factor[7] == factor[9] == 1 and np.isfinite(factor).all()
        assert factor.min() >= 1 / smooth.SPREAD and factor.max() <= smooth.SPREAD
    assert not list(smooth.candidates(np.zeros(WIDTH), [w]))


def test_a_channel_that_is_rarely_large_is_not_judged_by_the_rows_that_set_the_range():
    rng = np.random.default_rng(2)
    x, w = rng.standard_normal((128, WIDTH)).astype(np.float32), [rng.standard_normal((WIDTH, 8)).astype(np.float32)]
    x[:, 5] *= 1e-3
    x[1::2, 5] *= 1e3  # of usual size in the half that is judged
    peak = np.abs(x[::2]).max(axis=0).astype(np.float64)
    blind = 1 / peak**0.9
    assert smooth.best(x, w, peak, [blind])[5] < 0.1 * blind[5]


def layer_norm(net, x):
    gain, bias = np.ones(WIDTH, np.float32), net.rng.standard_normal(WIDTH).astype(np.float32)
    gain[[3, 11]] = 80.0
    return net.add("LayerNormalization", x, net.const(gain), net.const(bias), out="n")


def spelled(net, x):
    """The same by the operators of old opsets, γ over the deviation first."""
    gain, bias = np.ones(WIDTH, np.float32), net.rng.standard_normal((1, 1, WIDTH)).astype(np.float32)
    gain[[3, 11]] = 80.0
    away = net.add("Sub", x, net.add("ReduceMean", x, axes=[-1], keepdims=1))
    spread = net.add("ReduceMean", net.add("Mul", away, away), axes=[-1], keepdims=1)
    rate = net.add("Div", net.const(gain), net.add("Sqrt", net.add("Add", spread, net.const(np.float32(1e-5)))))
    return net.add("Add", net.add("Mul", away, rate), net.const(bias), out="n")


def scaled(net, x):
    """Products with and sums of constants a channel."""
    gain = np.ones((1, WIDTH), np.float32)
    gain[:, [3, 11]] = 80.0
    return net.add("Sub", net.add("Mul", net.const(gain), x), net.const(np.full(WIDTH, 0.3, np.float32)), out="n")


def batch_norm(net, x):
    """Over channels in the middle, then moved to the end."""
    gain, rest = np.ones(WIDTH, np.float32), [np.zeros(WIDTH, np.float32)] * 2
    gain[[3, 11]] = 80.0
    y = net.add("Transpose", x, perm=[0, 2, 1])
    y = net.add("BatchNormalization", y, *map(net.const, (gain, *rest, np.ones(WIDTH, np.float32))))
    return net.add("Transpose", y, perm=[0, 2, 1], out="n")


@pytest.mark.parametrize("norm", [layer_norm, spelled, scaled, batch_norm])
def test_norms_take_the_factors_of_products_that_read_them(norm):
    net = Net()
    n = norm(net, "x")
    weights = [weight(net.rng, 16) for _ in range(2)]
    a, b = (net.add("MatMul", net.add("Reshape", n, net.const([-1, WIDTH])), net.const(w)) for w in weights)
    net.add("MatMul", a, net.add("Transpose", b, perm=[1, 0]), out="y")
    model = net.model({"x": [2, 6, WIDTH]}, ["y"])
    rng = np.random.default_rng(5)
    feeds = [{"x": rng.standard_normal((2, 6, WIDTH)).astype(np.float32)} for _ in range(24)]
    ctx = context(model, feeds, "ort-cpu-vnni")
    found = equalise.factors(model, ctx.fit, ctx)
    assert found["n"][[3, 11]].max() < 0.3 * np.median(found["n"])
    new = model.copy()
    assert equalise.apply(new, found) >= 2
    ir.verify.check(new)
    for feed in feeds[:2]:
        near(model, new, feed)
    levels = []
    for on in (True, False):
        new = model.copy()
        Quant(compute="all", floor=-100.0, equalise=on).run(new, context(model, feeds[::2], "ort-cpu-vnni"))
        tidy(new)
        levels.append(sqnr(model, new, feeds[1::2]))
    assert levels[0] > levels[1] + 3


def post_norm():
    """A norm that a product and the residual read, and a product behind an activation with outliers."""
    net = Net()
    n = layer_norm(net, "x")
    a = net.add("MatMul", n, net.const(weight(net.rng, WIDTH)))
    r = net.add("Mul", net.add("Tanh", net.add("Add", a, n), out="t"), net.const(np.float32(1)), out="r")
    net.add("MatMul", r, net.const(weight(net.rng, 16)), out="y")
    return net.model({"x": [2, 6, WIDTH]}, ["y"])


def tokens(n=24):
    rng = np.random.default_rng(5)
    return [{"x": rng.standard_normal((2, 6, WIDTH)).astype(np.float32)} for _ in range(n)]


def test_what_others_read_as_well_gets_a_product_of_its_own():
    """The residual of a norm behind the sum needs the tensor as it is; in the end the float layers read it as well."""
    model, feeds = post_norm(), tokens()
    ctx = context(model, feeds, "ort-cpu-vnni")
    factors = equalise.factors(model, ctx.fit, ctx)
    assert all((f == 1).all() for f in factors.values())
    able, _ = eligible.find(model, ctx.target, lambda n: False)
    new = model.copy()
    divided = outliers.divide(new, able, factors, ctx.fit, ctx)
    assert [d.tensor for d in divided] == ["n"]
    ir.verify.check(new)
    near(model, new, feeds[0])
    back = new.copy()
    assert outliers.restore(back, divided, able) == 0
    assert outliers.restore(back, divided, ()) == 1
    assert [n.op for n in back.graph.nodes] == [n.op for n in model.graph.nodes]
    near(model, back, feeds[0])
    assert back.constants().keys() == model.constants().keys()


def near(model, new, feed):
    want, made = (session(m, optimize=False).run(None, feed)[0] for m in (model, new))
    np.testing.assert_allclose(made, want, atol=1e-5 * np.abs(want).max())


def test_integers_get_better_by_it():
    model, feeds, levels = post_norm(), tokens(), []
    for on in (True, False):
        new = model.copy()
        result = Quant(compute="all", floor=-100.0, equalise=on).run(new, context(model, feeds[::2], "ort-cpu-vnni"))
        tidy(new)
        assert "Even" not in result.details["exclude"]
        levels.append((sqnr(model, new, feeds[1::2]), sum(n.op == "Mul" for n in new.graph.nodes)))
    assert levels[0][0] > levels[1][0] + 3 and levels[0][1] == levels[1][1] + 1


def test_stored_weights_are_read_as_they_were():
    model, feeds = post_norm(), tokens()
    p, ctx = Quant(compute="all", floor=200.0), context(model, feeds[::2], "ort-cpu-vnni")
    new = model.copy()
    p.run(new, ctx)
    tidy(new)
    assert not any(n.name.endswith("_Even") for n in new.graph.nodes) and sqnr(model, new, feeds[1::2]) > 30
