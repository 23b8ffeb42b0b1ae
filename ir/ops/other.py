"""Recurrent networks, control flow, sources, quantization, randomness and sequences."""

from __future__ import annotations

import math

import onnx_graphsurgeon as gs

from .facts import Facts, SizeOf


def _recurrent_macs(node: gs.Node, sizes: SizeOf) -> int:
    """Steps times batch times the elements of W and R (of every direction)."""
    x, w, r = sizes(node.inputs[0]), sizes(node.inputs[1]), sizes(node.inputs[2])
    if x is None or w is None or r is None:
        return 0
    return x[0] * x[1] * (math.prod(w) + math.prod(r))


_SOURCES = [
    "Constant",
    "ConstantOfShape",
    "EyeLike",
    "NonZero",
    "OneHot",
    "Range",
    "Shape",
    "Size",
    "Unique",
    "NonMaxSuppression",
    "Det",
]
_RANDOM = [
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
]
_SEQUENCES = [
    "ConcatFromSequence",
    "Optional",
    "OptionalGetElement",
    "OptionalHasElement",
    "SequenceAt",
    "SequenceConstruct",
    "SequenceEmpty",
    "SequenceErase",
    "SequenceInsert",
    "SequenceLength",
    "SplitToSequence",
]

FACTS = (
    *(Facts(op, "recurrent", macs=_recurrent_macs) for op in ("LSTM", "GRU", "RNN")),
    Facts("DynamicQuantizeLSTM", "opaque", domain="com.microsoft", macs=_recurrent_macs),
    *(Facts(op, "control") for op in ("If", "Loop", "Scan", "SequenceMap")),
    *(Facts(op, "source") for op in _SOURCES),
    *(Facts(op, "source", random=True) for op in _RANDOM),
    *(Facts(op, "sequence") for op in _SEQUENCES),
    *(Facts(op, "quantize") for op in ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")),
)
