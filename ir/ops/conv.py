"""Convolutions."""

from __future__ import annotations

import math

import onnx_graphsurgeon as gs

from .facts import Facts, Quant, SizeOf, Weight


def _conv_weight(node: gs.Node) -> Weight | None:
    return Weight(1, 0, 1, bias=2, groups=int(node.attrs.get("group", 1)))


def _transpose_weight(node: gs.Node) -> Weight | None:
    return Weight(1, 1, 0, bias=2, groups=int(node.attrs.get("group", 1)), transposed=True)


def _qlinear_macs(node: gs.Node, sizes: SizeOf) -> int:
    """As a convolution's; the weight is input 3."""
    return _conv_macs(node, sizes, 3)


def _conv_macs(node: gs.Node, sizes: SizeOf, index: int = 1) -> int:
    """Output elements times weight elements of one output channel."""
    out, weight = sizes(node.outputs[0]), sizes(node.inputs[index])
    if out is None or weight is None:
        return 0
    return math.prod(out) * math.prod(weight[1:])


def _transpose_macs(node: gs.Node, sizes: SizeOf) -> int:
    """Input elements times weight elements of one input channel."""
    x, weight = sizes(node.inputs[0]), sizes(node.inputs[1])
    if x is None or weight is None:
        return 0
    return math.prod(x) * math.prod(weight[1:])


FACTS = (
    Facts("Conv", "weighted", weight=_conv_weight, macs=_conv_macs, quant=Quant(weighted=True)),
    Facts("ConvTranspose", "weighted", weight=_transpose_weight, macs=_transpose_macs),
    Facts("DeformConv", "weighted", weight=_conv_weight, macs=_conv_macs),
    Facts("ConvInteger", "opaque", macs=_conv_macs),
    Facts("QLinearConv", "opaque", macs=_qlinear_macs),
)
