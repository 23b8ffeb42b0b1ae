"""Inserted pairs beside numpy, and the kernels that ONNX Runtime makes of them."""

import numpy as np
import pytest
from onnxslim_opt.passes.quant import eligible, insert, placement, planning, statistics
from onnxslim_opt.passes.quant.statistics import Settings, Statistics
from onnxslim_opt.passes.target import Target
from onnxslim_opt.runtime import resolve
from quant_nets import SATURATES, Net, cnn, context, images, kernels, session, sqnr

from onnxslim_opt import ir

CPU = Target.named("ort-cpu-vnni")


def quantized(model, feeds, nodes=None, settings=None):
    """(model with pairs, recipe); nodes: of those that can, everything by default."""
    settings = settings or Settings()
    ctx = context(model, feeds, CPU)
    able, _ = eligible.find(model, CPU, lambda n: False)
    chosen = planning.between(model, able) if nodes is None else nodes
    placed = placement.place(model, chosen, CPU)
    seen = statistics.collect(model, placed.quantized(), settings, ctx, resolve(feeds, model))
    recipe = Statistics(settings, seen, {}).recipe(model, placed)
    new = model.copy()
    insert.insert(new, recipe)
    ir.verify.check(new)
    return new, recipe


def vectors(n=32, width=12, seed=5):
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((4, width)).astype(np.float32)} for _ in range(n)]


@pytest.mark.parametrize("per_channel", [True, False])
def test_two_layers_are_what_numpy_says(per_channel):
    net = Net()
    h = net.add("Relu", net.gemm("x", 12, 20, out="g"), out="h")
    net.gemm(h, 20, 7, out="y")
    model = net.model({"x": [4, 12]}, ["y"])
    weights = [n.inputs[1].values for n in model.graph.nodes if n.op == "Gemm"]
    biases = [n.inputs[2].values for n in model.graph.nodes if n.op == "Gemm"]
    feeds = vectors()
    new, recipe = quantized(model, feeds, settings=Settings(per_channel=per_channel))
    x = recipe.scales["x"].fake(feeds[0]["x"])
    fakes = [recipe.weights[n].dequantized() for n in ("g_node", "y_node")]
    h = recipe.scales["h"].fake(np.maximum(x @ fakes[0].T + biases[0], 0))
    want = h @ fakes[1].T + biases[1]
    out = session(new, optimize=False).run(None, feeds[0])[0]
    np.testing.assert_allclose(out, want, atol=2e-3)  # biases are rounded to the scale of the products
    np.testing.assert_allclose(fakes[0], weights[0], atol=np.abs(weights[0]).max() / 100)
    fused = session(new).run(None, feeds[0])[0]
    step = 2 * recipe.scales["h"].scale
    assert SATURATES or np.abs(fused - want).max() <= step  # a tie in requantization moves one step


def test_a_cnn_becomes_integer_kernels(tmp_path):
    model = cnn()
    new, _ = quantized(model, images())
    found = kernels(new, tmp_path)
    assert found["QLinearConv"] == 4 and found["QLinearAdd"] == 1 and found["QGemm"] == 1
    assert found["QLinearGlobalAveragePool"] == 1
    assert not {"Conv", "Relu", "Add", "Gemm", "FusedConv"} & set(found)
    assert found["QuantizeLinear"] == 1 and found["DequantizeLinear"] == 0
    assert sqnr(model, new, images(8, seed=9)) > 25


@pytest.mark.parametrize("kind", ["u8", "s8"])
def test_clip_folds_when_the_range_lies_within_it(tmp_path, kind):
    net = Net()
    six = [net.const(np.float32(v)) for v in (0, 6)]
    a = net.add("Clip", net.conv("x", 3, 16), *six, out="a")
    net.conv(a, 16, 4, out="y")
    model = net.model({"x": [1, 3, 12, 12]}, ["y"])
    new, recipe = quantized(model, [{"x": 20 * f["x"]} for f in images()], settings=Settings(activation=kind))
    scale = recipe.scales["a"]
    assert scale.zero == scale.limits[0] and 255 * scale.scale <= 6.0 * (1 + 1e-6)
    found = kernels(new, tmp_path)
    assert found["QLinearConv"] == 2 and "Clip" not in found


def test_silu_concat_and_constants_become_integer_kernels(tmp_path):
    net = Net()
    a = net.conv("x", 3, 8, out="a")
    silu = net.add("Mul", a, net.add("Sigmoid", a), out="silu")
    b = net.add("Relu", net.conv("x", 3, 8), out="b")
    scaled = net.add(
        "Mul",
        net.add("Concat", silu, b, axis=1),
        net.const(np.linspace(0.5, 2, 16, dtype=np.float32).reshape(1, 16, 1, 1)),
    )
    net.conv(scaled, 16, 4, out="y")
    model = net.model({"x": [1, 3, 12, 12]}, ["y"])
    new, _ = quantized(model, images())
    found = kernels(new, tmp_path)
    assert [found[k] for k in ("QLinearConv", "QLinearSigmoid", "QLinearMul", "QLinearConcat")] == [3, 1, 2, 1]
    assert sqnr(model, new, images(8, seed=9)) > 25


def test_depthwise_between_integer_regions_stays_float(tmp_path):
    """ONNX Runtime would quantize its weight per tensor by itself; the guard keeps it from doing so."""
    net = Net()
    a = net.add("Relu", net.conv("x", 3, 16), out="a")
    b = net.add("Relu", net.conv(a, 16, 16, group=16, out="dw"), out="b")
    net.conv(b, 16, 8, out="y")
    model = net.model({"x": [1, 3, 12, 12]}, ["y"])
    dense = {n.name for n in model.graph.nodes} - {"dw_node", "b_node"}
    new, recipe = quantized(model, images(), nodes=dense)
    found = kernels(new, tmp_path)
    assert found["QLinearConv"] == 2 and found["Conv"] + found["FusedConv"] == 1
    assert len(recipe.weights) == 2


def test_floats_beside_integers_read_what_keeps_the_kernel_whole(tmp_path):
    """A float reader of a quantized tensor must not keep the kernel before it from fusing."""
    net = Net()
    a = net.conv("x", 3, 8, out="a")
    net.add("Add", net.add("Tanh", a), net.conv(a, 8, 8, out="c"), out="y")
    model = net.model({"x": [1, 3, 12, 12]}, ["y", "a"])
    new, _ = quantized(model, images())
    assert [t.name for t in new.graph.outputs] == ["y", "a"]
    assert kernels(new, tmp_path)["QLinearConv"] == 2
    assert sqnr(model, new, images(4, seed=3)) > 25


def test_attention_products_and_float_outputs(tmp_path):
    net = Net()
    q, k = (
        net.add("MatMul", "x", net.const(net.rng.standard_normal((16, 16)).astype(np.float32) / 4), out=n) for n in "qk"
    )
    s = net.add("MatMul", q, net.add("Transpose", k, perm=[0, 2, 1]), out="s")
    net.add("MatMul", net.add("Tanh", s), q, out="y")
    model = net.model({"x": [2, 6, 16]}, ["y"])
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((2, 6, 16)).astype(np.float32)} for _ in range(16)]
    new, _ = quantized(model, feeds)
    found = kernels(new, tmp_path)
    assert found["QLinearMatMul"] == 2 and found["MatMulIntegerToFloat"] == 2
    assert sqnr(model, new, feeds) > 25


def test_a_large_bias_on_a_dead_channel_survives():
    """The scale of a channel whose weights are nearly zero is raised, so that its bias fits in int32."""
    net = Net()
    w = net.rng.standard_normal((4, 3, 3, 3)).astype(np.float32)
    w[2] = 1e-12
    net.add("Conv", "x", net.const(w), net.const(np.float32([0, 1, 50, -1])), out="c", pads=[1] * 4)
    net.conv("c", 4, 2, out="y")
    model = net.model({"x": [1, 3, 12, 12]}, ["y"])
    new, _ = quantized(model, images())
    bias = next(n for n in new.graph.nodes if n.op == "DequantizeLinear" and n.inputs[0].dtype == np.int32)
    real = bias.inputs[0].values * bias.inputs[1].values
    np.testing.assert_allclose(real, [0, 1, 50, -1], atol=1e-3)
    assert sqnr(model, new, images(4, seed=3)) > 25


def test_a_weight_with_two_readers_is_stored_once():
    net = Net()
    w = net.const((net.rng.standard_normal((8, 8, 1, 1)) / 3).astype(np.float32))
    a = net.add("Relu", net.add("Conv", "x", w, out="a"), out="r")
    net.add("Conv", a, w, out="y")
    model = net.model({"x": [1, 8, 6, 6]}, ["y"])
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((1, 8, 6, 6)).astype(np.float32)} for _ in range(8)]
    new, _ = quantized(model, feeds)
    assert sum(t.values.size == 64 for t in new.constants().values() if t.dtype == np.int8) == 1
