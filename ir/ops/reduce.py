"""Pooling, resizing, reductions and normalisations."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from .facts import Facts, Quant

_POOLS = ["LpPool", "GlobalLpPool", "MaxUnpool", "MaxRoiPool", "RoiAlign", "GridSample", "Upsample", "Col2Im"]
_REDUCE = [
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
    "ArgMax",
    "ArgMin",
    "CumSum",
    "LogSoftmax",
    "Hardmax",
    "TopK",
]
_NORMALISE = [
    "BatchNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "GroupNormalization",
    "RMSNormalization",
    "LpNormalization",
    "MeanVarianceNormalization",
    "LRN",
]


def trains(node: gs.Node) -> bool:
    """Whether a BatchNormalization takes its statistics from the batch: an attribute says so, before opset 14 the
    outputs that it has beyond the first, whether anything reads them or not."""
    return bool(node.attrs.get("training_mode", 0)) or any(t.name for t in node.outputs[1:])


FACTS = (
    Facts("MaxPool", "pool", quant=Quant(shares=True)),
    Facts("AveragePool", "pool", quant=Quant()),
    Facts("GlobalAveragePool", "pool", quant=Quant()),
    Facts("GlobalMaxPool", "pool", quant=Quant(shares=True)),
    Facts("Resize", "pool", quant=Quant(shares=True)),
    *(Facts(op, "pool") for op in _POOLS),
    *(Facts(op, "reduce") for op in _REDUCE),
    Facts("Softmax", "reduce", quant=Quant(fixed=(0.0, 1.0))),
    *(Facts(op, "normalise") for op in _NORMALISE),
)
