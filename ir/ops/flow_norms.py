"""How labels pass through normalisations.

Statistics over a labelled axis change when channels leave, so what they run over stays, unless the user allows it
(`Flow.norms`): then a normalisation takes its statistics over the channels that are left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import onnx_graphsurgeon as gs

from ..labels import Cells
from ..resizing import Count
from .flow_elementwise import align
from .reduce import trains

if TYPE_CHECKING:
    from ..flow import Flow


def batch_norm(flow: Flow, node: gs.Node) -> None:
    """BatchNormalization: vectors along axis 1; one that trains puts out more of them, and runs over the other axes."""
    x = node.inputs[0]
    if trains(node):
        _over(flow, node, [a for a in range(flow.rank(x)) if a != 1])
    _along_channels(flow, node)
    for tensor in node.outputs[1:] if flow.rank(x) > 1 else ():
        flow.put(tensor, [flow.of(x)[1]])


def _along_channels(flow: Flow, node: gs.Node) -> None:
    labels = flow.of(node.inputs[0])
    if len(labels) > 1:
        for index in range(1, len(node.inputs)):
            for axis in range(flow.rank(node.inputs[index])):  # one; all but the batch where spatial=0 (opset 8)
                flow.meet(node, index, axis, labels[1 + axis])
    flow.put(node.outputs[0], flow.of(node.inputs[0]))


def instance_norm(flow: Flow, node: gs.Node) -> None:
    """InstanceNormalization: statistics over space, vectors along axis 1."""
    _over(flow, node, range(2, flow.rank(node.inputs[0])))
    _along_channels(flow, node)


def _over(flow: Flow, node: gs.Node, axes: Sequence[int], index: int = 0) -> None:
    """The statistics of a node run over these axes."""
    if flow.norms != "allow":
        flow.pin(node.inputs[index], f"statistics of {node.op} '{node.name}' run over it", axes)


def layer_norm(flow: Flow, node: gs.Node) -> None:
    """LayerNormalization and RMSNormalization: scale (and bias) have the shape of what is normalised."""
    rank = flow.rank(node.inputs[0])
    axes = range(int(node.attrs.get("axis", -1)) % max(rank, 1), rank)
    _over(flow, node, axes)
    _scaled(flow, node, (1, 2), flow.of(node.inputs[0]))
    labels = flow.of(node.inputs[0])
    flow.put(node.outputs[0], labels)
    for tensor in node.outputs[1:]:
        flow.put(tensor, [None if a in axes else c for a, c in enumerate(labels)])


def _scaled(flow: Flow, node: gs.Node, indices: Sequence[int], labels: Sequence[Cells | None]) -> None:
    """Scales and biases follow the last axes of what they are broadcast to."""
    for index in indices:
        if index < len(node.inputs) and node.inputs[index].name:
            size = flow.size(node.inputs[index])
            for back in range(1, len(size) + 1):
                if size[-back] > 1:
                    flow.meet(node, index, len(size) - back, labels[-back])


def skip_norm(flow: Flow, node: gs.Node) -> None:
    """The fused residual sum and norm of ONNX Runtime: input + skip (+ bias) is normalised over the last axis."""
    shapes = [flow.size(node.inputs[i]) for i in (0, 1)]
    labels = align(flow, node, (0, 1), shapes, max(len(s) for s in shapes))
    last = len(labels) - 1
    for index in (0, 1):
        _over(flow, node, [last], index)
    labels = [flow.atoms.resolve(c) for c in labels]
    _scaled(flow, node, range(2, len(node.inputs)), labels)
    for k, tensor in enumerate(node.outputs):
        flow.put(tensor, [None if a == last and k in (1, 2) else c for a, c in enumerate(labels)])


def group_norm(flow: Flow, node: gs.Node) -> None:
    """GroupNormalization: whole groups may go; thinning every group alike changes their statistics."""
    x, groups = node.inputs[0], int(node.attrs.get("num_groups", 1))
    rows, columns = flow.grid(node, flow.of(x)[1], groups)
    if flow.norms != "allow":
        reason = f"statistics of {node.op} '{node.name}' run over it"
        flow.atoms.pin(columns, reason)
        flow.pin(x, reason, range(2, flow.rank(x)))
    labels = flow.of(x)
    for index in (1, 2):
        flow.meet(node, index, 0, labels[1] if flow.model.opset >= 21 else rows)
    if rows is not None:
        flow.fixes.append(Count(node.name, rows, "num_groups"))
    flow.put(node.outputs[0], labels)


def along_axis(flow: Flow, node: gs.Node) -> None:
    """LpNormalization divides by the length of the vectors along an axis."""
    rank = flow.rank(node.inputs[0])
    _over(flow, node, [int(node.attrs.get("axis", -1)) % max(rank, 1)])
    flow.put(node.outputs[0], flow.of(node.inputs[0]))


def mixed(flow: Flow, node: gs.Node) -> None:
    """LRN (a window over channels) and MeanVarianceNormalization: what they run over stays."""
    x = node.inputs[0]
    axes: Any = node.attrs.get("axes", [0, 2, 3]) if node.op == "MeanVarianceNormalization" else [1]
    axes = [int(a) % max(flow.rank(x), 1) for a in axes]
    flow.pin(x, f"statistics of {node.op} '{node.name}' run over it", axes)
    flow.put(node.outputs[0], flow.of(x))


RULES = {
    "BatchNormalization": batch_norm,
    "InstanceNormalization": instance_norm,
    **dict.fromkeys(("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"), layer_norm),
    "GroupNormalization": group_norm,
    "LpNormalization": along_axis,
    **dict.fromkeys(("LRN", "MeanVarianceNormalization"), mixed),
}
