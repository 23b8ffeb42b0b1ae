"""How labels pass through reshapes, and through what makes tensors of a given shape.

A reshape is run on the labels: axes that merge carry the atoms of all, axes that split become a grid.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from .. import edit
from ..labels import Cells
from ..resizing import Sizes
from .vectors import entries

if TYPE_CHECKING:
    from ..flow import Flow


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
        sides = [before[a] for a in left], [after[a] for a in right]
        made = _factored(flow, [labels[a] for a in left], *sides, f"'{node.outputs[0].name}'")
        for axis, cells in zip(right, made):
            out[axis] = cells
    return out


def _factored(
    flow: Flow, labels: Sequence[Cells | None], before: Sequence[int], after: Sequence[int], where: str
) -> list[Cells | None]:
    """Labels of the axes that a block of axes becomes.

    The grid is as large as what is labelled, not as the block: a digit along which no label changes (the space beside
    the channels) is left out, and what is found without it is repeated.
    """
    digits = _digits(before, after)
    if digits is None:
        grid = _grid([c if c is None else c.reshape(*_along(before, p), -1) for p, c in enumerate(labels)], before)
        return flow.atoms.factor(grid.reshape(*after, -1), where)
    runs = zip(labels, _runs(digits, before))
    parts = [None if c is None else _thin(c.reshape(*_along(digits, *run), -1), run) for c, run in runs]
    small = [max(p.shape[d] for p in parts if p is not None) for d in range(len(digits))]
    goals = _runs(digits, after)
    shaped = _grid(parts, small).reshape(*(math.prod(small[d] for d in run) for run in goals), -1)
    found = zip(flow.atoms.factor(shaped, where), goals)
    return [_repeated(c, [small[d] for d in run], [digits[d] for d in run]) for c, run in found]


def _digits(before: Sequence[int], after: Sequence[int]) -> list[int] | None:
    """Sizes of the axes of which those of both sides are runs; None where they cut each other."""
    bounds = sorted({math.prod(side[i:]) for side in (before, after) for i in range(len(side) + 1)}, reverse=True)
    pairs = list(itertools.pairwise(bounds))
    return None if any(m % n for m, n in pairs) else [m // n for m, n in pairs]


def _runs(digits: Sequence[int], sizes: Sequence[int]) -> list[range]:
    """Which digits each axis is made of."""
    ends = list(itertools.accumulate(digits, operator.mul))
    stops = [ends.index(n) + 1 for n in itertools.accumulate(sizes, operator.mul)]
    return [range(a, b) for a, b in zip([0, *stops], stops)]


def _along(sizes: Sequence[int], *axes: int) -> list[int]:
    """A shape that has only these axes."""
    return [n if a in axes else 1 for a, n in enumerate(sizes)]


def _thin(part: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """One position of each axis along which nothing changes."""
    for axis in axes:
        line = part.take([0], axis)
        if (part == line).all():
            part = line
    return part


def _grid(parts: Sequence[np.ndarray | None], sizes: Sequence[int]) -> np.ndarray:
    """Cells of a block's axes, each broadcast over the others: `[n1, …, nm, K]`."""
    return np.concatenate([np.broadcast_to(p, (*sizes, p.shape[-1])) for p in parts if p is not None], -1)


def _repeated(cells: Cells | None, small: list[int], sizes: list[int]) -> Cells | None:
    if cells is None or small == sizes:
        return cells
    slots = cells.shape[1]
    return np.broadcast_to(cells.reshape(*small, slots), (*sizes, slots)).reshape(-1, slots)


def reshape(flow: Flow, node: gs.Node) -> None:
    """Run on labels; entries of the target that repeat a labelled size are rewritten, -1 stays."""
    x, y = node.inputs[0], node.outputs[0]
    before = flow.moved(node, 0)
    if all(c is None for c in before):
        return
    labels = regrid(flow, node, before, flow.size(x), flow.size(y))
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
        moved = moved and not _alike(flow, before[axis], cells)  # else the copy is right whatever goes
        if cells is not None and entry != -1:
            if flow.static(y, axis) or (entry or 0) > 0:
                sizes[axis] = cells
            elif moved or not copied:
                flow.atoms.pin(cells, f"size computed at run time for Reshape '{node.name}'")
        if moved and flow.static(y, axis):
            fixed[axis] = int(flow.size(y)[axis])
        elif moved:
            flow.atoms.pin(before[axis], f"size copied at run time by Reshape '{node.name}'")
    if sizes or fixed:
        where = "shape" if "shape" in node.attrs else 1
        flow.fixes.append(Sizes(node.name, where, sizes, (-1,), fixed, length=len(labels)))
    flow.put(y, labels)


def _alike(flow: Flow, a: Cells | None, b: Cells | None) -> bool:
    """Whether the same positions live on two axes, whatever goes."""
    a, b = flow.atoms.resolve(a), flow.atoms.resolve(b)
    return a is b or (a is not None and b is not None and np.array_equal(a, b))


def reorder(flow: Flow, node: gs.Node) -> None:
    """Flatten, Squeeze, Unsqueeze: a reshape whose sizes follow by themselves."""
    x, y = node.inputs[0], node.outputs[0]
    flow.put(y, regrid(flow, node, flow.moved(node, 0), flow.size(x), flow.size(y)))


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
    rank = flow.rank(node.inputs[0])
    for cells in flow.of(node.inputs[0]):
        flow.settle(cells)
    start, end, _ = slice(node.attrs.get("start", 0), node.attrs.get("end", rank)).indices(rank)
    if edit.is_output(flow.model, node.outputs[0]):
        flow.pin(node.inputs[0], f"size put out by Shape '{node.name}'", range(start, end))
    labels = flow.of(node.inputs[0])
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
        literal = (axis < len(known) and known[axis] is not None) or flow.static(y, axis)
        labels.append(flow.atoms.fresh(n) if n > 1 and literal else None)
    sizes = {a: c for a, c in enumerate(labels) if c is not None}
    if sizes:
        flow.fixes.append(Sizes(node.name, 0, sizes, length=len(labels)))
    flow.put(y, labels)


def expand(flow: Flow, node: gs.Node) -> None:
    """Axes that had their size keep their labels; the copies of a single position may go; the target is rewritten."""
    x, y = node.inputs[0], node.outputs[0]
    labels, rank = flow.moved(node, 0), flow.rank(y)
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


RULES: dict[str, Callable[[Any, gs.Node], None]] = {
    "Reshape": reshape,
    **dict.fromkeys(("Flatten", "Squeeze", "Unsqueeze"), reorder),
    "Expand": expand,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    "Shape": shape,
    "ConstantOfShape": filled,
}
