"""What other runtimes ask of quantized files: TensorRT's documented rules by structure, OpenVINO by running it."""

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from onnxslim_opt.ir import edit, ops
from onnxslim_opt.passes.dynquant import DynQuant
from onnxslim_opt.passes.quant import Quant, choosing
from onnxslim_opt.passes.transaction import tidy
from onnxslim_opt.passes.weightquant import WeightQuant
from quant_nets import Net, attention, cnn, context, images, kernels, session, sqnr

from onnxslim_opt import ir


def quantized(model, feeds, target, p=None):
    new = model.copy()
    (p or Quant(compute="all", floor=0)).run(new, context(model, feeds, target))
    tidy(new)
    return new


@pytest.mark.parametrize("make", [lambda: (cnn(), images()), attention], ids=["cnn", "attention"])
def test_tensorrt_rules(make):
    """Symmetric int8 alone; activations a tensor, weights an output channel; float biases; residuals left to fuse."""
    model, feeds = make()
    new = quantized(model, feeds, "tensorrt")
    pairs = [n for n in new.graph.nodes if n.op in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) > 8
    for node in pairs:
        zero = edit.const(node, 2)
        assert zero is not None and zero.dtype == np.int8 and not zero.any(), node.name
        assert edit.const(node, 1) is not None and (edit.const(node, 1) > 0).all()
        if node.op == "QuantizeLinear" or isinstance(node.inputs[0], gs.Variable):
            assert edit.const(node, 1).ndim == 0, node.name
        else:
            assert node.inputs[0].dtype == np.int8 and np.abs(node.inputs[0].values.astype(int)).max() <= 127
    for node in new.graph.nodes:
        weight = ops.facts(node).weight(node)
        if weight is not None and node.inputs[weight.index].inputs:
            maker = node.inputs[weight.index].inputs[0]
            if isinstance(maker.inputs[0], gs.Constant):
                assert maker.attrs["axis"] == weight.out_axis % len(maker.inputs[0].shape)
                assert edit.get(node, 2) is None or isinstance(node.inputs[2], gs.Constant)
        if node.op == "Add":
            makers = [edit.producer(t) for t in node.inputs]
            assert [m.op for m in makers].count("DequantizeLinear") == 1, "one side of a residual is left to its kernel"
    assert sqnr(model, new, feeds) > 20


def test_openvino_adds_to_what_a_convolution_hands_over_unrounded():
    new = quantized(cnn(), images(), "openvino")
    (add,) = [n for n in new.graph.nodes if n.op == "Add"]
    assert sorted(edit.producer(t).op for t in add.inputs) == ["Conv", "DequantizeLinear"]


@pytest.mark.parametrize(("target", "rounded"), [("openvino", False), ("tensorrt", False), ("ort-cpu-vnni", True)])
def test_what_only_floats_read_is_rounded_only_where_kernels_must_hand_out_integers(target, rounded):
    """Convolution and activation that end in a float operator (Elu), and a second reader in integers."""
    net = Net()
    x = net.add("Relu", net.conv("x", 3, 8), out="r")
    net.conv(x, 8, 8, out="y")
    net.add("Elu", x, out="z")
    model = net.model({"x": [1, 3, 12, 12]}, ["y", "z"])
    new = quantized(model, images(), target)
    (elu,) = [n for n in new.graph.nodes if n.op == "Elu"]
    assert edit.producer(elu.inputs[0]).op == ("DequantizeLinear" if rounded else "Relu")
    second = [n for n in new.graph.nodes if n.op == "Conv"][1]
    assert edit.producer(second.inputs[0]).op == "DequantizeLinear"
    assert sqnr(model, new, images(4)) > 20


@pytest.mark.parametrize("target", ["openvino", "tensorrt"])
def test_a_sum_that_stays_float_has_statistics_for_what_it_adds(target):
    model, ctx = cnn(), context(cnn(), images(), target)
    plan = Quant(compute="all", floor=0).plan(model, ctx)
    new = choosing.build(plan, frozenset(plan.able) - {"sum_node", "relu_s_node"})
    ir.verify.check(new)
    assert sqnr(model, new, images(4)) > 20


def test_cpu_targets_quantize_both_sides_of_a_residual():
    new = quantized(cnn(), images(), "ort-cpu-vnni")
    (add,) = [n for n in new.graph.nodes if n.op == "Add"]
    assert [edit.producer(t).op for t in add.inputs] == ["DequantizeLinear"] * 2


def maxima():
    """A product of what a maximum over all places leaves, which drops its axes."""
    net = Net()
    a = net.add("Relu", net.conv("x", 3, 64))
    net.gemm(net.add("ReduceMax", a, axes=[2, 3], keepdims=0), 64, 32, out="y")
    return net.model({"x": [1, 3, 12, 12]}, ["y"], 17), images()


@pytest.mark.parametrize(("target", "ops_there"), [("openvino", ["Squeeze"]), ("ort-cpu-vnni", [])])
def test_maxima_keep_their_axes_for_openvino(target, ops_there):
    model, feeds = maxima()
    new = quantized(model, feeds, target)
    (top,) = [n for n in new.graph.nodes if n.op == "ReduceMax"]
    assert top.attrs["keepdims"] == len(ops_there)
    assert [n.op for n in new.graph.nodes if n.op == "Squeeze"] == ops_there
    assert sqnr(model, new, images(4)) > 25


@pytest.mark.parametrize(
    ("make", "p"),
    [
        (lambda: (cnn(), images()), Quant(compute="all", floor=0)),
        (maxima, Quant(compute="all", floor=0)),
        (attention, Quant(compute="all", floor=0)),
        (attention, Quant(compute="none")),
        (attention, DynQuant(compute="all", floor=0)),
        (attention, WeightQuant(form="folded", floor=-100)),
        (attention, WeightQuant(form="dequantize", floor=-100)),
    ],
    ids=["cnn", "maxima", "attention", "stored", "dynamic", "blocks folded", "blocks"],
)
def test_openvino_loads_and_agrees(make, p):
    """To 1 % of the outputs' range with ONNX Runtime running the same file as it stands."""
    openvino = pytest.importorskip("openvino")
    model, feeds = make()
    new = quantized(model, feeds, "openvino", p)
    core = openvino.Core()
    # with compressed weights OpenVINO would else quantize activations by itself, which is its noise and not the file's
    exact = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    there = core.compile_model(core.read_model(ir.to_bytes(new)), "CPU", exact)
    here = session(new, optimize=False)
    for feed in feeds[:6]:
        want = here.run(None, feed)[0]
        found = there(feed)[0]
        assert np.abs(found - want).max() <= 0.01 * (want.max() - want.min())


def wide_pairs(kind=np.uint16):
    """Two convolutions between 16-bit quantize/dequantize pairs, weights in 8 bits."""
    net, x = Net(), "x"
    top, zero = net.const(np.float32(8 / np.iinfo(kind).max), "step"), net.const(np.zeros((), kind), "zero")
    for k in range(2):
        weight = net.const(net.rng.integers(-127, 128, (16, 16, 3, 3)).astype(np.int8))
        weight = net.add("DequantizeLinear", weight, net.const(np.float32(0.002)))
        x = net.add("DequantizeLinear", net.add("QuantizeLinear", x, top, zero), top, zero)
        x = net.add("Relu", net.add("Conv", x, weight, kernel_shape=[3, 3], pads=[1] * 4), out=f"r{k}")
    last = net.add("DequantizeLinear", net.add("QuantizeLinear", x, top, zero), top, zero, out="y")
    return net.model({"x": [1, 16, 12, 12]}, [last], 21)


@pytest.mark.parametrize("kind", [np.uint16, np.int16])
def test_16_bit_activations_have_no_integer_kernels_in_onnx_runtime(kind, tmp_path):
    """Why loud tensors stay float: the pairs stay beside float convolutions, and cost their conversions."""
    found = kernels(wide_pairs(kind), tmp_path)
    assert found["QLinearConv"] == 0 and found["Conv"] + found["FusedConv"] == 2
    assert found["QuantizeLinear"] == 3 and found["DequantizeLinear"] >= 3


@pytest.mark.parametrize("kind", [np.uint16, np.int16])
def test_16_bit_activations_have_no_integer_kernels_in_openvino(kind):
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    made = core.compile_model(core.read_model(ir.to_bytes(wide_pairs(kind))), "CPU", options).get_runtime_model()
    infos = [{k: v.astype(str) for k, v in node.get_rt_info().items()} for node in made.get_ops()]
    assert [i["runtimePrecision"] for i in infos if i["layerType"] == "Convolution"] == ["f32", "f32"]


def test_constants_that_are_added_have_no_zero_point_where_the_target_takes_none():
    net = Net()
    held = net.const(np.linspace(0.5, 2, 8, dtype=np.float32).reshape(8, 1, 1))
    net.conv(net.add("Add", net.conv("x", 3, 8, out="c"), held, out="s"), 8, 8, out="y")
    model = net.model({"x": [1, 3, 12, 12]}, ["y"])
    new = quantized(model, images(), "tensorrt", Quant(compute="all", floor=0, equalise=False))
    pairs = [n for n in new.graph.nodes if n.op in ("QuantizeLinear", "DequantizeLinear")]
    zeros = [edit.const(n, 2) for n in pairs]
    assert len(pairs) == 9 and all(z.dtype == np.int8 and not z.any() for z in zeros)
    assert sqnr(model, new, images(4)) > 30
