"""fp16 and bf16: every operator's types right by its schema, ranges kept, files half the size."""

import numpy as np
import onnx
import pytest
import suite
from onnxslim_opt.ir.errors import OptionError
from onnxslim_opt.passes.halfs import Bf16, Fp16
from onnxslim_opt.passes.target import Target
from onnxslim_opt.passes.transaction import tidy
from quant_nets import Net, cnn, context, images, kernels, session, sqnr

from onnxslim_opt import ir

HALF = Fp16(compute="all")


def halved(model, feeds, p=HALF, **more):
    """(changed copy, result); sorted, inferred and verified as the pipeline does."""
    new = model.copy()
    result = p.run(new, context(model, feeds, **more))
    tidy(new)
    try:
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
    except onnx.shape_inference.InferenceError:  # what came in does not satisfy it either
        return new, result
    onnx.checker.check_model(ir.to_proto(new), full_check=True)
    return new, result


def one_node_cases():
    """Backend cases with a float input whose original runs, as (name, bytes, feeds, outputs)."""
    for case in suite.cases():
        proto = suite.model(case)
        if not any(i.type.tensor_type.elem_type == onnx.TensorProto.FLOAT for i in proto.graph.input):
            continue
        data, names = proto.SerializeToString(), [i.name for i in proto.graph.input]
        try:
            feeds = suite.feeds(case, names)
            if not all(np.isfinite(v).all() for v in feeds.values() if getattr(v, "dtype", None) == np.float32):
                continue  # data with NaN is refused by name before any pass runs
            yield case.name, data, feeds, suite.session(data).run(None, feeds)
        except Exception:  # ONNX Runtime has no kernel for the case
            continue


def test_every_operator_of_the_suite_keeps_valid_types_and_values():
    """Whole graphs in fp16, as far as schemas allow: they load, keep their interface, and agree to fp16's precision."""
    half, kept, bad = set(), set(), {}
    for name, data, feeds, wanted in one_node_cases():
        model = ir.from_bytes(data)
        try:
            new, _ = halved(model, [feeds], seed=0)
        except Exception as error:
            bad[name] = f"{type(error).__name__}: {error}"[:200]
            continue
        ops = {n.op for n in model.nodes()}
        changed = any(n.op == "Cast" and n.attrs["to"] == onnx.TensorProto.FLOAT16 for n in new.nodes())
        (half if changed else kept).update(ops)
        try:
            after = suite.session(ir.to_bytes(new))
            if suite.interface(after) != suite.interface(suite.session(data)):
                bad[name] = "interface"
            elif "NonMax" not in name and not all(near(a, b) for a, b in zip(wanted, after.run(None, feeds))):
                bad[name] = "values"
        except Exception as error:
            bad[name] = str(error)[:200]
    assert not bad
    assert len(half) > 80


def near(a, b):
    """Equal to fp16's precision, of the tensor's largest value."""
    if isinstance(a, (list, dict)) or a is None or np.asarray(a).dtype.kind != "f":
        return suite.same(a, b)
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    good = np.isfinite(a)
    gap = np.abs(np.where(good, a - np.where(good, b, 0), 0))
    return a.shape == b.shape and bool((gap <= 4e-3 * max(1.0, np.abs(a[good]).max(initial=0))).all())


@pytest.mark.parametrize("p", [Fp16(), Bf16()])
def test_stored_weights_leave_the_kernels_as_they_were(p, tmp_path):
    model = cnn()
    new, result = halved(model, images(), p)
    assert result.did == {f"weights stored in {p.name}": 5}
    assert kernels(new, tmp_path) == kernels(model, tmp_path)
    assert len(ir.to_bytes(new)) < 0.55 * len(ir.to_bytes(model))
    assert sqnr(model, new, images(4)) > (60 if p.name == "fp16" else 45)


def test_the_whole_network_computes_in_fp16_behind_two_casts():
    model = cnn()
    new, result = halved(model, images())
    assert result.did == {"nodes in fp16": len(model.graph.nodes), "casts": 2}
    assert all(t.dtype == np.float16 for n in new.graph.nodes if n.op != "Cast" for t in n.outputs)
    assert sqnr(model, new, images(4)) > 50
    plain = halved(model, images(), Fp16(compute="all", keep_io=False))[0]
    assert [t.dtype for t in (*plain.inputs, *plain.outputs)] == [np.float16, np.float16]
    assert [t.name for t in (*plain.inputs, *plain.outputs)] == ["x", "logits"]
    assert not any(n.op == "Cast" for n in plain.graph.nodes)


def test_a_target_with_fp16_arithmetic_computes_and_others_store():
    model = cnn()
    _, there = halved(model, images(), Fp16(), target=Target.named("tensorrt"))
    notes = []
    _, here = halved(model, images(), Fp16(), on_note=notes.append)
    assert "nodes in fp16" in there.did and "nodes in fp16" not in here.did
    assert len(notes) == 1 and "halves the file and leaves the speed as it is" in notes[0]


def test_what_does_not_fit_stays_float_with_the_reason():
    net = Net()
    big = net.add("Mul", net.conv("x", 3, 4, out="c"), net.const(np.float32(1e5)), out="big")
    tiny = net.add("Div", big, net.const(np.float32(1e-9)), out="tiny")
    net.add("Relu", net.add("Mul", tiny, net.const(np.float32(1e-14)), out="s"), out="y")
    model = net.model({"x": [1, 3, 12, 12]}, ["y"])
    new, result = halved(model, images())
    reasons = {s.node: s.reason for s in result.skipped}
    assert "beyond 65504" in reasons["big_node"] and "too small for fp16" in reasons["tiny_node"]
    kinds = {n.name: n.outputs[0].dtype for n in new.graph.nodes}
    assert kinds["big_node"] == kinds["tiny_node"] == kinds["s_node"] == np.float32
    assert kinds["c_node"] == kinds["y_node"] == np.float16
    assert sqnr(model, new, images(4)) > 50


def test_values_that_overflow_on_the_data_stay_float():
    net = Net()
    a = net.add("Mul", "x", net.const(np.float32(3e4)), out="a")
    net.add("Tanh", net.add("Mul", a, net.const(np.float32(1e-3)), out="b"), out="y")
    model = net.model({"x": [1, 3, 12, 12]}, ["y"])
    _, result = halved(model, images())
    assert {s.node: s.reason[:26] for s in result.skipped}.get("a_node") == "stays float: values reach "
    assert "a_node" not in {s.node for s in halved(model, [{"x": f["x"] / 100} for f in images()])[1].skipped}


def test_a_logarithm_of_small_powers_stays_float():
    """The floor under it is lost in fp16, and so is the logarithm of whatever lies below 6e-8."""
    net = Net()
    power = net.add("Mul", net.add("Abs", "x", out="a"), net.const(np.float32(1e-3)), out="p")
    net.add("Log", net.add("Add", power, net.const(np.float32(1e-6)), out="m"), out="y")
    model = net.model({"x": [1, 3, 12, 12]}, ["y"])
    feeds = images()
    new, result = halved(model, feeds)
    assert {n.name for n in new.graph.nodes if n.outputs[0].dtype == np.float16} >= {"a_node", "p_node"}
    reasons = {s.node: s.reason for s in result.skipped}
    assert reasons["y_node"].endswith("Log has its pole where fp16 rounds to zero") and "m_node" in reasons
    a, b = (session(m, optimize=False).run(None, feeds[0])[0] for m in (model, new))
    np.testing.assert_allclose(a, b, atol=0.01)


def test_weights_beyond_the_format_are_left_or_clamped():
    net = Net()
    w = np.linspace(-1, 1, 3 * 400, dtype=np.float32).reshape(3, 400)
    w[0, 0] = -3.4e38  # as masks have it
    net.add("Clip", net.add("Gemm", "x", net.const(w), out="g"), net.const(np.float32(-50)), out="y")
    model = net.model({"x": [2, 3]}, ["y"])
    feeds = [{"x": np.abs(np.random.default_rng(k).standard_normal((2, 3))).astype(np.float32)} for k in range(4)]
    left, result = halved(model, feeds, Fp16())
    assert result.did == {} and "beyond 65504" in result.skipped[-1].reason and len(left.graph.nodes) == 2
    new, result = halved(model, feeds, Fp16(overflow="clamp"))
    assert result.did == {"weights stored in fp16": 1, "weights clamped": 1}
    assert sqnr(model, new, feeds) > 60


def test_scales_of_a_resize_and_shared_constants():
    net = Net()
    scale = net.const(np.float32([1, 1, 2, 2]), "scales")
    shared = net.const(net.rng.standard_normal((1, 3, 24, 24)).astype(np.float32), "shared")
    r = net.add("Resize", "x", "", scale, out="r", mode="linear")
    a = net.add("Add", r, shared, out="a")
    norm = net.add("ReduceL2", shared, out="norm", keepdims=0)
    net.add("Mul", a, norm, out="y")
    model = net.model({"x": [1, 3, 12, 12]}, ["y"])
    new, _ = halved(model, images())
    resize = next(n for n in new.graph.nodes if n.op == "Resize")
    assert resize.inputs[0].dtype == np.float16 and resize.inputs[2].dtype == np.float32
    readers = {n.op: n.inputs[-1].dtype for n in new.graph.nodes if n.op in ("Add", "ReduceL2")}
    assert readers["Add"] == np.float16  # the float form of the constant is stored once, for the norm
    assert sqnr(model, new, images(4)) > 50


IF = """
<ir_version: 8, opset_import: ["": 17]>
net (bool c, float[4, 32] x) => (float[4, 32] y)
<float[32, 32] w = {%s}>
{
  h = Relu (x)
  z = If (c) <
    then_branch = yes () => (float[4, 32] a) { a = MatMul (h, w) },
    else_branch = no () => (float[4, 32] b) { b = Identity (h) }
  >
  y = Tanh (z)
}"""


@pytest.mark.parametrize("p", [HALF, Fp16(), Bf16()])
def test_branches_stay_float_and_their_weights_are_stored(p):
    rng = np.random.default_rng(0)
    model = ir.text.parse(IF % ", ".join(f"{v:.6f}" for v in rng.standard_normal(1024) / 6))
    ir.shapes.refresh(model)
    feeds = [{"c": np.array(k % 2 == 0), "x": rng.standard_normal((4, 32)).astype(np.float32)} for k in range(4)]
    new, result = halved(model, feeds, p)
    assert result.did[f"weights stored in {p.name}"] == 1
    assert sqnr(model, new, feeds) > 45
    if p is HALF:
        assert result.did["nodes in fp16"] == 2 and any("subgraphs" in s.reason for s in result.skipped)
        inner = [n for g in new.graphs() if g is not new.graph for n in g.nodes if n.op == "MatMul"]
        assert inner[0].inputs[0].dtype == np.float32


def test_bf16_raises_an_old_opset():
    model = cnn(opset=11)
    new, result = halved(model, images(), Bf16())
    assert result.did["opset"] == "11 → 13" and new.opset == 13
    assert sqnr(model, new, images(4)) > 45


def test_constants_that_an_old_version_lists_as_inputs_stay_constants():
    """IR 3 lists every initializer as an input; raised, the same list would make them defaults of inputs."""
    proto = ir.to_proto(cnn(opset=11))
    proto.ir_version = 3
    for held in proto.graph.initializer:
        proto.graph.input.append(onnx.helper.make_tensor_value_info(held.name, held.data_type, held.dims))
    model = ir.from_proto(proto)
    tidy(model)
    new, result = halved(model, images(), Bf16())
    assert result.did["opset"] == "11 → 13" and [t.name for t in new.graph.inputs] == ["x"]
    assert not new.header.defaults and sqnr(model, new, images(4)) > 45


def test_weaker_stores_less_and_excluded_nodes_keep_theirs():
    model, ctx = cnn(), context(cnn(), images())
    counts = []
    for strength in (0.2, 0.6, 1.0):
        p = Fp16(compute="none", exclude="conv_b")
        counts.append(p.apply(model.copy(), p.plan(model, ctx), strength, ctx).did["weights stored in fp16"])
    assert counts == [1, 2, 4]
    with pytest.raises(OptionError, match="no regular expression"):
        Fp16(exclude="(")


@pytest.mark.parametrize("first", [True, False])
def test_a_weight_that_an_excluded_node_reads_too_stays(first):
    net = Net()
    w = net.const(net.rng.standard_normal((32, 32)).astype(np.float32), "w")
    net.add("MatMul", net.add("Tanh", net.add("MatMul", "x", w, out="a")), w, out="b")
    model, out = net.model({"x": [4, 32]}, ["b"]), "a_node" if first else "b_node"
    feeds = [{"x": net.rng.standard_normal((4, 32)).astype(np.float32)} for _ in range(4)]
    new, result = halved(model, feeds, Fp16(compute="none", exclude=out))
    why = "excluded by the user" if first else "'b_node', which is excluded, reads 'w' too"
    assert result.did == {} and {s.node: s.reason for s in result.skipped}["a_node"] == why
    assert new.constants()["w"].dtype == np.float32


def test_inputs_that_only_floats_read_keep_their_type():
    net = Net()
    net.conv("x", 3, 4, out="y")
    net.add("Tanh", "t", out="z")
    model = net.model({"x": [1, 3, 12, 12], "t": [4]}, ["y", "z"])
    feeds = [{**f, "t": np.float32([1, 2, 3, 4])} for f in images()]
    new, _ = halved(model, feeds, Fp16(compute="all", keep_io=False, exclude="z_node"))
    assert {t.name: np.dtype(t.dtype).name for t in (*new.inputs, *new.outputs)} == {
        "x": "float16",
        "t": "float32",
        "y": "float16",
        "z": "float32",
    }
    assert not any(n.op == "Cast" for n in new.graph.nodes)
