"""What kernels cost in float and in integers, in nanoseconds of one thread.

Measured with ONNX Runtime 1.32 on an AVX512-VNNI CPU with AMX, as the slope over chains of 4 to 12 equal operators
(see docs/quant.md for the table). They only propose regions; whether a region pays is timed on the whole model, so a
figure that is off by a factor on another CPU costs a worse proposal, never a slower model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx_graphsurgeon as gs

from ...ir import edit

FLOAT_MACS, INT8_MACS = 95.0, 350.0  # multiply-accumulates a nanosecond in large dense convolutions
REQUANTIZE = 0.15  # ns an output element of an integer product
QUANTIZE, DEQUANTIZE = 0.60, 0.50  # ns an element, with the change of layout between NCHW blocks and NHWC
WEIGHT_FLOAT, WEIGHT_INT8 = 0.25, 0.08  # ns a weight read once: what bounds matrix products of few rows

# ns an output element: (float, integers)
ELEMENT: dict[str, tuple[float, float]] = {
    "Add": (0.12, 0.11),
    "Mul": (0.12, 0.20),
    "Sigmoid": (0.25, 0.20),
    "Softmax": (0.80, 2.20),
    "LeakyRelu": (0.15, 0.20),
    "Concat": (0.10, 0.06),
    "MaxPool": (0.60, 0.80),
    "AveragePool": (0.70, 7.0),
    "Resize": (0.25, 1.40),
    "Slice": (0.10, 0.05),
    "Transpose": (0.30, 0.15),
}
FUSED_SILU = (0.10, 0.20)  # Sigmoid and Mul each, where a float runtime fuses the two
POOLED = (0.05, 0.60)  # GlobalAveragePool, ns an input element

Shapes = Mapping[str, tuple[int, ...]]


def _size(shapes: Shapes, name: str) -> int:
    return math.prod(shapes.get(name, (1,)))


def _pad(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _conv(node: gs.Node, shapes: Shapes) -> tuple[float, float]:
    weight, out = node.inputs[1].shape, _size(shapes, node.outputs[0].name)
    group, window = int(node.attrs.get("group", 1)), math.prod(weight[2:])
    if group > 1 and weight[1] == 1:
        return out * (0.02 * window + 0.05), out * (0.055 * window + 0.10)
    channels, wide = int(weight[1]), int(weight[0]) // group
    plain = out * window * channels * _pad(wide, 16) / max(wide, 1)
    padded = plain * _pad(channels, 32) / max(channels, 1)
    return plain / FLOAT_MACS, padded / INT8_MACS + REQUANTIZE * out


def _product(node: gs.Node, shapes: Shapes) -> tuple[float, float]:
    out, a = _size(shapes, node.outputs[0].name), shapes.get(node.inputs[0].name, (1,))
    macs = out * (a[-1] if a else 1)
    held = edit.const(node, 1)
    weights = 0 if held is None else held.size
    plain = max(macs / FLOAT_MACS, weights * WEIGHT_FLOAT)
    return plain, max(macs / INT8_MACS, weights * WEIGHT_INT8) + 2 * REQUANTIZE * out


def _is_silu(node: gs.Node) -> bool:
    """Whether a Sigmoid and a Mul multiply a tensor by its own sigmoid."""
    if node.op == "Sigmoid":
        return any(r.op == "Mul" and any(t is node.inputs[0] for t in r.inputs) for r in node.outputs[0].outputs)
    makers = [t.inputs[0] for t in node.inputs if t.inputs]
    return node.op == "Mul" and any(m.op == "Sigmoid" and any(t is m.inputs[0] for t in node.inputs) for m in makers)


def of(node: gs.Node, shapes: Shapes) -> tuple[float, float]:
    """Nanoseconds of one node in float and in integers."""
    if node.op in ("Conv", "ConvTranspose"):
        return _conv(node, shapes)
    if node.op in ("MatMul", "Gemm"):
        return _product(node, shapes)
    out = _size(shapes, node.outputs[0].name)
    if node.op == "GlobalAveragePool":
        size = _size(shapes, node.inputs[0].name)
        return POOLED[0] * size, POOLED[1] * size
    plain, integer = FUSED_SILU if _is_silu(node) else ELEMENT.get(node.op, (0.0, 0.0))
    return plain * out, integer * out
