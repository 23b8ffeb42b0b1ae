"""How labels pass through operators that only move data: the move is done on the labels themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from .. import edit
from ..labels import Cells, stack
from ..resizing import Bounds, Padding, Parts, Pick, Sizes, Strides

if TYPE_CHECKING:
    from ..flow import Flow

Labels = "list[Cells | None]"


def blocks(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]] | None:
    """The smallest runs of axes that a reshape maps onto each other; axes of one position left out.

    None when the shapes do not hold the same number of elements, or hold none.
    """
    if math.prod(before) != math.prod(after) or 0 in before:
        return None
    left = [a for a, n in enumerate(before) if n != 1]
    right = [a for a, n in enumerate(after) if n != 1]
    found, i, j = [], 0, 0
    while i < len(left):
        m, n, start, begin = before[left[i]], after[right[j]], i, j
        i, j = i + 1, j + 1
        while m != n:
            if m < n:
                m, i = m * before[left[i]], i + 1
            else:
                n, j = n * after[right[j]], j + 1
        found.append((left[start:i], right[begin:j]))
    return found


def regrid(
    flow: Flow, node: gs.Node, labels: Sequence[Cells | None], before: Sequence[int], after: Sequence[int]
) -> list[Cells | None]:
    """Labels after a reshape: axes that merge carry the atoms of all, axes that split become a grid."""
    out: list[Cells | None] = [None] * len(after)
    found = blocks(before, after)
    if found is None:
        for cells in labels:
            flow.atoms.pin(cells, f"{node.op} '{node.name}' of an unexpected size")
        return out
    for left, right in found:
        if all(labels[a] is None for a in left):
            continue
        if len(left) == len(right) == 1:
            out[right[0]] = labels[left[0]]
            continue
        grid = _spread(labels, left, [before[a] for a in left])
        shaped = grid.reshape(*(after[a] for a in right), -1)
        for axis, cells in zip(right, flow.atoms.factor(shaped, f"'{node.outputs[0].name}'")):
            out[axis] = cells
    return out


def _spread(labels: Sequence[Cells | None], axes: Sequence[int], sizes: Sequence[int]) -> np.ndarray:
    """Cells of a block of axes, expanded over the whole block: `[n1, …, nm, K]`."""
    parts = []
    for p, axis in enumerate(axes):
        cells = labels[axis]
        if cells is not None:
            shape = [1] * len(sizes) + [cells.shape[1]]
            shape[p] = sizes[p]
            parts.append(np.broadcast_to(cells.reshape(shape), (*sizes, cells.shape[1])))
    return np.concatenate(parts, -1)


def _reshaped(flow: Flow, node: gs.Node, x: Any) -> list[Cells | None]:
    return regrid(flow, node, _labels(flow, node, 0), flow.size(x), flow.size(node.outputs[0]))


def _labels(flow: Flow, node: gs.Node, index: int) -> list[Cells | None]:
    """Labels of an input; axes of a constant that only moves start atoms of their own (it can be cut anywhere)."""
    tensor = node.inputs[index]
    if not isinstance(tensor, gs.Constant):
        return flow.of(tensor)
    labels: list[Cells | None] = []
    for axis, n in enumerate(tensor.shape):
        labels.append(flow.constant(node, index, axis) if n > 1 else None)
        flow.cut(node, index, axis, labels[-1])
    return labels


def entries(tensor: Any) -> list[int | None] | None:
    """What is known of an int vector's entries (constants, constant parts of a Concat); None: unknown length."""
    if isinstance(tensor, gs.Constant):
        return [int(v) for v in np.ravel(tensor.values)]
    maker = edit.producer(tensor)
    if maker is not None and maker.op == "Concat":
        parts = [entries(t) for t in maker.inputs]
        return None if any(p is None for p in parts) else [v for p in parts for v in p or ()]
    if maker is not None and maker.op in ("Cast", "Identity"):
        return entries(maker.inputs[0])
    shape = tensor.shape
    known = shape is not None and len(shape) == 1 and isinstance(shape[0], (int, np.integer))
    return [None] * int(shape[0]) if known else None


def reshape(flow: Flow, node: gs.Node) -> None:
    """Run on labels; entries of the target that repeat a labelled size are rewritten, -1 stays."""
    x, y = node.inputs[0], node.outputs[0]
    before = flow.of(x)
    if isinstance(x, gs.Constant) or all(c is None for c in before):
        return
    labels = _reshaped(flow, node, x)
    target: list[int | None] | None
    target = list(node.attrs["shape"]) if "shape" in node.attrs else entries(node.inputs[1])
    if target is None or len(target) != len(labels):
        target = [None] * len(labels)
    sizes: dict[int, Cells] = {}
    fixed: dict[int, int] = {}
    for axis, cells in enumerate(labels):
        entry = target[axis]
        copied = entry == 0 and not node.attrs.get("allowzero", 0)
        moved = copied and axis < len(before) and before[axis] is not None
        if cells is not None and entry != -1:
            if flow.static(y, axis) or (entry or 0) > 0:
                sizes[axis] = cells
            elif not moved:
                flow.atoms.pin(cells, f"size computed at run time for Reshape '{node.name}'")
        elif cells is None and moved:
            if flow.static(y, axis):
                fixed[axis] = int(flow.size(y)[axis])
            else:
                flow.atoms.pin(before[axis], f"size copied at run time by Reshape '{node.name}'")
    if sizes or fixed:
        where = "shape" if "shape" in node.attrs else 1
        flow.fixes.append(Sizes(node.name, where, sizes, (-1,), fixed, length=len(labels)))
    flow.put(y, labels)


def reorder(flow: Flow, node: gs.Node) -> None:
    """Flatten, Squeeze, Unsqueeze: a reshape whose sizes follow by themselves."""
    if not isinstance(node.inputs[0], gs.Constant):
        flow.put(node.outputs[0], _reshaped(flow, node, node.inputs[0]))


def transpose(flow: Flow, node: gs.Node) -> None:
    """Permute the axes."""
    labels = _labels(flow, node, 0)
    perm = node.attrs.get("perm") or list(range(len(labels)))[::-1]
    flow.put(node.outputs[0], [labels[p] for p in perm])


def concat(flow: Flow, node: gs.Node) -> None:
    """Labels one after the other along the axis, tied along the others."""
    rank = flow.rank(node.outputs[0])
    at = int(node.attrs["axis"]) % rank
    parts = [_concat_part(flow, node, i, at) for i in range(len(node.inputs))]
    out: list[Cells | None] = []
    for axis in range(rank):
        columns = [labels[axis] for labels in parts]
        if axis == at:
            out.append(stack(columns, [flow.size(t)[axis] for t in node.inputs]))
        else:
            out.append(_tie(flow, node, columns))
    flow.put(node.outputs[0], out)


def _concat_part(flow: Flow, node: gs.Node, index: int, at: int) -> list[Cells | None]:
    tensor = node.inputs[index]
    if not isinstance(tensor, gs.Constant):
        return flow.of(tensor)
    labels: list[Cells | None] = []
    for axis, n in enumerate(tensor.shape):
        labels.append(flow.constant(node, index, axis) if n > 1 and axis != at else None)
        flow.cut(node, index, axis, labels[-1])
    return labels


def _tie(flow: Flow, node: gs.Node, columns: Sequence[Cells | None]) -> Cells | None:
    have = [c for c in columns if c is not None]
    reason = f"meets what stays at {node.op} '{node.name}'"
    for other in have[1:]:
        flow.atoms.unify(have[0], other, reason)
    if len(have) < len(columns):
        for cells in have:
            flow.atoms.pin(cells, reason)
    return flow.atoms.resolve(have[0]) if have else None


def split(flow: Flow, node: gs.Node) -> None:
    """Runs of labels; the sizes become explicit."""
    x = node.inputs[0]
    labels = _labels(flow, node, 0)
    at = int(node.attrs.get("axis", 0)) % len(labels)
    cells, start, parts = labels[at], 0, []
    for tensor in node.outputs:
        size = flow.size(tensor)[at] if tensor.name else 0
        parts.append(None if cells is None else cells[start : start + size])
        start += size
    if cells is not None and start != len(cells):
        flow.pin(x, f"parts of Split '{node.name}' are not known", [at])
        cells = None
    if cells is not None and edit.get(node, 1) is not None and edit.const(node, 1) is None:
        flow.pin(x, f"sizes of Split '{node.name}' are computed", [at])
        cells = None
    if cells is not None:
        flow.fixes.append(Parts(node.name, tuple(p for p in parts if p is not None)))
    for tensor, part in zip(node.outputs, parts):
        flow.put(tensor, [(part if cells is not None else None) if a == at else c for a, c in enumerate(labels)])


def _vector(node: gs.Node, index: int, attr: str, default: Any = None) -> list[int] | None:
    """An int vector that is an attribute in old opsets, a constant input in new ones; None when computed."""
    if attr in node.attrs:
        return [int(v) for v in node.attrs[attr]]
    if edit.get(node, index) is None:
        return default
    values = edit.const(node, index)
    return None if values is None else [int(v) for v in np.ravel(values)]


def slice_(flow: Flow, node: gs.Node) -> None:
    """A run of labels; the bounds are recomputed. What is sliced by computed bounds stays."""
    x = node.inputs[0]
    labels = _labels(flow, node, 0)
    starts, ends = _vector(node, 1, "starts"), _vector(node, 2, "ends")
    axes = _vector(node, 3, "axes", list(range(len(starts or ()))))
    steps = _vector(node, 4, "steps", [1] * len(starts or ()))
    if axes is None:
        flow.pin(x, f"axes of Slice '{node.name}' are computed")
        flow.put(node.outputs[0], flow.of(x))
        return
    out = list(labels)
    for k, axis in enumerate(a % len(labels) for a in axes):
        cells = labels[axis]
        if cells is None:
            continue
        n = len(cells)
        if starts is None or ends is None or steps is None:
            flow.atoms.pin(cells, f"bounds of Slice '{node.name}' are computed")
            out[axis] = None
            continue
        taken = range(n)[_whole(starts[k], ends[k], steps[k])]
        out[axis] = cells[list(taken)]
        if len(taken) in (0, n) and steps[k] == 1:
            continue
        if steps[k] == 1:
            flow.fixes.append(Bounds(node.name, k, cells, taken.start, taken.stop))
        else:
            flow.fixes.append(Strides(node.name, k, axis, cells, tuple(taken)))
    flow.put(node.outputs[0], out)


def _whole(start: int, stop: int, step: int) -> slice:
    """ONNX's bounds as Python's: a backward slice to before the first position is written as a very small number."""
    if step < 0 and stop < -(2**31) + 1:
        return slice(start, None, step)
    return slice(start, stop, step)


def gather(flow: Flow, node: gs.Node) -> None:
    """Constant indices pick labels; computed indices pin what they index. A constant table starts atoms."""
    x, index = node.inputs[:2]
    rank = flow.rank(x)
    at = int(node.attrs.get("axis", 0)) % max(rank, 1)
    if isinstance(x, gs.Constant):
        labels = [flow.constant(node, 0, a, origin=True) if n > 1 and a != at else None for a, n in enumerate(x.shape)]
        for axis, cells in enumerate(labels):
            flow.cut(node, 0, axis, cells)
    else:
        labels = flow.of(x)
    cells, values = labels[at], edit.const(node, 1)
    if cells is not None and values is None:
        flow.pin(x, f"indices of Gather '{node.name}' are computed", [at])
        cells = None
    if not isinstance(index, gs.Constant):
        flow.pin(index, f"indices of Gather '{node.name}'")
    middle: list[Cells | None] = [None] * flow.rank(index)
    if cells is not None and values is not None:
        middle = _picked(flow, node, cells, values)
    flow.put(node.outputs[0], labels[:at] + middle + labels[at + 1 :])


def _picked(flow: Flow, node: gs.Node, cells: Cells, values: np.ndarray) -> list[Cells | None]:
    """Labels of every axis of constant indices into `cells`; the indices are renumbered."""
    grid = cells[values]
    if values.ndim == 0:
        flow.atoms.pin(grid[None], f"picked by Gather '{node.name}'")
    middle = [grid] if values.ndim == 1 else flow.atoms.factor(grid, f"'{node.outputs[0].name}'") if values.ndim else []
    flow.fixes.append(Pick(node.name, cells, tuple(middle)))
    return list(middle)


def pad(flow: Flow, node: gs.Node) -> None:
    """Added positions of a labelled axis get labels of their own, and the pad is recomputed."""
    x = node.inputs[0]
    rank = flow.rank(x)
    labels = flow.of(x)
    pads = _vector(node, 1, "pads")
    plain = node.attrs.get("mode", "constant") in ("constant", b"constant")
    if pads is None or len(pads) != 2 * rank or edit.get(node, 3) is not None:
        flow.pin(x, f"amounts of Pad '{node.name}' are computed")
        flow.put(node.outputs[0], flow.of(x))
        return
    out = list(labels)
    for axis, cells in enumerate(labels):
        before, after = pads[axis], pads[axis + rank]
        if cells is None or before == after == 0:
            continue
        if before < 0 or after < 0 or not plain:
            flow.atoms.pin(cells, f"Pad '{node.name}' crops or repeats it")
            out[axis] = None
            continue
        head, tail = (flow.atoms.fresh(n) if n else None for n in (before, after))
        out[axis] = stack([head, cells, tail], [before, len(cells), after])
        flow.fixes.append(Padding(node.name, axis, rank, head, tail))
    flow.put(node.outputs[0], out)


def expand(flow: Flow, node: gs.Node) -> None:
    """Axes that had their size keep their labels; the copies of a single position may go; the target is rewritten."""
    x, y = node.inputs[0], node.outputs[0]
    labels, rank = _labels(flow, node, 0), flow.rank(y)
    target = entries(node.inputs[1]) or []
    offset = rank - len(target)
    out = [None] * (rank - len(labels)) + labels
    before = (1,) * (rank - len(labels)) + flow.size(x)
    for axis, (m, n) in enumerate(zip(before, flow.size(y))):
        if m == 1 < n and axis >= offset and flow.static(y, axis):
            out[axis] = flow.atoms.fresh(n)
    sizes = {a - offset: c for a, c in enumerate(out) if c is not None and a >= offset}
    if sizes:
        flow.fixes.append(Sizes(node.name, 1, sizes, (1,), length=len(target)))
    elif not target:
        flow.pin(x, f"target of Expand '{node.name}' is computed")
    flow.put(y, out)


def tile(flow: Flow, node: gs.Node) -> None:
    """Labels repeat."""
    labels, repeats = flow.of(node.inputs[0]), _vector(node, 1, "repeats")
    if repeats is None:
        flow.pin(node.inputs[0], f"repeats of Tile '{node.name}' are computed")
        return
    flow.put(node.outputs[0], [None if c is None else np.tile(c, (r, 1)) for c, r in zip(labels, repeats)])


def _rearrange(flow: Flow, node: gs.Node, split_to: Sequence[int], perm: Sequence[int], fields: Sequence[int]) -> None:
    """Reshape, transpose, reshape: for operators that are defined so. `fields`: split axes that must stay whole."""
    x, y = node.inputs[0], node.outputs[0]
    labels = regrid(flow, node, flow.of(x), flow.size(x), split_to)
    for axis in fields:
        flow.atoms.pin(labels[axis], f"blocks of {node.op} '{node.name}'")
    moved = [flow.atoms.resolve(labels[p]) for p in perm]
    flow.put(y, regrid(flow, node, moved, [split_to[p] for p in perm], flow.size(y)))


def depth_to_space(flow: Flow, node: gs.Node) -> None:
    """Blocks of channels become space: a block's members go together."""
    n, c, h, w = flow.size(node.inputs[0])
    b = int(node.attrs["blocksize"])
    if node.attrs.get("mode", "DCR") in ("CRD", b"CRD"):
        _rearrange(flow, node, [n, c // b**2, b, b, h, w], [0, 1, 4, 2, 5, 3], [0, 2, 3, 4, 5])
    else:
        _rearrange(flow, node, [n, b, b, c // b**2, h, w], [0, 3, 4, 1, 5, 2], [0, 1, 2, 4, 5])


def space_to_depth(flow: Flow, node: gs.Node) -> None:
    """Space becomes blocks of channels: every block has the same labels."""
    n, c, h, w = flow.size(node.inputs[0])
    b = int(node.attrs["blocksize"])
    _rearrange(flow, node, [n, c, h // b, b, w // b, b], [0, 3, 5, 1, 2, 4], [0, 2, 3, 4, 5])


def shape(flow: Flow, node: gs.Node) -> None:
    """What is computed from a shape sees the sizes from before the cut; targets are rewritten where they are used."""
    labels = flow.of(node.inputs[0])
    rank = len(labels)
    start, end, _ = slice(node.attrs.get("start", 0), node.attrs.get("end", rank)).indices(rank)
    for axis, cells in enumerate(labels):
        if cells is not None and not flow.static(node.inputs[0], axis):
            flow.atoms.pin(cells, f"size read at run time by Shape '{node.name}'")
    sizes = {a - start: c for a, c in enumerate(labels) if c is not None and start <= a < end}
    if sizes:
        flow.fixes.append(Sizes(node.name, 0, sizes, output=True, length=end - start))


def filled(flow: Flow, node: gs.Node) -> None:
    """ConstantOfShape holds one value, so any cut of it is right: atoms of its own on every axis of known size."""
    y = node.outputs[0]
    known = entries(node.inputs[0]) or []
    labels: list[Cells | None] = []
    for axis, n in enumerate(flow.size(y)):
        literal = axis < len(known) and known[axis] is not None
        labels.append(flow.atoms.fresh(n) if n > 1 and literal else None)
    sizes = {a: c for a, c in enumerate(labels) if c is not None}
    if sizes:
        flow.fixes.append(Sizes(node.name, 0, sizes, length=len(labels)))
    flow.put(y, labels)


RULES: dict[str, Callable[[Any, gs.Node], None]] = {
    "Reshape": reshape,
    **dict.fromkeys(("Flatten", "Squeeze", "Unsqueeze"), reorder),
    "Transpose": transpose,
    "Concat": concat,
    "Split": split,
    "Slice": slice_,
    "Gather": gather,
    "Pad": pad,
    "Expand": expand,
    "Tile": tile,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    "Shape": shape,
    "ConstantOfShape": filled,
}
