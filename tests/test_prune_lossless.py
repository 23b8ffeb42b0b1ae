"""`prune:lossless` against the original: what may go without a trace, and what may not."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from onnx import helper
from onnxslim_opt.passes.base import Context
from onnxslim_opt.passes.prune import Prune
from onnxslim_opt.passes.simplify import Simplify
from onnxslim_opt.passes.target import Target
from onnxslim_opt.runtime import feeds
from prune_nets import Net
from prune_twin import build, distance, run

from onnxslim_opt import ir

RNG = np.random.default_rng(0)


def weights(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def lossless(model: ir.Model, exclude: str = "", **options: Any) -> ir.Model:
    """The pruned model, after its outputs were found equal to the original's."""
    found = feeds.resolve("random", model)
    fit, check = found.split()
    small = model.copy()
    pattern = re.compile(exclude) if exclude else None
    ctx = Context(Target(), fit, check, "random", model, None, exclude=pattern)  # type: ignore[arg-type]
    Prune(**{"lossless": True, **options}).run(small, ctx)
    ir.order.sort(small)
    ir.shapes.refresh(small)
    ir.verify.check(small)
    for _ in range(3):
        x = {t.name: weights(*t.shape) for t in model.graph.inputs}
        assert distance(run(ir.to_proto(model), x), run(ir.to_proto(small), x)) < 2e-6
    return small


def widths(model: ir.Model) -> list[int]:
    return [n.inputs[1].shape[0] for n in model.graph.nodes if n.op == "Conv"]


def conv(name: str, x: str, y: str, pads: int = 1, **attrs: Any) -> Any:
    return helper.make_node("Conv", [x, f"{name}_w", f"{name}_b"], [y], name=name, pads=[pads] * 4, **attrs)


def two(middle: list[Any], made: dict[str, np.ndarray], pads: int = 0, opset: int = 17) -> ir.Model:
    """Convolution to `y`, what lies between, a convolution from `z`."""
    w = {"a_w": weights(10, 3, 3, 3), "a_b": weights(10), "b_w": weights(6, 10, 3, 3), "b_b": weights(6), **made}
    return build([conv("a", "x", "y"), *middle, conv("b", "z", "out", pads)], {"x": [1, 3, 9, 9]}, w, opset)


def test_zeroed_batch_norms_of_a_residual_network_go() -> None:
    """A third of the gammas and betas is zero; the stream keeps what any of its summands needs."""
    made: dict[str, np.ndarray] = {}
    dead = {k: np.sort(RNG.choice(12, 4, replace=False)) for k in ("in", "p", "q")}

    def normed(name: str, x: str, y: str, inputs: int, zero: np.ndarray) -> list[Any]:
        made.update({f"{name}_w": weights(12, inputs, 3, 3), f"{name}_b": weights(12)})
        norm = {"g": weights(12), "s": weights(12), "m": weights(12), "v": weights(12) ** 2 + 0.5}
        norm["g"][zero] = norm["s"][zero] = 0
        made.update({f"{name}_{k}": v for k, v in norm.items()})
        names = [f"{name}_c", *(f"{name}_{k}" for k in "gsmv")]
        return [conv(name, x, f"{name}_c"), helper.make_node("BatchNormalization", names, [y], name=f"{name}_n")]

    nodes = [*normed("in", "x", "n0", 3, dead["in"]), helper.make_node("Relu", ["n0"], ["r0"])]
    nodes += [*normed("p", "r0", "n1", 12, dead["p"]), helper.make_node("Relu", ["n1"], ["r1"])]
    nodes += [*normed("q", "r1", "n2", 12, dead["q"]), helper.make_node("Add", ["n2", "r0"], ["s"])]
    made.update({"o_w": weights(5, 12, 3, 3), "o_b": weights(5)})
    small = lossless(build([*nodes, conv("o", "s", "out")], {"x": [1, 3, 8, 8]}, made))
    stream = 12 - len(set(dead["in"]) & set(dead["q"]))
    assert widths(small) == [stream, 8, stream, 5]


def test_a_batch_norm_with_parameters_of_every_position_is_not_followed() -> None:
    """spatial=0 of opset 8: what such a norm makes of a constant channel differs from place to place."""
    norm = {k: weights(10, 9, 9) for k in "gsm"} | {"v": weights(10, 9, 9) ** 2 + 0.5}
    w = {"a_w": weights(10, 3, 3, 3), "a_b": weights(10), "b_w": weights(6, 10, 3, 3), "b_b": weights(6), **norm}
    w["a_w"][:2] = 0
    nodes = [
        conv("a", "x", "y"),
        helper.make_node("BatchNormalization", ["y", *"gsmv"], ["n"], spatial=0),
        helper.make_node("Relu", ["n"], ["z"]),
        conv("b", "z", "out", 0),
    ]
    assert widths(lossless(build(nodes, {"x": [1, 3, 9, 9]}, w, opset=8))) == [10, 6]


class Sparse(Net):
    """Layers with batch norms of which 30 % of the gammas and betas are zero."""

    def normed(
        self, x: str, cin: int, cout: int, k: int = 3, group: int = 1, share: float = 0.3, **attrs: Any
    ) -> tuple[str, set[int]]:
        y = self.norm(self.conv(x, cin, cout, k, group, **attrs), cout)
        zero = self.rng.choice(cout, round(share * cout), replace=False)
        gamma, beta = self.nodes[-1].input[1:3]
        self.weights[gamma][zero] = self.weights[beta][zero] = 0
        return y, set(zero.tolist())


def mobilenet_like() -> tuple[ir.Model, list[int]]:
    """Inverted residuals with a gate, clipped ReLUs and hard swishes; widths that should be left."""
    n = Sparse(x=[2, 3, 16, 16])
    y, stem = n.normed("x", 3, 20, strides=[2, 2])
    y, zeros, left = n.op("HardSwish", y), [stem], list[int]()
    for k in range(3):
        gated = k == 2  # what is constant before a gate is none behind it, unless it is zero
        wide, a = n.normed(y, 20, 40, 1, share=0.0 if gated else 0.3)
        wide = n.op("Clip", wide, n.weight(), n.weight()) if k else n.op("HardSwish", wide)
        deep, b = n.normed(wide, 40, 40, 5, 40)
        deep = n.op("Relu", deep)
        if gated:
            gate = n.op("Relu", n.conv(n.op("GlobalAveragePool", deep), 40, 10, 1))
            deep = n.op("Mul", deep, n.op("HardSigmoid", n.conv(gate, 10, 40, 1)))
        out, c = n.normed(deep, 40, 20, 1)
        y = n.op("Add", y, out)
        zeros.append(c)
        left += [40 - len(a | b)] * 2
    for name in [w for node in n.nodes if node.op_type == "Clip" for w in node.input[1:]]:
        n.weights[name] = np.array(0, np.float32)
    for node in [node for node in n.nodes if node.op_type == "Clip"]:
        n.weights[node.input[2]] = np.array(6, np.float32)
    stream = 20 - len(set.intersection(*zeros))
    blocks = [[left[2 * k], left[2 * k], *([10, left[4]] if k == 2 else []), stream] for k in range(3)]
    return n.head(y, 20), [stream, *(width for block in blocks for width in block)]


def resnet_like() -> tuple[ir.Model, list[int]]:
    """Bottlenecks of two stages, the second with a convolution on its shortcut."""
    n = Sparse(x=[2, 3, 16, 16])
    y, zero = n.normed("x", 3, 20)
    y, zeros, widths, streams = n.op("Relu", y), zero, list[int](), list[tuple[int, int]]()
    for stage, cout in enumerate((20, 30)):
        shortcut = y
        if stage:
            shortcut, zeros = n.normed(y, 20, cout, 1, strides=[2, 2])
        a, dead_a = n.normed(y, 20, 10, 1)
        b, dead_b = n.normed(n.op("Relu", a), 10, 10, strides=[1 + stage] * 2)
        c, dead_c = n.normed(n.op("Relu", b), 10, cout, 1)
        stream = cout - len(zeros & dead_c)
        y = n.op("Relu", n.op("Add", c, shortcut))
        streams.append((stream, stage))
        widths += [stream] * stage + [10 - len(dead_a), 10 - len(dead_b), stream]
    return n.head(y, 30), [streams[0][0], *widths]


@pytest.mark.parametrize("make", [mobilenet_like, resnet_like])
@pytest.mark.parametrize("fused", [False, True])
def test_a_third_of_every_batch_norm_is_zero_and_its_channels_go(make: Any, fused: bool) -> None:
    model, expected = make()
    if fused:
        Simplify().run(model)
        ir.order.sort(model)
        ir.shapes.refresh(model)
    found = widths(lossless(model))
    assert len(found) == len(expected)
    assert all(n <= most for n, most in zip(found, expected))  # bounds may show more channels to be dead


@pytest.mark.parametrize("function", ["HardSwish", "HardSigmoid", "Elu", "Selu", "Softplus", "Gelu", "Mish", "Neg"])
def test_constants_pass_activations(function: str) -> None:
    w = weights(10, 3, 3, 3)
    w[[2, 7]] = 0
    nodes = [helper.make_node(function, ["y"], ["z"])]
    inputs = {"x": [1, 3, 9, 9]}
    made = {"a_w": w, "a_b": weights(10), "b_w": weights(6, 10, 3, 3), "b_b": weights(6)}
    model = build([conv("a", "x", "y"), *nodes, conv("b", "z", "out", 0)], inputs, made, opset=22)
    assert widths(lossless(model)) == [8, 6]


@pytest.mark.parametrize("pads", [0, 1])
def test_constants_go_into_the_next_bias_unless_it_pads_with_zeros(pads: int) -> None:
    gamma, beta = weights(10), np.abs(weights(10)) + 0.1
    gamma[[2, 3, 7]] = 0
    beta[3] = 0  # zero after the norm: gone whatever the padding
    made = {"g": gamma, "s": beta, "m": weights(10), "v": weights(10) ** 2 + 0.5}
    middle = [
        helper.make_node("BatchNormalization", ["y", "g", "s", "m", "v"], ["n"]),
        helper.make_node("Relu", ["n"], ["z"]),
    ]
    assert widths(lossless(two(middle, made, pads))) == [7 if pads == 0 else 9, 6]


def test_a_relu_that_never_fires_by_bounds_takes_its_channel_along() -> None:
    """Between sigmoid and ReLU: weights and bias all negative."""
    w, b = weights(8, 10, 1, 1), weights(8)
    w[[1, 4]], b[[1, 4]] = -np.abs(w[[1, 4]]), -1
    nodes = [helper.make_node("Sigmoid", ["y"], ["s"]), conv("m", "s", "t", 0), helper.make_node("Relu", ["t"], ["z"])]
    model = two(nodes, {"m_w": w, "m_b": b, "b_w": weights(6, 8, 3, 3)}, pads=1)
    assert widths(lossless(model)) == [10, 6, 6]


def test_equal_channels_become_one_even_behind_padding() -> None:
    w, b = weights(10, 3, 3, 3), weights(10)
    w[[5, 8]], b[[5, 8]] = w[1], b[1]
    w[6] = w[2]  # equal weights, another bias: not equal
    d, db = weights(10, 1, 3, 3), weights(10)
    d[[5]], db[[5]] = d[1], db[1]  # 8 parts from 1 and 5 in the depthwise layer
    nodes = [helper.make_node("Relu", ["y"], ["r"]), conv("d", "r", "z", group=10)]
    model = two(nodes, {"a_w": w, "a_b": b, "d_w": d, "d_b": db}, pads=1)
    assert widths(lossless(model)) == [9, 9, 6]


@pytest.mark.parametrize("group", [1, 2])
def test_equal_channels_become_one_before_a_transposed_convolution_and_constants_stay(group: int) -> None:
    """What a constant makes of the outputs differs by their phase, so that no bias can take it over."""
    made = {"a_w": weights(8, 3, 3, 3), "a_b": weights(8), "up": weights(8, 6 // group, 3, 3), "up_b": weights(6)}
    for array in (made["a_w"], made["a_b"]):
        array[7] = array[5]
    made["a_w"][4], made["a_b"][4] = 0, 2
    node = helper.make_node("ConvTranspose", ["y", "up", "up_b"], ["out"], name="up", strides=[2, 2], group=group)
    small = lossless(build([conv("a", "x", "y"), node], {"x": [1, 3, 6, 6]}, made))
    assert widths(small) == [7 if group == 1 else 8]


def test_a_classifier_behind_global_pooling_takes_constants_over() -> None:
    w = weights(10, 3, 3, 3)
    w[[0, 9]] = 0
    made = {"a_w": w, "a_b": np.abs(weights(10)), "fc": weights(10, 4)}
    nodes = [
        conv("a", "x", "y"),
        helper.make_node("Relu", ["y"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "fc"], ["out"], name="head"),
    ]
    small = lossless(build(nodes, {"x": [2, 3, 8, 8]}, made))
    assert widths(small) == [8]


@pytest.mark.parametrize("gemm", [False, True])
def test_a_layer_without_bias_takes_a_constant_over_and_loses_outputs_itself(gemm: bool) -> None:
    w, w2 = weights(6, 3, 1, 1), weights(5, 6, 1, 1)
    w[0], w2[1] = 0, 0
    made = {"a": w, "a_b": np.abs(weights(6)), "b": w2, "c": weights(3, 5, 1, 1)}
    inputs, attrs = [1, 3, 4, 4], dict[str, Any]()
    if gemm:
        made, inputs, attrs = {k: v.reshape(v.shape[:2]) for k, v in made.items() if k != "a_b"}, [4, 3], {"transB": 1}
        made["a_b"] = np.abs(weights(6))
    op = "Gemm" if gemm else "Conv"
    nodes = [
        helper.make_node(op, ["x", "a", "a_b"], ["p"], **attrs),
        helper.make_node("Relu", ["p"], ["q"]),
        helper.make_node(op, ["q", "b"], ["r"], **attrs),
        helper.make_node("Relu", ["r"], ["s"]),
        helper.make_node(op, ["s", "c"], ["out"], **attrs),
    ]
    small = lossless(build(nodes, {"x": inputs}, made))
    assert [n.inputs[1].shape[:2] for n in small.graph.nodes if n.op == op] == [(5, 3), (4, 5), (3, 4)]


def test_an_excluded_bias_behind_a_product_takes_nothing_over() -> None:
    w, b = weights(6, 10), weights(10)
    w[:, 0] = 0
    made = {"a": w, "a_b": b, "b": weights(10, 4), "b_b": weights(4)}
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["p"]),
        helper.make_node("Add", ["p", "a_b"], ["q"]),
        helper.make_node("Sigmoid", ["q"], ["r"]),
        helper.make_node("MatMul", ["r", "b"], ["s"]),
        helper.make_node("Add", ["s", "b_b"], ["t"], name="kept"),
        helper.make_node("Softmax", ["t"], ["out"]),
    ]
    model = build(nodes, {"x": [4, 7, 6]}, made)

    def inner(exclude: str) -> int:
        small = lossless(model, exclude)
        return int(next(n for n in small.graph.nodes if n.op == "MatMul").inputs[1].shape[1])

    assert (inner("^kept$"), inner("")) == (10, 9)


def repeated(biases: str, dead: bool, copies: bool) -> ir.Model:
    """Two residual blocks of one matrix each way: neurons that are constant, or double; biases of the second matrix:
    shared, own, none, or shared where the hidden constants differ by block."""
    n = Net(x=[2, 5, 12])
    into, shift, back = n.weight(12, 16), [n.weight(16)] * 2, n.weight(16, 12)
    if dead:
        n.weights[into][:, [3, 5]], n.weights[shift[0]][[3, 5]] = 0, (0.7, -1)
    if copies:
        n.weights[into][:, 8], n.weights[shift[0]][8] = n.weights[into][:, 9], n.weights[shift[0]][9]
    if biases == "unlike":
        shift = [shift[0], n.weight(16)]
        n.weights[shift[1]][:] = n.weights[shift[0]]
        n.weights[shift[1]][3] += 1
    outer, y = [n.weight(12)] * 2 if biases != "own" else [n.weight(12), n.weight(12)], "x"
    for k in range(2):
        hidden = n.op("Relu", n.op("Add", n.op("MatMul", y, into), shift[k]))
        z = n.op("MatMul", hidden, back)
        y = n.op("Tanh", n.op("Add", y, n.op("Add", z, outer[k])))
    n.op("MatMul", y, n.weight(12, 5))
    return n.model()


@pytest.mark.parametrize(
    ("biases", "dead", "copies", "left"),
    [
        ("shared", True, False, 14),
        ("own", True, False, 14),
        ("shared", False, True, 15),
        ("own", False, True, 15),
        ("shared", True, True, 13),
        ("unlike", True, False, 15),
    ],
)
def test_what_blocks_share_they_share_when_it_took_over(biases: str, dead: bool, copies: bool, left: int) -> None:
    """Where the blocks would take over different constants, the neuron stays."""
    model = repeated(biases, dead, copies)
    small = lossless(model)
    products = [n for n in small.graph.nodes if n.op == "MatMul"]
    assert [n.inputs[1].shape for n in products[:4]] == [(12, left), (left, 12)] * 2
    assert products[0].inputs[1] is products[2].inputs[1] and products[1].inputs[1] is products[3].inputs[1]
    assert ir.cost.of(small).params < ir.cost.of(model).params


INTEGERS = {  # zero points of the weight that are tried; ConvInteger takes one for all outputs
    "QLinearConv": (0, 7, "by output"),
    "QLinearMatMul": (0, 7, "by output"),
    "ConvInteger": (0, 7, "none"),
    "MatMulInteger": (0, 7, "none", "by output"),
}


@pytest.mark.parametrize(("op", "zeros"), [(op, zeros) for op, every in INTEGERS.items() for zeros in every])
def test_integers_are_nothing_at_their_zero_point(op: str, zeros: Any) -> None:
    """Two channels meet zeros only, another two sevens."""
    many = zeros == "by output"
    w = RNG.integers(20, 100, (10, 4)).astype(np.int8 if many else np.uint8)
    w[[2, 8]], w[[1, 5]] = 0, 7
    point = np.array([7, 7, 0, 7] if many else 0 if zeros == "none" else zeros, w.dtype)
    made = {"a_w": weights(10, 3, 1, 1), "a_b": weights(10), "w": w, "wz": point}
    made |= {"s": np.float32(0.05), "z": np.uint8(128)}
    nodes, x = [conv("a", "x", "y", 0), helper.make_node("QuantizeLinear", ["y", "s", "z"], ["q"])], "q"
    if "Conv" in op:
        made["w"] = np.ascontiguousarray(w.T)[:, :, None, None]
    else:
        nodes.append(helper.make_node("Transpose", ["q"], ["rows"], perm=[0, 2, 3, 1]))
        x = "rows"
    if op[0] == "Q":
        nodes.append(helper.make_node(op, [x, "s", "z", "w", "s", "wz", "s", "z"], ["o"]))
        nodes.append(helper.make_node("DequantizeLinear", ["o", "s", "z"], ["out"]))
    else:
        nodes.append(helper.make_node(op, [x, "w", "z", *([] if zeros == "none" else ["wz"])], ["o"]))
        nodes.append(helper.make_node("Cast", ["o"], ["out"], to=1))
    small = lossless(build(nodes, {"x": [1, 3, 4, 4]}, made))
    assert widths(small) == [10 if many else 8]


def test_kernels_that_lie_otherwise_are_no_copies() -> None:
    w = weights(5, 3, 3)
    made = {"a": w[..., None], "b": w[:, :, None], "out_w": weights(2, 10, 1, 1)}
    nodes = [helper.make_node("Conv", ["x", k], [f"{k}_y"], auto_pad="SAME_UPPER") for k in "ab"]
    nodes.append(helper.make_node("Concat", ["a_y", "b_y"], ["c"], axis=1))
    nodes.append(helper.make_node("Conv", ["c", "out_w"], ["out"]))
    assert widths(lossless(build(nodes, {"x": [1, 3, 6, 6]}, made))) == [5, 5, 2]


def twice(first: list[Any], second: list[Any], made: dict[str, np.ndarray], opset: int = 17) -> ir.Model:
    """Two equal convolutions to `p` and `q`, what lies behind each up to `r` and `s`, and a convolution of both."""
    w = weights(4, 3, 3, 3)
    made = {"p_w": w, "q_w": w.copy(), "p_b": np.zeros(4, np.float32), "q_b": np.zeros(4, np.float32), **made}
    made["o_w"], made["o_b"] = weights(5, 8, 1, 1), weights(5)
    nodes = [conv("p", "x", "p"), *first, conv("q", "x", "q"), *second]
    nodes += [helper.make_node("Concat", ["r", "s"], ["c"], axis=1), conv("o", "c", "out", 0)]
    return build(nodes, {"x": [1, 3, 6, 6]}, made, opset)


UNLIKE = {  # two nodes from one tensor that differ in one thing
    "least and greatest": (("Clip", "a"), ("Clip", "", "a")),
    "one bound more": (("Clip", "a"), ("Clip", "a", "b")),
    "another bound": (("Clip", "a"), ("Clip", "b")),
    "borders": (
        ("AveragePool", {"kernel_shape": [3, 3], "pads": [1] * 4, "count_include_pad": 1}),
        ("AveragePool", {"kernel_shape": [3, 3], "pads": [1] * 4}),
    ),
    "slope": (("LeakyRelu", {"alpha": 0.5}), ("LeakyRelu", {"alpha": 0.25})),
    "slope of HardSigmoid": (("HardSigmoid", {"alpha": 0.1}), ("HardSigmoid", {})),
    "constant": (("Add", "a"), ("Add", "b")),
    "operator": (("Max", "a"), ("Min", "a")),
}


@pytest.mark.parametrize("what", UNLIKE)
def test_equal_channels_behind_unlike_nodes_are_no_copies(what: str) -> None:
    def node(spec: tuple[Any, ...], x: str, y: str) -> list[Any]:
        op, *rest = spec
        attrs = rest.pop() if rest and isinstance(rest[-1], dict) else {}
        return [helper.make_node(op, [x, *rest], [y], **attrs)]

    made = {"a": np.array(0.3, np.float32), "b": np.array(0.6, np.float32)}
    first, second = UNLIKE[what]
    small = lossless(twice(node(first, "p", "r"), node(second, "q", "s"), made))
    assert widths(small) == [4, 4, 5]
    small = lossless(twice(node(first, "p", "r"), node(first, "q", "s"), made))  # the same twice: each is a copy
    assert sum(widths(small)[:2]) == 4 + 1  # an axis keeps one channel


def test_clips_that_bound_one_tensor_from_both_sides_are_no_copies() -> None:
    nodes = [helper.make_node("Clip", ["y", "a"], ["p"]), helper.make_node("Clip", ["y", "", "a"], ["q"])]
    nodes.append(helper.make_node("Concat", ["p", "q"], ["z"], axis=1))
    made = {"a": np.array(0.3, np.float32), "b_w": weights(6, 20, 3, 3)}
    assert widths(lossless(two(nodes, made))) == [10, 6]


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_leaky_relu_without_slope_bounds_from_below() -> None:
    """Its outputs are 0 and more, so that a convolution with negative weights never fires behind it."""
    w, b = weights(8, 10, 1, 1), weights(8)
    w[[1, 4]], b[[1, 4]] = -np.abs(w[[1, 4]]), -1
    leaky = helper.make_node("LeakyRelu", ["y"], ["s"], alpha=0.0)
    nodes = [leaky, conv("m", "s", "t", 0), helper.make_node("Relu", ["t"], ["z"])]
    model = two(nodes, {"m_w": w, "m_b": b, "b_w": weights(6, 8, 3, 3)}, pads=1)
    assert widths(lossless(model)) == [10, 6, 6]


def test_nothing_goes_where_nothing_is_dead() -> None:
    model = two([helper.make_node("Relu", ["y"], ["z"])], {})
    assert widths(lossless(model)) == [10, 6]


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, -1.0])
@pytest.mark.parametrize("values", [[1.5, -2.0, 0.7], [-0.6, -2.4, 0.0]])
def test_constants_behind_swish_are_those_of_its_slope(alpha: float, values: list[float]) -> None:
    model = two([helper.make_node("Swish", ["y"], ["z"], name="act", alpha=alpha)], {}, opset=24)
    node = model.graph.nodes[0]
    w, b = node.inputs[1].values.copy(), node.inputs[2].values.copy()
    w[:3], b[:3] = 0, values
    node.inputs[1].values, node.inputs[2].values = w, b
    assert widths(lossless(model))[0] == (7 if alpha > 0 else 10)
