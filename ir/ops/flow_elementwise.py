"""How labels pass through element-wise operators (with broadcasting), pools and reductions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from .. import edit
from ..labels import Cells
from ..resizing import Sizes
from .elementwise import FACTS as _ELEMENTWISE

if TYPE_CHECKING:
    from ..flow import Flow


def align(
    flow: Flow, node: gs.Node, indices: Sequence[int], shapes: Sequence[Sequence[int]], rank: int
) -> list[Cells | None]:
    """Labels of `rank` broadcast axes: operands with labels unite, one without ties the others, constants inherit.

    Where every other operand has one position, the axis begins at a constant.
    """
    merged: list[Cells | None] = []
    for axis in range(rank):
        have: list[Cells | None] = []
        bare = False
        constants: list[tuple[int, int]] = []
        for index, shape in zip(indices, shapes):
            at = axis - (rank - len(shape))
            if at < 0 or shape[at] == 1:
                continue
            if isinstance(node.inputs[index], gs.Constant):
                constants.append((index, at))
                continue
            cells = flow.of(node.inputs[index])[at]
            have.append(cells) if cells is not None else None
            bare = bare or cells is None
        if constants and not have and not bare:
            have.append(_begin(flow, node, *constants[0]))
        merged.append(_merge(flow, node, [c for c in have if c is not None], bare))
        for index, at in constants:
            flow.cut(node, index, at, merged[-1])
    return merged


def _begin(flow: Flow, node: gs.Node, index: int, axis: int) -> Cells | None:
    """An axis that only constants have can be cut anywhere: what is computed along it is free too."""
    floating = np.issubdtype(node.inputs[index].dtype, np.floating)
    return flow.constant(node, index, axis) if floating else None


def _merge(flow: Flow, node: gs.Node, have: list[Cells], bare: bool) -> Cells | None:
    reason = f"meets what stays at {node.op} '{node.name}'"
    for other in have[1:]:
        flow.atoms.unify(have[0], other, reason)
    if bare:
        for cells in have:
            flow.atoms.pin(cells, reason)
    return flow.atoms.resolve(have[0]) if have else None


def elementwise(flow: Flow, node: gs.Node) -> None:
    """Broadcast alignment of all inputs."""
    indices = [i for i, t in enumerate(node.inputs) if t.name]
    shapes = [flow.size(node.inputs[i]) for i in indices]
    labels = align(flow, node, indices, shapes, flow.rank(node.outputs[0]))
    for tensor in node.outputs:
        flow.put(tensor, labels)


def same(flow: Flow, node: gs.Node) -> None:
    """The first input's labels pass; whatever else comes in is scalar, or tells a type."""
    labels = flow.moved(node, 0)
    for tensor in node.outputs:
        flow.put(tensor, labels)
    for tensor in node.inputs[1:] if node.op == "CastLike" else ():
        for cells in flow.of(tensor):
            flow.settle(cells)


def axes_of(flow: Flow, node: gs.Node, default: Sequence[int]) -> list[int]:
    """The axes a node names, as an attribute or as input 1; `default` where it names none."""
    rank = flow.rank(node.inputs[0])
    given = node.attrs.get("axes", node.attrs.get("axis"))
    if given is None and edit.get(node, 1) is not None:
        values = edit.const(node, 1)
        given = list(range(rank)) if values is None else np.ravel(values).tolist() or None
    given = default if given is None else given
    given = [given] if isinstance(given, (int, np.integer)) else given
    return [int(a) % max(rank, 1) for a in given]


def reduce(flow: Flow, node: gs.Node) -> None:
    """What is reduced stays (a sum over fewer channels is another sum); the other axes pass."""
    x = node.inputs[0]
    rank = flow.rank(x)
    if edit.get(node, 1) is None and node.attrs.get("noop_with_empty_axes", 0) and "axes" not in node.attrs:
        same(flow, node)
        return
    arg = node.op.startswith("Arg")
    axes = [int(node.attrs.get("axis", 0)) % max(rank, 1)] if arg else axes_of(flow, node, range(rank))
    if not measures(flow, node):
        flow.pin(x, f"{node.op} '{node.name}' runs over it", axes)
    elif flow.norms != "allow":
        flow.pin(x, f"statistics of {node.op} '{node.name}' run over it", axes)
    labels = flow.of(x)
    for axis in axes:
        flow.settle(labels[axis])
    if node.attrs.get("keepdims", 1):
        out = [None if a in axes else c for a, c in enumerate(labels)]
    else:
        out = [c for a, c in enumerate(labels) if a not in axes]
    flow.put(node.outputs[0], out)


def measures(flow: Flow, node: gs.Node) -> bool:
    """Whether a reduction is the statistic of a spelled-out normalisation: it comes back to a tensor of x's shape.

    Such a chain subtracts or divides by the mean, the mean square or the length of a vector.
    """
    if node.op not in ("ReduceMean", "ReduceL2", "ReduceSum", "ReduceSumSquare") or not node.attrs.get("keepdims", 1):
        return False
    shape, chain, queue = flow.size(node.inputs[0]), {id(node.outputs[0])}, [node.outputs[0]]
    while queue:
        for user in queue.pop().outputs:
            others = [t for t in user.inputs if t.name and not isinstance(t, gs.Constant) and id(t) not in chain]
            if any(flow.size(t) == shape for t in others):
                return user.op in ("Sub", "Div", "Mul")
            if user.op == "Expand" or (user.op in _STATISTICS and not others):
                chain.add(id(user.outputs[0]))
                queue.append(user.outputs[0])
    return False


_STATISTICS = ("Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Reciprocal", "Max", "Clip", "Cast", "Neg", "Identity")


def along(flow: Flow, node: gs.Node) -> None:
    """Softmax and its like mix along one axis (before opset 13: from that axis on), which stays."""
    x = node.inputs[0]
    rank = flow.rank(x)
    flattening = node.op in ("Softmax", "LogSoftmax", "Hardmax") and flow.model.opset < 13
    first = int(node.attrs.get("axis", 1 if flattening else -1)) % max(rank, 1)
    flow.pin(x, f"{node.op} '{node.name}' runs over it", range(first, rank) if flattening else [first])
    for tensor in node.outputs:
        if tensor.name and flow.rank(tensor) == rank:
            flow.put(tensor, flow.of(x))


def cumulative(flow: Flow, node: gs.Node) -> None:
    """CumSum and TopK: the axis they run along stays."""
    x = node.inputs[0]
    default = [-1]
    axes = (
        [int(node.attrs["axis"])]
        if "axis" in node.attrs
        else axes_of(flow, node, default)
        if node.op == "CumSum"
        else default
    )
    flow.pin(x, f"{node.op} '{node.name}' runs along it", [a % max(flow.rank(x), 1) for a in axes])
    for tensor in node.outputs:
        flow.put(tensor, flow.of(x))


def space(flow: Flow, node: gs.Node, x: gs.Variable, kernel: Sequence[int]) -> list[Cells | None]:
    """Labels of what a window runs over. Space stays, but for the axes that it passes position by position: of one
    position itself, at every one, without a border (which `auto_pad` does not make there)."""
    n = len(kernel)
    steps, pads, more = (
        node.attrs.get(k) or [d] * m for k, d, m in (("strides", 1, n), ("pads", 0, 2 * n), ("output_padding", 0, n))
    )
    placed = node.op == "DeformConv" or "output_shape" in node.attrs  # where it reads or writes is said otherwise
    single = [kernel[a] == steps[a] == 1 and not (pads[a] or pads[a + n] or more[a] or placed) for a in range(n)]
    passes = (True, True, *(single or [False] * (flow.rank(x) - 2)))
    flow.pin(x, f"space of {node.op} '{node.name}'", [a for a, free in enumerate(passes) if not free])
    return flow.of(x)


def pool(flow: Flow, node: gs.Node) -> None:
    """Channels pass, space stays where it is pooled; indices (MaxPool's second output) count channels and pin."""
    x = node.inputs[0]
    if len(node.outputs) > 1 and node.outputs[1].name:
        flow.pin_inputs(node, f"indices of {node.op} '{node.name}' count channels")
    flow.put(node.outputs[0], space(flow, node, x, node.attrs.get("kernel_shape", ())))


def resize(flow: Flow, node: gs.Node) -> None:
    """Axes that keep their size pass; others stay."""
    x, y = node.inputs[0], node.outputs[0]
    before, after = flow.size(x), flow.size(y)
    flow.pin(x, f"{node.op} '{node.name}' resizes it", [a for a, (m, n) in enumerate(zip(before, after)) if m != n])
    for index in range(1, len(node.inputs)):
        flow.pin(node.inputs[index], f"says how {node.op} '{node.name}' resizes")
    labels = flow.of(x)
    if edit.get(node, 3) is not None:
        axes = [int(a) % len(before) for a in node.attrs.get("axes", range(len(before)))]
        entries = {axes.index(a): c for a, c in enumerate(labels) if c is not None and a in axes}
        if entries:
            flow.fixes.append(Sizes(node.name, 3, entries, length=len(axes)))
    flow.put(y, labels)


def quantize(flow: Flow, node: gs.Node) -> None:
    """QuantizeLinear and DequantizeLinear: a scale per channel follows its axis."""
    x = node.inputs[0]
    shape = flow.size(x)
    axis = int(node.attrs.get("axis", 1)) % max(len(shape), 1)
    if node.attrs.get("block_size", 0):
        _blocks_stay(flow, node, axis)
        return
    labels = flow.moved(node, 0)
    for index in (1, 2):
        tensor = edit.get(node, index)
        if tensor is not None and flow.rank(tensor) == 1 and flow.size(tensor)[0] > 1:
            flow.meet(node, index, 0, labels[axis])
    flow.put(node.outputs[0], labels)


def _blocks_stay(flow: Flow, node: gs.Node, axis: int) -> None:
    """Scales for blocks along an axis: all stays, and of a stored weight it is said why."""
    why = f"block-wise {node.op} '{node.name}'"
    flow.pin_inputs(node, why)
    for at, cells in enumerate(flow.moved(node, 0) if flow.stored(node.inputs[0]) else ()):
        flow.atoms.pin(cells, why)
        if cells is not None and at != axis:
            flow.origin(node, 0, at, cells)


_REDUCTIONS = ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]

RULES = {
    **{row.op: elementwise for row in _ELEMENTWISE},
    **{f"Reduce{name}": reduce for name in _REDUCTIONS},
    "ArgMax": reduce,
    "ArgMin": reduce,
    **dict.fromkeys(("Identity", "Dropout", "Cast", "CastLike", "Clip"), same),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), along),
    **dict.fromkeys(("CumSum", "TopK"), cumulative),
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), pool),
    **dict.fromkeys(("Resize", "Upsample"), resize),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), quantize),
}
