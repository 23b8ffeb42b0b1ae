"""Networks whose operators read more than data and weights: conditions, first states, masks, caches, boxes, sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
from prune_nets import Net

from onnxslim_opt import ir

Feeds = dict[str, tuple[int, ...]]


def condition() -> ir.Model:
    """Compress by what is computed."""
    n = Net(x=[2, 7, 6], c=[1, 5])
    asked = n.op("Reshape", n.op("MatMul", "c", n.weight(5, 7)), n.ints(-1))
    least = n.weight()
    n.weights[least] = np.float32(-9)
    n.linear(n.op("Compress", n.op("Relu", n.linear("x", 6, 8)), n.op("Greater", asked, least), axis=1), 8, 4)
    return n.model()


def first_states(kind: str) -> ir.Model:
    """A layer in both directions whose first states are computed, the directions as channels."""
    n = Net(x=[7, 2, 3], c=[2, 5])
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]

    def states() -> str:
        return n.op("Transpose", n.op("Reshape", n.linear("c", 5, 12), n.ints(2, 2, 6)), perm=[1, 0, 2])

    first = [states() for _ in range(2 if kind == "LSTM" else 1)]
    weights = n.weight(2, gates * 6, 3), n.weight(2, gates * 6, 6), n.weight(2, 2 * gates * 6)
    y, *_ = n.op(kind, "x", *weights, "", *first, outputs=2, hidden_size=6, direction="bidirectional")
    n.linear(n.op("Reshape", n.op("Transpose", y, perm=[0, 2, 1, 3]), n.ints(7, 2, 12)), 12, 4)
    return n.model()


def trained() -> ir.Model:
    """A BatchNormalization that trains, its statistics put out and (the second one) read by a product."""
    n = Net(x=[2, 3, 8, 8])
    outs = []
    a = n.conv("x", 3, 8)
    for _ in range(2):
        given = [n.weight(8) for _ in range(4)]
        n.weights[given[3]] = np.abs(n.weights[given[3]]) + 0.5
        a, *statistics = n.op("BatchNormalization", a, *given, outputs=3, training_mode=1)
        outs.append(statistics)
        a = n.conv(n.op("Relu", a), 8, 8)
    gate = n.op("MatMul", n.op("Unsqueeze", n.op("Tanh", outs[1][0]), n.ints(0)), n.weight(8, 8))
    model = n.head(n.op("Mul", a, n.op("Unsqueeze", gate, n.ints(2, 3))), 8)
    model.graph.outputs += [model.tensors()[t] for t in outs[0]]
    return model


def placed_norm() -> ir.Model:
    """BatchNormalization of opset 8 with parameters for every place, and an axis of these that a linear layer makes."""
    n = Net(x=[2, 3, 4, 6], opset=8)
    given = [n.weight(3, 4, 8) for _ in range(4)]
    n.weights[given[3]] = np.abs(n.weights[given[3]]) + 0.5
    n.linear(n.op("Relu", n.op("BatchNormalization", n.linear("x", 6, 8), *given, spatial=0)), 8, 5)
    return n.model()


def masked(heads: bool = False) -> ir.Model:
    """Attention whose mask is made by a linear layer, of tokens alone or by head."""
    n = Net(x=[2, 4, 5, 6], c=[5, 9], opset=23)
    q, k, v = (n.linear("x", 6, 8) for _ in range(3))
    if heads:
        scores = n.op("Reshape", n.linear("c", 9, 20), n.ints(1, 5, 5, 4))
        mask = n.op("Transpose", scores, perm=[0, 3, 1, 2])
    else:
        mask = n.linear("c", 9, 5)
    n.linear(n.op("Attention", q, k, v, mask), 8, 3)
    return n.model()


def remembered() -> ir.Model:
    """Attention whose past keys and values are made by linear layers."""
    n = Net(x=[2, 4, 5, 6], c=[2, 9], opset=23)
    q, k, v = (n.linear("x", 6, 8) for _ in range(3))
    past = (n.op("Reshape", n.linear("c", 9, 96), n.ints(2, 4, 3, 8)) for _ in range(2))
    y, *_ = n.op("Attention", q, k, v, "", *past, outputs=3)
    n.linear(y, 8, 3)
    return n.model()


def turned() -> ir.Model:
    """RotaryEmbedding of tokens that a linear layer makes."""
    n = Net(x=[2, 6, 5], opset=23)
    tokens = n.op("Transpose", n.op("Relu", n.linear("x", 5, 7)), perm=[0, 2, 1])
    h = n.op("RotaryEmbedding", n.linear(tokens, 6, 16), n.weight(2, 7, 2), n.weight(2, 7, 2), num_heads=4)
    n.linear(n.op("MatMul", n.weight(3, 7), n.op("Relu", n.linear(h, 16, 9))), 9, 4)
    return n.model()


def copied_size(softmax: bool) -> ir.Model:
    """A Reshape that copies the size of an axis whose channels it puts elsewhere."""
    n = Net(x=[16, 6])
    a = n.op("Reshape", n.op("Tanh", n.linear("x", 6, 8)), n.ints(2, 0, -1))
    if softmax:
        a = n.op("Softmax", n.op("Transpose", a, perm=[0, 2, 1]), axis=-1)
        a = n.op("Transpose", a, perm=[0, 2, 1])
    n.linear(a, 8, 4)
    return n.model()


def copied_rows() -> ir.Model:
    """The same where rows that a linear layer makes, and that stay in the end, take the place of what is copied."""
    n = Net(x=[16, 6])
    rows = n.op("MatMul", n.weight(16, 16), n.op("Relu", n.linear("x", 6, 8)))
    a = n.op("Reshape", rows, n.ints(2, 0, -1))
    n.linear(n.op("Softmax", a, axis=1), 8, 4)
    return n.model()


def boxed() -> ir.Model:
    """Resize of a region that is computed."""
    n = Net(x=[1, 3, 8, 8])
    a = n.op("Relu", n.conv("x", 3, 8))
    box = n.op("Sigmoid", n.linear(n.op("Flatten", n.op("GlobalAveragePool", a)), 8, 6))
    first = n.weight(2)
    n.weights[first][:] = 0
    roi = n.op("Concat", first, n.op("Reshape", box, n.ints(-1)), axis=0)
    attrs = {"coordinate_transformation_mode": "tf_crop_and_resize", "mode": "linear"}
    return n.head(n.conv(n.op("Resize", a, roi, "", n.ints(1, 8, 8, 8), **attrs), 8, 5), 5)


def summed() -> ir.Model:
    """ONNX Runtime's FusedConv with a sum that has samples of its own."""
    n = Net(x=[2, 3, 6, 6])
    samples = n.op("Transpose", n.conv(n.op("Transpose", "x", perm=[1, 0, 2, 3]), 2, 6), perm=[1, 0, 2, 3])
    other = n.op("Transpose", n.conv(n.op("Transpose", "x", perm=[1, 0, 2, 3]), 2, 6), perm=[1, 0, 2, 3])
    attrs = {"pads": [1] * 4, "kernel_shape": [3, 3], "activation": "Relu"}
    y = n.op("FusedConv", samples, n.weight(3, 3, 3, 3), n.weight(3), other, domain="com.microsoft", **attrs)
    y = n.op("Transpose", y, perm=[1, 0, 2, 3])
    return n.head(n.conv(y, 6, 5), 5)


SIDES: dict[str, tuple[Any, Feeds]] = {
    "condition": (condition, {"x": (2, 7, 6), "c": (1, 5)}),
    **{k: (lambda k=k: first_states(k), {"x": (7, 2, 3), "c": (2, 5)}) for k in ("LSTM", "GRU", "RNN")},
    "placed_norm": (placed_norm, {"x": (2, 3, 4, 6)}),
    "trained": (trained, {"x": (2, 3, 8, 8)}),
    "masked": (masked, {"x": (2, 4, 5, 6), "c": (5, 9)}),
    "masked_heads": (lambda: masked(True), {"x": (2, 4, 5, 6), "c": (5, 9)}),
    "remembered": (remembered, {"x": (2, 4, 5, 6), "c": (2, 9)}),
    "turned": (turned, {"x": (2, 6, 5)}),
    "copied_size": (lambda: copied_size(False), {"x": (16, 6)}),
    "copied_size_softmax": (lambda: copied_size(True), {"x": (16, 6)}),
    "copied_rows": (copied_rows, {"x": (16, 6)}),
    "boxed": (boxed, {"x": (1, 3, 8, 8)}),
    "summed": (summed, {"x": (2, 3, 6, 6)}),
}
