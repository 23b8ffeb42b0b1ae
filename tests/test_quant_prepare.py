"""What is spelled otherwise before placement computes the same in float, and leaves no float between integers."""

import numpy as np
import pytest
from onnxslim_opt.passes.quant import Quant, eligible
from onnxslim_opt.passes.quant.prepare import finish, prepare
from onnxslim_opt.passes.simplify import Simplify
from onnxslim_opt.passes.target import Target
from quant_nets import Net, context, images, kernels, session, sqnr

from onnxslim_opt import ir


def residual(pads=(0, 4, 0, 0, 0, 4, 0, 0), start=0, channels=8, value=0.0, keepdims=0):
    """A residual block whose shortcut thins out rows and columns and pads channels; input x [1, 3, 12, 12]."""
    net = Net()
    a = net.add("Relu", net.conv("x", 3, channels, out="conv_a"), out="a")
    ints = [net.const(np.array(v, np.int64)) for v in ([start] * 2, [2**62] * 2, [2, 3], [2, 2])]
    thin = net.add("Slice", a, *ints, out="thin")
    short = net.add("Pad", thin, net.const(np.array(pads, np.int64)), net.const(np.float32(value)), out="short")
    width = channels + pads[1] + pads[5]
    w = (net.rng.standard_normal((width, channels, 3, 3)) / np.sqrt(9 * channels)).astype(np.float32)
    main = net.add("Conv", a, net.const(w), out="main", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    s = net.add("Relu", net.add("Add", main, short, out="sum"), out="s")
    mean = net.add("ReduceMean", s, out="mean", axes=[2, 3], keepdims=keepdims)
    net.gemm(mean if not keepdims else net.add("Flatten", mean, out="flat"), width, 10, out="y")
    return net.model({"x": [1, 3, 12, 12]}, ["y"])


def ops(model):
    return [n.op for n in model.graph.nodes]


def same(a, b):
    one, two = session(a), session(b)
    for feed in images(4):
        np.testing.assert_allclose(one.run(None, feed)[0], two.run(None, feed)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pads", [(0, 4, 0, 0, 0, 4, 0, 0), (0, 0, 0, 0, 0, 8, 0, 0), (0, 3, 0, 0, 0, 0, 0, 0)])
def test_a_shortcut_becomes_a_convolution_that_copies(pads):
    model = residual(pads)
    new = model.copy()
    assert prepare(new, lambda n: False) == 2
    assert "Pad" not in ops(new) and "Slice" not in ops(new) and ops(new).count("Conv") == 3
    ir.verify.check(new)
    same(model, new)


@pytest.mark.parametrize(
    "changed", [{"start": 1}, {"value": 1.0}, {"pads": (0, 64, 0, 0, 0, 64, 0, 0), "channels": 64}]
)
def test_other_shortcuts_stay(changed):
    model = residual(**changed)
    new = model.copy()
    prepare(new, lambda n: False)
    assert "Pad" in ops(new) and "Slice" in ops(new)
    same(model, new)


def test_a_pad_of_rows_stays():
    net = Net()
    a = net.add("Relu", net.conv("x", 3, 8, out="conv_a"), out="a")
    ints = [net.const(np.array(v, np.int64)) for v in ([0] * 2, [2**62] * 2, [2, 3], [2, 2])]
    net.add("Pad", net.add("Slice", a, *ints), net.const(np.array((0, 4, 1, 0, 0, 4, 0, 0), np.int64)), out="y")
    model = net.model({"x": [1, 3, 12, 12]}, ["y"])
    assert prepare(model, lambda n: False) == 0


def test_excluded_nodes_are_spelled_as_they_were():
    new = residual()
    assert prepare(new, lambda n: n.op in ("Pad", "ReduceMean")) == 0


def test_a_mean_over_space_becomes_a_pool():
    model = residual()
    new = model.copy()
    prepare(new, lambda n: False)
    assert "ReduceMean" not in ops(new) and {"GlobalAveragePool", "Flatten"} <= set(ops(new))
    kept = residual(keepdims=1)
    prepare(kept, lambda n: False)
    assert "ReduceMean" in ops(kept)


def test_nothing_between_input_and_output_computes_in_float(tmp_path):
    model = residual()
    p = Quant(compute="all")
    ctx = context(model, images(32))
    new = model.copy()
    result = p.apply(new, p.plan(model, ctx), 1.0, ctx)
    assert result.did["layers in 8 bits"] == 4
    found = kernels(new, tmp_path)
    assert found["QLinearConv"] == 3 and found["QLinearAdd"] == 1 and found["QLinearGlobalAveragePool"] == 1
    assert not {"Conv", "Add", "Relu", "Pad", "Slice", "ReduceMean"} & set(found)
    assert sqnr(model, new, images(8, seed=9)) > 30


def test_weights_that_are_only_stored_belong_to_the_same_shortcut():
    """Equalisation scales channels of the model as it was prepared; stored weights must follow."""
    model = residual()
    p = Quant(compute="none")
    auto = Quant()
    ctx = context(model, images(32))
    plan = auto.plan(model, ctx)
    new = model.copy()
    auto._stored(new, plan, 1.0, ctx, "no gain")
    assert sqnr(model, new, images(8, seed=9)) > 35
    plain = model.copy()
    p.apply(plain, p.plan(model, ctx), 1.0, ctx)
    assert sqnr(model, plain, images(8, seed=9)) > 35


def mlp(lead=(2, 6), last="Relu"):
    """Two biased products of three axes with an activation between them: input x [*lead, 16]."""
    net = Net()

    def biased(x, rows, columns, out, first=False):
        w = (net.rng.standard_normal((rows, columns)) / 4).astype(np.float32)
        parts = [net.add("MatMul", x, net.const(w)), net.const(net.rng.standard_normal(columns).astype(np.float32))]
        return net.add("Add", *(reversed(parts) if first else parts), out=out)

    a, b = biased("x", 16, 32, "up"), biased("x", 16, 32, "gate", first=True)
    h = net.add("Add", net.add(last, a, out="h"), b, out="s")
    biased(h, 32, 16, "y")
    return net.model({"x": [*lead, 16]}, ["y"])


def tokens(n=12):
    rng = np.random.default_rng(3)
    return [{"x": rng.standard_normal((2, 6, 16)).astype(np.float32)} for _ in range(n)]


@pytest.mark.parametrize("lead", [(2, 6), ("batch", 6)])
def test_biased_products_become_gemms_of_rows(lead, tmp_path):
    model = mlp(lead)
    new = model.copy()
    assert prepare(new, lambda n: False) == 3
    assert sorted(ops(new)) == ["Add", *["Gemm"] * 3, "Relu", *["Reshape"] * 5]  # one Reshape for both readers of x
    ir.verify.check(new)
    for feed in tokens(3):
        a, b = (session(m).run(None, feed)[0] for m in (model, new))
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    Quant(compute="all", floor=-100.0).run(new, context(model, tokens(), "ort-cpu-vnni"))
    found = kernels(new, tmp_path)
    assert found["QGemm"] == 3 and found["QLinearAdd"] == 1 and not found["Gemm"] + found["MatMul"]
    assert sqnr(model, new, tokens(4)) > 30


def test_products_that_stay_as_they_are():
    for lead, excluded in (((2, 6), "matmul"), (("batch", "time"), "no node")):
        new = mlp(lead)
        names = {n.name for n in new.graph.nodes if n.op == "MatMul"}
        assert names and prepare(new, lambda n, e=excluded: n.name.startswith(e)) == 0
        assert {n.name for n in new.graph.nodes if n.op == "MatMul"} == names


@pytest.mark.parametrize("target", ["ort-cpu-vnni", "openvino"])
def test_sums_are_open_to_integers_and_what_stays_float_is_put_together_again(target):
    net = Net()
    a, b = (net.add("MatMul", "x", net.const(net.rng.standard_normal((8, 8)).astype(np.float32))) for _ in range(2))
    total = net.add("Sum", "x", a, b, out="total")
    gain, bias = (net.const(net.rng.standard_normal(8).astype(np.float32)) for _ in range(2))
    net.add("LayerNormalization", total, gain, bias, out="y")
    model = net.model({"x": [1, 4, 8]}, ["y"])
    new = model.copy()
    assert prepare(new, lambda node: False)
    assert ops(new).count("Add") == 2
    finish(new, Target.named(target))
    assert [n.op for n in new.graph.nodes if "total" in [t.name for t in n.outputs]] == [
        "Sum" if target.startswith("ort") else "Add"
    ]
    feed = {"x": net.rng.standard_normal((1, 4, 8)).astype(np.float32)}
    np.testing.assert_allclose(session(new).run(None, feed)[0], session(model).run(None, feed)[0], rtol=1e-5, atol=1e-5)


def test_a_bias_that_adds_an_axis_stays_a_sum():
    """A constant [1, 1, 1, 16] makes four axes of three."""
    net = Net()
    product = net.add("MatMul", "x", net.const(net.rng.standard_normal((16, 16)).astype(np.float32)))
    net.add("Relu", net.add("Add", product, net.const(np.ones((1, 1, 1, 16), np.float32))), out="y")
    model = net.model({"x": [2, 6, 16]}, ["y"])
    assert prepare(model, lambda n: False) == 0


@pytest.mark.usefixtures("literal_sessions")
@pytest.mark.parametrize("dilation", [1, 2])
def test_a_dilated_mean_stays_float_alone(dilation, tmp_path):
    net = Net()
    pooled = net.add("AveragePool", net.conv("x", 3, 8), out="p", kernel_shape=[2, 2], dilations=[dilation] * 2)
    net.conv(pooled, 8, 4, out="y")
    model = net.model({"x": [1, 3, 12, 12]}, ["y"], opset=19)
    why = "no integer kernel for dilations"
    assert eligible.refusal(model.graph.nodes[1], Target.named("ort-cpu-vnni")) == why
    new, ctx = model.copy(), context(model, images(6), "ort-cpu-vnni")
    settings = Quant(compute="all", calibrate="minmax", rounding="nearest")
    settings.apply(new, settings.plan(model, ctx), 1.0, ctx)
    ran = kernels(new, tmp_path)
    assert ran["QLinearConv"] == 2 and ran["AveragePool"] == dilation - 1 == 1 - ran["QLinearAveragePool"]
    assert sqnr(model, new, images(2)) > 25
    Simplify().run(new, ctx)
    session(new)
    bare = model.copy()
    assert prepare(bare, lambda n: False) == 1 and ops(bare).count("Max") == dilation - 1
    finish(bare, Target.named("openvino"))
    assert ops(bare) == ops(model)
    same(model, bare)
