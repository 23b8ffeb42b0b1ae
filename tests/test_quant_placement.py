"""Placement is data: every decision here is checked without running a model."""

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from onnxslim_opt.passes.quant import calibrate, costs, eligible, measured, placement, planning, regions, statistics
from onnxslim_opt.passes.target import Target
from quant_nets import Net, cnn, context

CPU = Target.named("ort-cpu-vnni")


def place(model, target=CPU, excluded=lambda n: False):
    able, _ = eligible.find(model, target, excluded)
    return placement.place(model, planning.between(model, able), target)


def how(model, **options):
    return {n: d.how for n, d in place(model, **options).decisions.items()}


def test_a_residual_cnn():
    got = place(cnn())
    assert {n: d.how for n, d in got.decisions.items()} == {
        "x": "own",
        "conv_a": "float",
        "relu_a": "own",
        "conv_b": "float",
        "relu_b": "own",
        "conv_c": "own",
        "sum": "float",
        "relu_s": "own",
        "pool": "shared",
        "conv_d": "float",
        "relu_d": "own",
        "gap": "own",
        "flat": "shared",
    }
    assert got.decisions["pool"].group == "relu_s" and got.decisions["flat"].group == "gap"
    assert "logits" not in got.decisions  # Gemm's kernel hands out floats
    assert "inside the fused kernel, before relu_a_node" in got.describe()


def test_concat_of_private_inputs_shares_one_range():
    net = Net()
    a, b = (net.add("Relu", net.conv("x", 3, 8), out=n) for n in "ab")
    net.conv(net.add("Concat", a, b, out="both", axis=1), 16, 4, out="y")
    got = place(net.model({"x": [1, 3, 8, 8]}, ["y"]))
    assert [got.decisions[n].group for n in ("a", "b", "both")] == ["a", "a", "a"]


def test_concat_does_not_share_a_range_that_an_activation_folds_into():
    """With SiLU's negative values in its range a Relu would not fold, and its Conv would be float."""
    net = Net()
    a = net.add("Relu", net.conv("x", 3, 8), out="a")
    b = net.conv("x", 3, 8, out="b")
    net.conv(net.add("Concat", a, b, out="both", axis=1), 16, 4, out="y")
    got = place(net.model({"x": [1, 3, 8, 8]}, ["y"]))
    assert [got.decisions[n].group for n in ("a", "b", "both")] == ["a", "b", "b"]


def test_concat_of_an_input_used_elsewhere_keeps_its_range():
    net = Net()
    a, b = (net.add("Relu", net.conv("x", 3, 8), out=n) for n in "ab")
    c = net.add("Concat", a, b, out="both", axis=1)
    net.add("Add", net.conv(c, 16, 8, out="d"), net.conv(a, 8, 8, out="e"), out="y")
    got = place(net.model({"x": [1, 3, 8, 8]}, ["y"]))
    assert got.decisions["a"].group == "a" and got.decisions["b"].group == got.decisions["both"].group == "b"


def test_the_tail_that_gathers_boxes_and_scores_stays_float():
    """Nothing multiplies behind the Concat: integers there save nothing and put boxes and scores in one range."""
    net = Net()
    body = net.add("Relu", net.conv("x", 3, 16), out="body")
    boxes = net.conv(body, 16, 4, out="boxes")
    scores = net.add("Sigmoid", net.conv(body, 16, 8, out="logits"), out="scores")
    net.add("Reshape", net.add("Concat", boxes, scores, out="head", axis=1), net.const(np.array([0, 12, -1])), out="y")
    got = how(net.model({"x": [1, 3, 8, 8]}, ["y"]))
    assert got == {"x": "own", "body": "own", "boxes": "own", "logits": "own"} | {
        k: v for k, v in got.items() if v == "float"
    }
    assert "head" not in got and "scores" not in got and "y" not in got


def test_sigmoid_has_a_fixed_range():
    net = Net()
    a = net.conv("x", 3, 8, out="a")
    silu = net.add("Mul", a, net.add("Sigmoid", a, out="gate"), out="silu")
    net.conv(silu, 8, 4, out="y")
    assert how(net.model({"x": [1, 3, 8, 8]}, ["y"])) == {
        "x": "own",
        "a": "own",
        "gate": "fixed",
        "silu": "own",
        "y": "own",
    }


def test_what_only_moves_a_sigmoid_keeps_its_range_and_what_joins_it_with_others_does_not():
    net = Net()
    a = net.conv("x", 3, 8, out="a")
    gate = net.add("Sigmoid", net.conv("x", 3, 8), out="gate")
    net.conv(net.add("Transpose", gate, out="turned", perm=[0, 1, 3, 2]), 8, 4, out="y")
    both = net.add("Concat", net.add("Sigmoid", a, out="share"), net.conv(a, 8, 8, out="b"), out="both", axis=1)
    net.add("Add", net.conv(both, 16, 8, out="c"), net.conv("b", 8, 8, out="d"), out="z")
    placed = place(net.model({"x": [1, 3, 8, 8]}, ["y", "z"]))
    ways = {n: placed.decisions[n].how for n in ("gate", "turned", "share", "both")}
    assert ways == {"gate": "fixed", "turned": "fixed", "share": "fixed", "both": "shared"}
    seen = {n: calibrate.Seen(-3.0 * (n == "both"), 0.9, np.zeros(1), np.ones(1)) for n in placed.quantized()}
    known = statistics.Statistics(statistics.Settings("minmax"), seen, {})
    ends = {n: known.ends(placed, placed.decisions[n].group) for n in ways}
    assert ends["gate"] == ends["turned"] == (0.0, 1.0) and ends["share"] == ends["both"] == (-3.0, 0.9)


def test_a_relu_with_other_readers_before_it_does_not_fold():
    net = Net()
    a = net.conv("x", 3, 8, out="a")
    net.conv(net.add("Add", net.add("Relu", a, out="r"), a, out="s"), 8, 4, out="y")
    assert how(net.model({"x": [1, 3, 8, 8]}, ["y"]))["a"] == "own"


def test_refusals_have_reasons():
    net = Net()
    w = net.const(net.rng.standard_normal((8, 8)).astype(np.float32))
    g = net.add("Gemm", "x", w, out="g", alpha=0.5)
    net.add("MatMul", net.add("Tanh", g, out="t"), w, out="m")
    net.add("Conv", "z", net.add("Relu", "w"), out="c")
    model = net.model({"x": [4, 8], "z": [1, 1, 4, 4], "w": [1, 1, 3, 3]}, ["m", "c"])
    able, skips = eligible.find(model, CPU, lambda n: n.name == "m_node")
    assert {s.node: s.reason for s in skips} == {
        "g_node": "no integer kernel for transA, alpha or beta",
        "m_node": "excluded by the user",
        "c_node": "its weight is computed in the graph",
    }
    assert eligible.refusal(model.graph.nodes[1], CPU) == "Tanh has no integer kernel on ort-cpu-vnni"
    assert "g_node" not in able


def test_a_gelu_stays_one_kernel():
    net = Net()
    h, root, one, half = net.conv("x", 4, 8, out="h"), *(net.const(np.float32(v)) for v in (2**0.5, 1.0, 0.5))
    gate = net.add("Add", net.add("Erf", net.add("Div", h, root)), one, out="gate")
    net.conv(net.add("Mul", net.add("Mul", h, gate, out="m"), half, out="gelu"), 8, 4, out="y")
    model = net.model({"x": [1, 4, 6, 6]}, ["y"])
    assert how(model) == {"x": "own", "h": "own", "gelu": "own", "y": "own"}
    assert set(eligible.find(model, CPU, lambda n: False)[0]) == {"h_node", "y_node"}


def shapes_of(model):
    return {n: tuple(t.shape) for n, t in model.tensors().items() if t.shape is not None}


def test_regions_take_dense_and_leave_depthwise_float():
    net = Net()
    a = net.add("Relu", net.conv("x", 64, 64), out="a")
    b = net.add("Relu", net.conv(a, 64, 64), out="b")
    c = net.add("Relu", net.conv(b, 64, 64, group=64), out="c")
    net.add("Relu", net.conv(c, 64, 64, group=64), out="y")
    model = net.model({"x": [1, 64, 28, 28]}, ["y"])
    able, _ = eligible.find(model, CPU, lambda n: False)
    chosen = regions.choose(model, able, CPU, shapes_of(model))
    assert chosen == {"conv2_node", "a_node", "conv5_node", "b_node"} or chosen == {
        n.name for n in model.graph.nodes[:4]
    }


def test_a_banned_tensor_takes_its_neighbours_out():
    model = cnn()
    able, _ = eligible.find(model, CPU, lambda n: False)
    able = {n: able[n] for n in planning.between(model, able)}
    left = regions.without(able, {"relu_b"}, CPU, placement.folds(model, CPU))
    assert set(able) - set(left) == {"conv_b_node", "relu_b_node", "conv_c_node"}


def test_islands_without_a_product_are_dropped():
    model = cnn()
    useful = regions.only_useful(model, {"relu_s_node", "pool_node"}, CPU)
    assert useful == set()
    assert regions.only_useful(model, {"conv_a_node", "relu_a_node"}, CPU) == {"conv_a_node", "relu_a_node"}


def test_tensorrt_does_not_take_what_it_has_no_kernel_for():
    net = Net()
    a = net.conv("x", 3, 8, out="a")
    net.conv(net.add("Mul", a, net.add("Sigmoid", a), out="silu"), 8, 4, out="y")
    model = net.model({"x": [1, 3, 8, 8]}, ["y"])
    able, _ = eligible.find(model, Target.named("tensorrt"), lambda n: False)
    assert {n.op for n in able.values()} == {"Conv"}


def test_fused_kernels_are_credited_to_the_product_they_begin_with():
    """Conv and Relu are one kernel in float, named after the Relu; in integers too."""
    net = Net()
    a = net.add("Relu", net.conv("x", 64, 64, out="c"), out="a")
    net.conv(a, 64, 64, out="y")
    model = net.model({"x": [1, 64, 28, 28]}, ["y"])
    able, _ = eligible.find(model, CPU, lambda n: False)
    ctx = context(model, [{"x": np.ones((1, 64, 28, 28), np.float32)}] * 2)
    found = measured.measure(model, model, able, shapes_of(model), ctx)
    assert found["c_node"][0] > 1000 and found["a_node"][0] == 0.0
    assert found["y_node"][0] == found["y_node"][1] > 1000


def test_measured_costs_decide_regions():
    net = Net()
    a = net.conv("x", 64, 64, out="a")
    net.conv(a, 64, 64, out="y")
    model = net.model({"x": [1, 64, 28, 28]}, ["y"])
    able, _ = eligible.find(model, CPU, lambda n: False)
    slow = dict.fromkeys(able, (1.0, 1000000000.0))
    assert regions.choose(model, able, CPU, shapes_of(model), known=slow) == set()
    assert regions.choose(model, able, CPU, shapes_of(model)) == set(able)


def paid(model, chosen, known, tolls, sizes):
    """What a set of nodes costs, counted node by node and tensor by tensor."""
    total = sum(known[n.name][n.name in chosen] for n in model.graph.nodes)
    total += sum(v for n, v in tolls.nodes.items() if n in chosen)
    inner = {r.inputs[0].name for r in placement.folds(model, CPU).values()}
    touched = set()
    for name, tensor in model.tensors().items():
        if name in inner or not isinstance(tensor, gs.Variable):
            continue
        made = bool(tensor.inputs) and tensor.inputs[0].name in chosen
        readers = [r.name in chosen for r in tensor.outputs]
        if made and (not readers or not all(readers)):
            total += costs.DEQUANTIZE * sizes[name]
        if not made and any(readers):
            total += costs.QUANTIZE * sizes[name]
        if any(readers) or (made and tensor.inputs[0].op != "Gemm"):
            touched.add(tolls.group.get(name))
    return total + sum(tolls.groups[g] for g in touched - {None})


@pytest.mark.parametrize("seed", range(6))
def test_the_cut_is_the_cheapest_of_all_sets(seed):
    """Beside every one of the 512 sets: kernels, conversions, and tolls for noise, shared by a group."""
    model, rng = cnn(), np.random.default_rng(seed)
    able, _ = eligible.find(model, CPU, lambda n: False)
    sizes = {n: np.prod(s) for n, s in shapes_of(model).items()}
    scale = costs.QUANTIZE * float(np.median(list(sizes.values())))
    known = {n: tuple(rng.uniform(0, 4 * scale, 2)) for n in able}
    group = {"relu_a": "a", "relu_s": "a", "pool": "s", "conv_c": "c", "logits": "l", "x": "x"}
    groups = {g: float(rng.uniform(0, 3 * scale)) for g in set(group.values())}
    tolls = regions.Tolls(group, groups, {"conv_b_node": float(scale)})
    pairs = {n: r.name for n, r in placement.folds(model, CPU).items()}
    keys = [n for n in able if n not in pairs.values()]
    sets = [{n for k, n in enumerate(keys) if bits >> k & 1} for bits in range(2 ** len(keys))]
    sets = [s | {pairs[n] for n in s if n in pairs} for s in sets]
    best = min(paid(model, s, known, tolls, sizes) for s in sets)
    chosen = regions.cut(model, able, CPU, shapes_of(model), 1.0, known, tolls)
    assert paid(model, chosen, known, tolls, sizes) == pytest.approx(best, rel=1e-5)


def test_a_toll_that_is_high_enough_keeps_a_tensor_float():
    model = cnn()
    able, _ = eligible.find(model, CPU, lambda n: False)
    dear = dict.fromkeys(able, (1e9, 1.0))
    everything = regions.choose(model, able, CPU, shapes_of(model), known=dear)
    tolls = regions.Tolls({"relu_b": "relu_b"}, {"relu_b": 1e11})
    left = regions.choose(model, able, CPU, shapes_of(model), known=dear, tolls=tolls)
    assert everything - left == {"conv_b_node", "relu_b_node", "conv_c_node"}


@pytest.mark.parametrize(("target", "held"), [("openvino", True), ("tensorrt", True), ("ort-cpu-vnni", False)])
def test_kernels_that_can_hand_out_floats_neither_pay_for_their_output_nor_leave_for_it(target, held):
    """Convolutions and the activations that vanish into them, where the target's kernels end in floats as well."""
    net = Net()
    a = net.add("Relu", net.conv("x", 8, 8, out="c"), out="a")
    net.add("Tanh", a, out="y")
    model, where = net.model({"x": [1, 8, 12, 12]}, ["y"]), Target.named(target)
    able, _ = eligible.find(model, where, lambda n: False)
    assert set(able) == {"c_node", "a_node"}
    left = set(able) if held else set()
    assert set(regions.without(able, {"a"}, where, placement.folds(model, where))) == left
    dear, tolls = dict.fromkeys(able, (1e9, 1.0)), regions.Tolls({"a": "a"}, {"a": 1e11})
    assert regions.choose(model, able, where, shapes_of(model), known=dear, tolls=tolls) == left
