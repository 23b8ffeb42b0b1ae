"""Gradients in reverse mode against central differences of the whole model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnxslim_opt.ir.errors import PassError
from onnxslim_opt.runtime.gradients import Gradients
from onnxslim_opt.runtime.session import Session
from prune_nets import Net, image

from onnxslim_opt import ir


def _agrees(net: Net, x: str, head: str, feed: dict[str, np.ndarray], tolerance: float = 2e-2) -> None:
    """The gradient at x along random directions, against what the head does when an offset is added to x."""
    model = net.model()
    values_of = Session(model, outputs=[x], optimize=False).run(feed)[x]
    rng = np.random.default_rng(1)
    grad = Gradients(model, [head], [x])
    values = grad.forward(feed)
    seed = rng.standard_normal(values[head].shape).astype(np.float32)
    found = dict(grad.backward(values, {head: seed}))[x]
    assert found.shape == values_of.shape
    moved = model.copy()
    tensor = next(t for n in moved.graph.nodes for t in n.outputs if t.name == x)
    _open(moved, tensor)
    session = Session(moved, outputs=[head], optimize=False)
    for _ in range(3):
        way = rng.standard_normal(found.shape).astype(np.float32)
        step = 1e-3
        above, below = (session.run({**feed, "offset": s * step * way})[head] for s in (1, -1))
        expected = float(np.sum((above - below).astype(np.float64) * seed) / (2 * step))
        scale = float(np.linalg.norm(found) * np.linalg.norm(way)) / np.sqrt(found.size)
        assert float(np.sum(found.astype(np.float64) * way)) == pytest.approx(expected, abs=tolerance * scale + 1e-6)


def _open(model: Any, tensor: Any) -> None:
    """Add a graph input `offset` to a tensor."""
    from onnxslim_opt.ir import edit, order

    offset = edit.variable(model, "offset", np.float32, list(tensor.shape))
    offset.name = "offset"
    moved = edit.variable(model, "moved", np.float32, list(tensor.shape))
    edit.replace(model, tensor, moved)
    edit.add(model.graph, edit.node(model, "Add", [tensor, offset], outputs=[moved]))
    model.graph.inputs.append(offset)
    model.header.input_order, model.header.protos = (), {}
    order.sort(model)


def _start(opset: int = 17) -> tuple[Net, str, dict[str, np.ndarray]]:
    net = Net(0, opset, x=[2, 4, 9, 8])
    return net, net.conv("x", 4, 8), image(2, 4, 9, 8)


@pytest.mark.parametrize(
    ("k", "attrs"),
    [
        (3, {}),
        (3, {"strides": [2, 2]}),
        (3, {"strides": [2, 1], "pads": [0, 1, 1, 0]}),
        (3, {"dilations": [2, 2], "pads": [2, 2, 2, 2]}),
        (3, {"group": 8}),
        (1, {"group": 2, "strides": [2, 2]}),
    ],
)
def test_convolutions(k: int, attrs: dict[str, Any]) -> None:
    net, x, feed = _start()
    net.conv(x, 8, 16, k, **attrs)
    _agrees(net, x, net.nodes[-1].output[0], feed)


@pytest.mark.parametrize(
    "attrs",
    [
        {},
        {"strides": [2, 3], "pads": [1, 0, 2, 1]},
        {"strides": [3, 2], "output_padding": [2, 1], "dilations": [2, 1]},
        {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
        {"strides": [2, 2], "output_shape": [17, 15], "auto_pad": "SAME_LOWER"},
        {"group": 4, "strides": [2, 2], "output_padding": [1, 1]},
    ],
)
def test_transposed_convolutions(attrs: dict[str, Any]) -> None:
    net, x, feed = _start()
    net.op("ConvTranspose", x, net.weight(8, 12 // attrs.get("group", 1), 3, 3), net.weight(12), **attrs)
    _agrees(net, x, net.nodes[-1].output[0], feed)


@pytest.mark.parametrize("equation", ["bsd,dk->bsk", "...d,dk->...k", "bsd,dk", "bsd,dk->bks"])
def test_einsums_with_a_constant(equation: str) -> None:
    net = Net(0, 17, x=[2, 5, 8])
    x = net.linear("x", 8, 8)
    _agrees(net, x, net.op("Einsum", x, net.weight(8, 6), equation=equation), image(2, 5, 8))


def test_einsums_of_two_tensors() -> None:
    net = Net(0, 17, x=[2, 5, 8])
    x = net.linear("x", 8, 8)
    scores = net.op("Einsum", x, net.linear(x, 8, 8), equation="bsd,btd->bst")
    _agrees(net, x, net.op("Einsum", scores, x, equation="bst,btd->bsd"), image(2, 5, 8))


def test_an_einsum_that_sums_one_operand_alone_is_refused() -> None:
    net = Net(0, 17, x=[2, 5, 8])
    x = net.linear("x", 8, 8)
    with pytest.raises(PassError, match="sums alone"):
        _agrees(net, x, net.op("Einsum", x, net.weight(8, 6), equation="bsd,dk->bk"), image(2, 5, 8))


@pytest.mark.parametrize("op", ["Relu", "Sigmoid", "Tanh", "HardSwish", "Softplus", "LeakyRelu", "Erf"])
def test_functions_of_one_tensor(op: str) -> None:
    net, x, feed = _start()
    _agrees(net, x, net.op(op, net.op("Mul", x, net.op(op, x))), feed)


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul"])
def test_broadcast_operands(op: str) -> None:
    net, x, feed = _start()
    gate = net.op("Sigmoid", net.conv(net.op("GlobalAveragePool", x), 8, 8, 1))
    _agrees(net, x, net.op(op, gate, x), feed)


def test_quotients() -> None:
    net, x, feed = _start()
    _agrees(net, x, net.op("Div", x, net.op("Exp", net.op("Sigmoid", x))), feed)


def test_pools() -> None:
    net, x, feed = _start()
    a = net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    b = net.op("AveragePool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    c = net.op("AveragePool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1)
    _agrees(net, x, net.op("Sum", a, b, c), feed, 5e-2)


def test_data_that_moves() -> None:
    net, x, feed = _start()
    net.weights["scales"] = np.array([1, 1, 2, 2], np.float32)
    up = net.op(
        "Resize", x, "", "scales", mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"
    )
    both = net.op("Concat", up, net.op("Transpose", up, perm=[0, 1, 2, 3]), axis=1)
    cut = net.op("Slice", both, net.ints(1, 2), net.ints(15, 9), net.ints(1, 2), net.ints(2, 3))
    turned = net.op("Gather", net.op("Transpose", cut, perm=[0, 2, 3, 1]), net.ints(3, 1, 1), axis=3)
    _agrees(net, x, net.op("Reshape", turned, net.ints(2, -1)), feed)


def test_softmax_products_and_norms() -> None:
    net = Net(0, 17, x=[2, 5, 8])
    x, s, b = net.linear("x", 8, 8), net.weight(8), net.weight(8)
    q, k = net.linear(x, 8, 8), net.op("Transpose", net.linear(x, 8, 8), perm=[0, 2, 1])
    seen = net.op("MatMul", net.op("Softmax", net.op("MatMul", q, k), axis=-1), x)
    y = net.op("LayerNormalization", net.op("Add", seen, x), s, b)
    y = net.op("ReduceMean", y, axes=[1], keepdims=0)
    _agrees(net, x, net.op("Gemm", y, net.weight(3, 8), net.weight(3), transB=1, alpha=0.5), image(2, 5, 8))


@pytest.mark.parametrize(("opset", "axis"), [(17, 1), (17, -1), (11, 2)])
def test_logarithms_of_softmax(opset: int, axis: int) -> None:
    net, x, feed = _start(opset)
    _agrees(net, x, net.op("LogSoftmax", x, axis=axis), feed)


@pytest.mark.parametrize(
    ("op", "opset", "axis"),
    [("RMSNormalization", 23, -1), ("RMSNormalization", 23, 1), ("SimplifiedLayerNormalization", 17, -1)],
)
def test_norms_without_a_mean(op: str, opset: int, axis: int) -> None:
    net = Net(0, opset, x=[2, 5, 8])
    x = net.linear("x", 8, 8)
    y = net.op(op, x, net.weight(*(8,) if axis == -1 else (5, 8)), axis=axis, epsilon=1e-2)
    _agrees(net, x, net.op("Mul", y, x), image(2, 5, 8))


@pytest.mark.parametrize("attrs", [{}, {"axis": 1, "largest": 0}])
def test_the_largest_values(attrs: dict[str, int]) -> None:
    net, x, feed = _start()
    values, _ = net.op("TopK", x, net.ints(3), outputs=2, **attrs)
    _agrees(net, x, values, feed, 5e-2)


def test_choices_between_tensors() -> None:
    net = Net(0, 17, x=[2, 5, 8])
    x = net.linear("x", 8, 8)
    net.weights["least"] = np.float32(-1)
    above = net.op("Greater", "x", net.weight(5, 1))
    both = net.op("Where", above, net.op("ReduceMean", x, axes=[1]), x)
    _agrees(net, x, net.op("Where", net.op("Not", above), both, "least"), image(2, 5, 8))


@pytest.mark.parametrize("opset", [11, 17, 18])
def test_parts(opset: int) -> None:
    """Of equal sizes, of given ones and of what is left over; one that nobody reads gives nothing back."""
    net, x, feed = _start(opset)
    even = {} if opset < 18 else {"num_outputs": 3}
    given, attrs = ((), {"split": [1, 5, 2]}) if opset < 13 else ((net.ints(1, 5, 2),), {})
    a, b, c = net.op("Split", x, *given, outputs=3, axis=1, **attrs)
    *_, last = net.op("Split", b, outputs=3, axis=2, **even)  # 9 rows
    first, *_ = net.op("Split", c, outputs=4 if opset < 18 else 3, axis=-1, **even)  # 8 columns, 3 + 3 + 2
    pooled = [net.op("GlobalAveragePool", net.op("Mul", t, t)) for t in (a, last, first)]
    _agrees(net, x, net.op("Concat", *pooled, axis=1), feed)


def test_sizes_carry_no_gradient() -> None:
    net, x, feed = _start()
    sizes = net.op("Shape", x)
    root = net.op("Sqrt", net.op("Cast", net.op("Gather", sizes, net.ints(1)), to=1))
    flat = net.op(
        "Reshape", x, net.op("Concat", net.op("Slice", sizes, net.ints(0), net.ints(2)), net.ints(-1), axis=0)
    )
    back = net.op("Expand", net.op("Reshape", net.op("Div", flat, root), sizes), sizes)
    _agrees(net, x, net.op("Mul", back, back), feed)


def test_outputs_that_are_indices_have_no_gradient() -> None:
    net, x, feed = _start()
    values, indices = net.op("TopK", x, net.ints(3), outputs=2)
    gradients = Gradients(net.model(), [values, indices], [x])
    found = dict(gradients.backward(gradients.forward(feed), {values: np.ones((2, 8, 9, 3), np.float32)}))
    assert found[x].sum() == pytest.approx(2 * 8 * 9 * 3)
    with pytest.raises(PassError, match="indices"):
        Gradients(net.model(), [indices], [x])


def test_integers_of_a_quantized_model_are_no_decisions() -> None:
    net, x, _ = _start()
    net.weights |= {"scale": np.float32(0.1), "zero": np.uint8(128)}
    y = net.op("DequantizeLinear", net.op("QuantizeLinear", x, "scale", "zero"), "scale", "zero")
    with pytest.raises(PassError, match="QuantizeLinear"):
        Gradients(net.model(), [y], [x])


def test_batch_norms_and_old_softmax() -> None:
    net, x, feed = _start(11)
    _agrees(net, x, net.op("Softmax", net.op("Flatten", net.norm(x, 8))), feed)


def test_a_batch_norm_with_parameters_of_every_position() -> None:
    net, x, feed = _start(8)
    names = [net.weight(8, 9, 8) for _ in range(4)]
    net.weights[names[3]] = np.abs(net.weights[names[3]]) + 0.5
    _agrees(net, x, net.op("Relu", net.op("BatchNormalization", x, *names, spatial=0)), feed)


def test_an_operator_without_an_adjoint_is_refused() -> None:
    net, x, _ = _start()
    net.op("InstanceNormalization", x, net.weight(8), net.weight(8))
    with pytest.raises(PassError, match="InstanceNormalization"):
        Gradients(net.model(), [net.nodes[-1].output[0]], [x])


def test_indices_of_another_feed_move_data_elsewhere() -> None:
    model = ir.text.parse("g (float[4,2] x, int64[1] i) => (float[1,2] y) { h = Relu(x)  y = Gather(h, i) }")
    gradients, x = Gradients(model, ["y"], ["h"]), np.ones((4, 2), np.float32)
    for row in (0, 3, 0):
        values = gradients.forward({"x": x, "i": np.array([row])})
        ((_, found),) = gradients.backward(values, {"y": np.ones((1, 2), np.float32)})
        assert found.tolist() == [[float(k == row)] * 2 for k in range(4)]
