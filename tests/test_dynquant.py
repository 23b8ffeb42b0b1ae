"""Dynamic INT8 beside numpy, the kernels it becomes, and what is left alone."""

import numpy as np
import onnx
import pytest
from onnxslim_opt.ir import edit
from onnxslim_opt.passes.dynquant import DynQuant, dynquant, layers
from onnxslim_opt.passes.quant import sensitivity
from onnxslim_opt.passes.transaction import tidy
from onnxslim_opt.runtime import Session
from quant_nets import Net, cnn, context, images, kernels, session, sqnr

from onnxslim_opt import ir

pytestmark = pytest.mark.usefixtures("exact_products")
ALL = DynQuant(compute="all", rounding="nearest", store=False, floor=-100)


def rewritten(model, feeds, p=ALL, **more):
    """(changed copy, result), tidied and valid by the schema."""
    new = model.copy()
    result = p.run(new, context(model, feeds, more.pop("target", "ort-cpu-vnni"), **more))
    tidy(new)
    onnx.checker.check_model(ir.to_proto(new), full_check=True)
    return new, result


def vectors(n=8, rows=4, width=48):
    rng = np.random.default_rng(5)
    return [{"x": rng.standard_normal((rows, width)).astype(np.float32) + 0.3} for _ in range(n)]


def layered(*wides, op="MatMul"):
    """A chain of products with Relu between them; input x [4, 48]."""
    net, x, width = Net(), "x", 48
    for k, wide in enumerate(wides):
        if op == "Gemm":
            x = net.gemm(x, width, wide, out=f"p{k}")
        else:
            w = net.rng.standard_normal((width, wide)).astype(np.float32) / np.float32(np.sqrt(width))
            x = net.add("MatMul", x, net.const(w), out=f"p{k}")
        x, width = (net.add("Relu", x, out=f"h{k}") if k < len(wides) - 1 else x), wide
    return net.model({"x": [4, 48]}, [x])


def dynamic_numpy(x, weight, bias=0.0):
    """What the operators are defined to compute: u8 activations of this input, s8 weights a column."""
    low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
    scale = np.float32((high - low) / 255)
    zero = np.clip(np.rint(-low / scale), 0, 255)
    fake = (np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale
    return fake @ weight + bias


@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_products_are_what_numpy_says(op, tmp_path):
    model, feeds = layered(64, 16, op=op), vectors()
    new, result = rewritten(model, feeds)
    assert result.did == {f"{op} in dynamic int8": 2}
    assert kernels(new, tmp_path)["DynamicQuantizeMatMul"] == 2
    integers = {
        n.inputs[1].name.removesuffix("_int8"): n.inputs[1].values for n in new.graph.nodes if n.op == "MatMulInteger"
    }
    scales = {n: new.constants()[f"{n}_scale"].values for n in integers}
    nodes = [n for n in model.graph.nodes if n.op == op]
    real = [integers[n.inputs[1].name] * scales[n.inputs[1].name] for n in nodes]
    bias = [n.inputs[2].values if op == "Gemm" else 0.0 for n in nodes]
    h = np.maximum(dynamic_numpy(feeds[0]["x"], real[0], bias[0]), 0)
    np.testing.assert_allclose(session(new).run(None, feeds[0])[0], dynamic_numpy(h, real[1], bias[1]), atol=1e-2)
    assert sqnr(model, new, feeds) > 30


def test_layers_that_read_one_tensor_quantize_it_once():
    net = Net()
    parts = [net.gemm("x", 48, 32, out=n) for n in "qkv"]
    net.add("Concat", *parts, out="y", axis=1)
    new, _ = rewritten(net.model({"x": [4, 48]}, ["y"]), vectors())
    assert sum(n.op == "DynamicQuantizeLinear" for n in new.graph.nodes) == 1


def test_a_weight_that_is_read_both_ways_has_integers_for_each():
    """A square one, so that no shape tells the two apart."""
    net = Net()
    w = net.const((net.rng.standard_normal((48, 48)) * np.geomspace(0.01, 1, 48)[:, None]).astype(np.float32))
    net.add("MatMul", net.add("Gemm", "x", w, out="g", transB=1), w, out="y")
    model = net.model({"x": [4, 48]}, ["y"])
    new, result = rewritten(model, vectors())
    assert result.did == {"Gemm in dynamic int8": 1, "MatMul in dynamic int8": 1}
    assert sqnr(model, new, vectors()) > 30


def test_convolutions_and_their_biases():
    model = cnn()
    new, result = rewritten(model, images())
    assert result.did == {"Conv in dynamic int8": 4} and sqnr(model, new, images(4, seed=9)) > 25
    reasons = {s.node: s.reason for s in result.skipped}
    assert reasons["logits_node"].startswith("its weight is too small")
    assert all(n.inputs[1].dtype == np.uint8 for n in new.graph.nodes if n.op == "ConvInteger")


def test_saturating_cpus_get_7_bit_weights():
    new, _ = rewritten(layered(64, 16), vectors(), target="ort-cpu-avx2")
    weights = [n.inputs[1].values for n in new.graph.nodes if n.op == "MatMulInteger"]
    assert max(int(np.abs(w.astype(int)).max()) for w in weights) == 63


def lstm(directions=1):
    net, rng = Net(), np.random.default_rng(1)
    gates = [rng.uniform(-0.3, 0.3, (directions, 96, n)).astype(np.float32) for n in (48, 24)]
    bias = rng.uniform(-0.3, 0.3, (directions, 192)).astype(np.float32)
    way = "bidirectional" if directions == 2 else "forward"
    net.add("LSTM", "x", *(net.const(g) for g in gates), net.const(bias), out="y", hidden_size=24, direction=way)
    return net.model({"x": [5, 1, 48]}, ["y"])


@pytest.mark.parametrize("directions", [1, 2])
def test_lstm_only_where_allowed(directions):
    model = lstm(directions)
    feeds = [{"x": np.random.default_rng(k).standard_normal((5, 1, 48)).astype(np.float32)} for k in range(4)]
    _, refused = rewritten(model, feeds)
    assert not refused.changed and "contrib=true" in refused.skipped[1].reason
    new = model.copy()
    allowed = DynQuant(compute="all", contrib=True, store=False, floor=-100)
    result = allowed.run(new, context(model, feeds))
    assert result.did == {"LSTM in dynamic int8": 1} and new.header.opsets["com.microsoft"] == 1
    assert sqnr(model, new, feeds) > 30


def test_what_has_no_integer_form_says_why():
    net = Net()
    rng = net.rng
    gates = [net.const(rng.uniform(-0.3, 0.3, (1, 72, n)).astype(np.float32)) for n in (48, 24)]
    net.add("GRU", "x", *gates, out="g", hidden_size=24)
    s = net.add("Squeeze", "g", net.const(np.int64([1])), out="s")
    t = net.add("MatMul", s, net.add("Transpose", s, perm=[0, 2, 1]), out="t")
    net.add("Tanh", t, out="y")
    model = net.model({"x": [5, 1, 48]}, ["y"])
    feeds = [{"x": rng.standard_normal((5, 1, 48)).astype(np.float32)} for _ in range(4)]
    _, result = rewritten(model, feeds)
    reasons = {s.node: s.reason for s in result.skipped}
    assert reasons["g_node"] == "no runtime has an integer kernel for GRU"
    assert reasons["t_node"].startswith("both factors are computed")


def branches():
    """One product in each branch: (model, feeds) with the condition c and x [4, 48]."""
    values = ", ".join(f"{v:.6f}" for v in np.random.default_rng(0).standard_normal(48 * 32) / 6)
    model = ir.text.parse(f"""
        <ir_version: 8, opset_import: ["": 17]>
        net (bool c, float[4, 48] x) => (float[4, 32] y)
        {{
          y = If (c) <
            then_branch = yes () => (float[4, 32] a) <float[48, 32] w = {{{values}}}> {{ a = MatMul (x, w) }},
            else_branch = no () => (float[4, 32] b) <float[48, 32] u = {{{values}}}> {{ d = MatMul (x, u) b = Neg (d) }}
          >
        }}""")
    ir.shapes.refresh(model)
    return model, [{"c": np.array(k % 2 == 0), **f} for k, f in enumerate(vectors())]


def test_a_layer_in_a_branch_is_rewritten_where_it_stands():
    model, feeds = branches()
    new, result = rewritten(model, feeds)
    assert result.did == {"MatMul in dynamic int8": 2} and [n.op for n in new.graph.nodes] == ["If"]
    assert sqnr(model, new, feeds) > 30


def test_the_loudest_stay_float_first_and_an_old_opset_is_raised():
    model, feeds = layered(64, 64, 64, 16), vectors(16)
    model.header.opsets[""] = 9
    ctx = context(model, feeds)
    plan = ALL.plan(model, ctx)
    found = []
    for strength in (0.25, 0.5, 1.0):
        new = model.copy()
        result = ALL.apply(new, plan, strength, ctx)
        did, said = result.did, [s.reason for s in result.skipped]
        tidy(new)
        assert len(said) == 4 - did["MatMul in dynamic int8"]
        assert all(f"strength {strength:g} leaves out the loudest: alone it leaves" in why for why in said)
        found.append((did["MatMul in dynamic int8"], sqnr(model, new, feeds)))
        assert did["opset"] == "9 → 11" and new.opset == 11
    assert [n for n, _ in found] == [1, 2, 4]
    assert found[0][1] > found[1][1] > found[2][1]


def recurrent():
    """A bidirectional LSTM of which states are read too, and a product of them: input x [5, 1, 48]."""
    model, rng = lstm(2), np.random.default_rng(1)
    (node,) = model.graph.nodes
    state = edit.variable(model, "state", np.float32, [2, 1, 24])
    node.outputs = [node.outputs[0], state]
    out = edit.node(model, "MatMul", [state, edit.constant(model, "w", rng.normal(size=(24, 32)).astype(np.float32))])
    edit.add(model.graph, out)
    model.graph.outputs.append(out.outputs[0])
    out.outputs[0].dtype, out.outputs[0].shape = np.dtype(np.float32), [2, 1, 32]
    return model, [{"x": rng.standard_normal((5, 1, 48)).astype(np.float32)} for _ in range(8)]


NETS = {
    "products": lambda: (layered(64, 64, 16), vectors()),
    "gemms": lambda: (layered(64, 64, 16, op="Gemm"), vectors()),
    "convolutions": lambda: (cnn(), images()),
    "recurrent": recurrent,
    "branches": branches,
}


@pytest.mark.parametrize("net", NETS)
def test_the_noise_of_each_layer_is_that_of_it_alone_and_takes_one_session(net, monkeypatch):
    model, feeds = NETS[net]()
    p, ctx = DynQuant(compute="all", contrib=True, rounding="nearest"), context(model, feeds)
    plan, loaded = p.plan(model, ctx), []

    class Counted(Session):
        def __init__(self, *args, **more):
            loaded.append(1)
            super().__init__(*args, **more)

    names = set(plan.sets["everything"])
    alone = {n: 10 ** (-dynquant.quality(plan, [n], True, ctx) / 10) for n in names}
    monkeypatch.setattr(sensitivity, "Session", Counted)
    monkeypatch.setattr(dynquant, "Session", Counted)
    found = dynquant._noise(plan, p, ctx)
    assert found == pytest.approx(alone, rel=1e-3) and len(found) > 1 and all(found.values())
    assert list(found.values()) == sorted(found.values(), reverse=True) and len(loaded) == 1


def test_the_floor_is_held_on_the_data():
    model, feeds = layered(64, 64, 64, 16), vectors(16)
    loose, tight = (rewritten(model, feeds, DynQuant(compute="all", store=False, floor=f)) for f in (10, 42))
    assert loose[1].did["MatMul in dynamic int8"] == 4
    assert tight[1].did.get("MatMul in dynamic int8", 0) < 4
    assert not tight[1].changed or sqnr(model, tight[0], feeds) > 39
    _, result = rewritten(model, feeds, DynQuant(compute="all", store=False, floor=41))
    said = {s.node: s.reason for s in result.skipped}
    assert 0 < result.did["MatMul in dynamic int8"] == 4 - len(said) < 4
    assert all("to hold 41 dB the loudest are left out: alone it leaves 4" in why for why in said.values())


def test_rest_is_stored_and_time_decides_by_the_record():
    """With the timings recorded, the same run gives the same bytes."""
    model, feeds = layered(512, 512, 16), vectors(16)
    ctx = context(model, feeds)
    p, found = DynQuant(), []
    for _ in range(2):
        new = model.copy()
        p.run(new, ctx)
        found.append(ir.to_bytes(new))
    assert found[0] == found[1] and len(found[0]) < 0.4 * len(ir.to_bytes(model))


def test_an_lstm_whose_weights_are_no_floats_says_so():
    model = lstm(1)
    node = next(n for n in model.graph.nodes if n.op == "LSTM")
    assert layers.find(model, True, lambda n: False)[1] == []
    node.inputs[2].values = node.inputs[2].values.astype(np.float64)
    found, skips = layers.find(model, True, lambda n: False)
    assert not found and skips[0].reason == "its weights are float64, not float32"
