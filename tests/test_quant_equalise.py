"""Channels of like ranges: the float model computes the same, and integers get better."""

import numpy as np
import pytest
from onnxslim_opt.passes.quant import Quant, equalise
from quant_nets import Net, context, session, sqnr

from onnxslim_opt import ir


def scaled(model, node_name, factors):
    """Multiply the rows of a layer."""
    node = next(n for n in model.graph.nodes if n.name == node_name)
    values = node.inputs[1].values
    node.inputs[1].values = values * factors.reshape(-1, *[1] * (values.ndim - 1)).astype(np.float32)


def branches():
    """Residual stream, depthwise layer, PRelu, concat, pools and a head whose Sigmoid must see what it saw."""
    net = Net()
    a = net.add("Relu", net.conv("x", 3, 16, out="a0"), out="a")
    b = net.add(
        "PRelu", net.conv(a, 16, 16, group=16, out="b0"), net.const(np.full((16, 1, 1), 0.1, np.float32)), out="b"
    )
    c = net.conv(b, 16, 16, out="c")
    s = net.add("Relu", net.add("Add", c, a, out="s0"), out="s")
    p = net.add("MaxPool", s, out="p", kernel_shape=[2, 2], strides=[2, 2])
    e, f = net.add("Relu", net.conv(p, 16, 8, 1, out="e0"), out="e"), net.conv(p, 16, 8, 1, out="f")
    head = net.conv(net.add("Concat", e, f, out="k", axis=1), 16, 4, out="head")
    net.add("Sigmoid", head, out="y")
    model = net.model({"x": [1, 3, 12, 12]}, ["y"])
    rng = np.random.default_rng(3)
    for name in ("a0_node", "b0_node", "c_node", "e0_node", "f_node"):
        scaled(model, name, np.exp(rng.uniform(-3, 3, 16 if name[0] in "abc" else 8)))
    return model


def feeds(n=12, seed=1):
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((1, 3, 12, 12)).astype(np.float32)} for _ in range(n)]


def test_the_float_model_computes_the_same():
    model = branches()
    ctx = context(model, feeds())
    found = equalise.factors(model, ctx.fit, ctx)
    new = model.copy()
    assert equalise.apply(new, found) == 6  # every layer reads or makes a scaled tensor
    for feed in feeds(3, seed=9):
        a, b = (session(m, optimize=False).run(None, feed)[0] for m in (model, new))
        np.testing.assert_allclose(a, b, rtol=0, atol=5e-5)  # the head puts out hundreds


def test_ties_barred_tensors_and_order():
    model = branches()
    ctx = context(model, feeds())
    found = equalise.factors(model, ctx.fit, ctx)
    np.testing.assert_array_equal(found["c"], found["a"])  # both go into the Add
    np.testing.assert_array_equal(found["s0"], found["p"])
    np.testing.assert_array_equal(found["k"], np.concatenate([found["e"], found["f"]]))
    assert (found["head"] == 1).all()  # Sigmoid reads it
    assert (found["b"] != 1).any() and (found["e"] != 1).any()


def test_ranges_come_closer():
    model = branches()
    ctx = context(model, feeds())
    new = model.copy()
    equalise.apply(new, equalise.factors(model, ctx.fit, ctx))

    def unevenness(m):
        copy = m.copy()
        tensors = copy.tensors()
        copy.graph.outputs.extend(tensors[n] for n in ("b", "e"))
        values = session(copy, optimize=False).run(None, feeds()[0])[1:]
        peaks = [np.abs(v).max(axis=(0, 2, 3)) for v in values]
        return [p.max() / p[p > 0].min() for p in peaks]

    for before, after in zip(unevenness(model), unevenness(new)):
        assert after < 0.5 * before


def test_integers_get_better():
    model = branches()
    ctx = context(model, feeds(24))
    level = {}
    for on in (False, True):
        p, new = Quant(compute="all", floor=0.0, equalise=on, calibrate="mse"), model.copy()
        p.apply(new, p.plan(model, ctx), 1.0, ctx)
        level[on] = sqnr(model, new, feeds(8, seed=5))
    assert level[True] > level[False] + 2


def test_excluded_layers_and_shared_weights_stay():
    model = branches()
    ctx = context(model, feeds())
    found = equalise.factors(model, ctx.fit, ctx, lambda n: n.name == "e0_node")
    assert "e" not in found or (found["e"] == 1).all()
    assert (found["p"] == 1).all() and (found["s"] == 1).all() and (found["a"] == 1).all()  # all one stream with p


def test_layer_norm_takes_the_factors_of_products():
    """SmoothQuant: outlier features move into the weights of what reads the normalized tensor."""
    net = Net()
    gain = np.ones(16, np.float32)
    gain[3] = 60.0
    x = net.add("LayerNormalization", "x", net.const(gain), net.const(np.zeros(16, np.float32)), out="n")
    w = net.const(net.rng.standard_normal((16, 16)).astype(np.float32))
    net.add("MatMul", x, w, out="y")
    model = net.model({"x": [4, 16]}, ["y"])
    data = [{"x": np.random.default_rng(k).standard_normal((4, 16)).astype(np.float32)} for k in range(6)]
    ctx = context(model, data)
    found = equalise.factors(model, ctx.fit, ctx)
    assert np.median(found["n"]) >= 4 * found["n"][3]
    new = model.copy()
    assert equalise.apply(new, found) == 2
    a, b = (session(m, optimize=False).run(None, data[0])[0] for m in (model, new))
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)
    ir.verify.check(new)


def test_a_product_along_another_axis_than_the_channels_keeps_its_columns():
    """Channels [1, 4, 12] of a convolution, read as rows of 12: they get no factor, but what reads the rows does."""
    net, w = Net(), lambda *s: net.const(net.rng.standard_normal(s).astype(np.float32))
    a = net.add("Relu", net.add("Conv", "x", w(4, 4, 1), out="a0"), out="a")
    b = net.add("Relu", net.add("MatMul", a, w(12, 20), out="b0"), out="b")
    net.add("MatMul", b, w(20, 12), out="y")
    model = net.model({"x": [1, 4, 12]}, ["y"])
    data = [{"x": np.random.default_rng(k).standard_normal((1, 4, 12)).astype(np.float32)} for k in range(6)]
    ctx = context(model, data)
    found = equalise.factors(model, ctx.fit, ctx)
    assert (found["a"] == 1).all() and len(found["a"]) == 4
    found["b"] = found["b0"] = np.geomspace(0.5, 2, 20)
    new = model.copy()
    assert equalise.apply(new, found) == 2
    a, b = (session(m, optimize=False).run(None, data[0])[0] for m in (model, new))
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_a_value_for_each_row_is_no_bias_of_channels():
    """As many rows as outputs: only the shape tells the two apart."""
    for shape, fits in (([4], True), ([1, 4], True), ([4, 1], False), ([4, 4], False)):
        net = Net()
        c = net.const(np.ones(shape, np.float32))
        net.add("Gemm", "x", net.const(np.ones((8, 4), np.float32)), c, out="y")
        node = net.model({"x": [4, 8]}, ["y"]).graph.nodes[0]
        assert (equalise.layer(node) is not None) is fits, shape


def evened(net, outputs):
    """The tensors and factors of a net of rows of 8, and how far its outputs move with the factors, by their size."""
    model = net.model({"x": [4, 8]}, outputs)
    data = [{"x": np.random.default_rng(k).standard_normal((4, 8)).astype(np.float32)} for k in range(6)]
    ctx = context(model, data)
    found, new = equalise.factors(model, ctx.fit, ctx), model.copy()
    assert equalise.apply(new, found) >= 2
    a, b = (session(m, optimize=False).run(None, data[0]) for m in (model, new))
    return found, max(np.abs(x - y).max() / np.abs(x).max() for x, y in zip(a, b))


@pytest.mark.parametrize("first", [True, False])
def test_a_product_with_its_constant_first_takes_factors_too(first):
    net, w = Net(), lambda *s: net.const(net.rng.standard_normal(s).astype(np.float32))
    uneven = net.const((net.rng.standard_normal((8, 16)) * np.geomspace(0.1, 10, 16)).astype(np.float32))
    h = net.add("Relu", net.add("MatMul", "x", uneven), out="h")
    t = net.add("Mul", *((w(16), h) if first else (h, w(16))))
    net.add("MatMul", net.add("Relu", t), w(16, 6), out="y")
    net.add("MatMul", h, w(16, 5), out="z")
    found, moved = evened(net, ["y", "z"])
    assert found["h"].max() > 2 * found["h"].min() and moved < 1e-5


def test_the_computed_slope_of_a_prelu_gets_no_factors():
    net, w = Net(), lambda *s: net.const(net.rng.standard_normal(s).astype(np.float32))
    grow = np.geomspace(0.1, 10, 16).astype(np.float32)
    h, slope = (net.add("MatMul", "x", net.const(net.rng.random((8, 16), np.float32) * s)) for s in (grow, grow[::-1]))
    net.add("MatMul", net.add("PRelu", h, slope, out="t"), w(16, 6), out="y")
    net.add("MatMul", slope, w(16, 5), out="z")
    found, moved = evened(net, ["y", "z"])
    assert (found[slope] == 1).all() and found["t"].max() > 2 * found["t"].min() and moved < 1e-5
