"""Networks of operators that ONNX Runtime alone has, and of those that sample space."""

from __future__ import annotations

from typing import Any

import numpy as np
from prune_nets import Net

from onnxslim_opt import ir


def integer_sums() -> ir.Model:
    """ONNX Runtime's QLinear operators between QLinearConvs: sums, products, pools, activations, Concat, the mean."""
    n = Net(x=[2, 3, 8, 8], opset=17)

    def of(name: str, value: Any) -> str:
        n.weights[name] = np.asarray(value)
        return name

    def contrib(kind: str, *inputs: str, **attrs: Any) -> str:
        return n.op(kind, *inputs, domain="com.microsoft", **attrs)

    zero, inside, other, near = of("z", np.uint8(120)), of("s", np.float32(0.03)), of("s2", np.float32(0.05)), "z2"
    of(near, np.uint8(110))

    def conv(x: str, cin: int, cout: int, k: int = 3) -> str:
        w = n.weight(cout, cin, k, k)
        n.weights[w] = np.clip(np.round(n.weights[w] * 60), -127, 127).astype(np.int8)
        scale = of(f"s_{w}", np.linspace(0.01, 0.03, cout, dtype=np.float32))
        bias = of(f"b_{w}", np.arange(cout, dtype=np.int32) * 9 - 20)
        weight = (w, scale, of(f"z_{w}", np.zeros(cout, np.int8)))
        return n.op("QLinearConv", x, inside, zero, *weight, inside, zero, bias, pads=[k // 2] * 4)

    x = n.op("QuantizeLinear", "x", inside, zero)
    a = conv(x, 3, 8)
    a = contrib("QLinearAdd", a, inside, zero, conv(x, 3, 8), inside, zero, other, near)
    a = contrib("QLinearLeakyRelu", a, other, near, inside, zero, alpha=0.1)
    table = of("table", (np.arange(8, dtype=np.uint8) * 9 + 100).reshape(8, 1, 1))
    a = contrib("QLinearMul", a, inside, zero, table, inside, zero, inside, zero)
    pooled = contrib("QLinearAveragePool", a, inside, zero, inside, zero, kernel_shape=[2, 2], strides=[2, 2])
    half = conv(pooled, 8, 6)
    gate = contrib("QLinearGlobalAveragePool", half, inside, zero, inside, zero, channels_last=0)
    gate = contrib("QLinearSigmoid", conv(gate, 6, 6, 1), inside, zero, inside, zero)
    half = contrib("QLinearMul", half, inside, zero, gate, inside, zero, inside, zero)
    both = contrib("QLinearConcat", other, near, half, inside, zero, pooled, inside, zero, axis=1)
    y = n.op("DequantizeLinear", both, other, near)
    return n.head(n.conv(y, 14, 7), 7)


def fused() -> ir.Model:
    """ONNX Runtime's FusedConv, with a sum that it took in, and FusedGemm."""
    n = Net(x=["N", 3, 6, 6])

    def conv(x: str, cin: int, cout: int, group: int = 1, more: tuple[str, ...] = ()) -> str:
        inputs = (x, n.weight(cout, cin // group, 3, 3), n.weight(cout), *more)
        attrs = {"pads": [1] * 4, "kernel_shape": [3, 3], "group": group, "activation": "Relu"}
        return n.op("FusedConv", *inputs, domain="com.microsoft", **attrs)

    a = conv("x", 3, 8)
    a = conv(conv(a, 8, 8, group=8), 8, 8, more=(a,))
    h = n.op("Flatten", n.op("GlobalAveragePool", conv(a, 8, 10, group=2)))
    gemm = {"transB": 1, "activation": "LeakyRelu", "activation_alpha": 0.2}
    h = n.op("FusedGemm", h, n.weight(7, 10), n.weight(7), domain="com.microsoft", **gemm)
    n.op("Gemm", h, n.weight(7, 5), n.weight(5))
    return n.model()


def regions() -> ir.Model:
    """RoiAlign and MaxRoiPool over channels that may go."""
    n = Net(x=[2, 3, 8, 8])
    boxes = n.weight(3, 4)
    n.weights[boxes] = np.array([[0, 0, 5, 6], [1, 2, 7, 7], [2, 0, 6, 3]], np.float32)
    a = n.op("Relu", n.conv("x", 3, 8))
    r = n.op("RoiAlign", a, boxes, n.ints(0, 1, 1), output_height=4, output_width=4, sampling_ratio=2)
    rows = n.weight(3, 5)
    n.weights[rows] = np.c_[np.array([0, 1, 1], np.float32), n.weights[boxes]]
    m = n.op("MaxRoiPool", a, rows, pooled_shape=[4, 4])
    return n.head(n.conv(n.op("Concat", r, m, axis=1), 16, 6), 6)


def deformed(group: int = 1) -> ir.Model:
    """DeformConv with one group of offsets and a mask, between convolutions."""
    n = Net(x=["N", 3, 6, 6], opset=19)
    a = n.op("Relu", n.conv("x", 3, 8))
    offset, mask = n.conv("x", 3, 18), n.op("Sigmoid", n.conv("x", 3, 9))
    w, b = n.weight(12, 8 // group, 3, 3), n.weight(12)
    a = n.op("DeformConv", a, w, offset, b, mask, kernel_shape=[3, 3], pads=[1] * 4, group=group)
    return n.head(n.conv(n.op("Relu", a), 12, 6), 6)


CONTRIB: dict[str, tuple[Any, tuple[int, ...]]] = {
    "integer_sums": (integer_sums, (2, 3, 8, 8)),
    "fused": (fused, (2, 3, 6, 6)),
    "regions": (regions, (2, 3, 8, 8)),
    "deformed": (deformed, (2, 3, 6, 6)),
    "deformed_groups": (lambda: deformed(2), (2, 3, 6, 6)),
}
