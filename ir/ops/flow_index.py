"""How labels pass through operators that pick or place by indices: what is indexed stays, the other axes pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import onnx_graphsurgeon as gs

from ..labels import Cells
from .flow_linear import Places, conv

if TYPE_CHECKING:
    from ..flow import Flow


def _stays(flow: Flow, node: gs.Node, index: int, axes: Sequence[int] | None = None) -> None:
    """Axes of an input (all when None) are indexed, or index."""
    flow.pin(node.inputs[index], f"positions are picked by {node.op} '{node.name}'", axes)


def _together(flow: Flow, node: gs.Node, indices: Sequence[int], skip: int) -> list[Cells | None]:
    """Axes but one, of inputs of one shape, are the same positions; labels of the first of them."""
    first, *rest = indices
    labels = flow.moved(node, first)
    for axis, n in enumerate(flow.size(node.inputs[first])):
        if axis != skip and n > 1:
            for index in rest:
                flow.meet(node, index, axis, labels[axis])
    return [None if axis == skip else flow.atoms.resolve(c) for axis, c in enumerate(labels)]


def elements(flow: Flow, node: gs.Node) -> None:
    """GatherElements (data, indices) and ScatterElements (data, indices, updates): every element along one axis by
    itself, so the other axes are the same in all."""
    rank = flow.rank(node.inputs[0])
    at = int(node.attrs.get("axis", 0)) % max(rank, 1)
    operands = list(range(len(node.inputs)))
    for index in operands:
        _stays(flow, node, index, [at])
    sizes = [[n for a, n in enumerate(flow.size(node.inputs[i])) if a != at] for i in operands]
    if any(s != sizes[0] for s in sizes):
        for index in operands:
            _stays(flow, node, index)
        return
    flow.put(node.outputs[0], _together(flow, node, operands, at))


def gather_nd(flow: Flow, node: gs.Node) -> None:
    """GatherND: the last axis of the indices names positions of leading axes of the data; the axes behind pass."""
    indices = node.inputs[1]
    named = int(node.attrs.get("batch_dims", 0)) + flow.size(indices)[-1]
    _stays(flow, node, 1)
    _stays(flow, node, 0, range(named))
    labels = [None if a < named else c for a, c in enumerate(flow.moved(node, 0))]
    rank = flow.rank(node.outputs[0])
    flow.put(node.outputs[0], [None] * (rank - len(labels[named:])) + labels[named:])


def scatter_nd(flow: Flow, node: gs.Node) -> None:
    """ScatterND (data, indices, updates): as GatherND; updates are whole slices of the axes that are not named."""
    named, ahead = flow.size(node.inputs[1])[-1], flow.rank(node.inputs[1]) - 1
    _stays(flow, node, 1)
    _stays(flow, node, 0, range(named))
    _stays(flow, node, 2, range(ahead))
    labels = [None if a < named else c for a, c in enumerate(flow.moved(node, 0))]
    for axis, cells in enumerate(labels):
        if axis >= named and flow.size(node.inputs[0])[axis] > 1:
            flow.meet(node, 2, ahead + axis - named, cells)
    flow.put(node.outputs[0], labels)


def sampled(flow: Flow, node: gs.Node) -> None:
    """GridSample, RoiAlign and MaxRoiPool: space is sampled, channels pass."""
    x = node.inputs[0]
    for index in range(1, len(node.inputs)):
        _stays(flow, node, index)
    _stays(flow, node, 0, [a for a in range(flow.rank(x)) if a != 1])
    flow.put(node.outputs[0], [c if a == 1 else None for a, c in enumerate(flow.of(x))])


def deformed(flow: Flow, node: gs.Node) -> None:
    """DeformConv (X, W, offset, B, mask) with one group of offsets: a convolution."""
    if int(node.attrs.get("offset_group", 1)) != 1:
        flow.pin_inputs(node, f"offsets by group of channels at DeformConv '{node.name}'")
        return
    for index in (2, 4):
        if index < len(node.inputs):
            flow.pin(node.inputs[index], f"offsets of DeformConv '{node.name}'")
    conv(flow, node, Places(0, 1, 3))


def some_axes(flow: Flow, node: gs.Node) -> None:
    """Compress (one axis), ReverseSequence (batch and time), Trilu (the last two): what they work along stays, and so
    does what says where."""
    x = node.inputs[0]
    rank = flow.rank(x)
    if node.op == "Trilu":
        axes: list[int] = [rank - 2, rank - 1]
    elif node.op == "ReverseSequence":
        axes = [int(node.attrs.get("batch_axis", 1)), int(node.attrs.get("time_axis", 0))]
    else:
        axes = [int(node.attrs["axis"]) % max(rank, 1)] if "axis" in node.attrs else list(range(rank))
    flow.pin(x, f"{node.op} '{node.name}' works along it", axes)
    for index in range(1, len(node.inputs)):
        _stays(flow, node, index)
    if flow.rank(node.outputs[0]) == rank:
        flow.put(node.outputs[0], flow.of(x))


RULES: dict[str, Callable[[Any, gs.Node], None]] = {
    **dict.fromkeys(("GatherElements", "ScatterElements", "Scatter"), elements),
    "GatherND": gather_nd,
    "ScatterND": scatter_nd,
    **dict.fromkeys(("GridSample", "RoiAlign", "MaxRoiPool"), sampled),
    "DeformConv": deformed,
    **dict.fromkeys(("Compress", "ReverseSequence", "Trilu"), some_axes),
}
