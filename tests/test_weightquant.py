"""Block-wise weights: every form is the same numbers, GPTQ beats rounding to nearest, files are as small as said."""

import itertools
import sys

import numpy as np
import onnx
import pytest
from onnxslim_opt.passes.simplify import Simplify
from onnxslim_opt.passes.transaction import tidy
from onnxslim_opt.passes.weightquant import WeightQuant, blocks
from onnxslim_opt.passes.weightquant.blocks import Grid
from onnxslim_opt.runtime import probe
from quant_nets import SATURATES, Net, context, kernels, session, sqnr

from onnxslim_opt import ir


def rewritten(model, feeds, p, **more):
    """(changed copy, result), tidied and valid by the schema."""
    new = model.copy()
    result = p.run(new, context(model, feeds, more.pop("target", "ort-cpu-vnni"), **more))
    tidy(new)
    onnx.checker.check_model(ir.to_proto(new), full_check=True)
    return new, result


def mlp(width=96, rows=8):
    """MatMul, Tanh, Gemm (transB), Tanh, MatMul: input x [rows, width]."""
    net = Net()
    a = net.add("MatMul", "x", net.const(spiky(net.rng, (width, 64))), out="a")
    b = net.gemm(net.add("Tanh", a, out="ta"), 64, 128, out="b")
    net.add("MatMul", net.add("Tanh", b, out="tb"), net.const(spiky(net.rng, (128, 32))), out="y")
    return net.model({"x": [rows, width]}, ["y"])


def spiky(rng, shape):
    return (rng.standard_normal(shape) * np.exp(rng.standard_normal(shape) / 2) / np.sqrt(shape[0])).astype(np.float32)


def inputs(n=24, rows=8, width=96, seed=3):
    """Correlated inputs with a few large channels, as activations of transformers have them."""
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((12, width)) + 0.1
    mix[:, ::17] *= 8
    rng = np.random.default_rng(seed)
    noise = [rng.standard_normal((rows, width)) * 0.2 for _ in range(n)]
    return [{"x": (rng.standard_normal((rows, 12)) @ mix + e).astype(np.float32)} for e in noise]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_every_form_is_the_same_network(bits, symmetric, tmp_path):
    model, feeds = mlp(), inputs()
    options = {"bits": bits, "symmetric": symmetric, "store": False, "floor": -100}
    forms = {f: rewritten(model, feeds, WeightQuant(form=f, **options))[0] for f in ("folded", "dequantize")}
    plain = {f: session(m, optimize=False).run(None, feeds[0])[0] for f, m in forms.items()}
    np.testing.assert_allclose(plain["folded"], plain["dequantize"], rtol=1e-4, atol=1e-4)
    wide = {n.op for n in forms["folded"].graph.nodes}
    assert {"Cast", "Mul", "Reshape"} <= wide and ("Sub" in wide) is not symmetric
    assert kernels(forms["folded"], tmp_path) == kernels(model, tmp_path)  # all of it is folded at load
    new = model.copy()
    WeightQuant(form="nbits", **options).run(new, context(model, feeds))
    assert sqnr(forms["folded"], new, feeds[:4]) > 35  # its own arithmetic: activations in 8 bits
    joined = kernels(forms["dequantize"], tmp_path)["MatMulNBits"]
    assert joined == 3 or (SATURATES and bits == 8 and not joined)  # older CPUs have no kernel of 8 bits


@pytest.mark.parametrize("grid", [Grid(4, 32, True), Grid(4, 32, False), Grid(8, 16, True), Grid(4, 96, False)])
def test_integers_stay_in_range_and_stand_for_the_nearest_value(grid):
    matrix = spiky(np.random.default_rng(0), (20, 96)).astype(np.float64)
    found = blocks.nearest(matrix, grid)
    low, high = grid.limits
    assert low <= found.values.min() and found.values.max() <= high and found.half
    step = blocks.spread(found.scale, grid.block)
    inside = (found.values > low) & (found.values < high)
    assert (np.abs(found.real() - matrix)[inside] <= step[inside] * 0.5001).all()
    worst = np.abs(matrix).max() / (7 if grid.bits == 4 else 127)
    plain = np.clip(np.rint(matrix / worst), low, high) * worst if grid.symmetric else None
    assert plain is None or ((found.real() - matrix) ** 2).sum() < 0.7 * ((plain - matrix) ** 2).sum()


def test_second_order_rounding_and_scaling_lose_less_on_the_inputs_met():
    rng = np.random.default_rng(1)
    x = np.concatenate([f["x"] for f in inputs(64)]).astype(np.float64)
    matrix, moment = spiky(rng, (40, 96)).astype(np.float64), x.T @ x / len(x)
    grid = Grid(4, 32, True)
    loss = {
        "nearest": blocks.error(matrix, blocks.nearest(matrix, grid), moment),
        "gptq": blocks.error(matrix, blocks.gptq(matrix, grid, moment), moment),
        "awq": blocks.error(matrix, blocks.awq(matrix, grid, moment), moment),
    }
    assert loss["gptq"] < loss["nearest"] / 2 and loss["awq"] < 0.8 * loss["nearest"]
    exact = ((x @ (matrix - blocks.gptq(matrix, grid, moment).real()).T) ** 2).sum() / ((x @ matrix.T) ** 2).sum()
    assert exact == pytest.approx(loss["gptq"], rel=1e-6)


@pytest.mark.parametrize("symmetric", [True, False])
def test_coordinate_descent_goes_on_from_any_rounding_and_never_up(symmetric):
    rng = np.random.default_rng(2)
    x = np.concatenate([f["x"] for f in inputs(64)]).astype(np.float64)
    matrix, moment = spiky(rng, (24, 96)).astype(np.float64), x.T @ x / len(x)
    grid = Grid(4, 32, symmetric)
    begun, levels = blocks.nearest(matrix, grid), []
    for rounds in (0, 1, 2, 9):
        found = blocks.descend(matrix, begun, grid, moment, rounds)
        assert grid.limits[0] <= found.values.min() and found.values.max() <= grid.limits[1]
        levels.append(blocks.error(matrix, found, moment))
    assert levels[0] > 2 * levels[1] and levels[1] >= levels[2] >= levels[3]
    again = blocks.descend(matrix, found, grid, moment)
    np.testing.assert_array_equal(again.values, found.values)  # nothing is left to gain


@pytest.mark.parametrize("symmetric", [True, False])
def test_zeros_of_a_sparse_matrix_stay_zeros(symmetric):
    rng = np.random.default_rng(3)
    x = np.concatenate([f["x"] for f in inputs(64)]).astype(np.float64)
    matrix, moment = spiky(rng, (24, 96)).astype(np.float64), x.T @ x / len(x)
    matrix[rng.random(matrix.shape) < 0.5] = 0
    found = blocks.gptq(matrix, Grid(4, 32, symmetric), moment)
    assert not found.real()[matrix == 0].any()
    assert blocks.error(matrix, found, moment) < blocks.error(
        matrix, blocks.nearest(matrix, Grid(4, 32, symmetric)), moment
    )


@pytest.mark.parametrize("form", ["folded", "dequantize"])
def test_scaled_columns_are_divided_again(form):
    model, feeds = mlp(), inputs()
    options = {"store": False, "floor": -100, "form": form}
    scaled, plain = (rewritten(model, feeds, WeightQuant(method=m, **options))[0] for m in ("awq", "nearest"))
    check = inputs(8, seed=9)
    assert any("divisor" in n for n in scaled.constants())
    assert sqnr(model, scaled, check) > sqnr(model, plain, check)


def test_old_opsets_are_raised_and_only_for_what_needs_it():
    model, feeds = mlp(), inputs()
    four, did = rewritten(model, feeds, WeightQuant(floor=-100))
    assert did.did["opset"] == "17 → 21" and four.opset == 21 and four.header.ir_version >= 10
    eight, did = rewritten(model, feeds, WeightQuant(bits=8))
    assert "opset" not in did.did and eight.opset == 17 and sqnr(model, eight, feeds) > 35


def test_the_floor_gives_the_most_sensitive_layers_8_bits():
    model, feeds = mlp(), inputs()
    loose, tight = (rewritten(model, feeds, WeightQuant(floor=f)) for f in (-100, 30))
    assert loose[1].did["weights in 4-bit blocks"] == 3
    assert tight[1].did.get("weights in 4-bit blocks", 0) < 3
    assert sqnr(model, tight[0], feeds) > sqnr(model, loose[0], feeds) + 3
    assert any(s.reason.startswith("8 bits instead") for s in tight[1].skipped)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("store", [True, False])
def test_layers_without_blocks_say_what_became_of_them_and_why(bits, store):
    """Left out under the floor (all of them, where nothing holds it), or by the strength."""
    model, feeds = mlp(), inputs()
    ctx = context(model, feeds, "ort-cpu-vnni")
    became = ("8 bits instead" if bits == 4 else "8 bits with a scale a channel instead") if store else "stays float"
    for floor, strength, left, why in (
        (300, 1.0, 3, f"{became}: with {bits}-bit blocks here too the outputs would fall below 300 dB"),
        (-100, 0.3, 2, f"{became}: strength 0.3 leaves out the layers that are hurt most"),
    ):
        p, new = WeightQuant(bits=bits, floor=floor, store=store), model.copy()
        result = p.apply(new, p.plan(model, ctx), strength, ctx)
        assert [s.reason for s in result.skipped] == [why] * left
        stored = [n for n in new.constants() if n.endswith("_int8")]
        assert len(stored) == (left if store else 0), "the reason says what the file holds"


def test_weaker_keeps_the_least_hurt_layers():
    model, feeds = mlp(), inputs()
    p, ctx, found = WeightQuant(floor=-100), context(model, feeds, "ort-cpu-vnni"), []
    plan = p.plan(model, ctx)
    for strength in (0.3, 0.7, 1.0):
        new = model.copy()
        did = p.apply(new, plan, strength, ctx).did
        found.append((did["weights in 4-bit blocks"], sqnr(model, new, feeds)))
    assert [n for n, _ in found] == [1, 2, 3] and found[0][1] > found[1][1] > found[2][1]


def test_what_cannot_be_cut_into_blocks_says_why():
    net = Net()
    net.add("MatMul", "x", net.const(spiky(net.rng, (97, 64))), out="y")
    model = net.model({"x": [8, 97]}, ["y"])
    _, result = rewritten(model, inputs(width=97), WeightQuant(block=32))
    assert "no divisor between 16 and 32" in {s.node: s.reason for s in result.skipped}["y_node"]
    assert result.did == {"weights stored in 8 bits": 1}


@pytest.fixture(scope="module")
def transformer(shared):
    """The public keyword transformer with trained weights: (model, feeds)."""
    sys.path.insert(0, str(shared))
    import tasks

    model = ir.load(shared / "models" / "kwt1.onnx")
    feeds = list(itertools.islice(tasks.kwt1_data(), 40))
    Simplify().run(model, context(model, feeds))
    tidy(model)
    return model, feeds


def test_gptq_beats_nearest_on_trained_weights_at_the_ideal_size(transformer):
    model, feeds = transformer
    fit, check = feeds[::2], feeds[1::4]
    levels, sizes = {}, {}
    for method in ("gptq", "nearest"):
        new, result = rewritten(model, fit, WeightQuant(method=method, store=False, floor=-100), seed=0)
        levels[method], sizes[method] = sqnr(model, new, check), len(ir.to_bytes(new))
        assert result.did["weights in 4-bit blocks"] == 77
    assert levels["gptq"] > levels["nearest"] + 2
    weights = sum(t.values.size for t in new.constants().values() if np.dtype(t.dtype).name == "int4")
    # four bits a weight and an fp16 scale for 32 of them, in the place of four bytes
    ideal = len(ir.to_bytes(model)) - 4 * weights + (4 + 16 / 32) / 8 * weights
    assert weights > 0.95 * 864_760 and sizes["gptq"] == sizes["nearest"] < 1.05 * ideal


@pytest.mark.parametrize("form", ["folded", "dequantize", "nbits"])
@pytest.mark.parametrize("method", ["gptq", "nearest"])
def test_a_shared_weight_is_held_once(form, method):
    net, x = Net(), "x"
    w = net.const(spiky(net.rng, (96, 96)))
    for k in range(3):
        x = net.add("Tanh", net.add("MatMul", x, w), out=f"t{k}")
    model, feeds, new = net.model({"x": [8, 96]}, [x]), inputs(8), None
    new = model.copy()
    p = WeightQuant(form=form, method=method, store=False, floor=-100)
    assert p.run(new, context(model, feeds, "ort-cpu-vnni")).did["weights in 4-bit blocks"] == 3
    tidy(new)
    assert len(ir.to_bytes(new)) < 96 * 96 * 0.6 + 3000  # half a byte each, scales, and the nodes
    assert sqnr(model, new, feeds) > 8


@pytest.mark.parametrize(("columns", "wanted", "block"), [(96, 96, 32), (80, 48, 16), (64, 100, 64), (72, 64, 0)])
def test_blocks_of_onnx_runtimes_own_operator_are_powers_of_two(columns, wanted, block):
    assert blocks.block_of(columns, wanted, powers=True) == block
    net = Net()
    net.add("MatMul", "x", net.const(spiky(net.rng, (columns, 64))), out="y")
    model, feeds = net.model({"x": [8, columns]}, ["y"]), inputs(4, width=columns)
    new = model.copy()
    p = WeightQuant(form="nbits", block=wanted, method="nearest", floor=-100)
    result = p.run(new, context(model, feeds))
    assert ("form" in result.did) is bool(block)
    if block:
        assert sqnr(model, new, feeds) > 10  # it loads and runs
    else:
        assert "no power of two between 16 and 64" in {s.node: s.reason for s in result.skipped}["y_node"]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_packed_weights_cost_what_they_stand_for(bits, symmetric):
    """MatMulNBits is the same network as blocks in DequantizeLinear: as many parameters and multiply-accumulates."""
    model, feeds, found = mlp(), inputs(), {}
    for form in ("dequantize", "nbits"):
        new = model.copy()
        p = WeightQuant(bits=bits, symmetric=symmetric, form=form, store=False, floor=-100)
        p.run(new, context(model, feeds, "ort-cpu-vnni"))
        ir.order.sort(new)
        found[form] = ir.cost.of(new, probe.shapes(new, feeds[0]))
    assert (found["nbits"].params, found["nbits"].macs) == (found["dequantize"].params, found["dequantize"].macs)
    assert found["nbits"].macs == 8 * (96 * 64 + 64 * 128 + 128 * 32)


def packed_product(**attrs):
    """A MatMulNBits of 20 inputs in blocks of 16 (the second is padded), three to an output, with float zero points."""
    net = Net()
    parts = [np.zeros((3, 2, 8), np.uint8), np.ones(6, np.float32), np.zeros(6, np.float32)]
    more = {"domain": "com.microsoft", "K": 20, "N": 3, "bits": 4, "block_size": 16}
    net.add("MatMulNBits", "x", *(net.const(a) for a in parts), out="y", **(more | attrs))
    model = net.model({"x": [5, 20]}, ["y"])
    model.header.opsets["com.microsoft"] = 1
    return model


def test_padding_of_packed_weights_counts_nothing():
    model = packed_product()
    assert session(model).run(None, {"x": np.ones((5, 20), np.float32)})[0].shape == (5, 3)
    (node,) = ir.cost.by_node(model)
    assert (node.macs, node.params) == (5 * 20 * 3, 20 * 3 + 6 + 6) and ir.cost.of(model).params == node.params


def test_packed_weights_of_no_known_size_count_as_they_lie_there():
    (node,) = ir.cost.by_node(packed_product(K="wide"))
    assert (node.macs, node.params) == (0, 3 * 2 * 8 + 6 + 6)
