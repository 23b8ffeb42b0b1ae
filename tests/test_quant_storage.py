"""Weights that stay float in an 8-bit file: folded at load, valid at old opsets, nothing else touched."""

import numpy as np
import onnx
import pytest
from onnxslim_opt.passes.quant import Quant, rounding, storage
from quant_nets import Net, cnn, context, images, kernels, session, sqnr

from onnxslim_opt import ir


def free(node):
    return False


@pytest.mark.parametrize("opset", [9, 11, 17])
def test_the_same_float_kernels_run(tmp_path, opset):
    model = cnn(opset=opset)
    new = model.copy()
    did, skips = storage.store(new, (), free)
    assert did == {"weights stored in 8 bits": 4} and not skips and new.opset == opset
    assert kernels(new, tmp_path) == kernels(model, tmp_path)
    assert len(ir.to_bytes(new)) < 0.35 * len(ir.to_bytes(model))
    assert sqnr(model, new, images(4)) > 35


def test_constants_of_the_original_are_untouched():
    model = cnn()
    before = {n: t.values.copy() for n, t in model.constants().items()}
    storage.store(model.copy(), (), free)
    assert all(np.array_equal(before[n], t.values) for n, t in model.constants().items())


def test_a_share_goes_into_8_bits_least_hurt_first_and_the_rest_into_16():
    model = cnn()
    elements = int(sum(np.prod(t.shape) for t in model.constants().values() if len(t.shape) >= 2))
    counts, errors = [], []
    for share in (0.0, 0.5, 1.0):
        new = model.copy()
        did, _ = storage.store(new, (), free, share)
        counts.append(did.get("weights stored in 8 bits", 0))
        errors.append(sqnr(model, new, images(4)))
        narrow = [t for t in new.constants().values() if t.dtype == np.int8]
        assert sum(np.prod(t.shape) for t in narrow) <= share * elements
        assert sum(did.values()) == 4
    assert counts[0] == 0 < counts[1] < counts[2] == 4
    assert errors[0] > 75 and errors[0] > errors[1] > errors[2]


def test_the_loudest_weights_get_16_bits():
    sizes = {"small": 50, "large": 900, "quiet": 50}
    assert storage.wide(sizes, {"small": 1e-2, "large": 1e-2, "quiet": 1e-9}) == {"small"}
    assert storage.wide(sizes, {"small": 1e-2, "large": 1e-2, "quiet": 1e-9}, floor_db=25) == {"small", "large"}
    assert storage.wide(sizes, {"small": 1e-9, "large": 1e-9, "quiet": 1e-9}) == set()
    model = cnn()
    new = model.copy()
    name = next(n.inputs[1].name for n in model.graph.nodes if n.outputs[0].name == "conv_d")
    did, _ = storage.store(new, (), free, loud={name: 0.1})
    assert did == {"weights stored in 8 bits": 3, "weights stored in 16 bits": 1}
    assert any(t.dtype == np.int16 and t.values.shape == (32, 32, 1, 1) for t in new.constants().values())


def test_a_recurrent_network_keeps_its_states():
    rng = np.random.default_rng(0)
    net = Net()
    w, r = (net.const(rng.uniform(-0.3, 0.3, (1, 64, n)).astype(np.float32)) for n in (8, 16))
    net.add("LSTM", "x", w, r, out="y", hidden_size=16)
    model = net.model({"x": [5, 1, 8]}, ["y"])
    new = model.copy()
    did, _ = storage.store(new, (), free)
    assert did == {"weights stored in 8 bits": 2}
    feed = {"x": rng.standard_normal((5, 1, 8)).astype(np.float32)}
    a, b = (session(m).run(None, feed)[0] for m in (model, new))
    np.testing.assert_allclose(a, b, atol=2e-3)


def test_an_opset_without_broadcasting_is_refused():
    model = cnn()
    model.header.opsets[""] = 6
    assert storage.store(model, (), free)[0] == {}
    assert "opset 6 is too old" in storage.store(model, (), free)[1][0].reason


def test_rounding_for_the_inputs_loses_less_and_keeps_the_mean():
    model = cnn(channels=48)
    feeds = [{"x": f["x"] + 1} for f in images(24)]
    ctx = context(model, feeds)
    rounded = rounding.refine(model, ctx.fit, ctx)
    assert len(rounded) == 5
    plain, fitted = model.copy(), model.copy()
    storage.store(plain, (), free)
    storage.store(fitted, (), free, rounded=rounded)
    check = [{"x": f["x"] + 1} for f in images(8, seed=9)]
    assert sqnr(model, fitted, check) > sqnr(model, plain, check) + 3


def test_a_weight_in_a_branch_is_stored_where_it_stands(tmp_path):
    """ONNX Runtime folds it there too: the optimized branches hold the product alone."""
    rng = np.random.default_rng(0)
    values = ", ".join(f"{v:.6f}" for v in rng.standard_normal(1024) / 6)
    model = ir.text.parse(f"""
        <ir_version: 8, opset_import: ["": 17]>
        net (bool c, float[4, 32] x) => (float[4, 32] y)
        {{
          y = If (c) <
            then_branch = yes () => (float[4, 32] a) <float[32, 32] w = {{{values}}}> {{ a = MatMul (x, w) }},
            else_branch = no () => (float[4, 32] b) {{ b = Neg (x) }}
          >
        }}""")
    new = model.copy()
    did, skips = storage.store(new, (), free)
    ir.verify.check(new)
    assert did == {"weights stored in 8 bits": 1} and not skips
    assert [n.op for n in new.graph.nodes] == ["If"]
    feeds = [{"c": np.array(k % 2 == 0), "x": rng.standard_normal((4, 32)).astype(np.float32)} for k in range(4)]
    assert sqnr(model, new, feeds) > 35
    session(new, tmp_path / "optimized.onnx")
    branches = [a.g for a in onnx.load(tmp_path / "optimized.onnx").graph.node[0].attribute]
    assert sorted([n.op_type for n in g.node] for g in branches) == [["MatMul"], ["Neg"]]


def test_without_real_data_only_storage_changes():
    model, notes = cnn(opset=11), []
    ctx = context(model, images(), source="random", on_note=notes.append)
    p = Quant()
    plan = p.plan(model, ctx)
    result = p.apply(model, plan, 1.0, ctx)
    assert result.did == {"weights stored in 8 bits": 4} and model.opset == 11
    assert not any(n.op == "QuantizeLinear" for n in model.graph.nodes)
    assert len(notes) == 1 and "no real data" in notes[0] and "no real data" in result.skipped[0].reason


def test_storage_at_opset_8_and_ir_3_is_valid_by_the_schema():
    """Where came with opset 9, and so did Constant nodes that hold integers: IR 3 has no place for the weight."""
    model = cnn(opset=8)
    model.header.ir_version = 3
    new, ctx = model.copy(), context(model, images())
    result = Quant(compute="none").run(new, ctx)
    assert result.did["weights stored in 8 bits"] >= 4
    ir.verify.check(new)
    proto = ir.to_proto(new)
    onnx.checker.check_model(proto, full_check=True)
    assert proto.ir_version == 4 and proto.opset_import[0].version == 8
    assert [t.name for t in proto.graph.input] == ["x"]
    assert sqnr(model, new, images(seed=9)) > 30


@pytest.mark.parametrize(
    ("shape", "attrs", "shifts"),
    [([16], {}, True), ([1, 16], {}, True), ([1], {}, True), ([4, 16], {}, False), ([4, 1], {}, False)]
    + [([16], {"beta": 0.5}, False), (None, {"beta": 0.5}, False), (None, {}, True)],
)
def test_only_a_bias_of_outputs_takes_up_the_mean_of_the_error(shape, attrs, shifts):
    net, rng = Net(), np.random.default_rng(0)
    given = [] if shape is None else [net.const(rng.standard_normal(shape).astype(np.float32))]
    net.add("Gemm", "x", net.const(rng.standard_normal((48, 16)).astype(np.float32)), *given, out="y", **attrs)
    model = net.model({"x": [4, 48]}, ["y"])
    feeds = [{"x": rng.standard_normal((4, 48)).astype(np.float32) + 1} for _ in range(8)]
    ctx = context(model, feeds)
    assert bool(rounding.refine(model, ctx.fit, ctx)) is shifts
    new = model.copy()
    assert Quant(compute="none").run(new, ctx).did == {"weights stored in 8 bits": 1}
    assert sqnr(model, new, feeds) > 35


def test_a_weight_that_an_excluded_node_reads_too_stays():
    net = Net()
    w = net.const(net.rng.standard_normal((32, 32)).astype(np.float32), "w")
    net.add("MatMul", net.add("Tanh", net.add("MatMul", "x", w, out="body")), w, out="head")
    model = net.model({"x": [4, 32]}, ["head"])
    did, skips = storage.store(model, (), lambda n: n.name == "head_node")
    assert did == {} and model.constants()["w"].dtype == np.float32
    assert {s.node: s.reason for s in skips} == {
        "body_node": "'head_node', which is excluded, reads 'w' too",
        "head_node": "excluded by the user",
    }
