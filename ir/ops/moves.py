"""Operators that only move data: values come out as they went in."""

from __future__ import annotations

from .facts import Facts, Quant

_SHARED = {
    "Reshape",
    "Transpose",
    "Flatten",
    "Slice",
    "Squeeze",
    "Unsqueeze",
    "Gather",
    "DepthToSpace",
    "SpaceToDepth",
}
_MOVES = [
    "Reshape",
    "Transpose",
    "Flatten",
    "Slice",
    "Split",
    "Gather",
    "GatherElements",
    "GatherND",
    "Squeeze",
    "Unsqueeze",
    "Expand",
    "Tile",
    "Pad",
    "DepthToSpace",
    "SpaceToDepth",
    "Identity",
    "Compress",
    "ReverseSequence",
    "ScatterElements",
    "ScatterND",
    "Scatter",
    "Dropout",
    "Trilu",
    "CenterCropPad",
]


def _row(op: str) -> Facts:
    return Facts(op, "move", quant=Quant(shares=True) if op in _SHARED else None)


FACTS = (*(_row(op) for op in _MOVES), Facts("Concat", "move", quant=Quant(inputs=(), shares=True)))
