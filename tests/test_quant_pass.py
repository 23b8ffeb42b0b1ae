"""The pass as a whole: opsets, options, strength, determinism, targets, and the real models."""

import json
import re
from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from onnxslim_opt.ir.errors import OptionError
from onnxslim_opt.passes.dynquant import DynQuant
from onnxslim_opt.passes.optimize import optimize
from onnxslim_opt.passes.quant import Quant, choosing, eligible, saturation, sensitivity
from onnxslim_opt.passes.quant.planning import Plan
from onnxslim_opt.passes.target import Target
from onnxslim_opt.passes.weightquant import WeightQuant
from onnxslim_opt.runtime import Timings
from quant_nets import Net, attention, cnn, context, images, kernels, session, sqnr

from onnxslim_opt import ir


def run(model, ctx, strength=1.0, **options):
    """(new model, result, plan); the original stays as it is."""
    p = Quant(**options)
    before = ir.to_bytes(model)
    plan = p.plan(model, ctx)
    assert ir.to_bytes(model) == before, "plan edited the model"
    new = model.copy()
    result = p.apply(new, plan, strength, ctx)
    ir.verify.check(new)
    return new, result, plan


@pytest.mark.parametrize("opset", [9, 11, 13, 17])
def test_old_opsets_are_raised_and_said_so(tmp_path, opset):
    model = cnn(opset=opset)
    new, result, _ = run(model, context(model, images()), compute="all")
    assert new.opset == max(opset, 13)
    assert result.did.get("opset") == (f"{opset} → 13" if opset < 13 else None)
    assert [t.name for t in new.graph.inputs] == ["x"] and [t.name for t in new.graph.outputs] == ["logits"]
    assert kernels(new, tmp_path)["QLinearConv"] == 4
    assert sqnr(model, new, images(8, seed=9)) > 25


def test_auto_never_takes_what_is_slower():
    """With timings that say that integers are slow, weights are only stored."""
    model, notes = cnn(), []

    class Slow(Timings):
        def measure(self, key, run):
            kernels = "profiling" in run.__module__
            return run() if kernels else [[1.0, 1.0, 9], *[[2.0, 0.5, 9]] * 5]

    ctx = context(
        model, images(), replace(Target.named("ort-cpu-vnni"), native=True), timings=Slow(), on_note=notes.append
    )
    new, result, _ = run(model, ctx)
    assert not any(n.op == "QuantizeLinear" for n in new.graph.nodes)
    assert result.did["weights stored in 8 bits"] == 4
    assert "not faster than float here (best candidate 0.50×)" in notes[0]
    assert result.details["candidates"][0]["speedup"] == 0.5


def test_two_runs_are_the_same_to_the_byte(tmp_path):
    model, path = cnn(), tmp_path / "timings.json"
    files = []
    for _ in range(2):
        ctx = context(model, images(), timings=Timings(path))
        new, _, _ = run(model, ctx)
        ctx.timings.save()
        files.append(ir.to_bytes(new))
    assert files[0] == files[1] and json.loads(path.read_text())["timings"]


def test_damage_grows_with_strength():
    model, feeds = cnn(), images(24)
    ctx = context(model, feeds)
    p = Quant(compute="all")
    plan = p.plan(model, ctx)
    quiet = []
    for strength in (0.1, 0.5, 1.0):
        new = model.copy()
        p.apply(new, plan, strength, ctx)
        quiet.append(sqnr(model, new, images(8, seed=9)))
    assert quiet[0] >= quiet[1] >= quiet[2] and quiet[0] > quiet[2] + 3


def test_excluded_nodes_stay(tmp_path):
    model = cnn()
    _, result, plan = run(model, context(model, images()), compute="all", exclude="conv_b")
    assert "conv_b_node" not in plan.able
    assert any(s.node == "conv_b_node" and s.reason == "excluded by the user" for s in result.skipped)


def test_the_loudest_tensors_are_left_float_to_hold_the_floor():
    """A layer with one huge channel in a tensor: quantizing that tensor drowns the others."""
    net = Net()
    w = net.rng.standard_normal((16, 3, 3, 3)).astype(np.float32) / 5
    w[0] *= 3000
    a = net.add("Relu", net.add("Conv", "x", net.const(w), out="loud", pads=[1] * 4), out="outliers")
    v = net.rng.standard_normal((16, 16, 3, 3)).astype(np.float32) / 12
    v[:, 0] /= 3000
    b = net.add("Relu", net.add("Conv", a, net.const(v), out="next", pads=[1] * 4), out="calm")
    net.conv(b, 16, 8, out="y")
    model = net.model({"x": [1, 3, 12, 12]}, ["y"])
    check = images(8, seed=9)
    every, _, _ = run(model, context(model, images()), compute="all", floor=-100.0)
    held, result, plan = run(model, context(model, images()), compute="all", floor=25.0)
    assert sqnr(model, every, check) < 22 < 23 < sqnr(model, held, check)
    assert next(iter(plan.noise)) == "outliers" and result.details["float"] == ["outliers"]
    why = "stays float to hold 25 dB: quantizing 'outliers' alone leaves 15 dB"
    assert [(s.node, s.reason) for s in result.skipped] == [("loud_node", why), ("next_node", why)]
    assert "dB alone" in plan.describe()


def reasons(plan, model, ctx, strength=1.0, **options):
    """{layer: why it stays float} of one try."""
    result = Quant(**options).apply(model.copy(), plan, strength, ctx)
    return {s.node: s.reason for s in result.skipped}


@pytest.mark.parametrize("target", ["ort-cpu-vnni", "tensorrt", "openvino"])
@pytest.mark.parametrize("compute", ["all", "auto"])
def test_what_the_strength_leaves_float_is_not_said_to_be_slow(target, compute):
    model, feeds = attention()
    ctx = context(model, feeds, target)
    plan = Quant(compute=compute, floor=0.0).plan(model, ctx)
    plan.costs = dict.fromkeys(plan.able, (1000.0, 10.0))  # integers gain everywhere
    assert reasons(plan, model, ctx, compute=compute, floor=0.0) == {}
    weak = reasons(plan, model, ctx, 0.8, compute=compute, floor=0.0)
    why = re.compile(r"stays float at strength 0\.8: quantizing '\w+' alone leaves \d\d dB")
    assert 0 < len(weak) < 7 and all(why.fullmatch(reason) for reason in weak.values()), weak


@pytest.mark.usefixtures("literal_sessions")
def test_what_does_not_gain_says_how_that_is_known():
    model = cnn()
    ctx = context(model, images(), "ort-cpu-vnni")
    plan = Quant(floor=0.0).plan(model, ctx)
    tail = "would not be faster, by the table of costs"
    assert reasons(plan, model, ctx) == {"conv_a_node": f"stays float: integers with their conversions {tail}"}
    plan.timed.clear()
    plan.costs = {n: (10.0, 1e6) if n in ("conv_b_node", "relu_b_node") else (1e6, 10.0) for n in plan.able}
    assert reasons(plan, model, ctx) == {
        "conv_b_node": "stays float: integers with their conversions are not faster here"
    }


@pytest.mark.usefixtures("literal_sessions")
def test_a_layer_left_float_for_its_weight_says_so():
    model = cnn()
    ctx = context(model, images(), "ort-cpu-vnni")
    plan = Quant(compute="all").plan(model, ctx)
    plan.loud = {choosing.weights(plan)["conv_b_node"]: 10.0}
    why = "stays float to hold 25 dB: rounding its weight alone leaves -10 dB"
    assert reasons(plan, model, ctx, compute="all") == {"conv_b_node": why}


def test_a_strength_that_leaves_no_integers_is_told_from_a_floor_that_is_not_held():
    model = cnn()
    ctx = context(model, images(), "ort-cpu-vnni")
    for floor, strength, why in (
        (0.0, 0.3, "strength 0.3 leaves nothing for integers"),
        (200.0, 1.0, "integers do not come near the 200 dB asked for"),
        (200.0, 0.3, "integers do not come near the 200 dB asked for"),
    ):
        plan = Quant(compute="all", floor=floor).plan(model, ctx)
        assert reasons(plan, model, ctx, strength, compute="all", floor=floor)[""] == why


def test_what_the_user_limits_is_aimed_at_from_the_start():
    """A limit above the floor is a floor: fewer layers in integers, at full strength."""
    model = cnn()
    ctx = context(model, images(24))
    placed = [
        run(model, replace(ctx, own_db=limit), compute="all", floor=floor)[1].details["placement"]
        for limit, floor in ((-np.inf, 25.0), (20.0, 25.0), (54.0, 25.0), (-np.inf, 55.5))
    ]
    assert placed[0] == placed[1] != placed[2] == placed[3]


def test_stored_weights_grow_quiet_with_the_strength():
    """Layers beside integer kernels are stored finer the less noise is allowed."""
    net = Net()
    kernel = net.const((net.rng.standard_normal((32, 8, 3, 3)) / 17).astype(np.float32))
    net.add("ConvTranspose", net.add("Relu", net.conv("x", 3, 32, out="a")), kernel, out="y")  # no integer kernel
    model = net.model({"x": [1, 3, 12, 12]}, ["y"])
    ctx, p = context(model, images()), Quant(compute="all")
    plan, kinds = p.plan(model, ctx), []
    for strength in (1.0, 0.03):
        new = model.copy()
        p.apply(new, plan, strength, ctx)
        kinds.append({str(t.values.dtype) for n, t in new.constants().items() if "_int" in n})
    assert kinds == [{"int8"}, {"int16"}]


def masked(width=16):
    """Attention whose scores get the least float added where `mask` is 0: inputs x [1, 8, 16], mask [1, 8]."""
    net = Net()
    q, k, v = (
        net.add("MatMul", "x", net.const(net.rng.standard_normal((width, width)).astype(np.float32) / 4))
        for _ in range(3)
    )
    nowhere = net.add("Mul", net.add("Sub", net.const(np.float32(1)), "mask"), net.const(np.float32(-3e38)))
    scores = net.add("Add", net.add("MatMul", q, net.add("Transpose", k, perm=[0, 2, 1])), nowhere, out="scores")
    o = net.add("MatMul", net.add("Softmax", scores, axis=-1), v)
    net.add("MatMul", o, net.const(net.rng.standard_normal((width, width)).astype(np.float32) / 4), out="y")
    return net.model({"x": [1, 8, width], "mask": [1, 8]}, ["y"])


def test_the_masks_of_attention_do_not_set_the_range_of_scores():
    model, rng = masked(), np.random.default_rng(0)
    feeds = [
        {"x": rng.standard_normal((1, 8, 16)).astype(np.float32), "mask": (np.arange(8) < n)[None].astype(np.float32)}
        for n in rng.integers(4, 9, 24)
    ]
    new, result, plan = run(model, context(model, feeds[::2]), compute="all", floor=20.0)
    assert "scores" in result.details["float"] and plan.noise["scores"] > 0.1
    assert result.did["layers in 8 bits"] == 4 and sqnr(model, new, feeds[1::2]) > 20


def test_integers_that_miss_the_floor_by_far_are_not_used():
    """Every tensor keeps the floor alone, all together do not, and there is nothing left to leave float."""
    model = cnn()
    _, result, _ = run(model, context(model, images()), compute="all", floor=200.0)
    assert "layers in 8 bits" not in result.did


def saturating_gemm(x, w):
    """u8 × s8 as AVX2 adds it: pairs of products in int16, which saturates."""
    products = x.astype(np.int32)[:, None, :] * w.astype(np.int32)[None]
    pairs = products.reshape(*products.shape[:2], -1, 2).sum(axis=-1)
    return np.clip(pairs, -32768, 32767).sum(axis=-1)


def test_a_network_made_to_saturate_holds_on_avx2():
    rng = np.random.default_rng(0)
    net = Net()
    w = rng.uniform(0.8, 1.0, (8, 32)).astype(np.float32)
    net.add("Gemm", "x", net.const(w), net.const(np.zeros(8, np.float32)), out="y", transB=1)
    model = net.model({"x": [4, 32]}, ["y"])
    feeds = [{"x": rng.uniform(0.6, 1, (4, 32)).astype(np.float32)} for _ in range(16)]
    quality = {}
    for name in ("ort-cpu-vnni", "ort-cpu-avx2"):
        ctx = context(model, feeds, name)
        p = Quant(compute="all")
        plan = p.plan(model, ctx)
        recipe = plan.stats.recipe(plan.base, plan.full)
        x, packed = recipe.scales["x"], recipe.weights["y_node"]
        signal = noise = 0.0
        for feed in feeds:
            integers = np.clip(np.rint(feed["x"] / x.scale) + x.zero, 0, 255)
            out = saturating_gemm(integers, packed.values) - x.zero * packed.values.astype(np.int32).sum(axis=1)
            real = out * x.scale * packed.scale
            want = feed["x"] @ w.T
            signal, noise = signal + (want**2).sum(), noise + ((want - real) ** 2).sum()
        quality[name] = 10 * np.log10(signal / noise)
        assert (np.abs(packed.values).max() <= saturation.SAFE) == (name == "ort-cpu-avx2")
    assert quality["ort-cpu-vnni"] < 15 and quality["ort-cpu-avx2"] > 30


def test_only_layers_at_risk_get_7_bits():
    """Weights of one sign side by side can leave int16, those of changing sign cannot: the second keeps all 8 bits,
    and the whole network holds where pairs saturate."""
    rng, net = np.random.default_rng(1), Net()
    first = rng.uniform(0.8, 1.0, (16, 32)).astype(np.float32)
    second = (rng.uniform(0.8, 1.0, (8, 16)) * np.tile([1, -1], 8)).astype(np.float32)
    h = net.add("Gemm", "x", net.const(first), net.const(np.zeros(16, np.float32)), out="h", transB=1)
    net.add("Gemm", h, net.const(second), net.const(np.zeros(8, np.float32)), out="y", transB=1)
    model = net.model({"x": [4, 32]}, ["y"])
    feeds = [{"x": rng.uniform(0.6, 1, (4, 32)).astype(np.float32)} for _ in range(16)]
    quality = {}
    for name in ("ort-cpu-vnni", "ort-cpu-avx2"):
        plan = Quant(compute="all", equalise=False).plan(model, context(model, feeds, name))
        recipe = plan.stats.recipe(plan.base, plan.full)
        signal = noise = 0.0
        for feed in feeds:
            real, want = feed["x"], (feed["x"] @ first.T) @ second.T
            for tensor, layer in (("x", "h_node"), ("h", "y_node")):
                x, packed = recipe.scales[tensor], recipe.weights[layer]
                integers = np.clip(np.rint(real / x.scale) + x.zero, 0, 255)
                out = saturating_gemm(integers, packed.values) - x.zero * packed.values.astype(np.int32).sum(axis=1)
                real = out * x.scale * packed.scale + recipe.shifts.get(layer, 0.0)
            signal, noise = signal + (want**2).sum(), noise + ((want - real) ** 2).sum()
        quality[name] = 10 * np.log10(signal / noise)
    assert plan.stats.reduced == {"h_node"} and np.abs(recipe.weights["y_node"].values).max() > saturation.SAFE
    assert quality["ort-cpu-vnni"] < 12 and quality["ort-cpu-avx2"] > 25, quality


def test_types_follow_target_and_option():
    model = cnn()
    for target, option, kind in [
        ("ort-cpu-vnni", "auto", np.uint8),
        ("ort-cpu-arm", "auto", np.int8),
        ("ort-cpu-vnni", "s8s8", np.int8),
    ]:
        new, _, _ = run(model, context(model, images(), target), compute="all", types=option)
        zeros = {n.inputs[2].dtype for n in new.graph.nodes if n.op == "QuantizeLinear"}
        assert zeros == {np.dtype(kind)}
    new, _, _ = run(model, context(model, images(), "tensorrt"), compute="all")
    assert {int(n.inputs[2].values) for n in new.graph.nodes if n.op == "QuantizeLinear"} == {0}


def test_control_flow_and_recurrence_are_not_broken():
    net = Net()
    rng = np.random.default_rng(0)
    w, r = (net.const(rng.uniform(-0.3, 0.3, (1, 64, n)).astype(np.float32)) for n in (16, 16))
    h = net.add("LSTM", "x", w, r, out="h", hidden_size=16)
    h = net.add("Squeeze", h, net.const(np.array([1])))
    net.add("MatMul", h, net.const(rng.standard_normal((16, 4)).astype(np.float32)), out="y")
    model = net.model({"x": [5, 1, 16]}, ["y"])
    feeds = [{"x": rng.standard_normal((5, 1, 16)).astype(np.float32)} for _ in range(8)]
    new, result, _ = run(model, context(model, feeds), compute="all")
    assert any(s.node == "h_node" and "LSTM has no integer kernel" in s.reason for s in result.skipped)
    assert sqnr(model, new, feeds) > 20


def test_bad_options_are_named():
    with pytest.raises(OptionError, match="exclude: '\\(' is no regular expression"):
        Quant(exclude="(")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "db"), [("cifar10_resnet20", 28.5), ("squeezenet1_1", 32.8)])
def test_real_models_reach_what_peers_reach(shared, name, db):
    model = ir.load(shared / "models" / f"{name}.onnx")
    ir.shapes.refresh(model)
    ctx = context(model, f"{shared}/tasks.py:{name}_data")
    new, _, _ = run(model, ctx, compute="all")
    assert sqnr(model, new, list(ctx.check)[:24]) >= db


@pytest.mark.slow
def test_silero_vad_is_left_valid(shared):
    for name in ("silero_vad", "silero_vad_16k_op15"):
        model = ir.load(shared / "models" / f"{name}.onnx")
        ctx = context(model, f"{shared}/tasks.py:{name}_data")
        new, result, _ = run(model, ctx)
        feed = ctx.check.first()
        assert all(np.isfinite(v).all() for v in session(new).run(None, feed))
        assert result.skipped


def test_layers_are_set_one_by_one():
    model = cnn()
    ctx = context(model, images())
    options = {"compute": "all", "floor": 0.0, "calibrate": "mse", "percentile": 90.0, "equalise": False}
    new, result, plan = run(model, ctx, **options, layers="^conv_b=float;^conv_a=percentile")
    assert isinstance(next(n for n in new.graph.nodes if n.name == "conv_b_node").inputs[1], gs.Constant)
    placed = plan.stats.scales(plan.full)
    plain = run(model, ctx, **options)[2].stats.scales(plan.full)
    assert placed["relu_a"].scale < 0.8 * plain["relu_a"].scale
    assert placed["relu_d"] == plain["relu_d"]
    assert "conv_b_node" in result.details["exclude"]


def test_a_layer_said_to_be_int8_is_not_left_float_for_being_loud():
    model = cnn()
    ctx = context(model, images())
    kept = run(model, ctx, compute="all", floor=70.0, layers="^conv_c=int8")
    plain = run(model, ctx, compute="all", floor=70.0)
    assert "layers in 8 bits" not in plain[1].did
    assert kept[1].did["layers in 8 bits"] == 1


@pytest.mark.parametrize("text", ["conv", "conv=int9", "(=float"])
def test_bad_layers_are_named(text):
    with pytest.raises(OptionError, match="layers"):
        Quant(layers=text)


@pytest.mark.parametrize("compute", ["all", "none"])
def test_layers_that_are_not_there_are_refused(compute):
    model = cnn()
    with pytest.raises(OptionError, match="quant: layers: nothere matches no node"):
        Quant(compute=compute, layers="conv_a=float;nothere=int8").plan(model, context(model, images()))


def test_layers_that_earlier_passes_replaced_are_told():
    model, notes = cnn(), []
    ctx = context(model, images(), on_note=notes.append)
    for node in model.graph.nodes:
        node.name = node.name.replace("conv_b_node", "conv_b_first")
    Quant(compute="none", layers="conv_b_node=float;conv_a=float").plan(model, ctx)
    assert [n for n in notes if "layers" in n] == [
        "quant: layers: conv_b_node matches no node any more: earlier passes replaced it"
    ]


def test_layers_may_name_what_the_pass_itself_makes():
    """A Sum of three is taken apart; the report names its parts."""
    net = Net()
    a, b, c = (net.conv("x", 3, 8, out=n) for n in "abc")
    net.conv(net.add("Sum", a, b, c, out="s"), 8, 8, out="y")
    model = net.model({"x": [1, 3, 12, 12]}, ["y"])
    _, _, plan = run(model, context(model, images()), compute="all", floor=0.0)
    (made,) = [n for n in plan.able if n not in {m.name for m in model.graph.nodes}]
    _, _, plan = run(model, context(model, images()), compute="all", floor=0.0, layers=f"^{re.escape(made)}$=float")
    assert made not in plan.able


def test_the_tail_is_a_ready_exclusion_list():
    net = Net()
    a = net.add("Relu", net.conv("x", 3, 8, out="c"), out="a")
    boxes, scores = net.conv(a, 8, 4, 1, out="boxes"), net.conv(a, 8, 4, 1, out="scores")
    net.add("Concat", boxes, net.add("Sigmoid", scores, out="s"), out="y", axis=1)
    model = net.model({"x": [1, 3, 12, 12]}, ["y"])
    _, result, plan = run(model, context(model, images()), compute="all", floor=0.0)
    assert set(plan.tail) == {"s_node", "y_node"}
    assert re.search(result.details["exclude"], "y_node") and not re.search(result.details["exclude"], "c_node")


def test_noise_is_counted_where_the_outputs_are_finite():
    x, y = np.float32([[3, 4], [0, 0]]), np.float32([[3, 4], [0, 1]])
    noise = sensitivity.noise_of
    assert noise([{"a": x}], [{"a": y}]) == 1 / 25
    masked, other = np.float32([[3, 4], [0, -np.inf]]), np.float32([[3, 5], [0, -np.inf]])
    assert noise([{"a": masked}], [{"a": other}]) == 1 / 25
    for broken in (
        np.full((2, 2), np.nan, np.float32),
        np.full((2, 2), np.inf, np.float32),
        x[:1],
        np.float32([[3, 4]] * 3),
    ):
        assert noise([{"a": x}], [{"a": broken}]) == 1.0
    assert noise([{"a": masked}], [{"a": np.float32([3, 4, 0])}]) == 1.0
    assert noise([{"a": x[:0]}], [{"a": x}]) == 1.0 and noise([{"a": x[:0]}], [{"a": x[:0]}]) == 0.0


@pytest.mark.usefixtures("literal_sessions")
@pytest.mark.parametrize("p", [Quant(compute="all"), Quant(compute="none"), DynQuant(compute="all"), WeightQuant()])
def test_a_layer_that_never_sees_a_row_does_not_end_the_pass(p):
    """The second stage of a detector that finds nothing in the data: no rows, which are rounded to nearest."""
    net = Net()
    w = [net.const((net.rng.standard_normal((32, 32)) / 6).astype(np.float32)) for _ in range(3)]
    a = net.add("Relu", net.add("MatMul", "x", w[0]), out="a")
    found = net.add("Greater", "k", net.const(np.float32(0)))
    b = net.add("MatMul", net.add("Compress", a, found, axis=0), w[1], out="b")
    net.add("MatMul", net.add("LayerNormalization", b, net.const(np.ones(32, np.float32))), w[2], out="z")
    model, rng = net.model({"x": [6, 32], "k": [6]}, ["a", "z"]), np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((6, 32)).astype(np.float32), "k": np.zeros(6, np.float32)} for _ in range(8)]
    new = model.copy()
    result = p.run(new, context(model, feeds, "ort-cpu-vnni"))
    assert result.changed and sqnr(model, new, feeds) > 15
    found = [{**f, "k": np.ones(6, np.float32)} for f in feeds]
    assert session(new).run(None, found[0])[1].shape == (6, 32) and sqnr(model, new, found) > 15
    if p == Quant(compute="all"):  # there is no range to quantize the second stage with
        assert result.did["layers in 8 bits"] == 1
        assert {s.node for s in result.skipped if "no values" in s.reason} == {"b_node", "z_node"}


def test_a_weight_that_is_too_loud_leaves_all_its_readers_float():
    net = Net()
    w = net.const(np.ones((16, 16), np.float32), "w")
    net.add("MatMul", net.add("Relu", net.add("MatMul", "x", w, out="a"), out="b"), w, out="y")
    model = net.model({"x": [4, 16]}, ["y"])
    able, _ = eligible.find(model, Target.named("ort-cpu-vnni"), lambda n: False)
    plan = Plan(model, Target.named("ort-cpu-vnni"), able=able, loud={"w": 0.5})
    assert choosing._banned(plan, 25.0, 0.0) == (frozenset(), {"a_node", "y_node"})


def test_a_level_that_is_no_number_holds_nothing():
    model, target = cnn(), Target.named("ort-cpu-vnni")
    able, _ = eligible.find(model, target, lambda n: False)
    levels = choosing._Levels(Plan(model, target, able=able), context(model, images()))
    levels.of = lambda nodes: float("nan")
    assert choosing._held(levels.plan, levels, "all", lambda aim: set(able), 25.0) == frozenset()


def test_an_input_that_is_also_an_output_stays_both():
    model = ir.text.parse("g (float[2,64] x, float[64,32] w) => (float[2,32] y, float[2,64] x) { y = MatMul(x, w) }")
    w = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    ir.edit.set_input(model.graph.nodes[0], 1, ir.edit.constant(model, "w", w))
    del model.graph.inputs[1]
    data = [{"x": np.random.default_rng(k).standard_normal((2, 64)).astype(np.float32)} for k in range(16)]
    found = optimize(model, "quant:compute=all", data=data)
    assert found.report.verdict == "ok"
    assert [t.name for t in found.model.graph.inputs] == ["x"]
    assert np.array_equal(session(found.model).run(None, data[0])[1], data[0]["x"])
