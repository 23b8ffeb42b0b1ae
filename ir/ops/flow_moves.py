"""How labels pass through operators that only move data: the move is done on the labels themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from .. import edit
from ..labels import Cells, stack
from ..resizing import Bounds, Padding, Parts, Pick, Strides
from .vectors import entries, run, vector

if TYPE_CHECKING:
    from ..flow import Flow


def transpose(flow: Flow, node: gs.Node) -> None:
    """Permute the axes."""
    labels = flow.moved(node, 0)
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
    labels = flow.moved(node, 0)
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


def slice_(flow: Flow, node: gs.Node) -> None:
    """A run of labels; the bounds are recomputed. What is sliced by computed bounds stays."""
    x = node.inputs[0]
    labels = flow.moved(node, 0)
    starts, ends = vector(node, 1, "starts"), vector(node, 2, "ends")
    axes = vector(node, 3, "axes", list(range(len(starts or ()))))
    steps = vector(node, 4, "steps", [1] * len(starts or ()))
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
        taken = range(n)[run(starts[k], ends[k], steps[k])]
        out[axis] = cells[list(taken)]
        if len(taken) in (0, n) and steps[k] == 1:
            continue
        flow.settle(cells)  # positions that are not taken end here
        if steps[k] == 1:
            flow.fixes.append(Bounds(node.name, k, cells, taken.start, taken.stop))
        else:
            flow.fixes.append(Strides(node.name, k, axis, cells, tuple(taken)))
    flow.put(node.outputs[0], out)


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
        for axis, cells in enumerate(labels if flow.stored(x) else ()):
            if cells is not None and axis != at:
                flow.origin(node, 0, axis, cells)
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
    flow.settle(cells)  # positions that are not picked end here
    middle = [grid] if values.ndim == 1 else flow.atoms.factor(grid, f"'{node.outputs[0].name}'") if values.ndim else []
    flow.fixes.append(Pick(node.name, cells, tuple(middle)))
    return list(middle)


def pad(flow: Flow, node: gs.Node) -> None:
    """Added positions of a labelled axis get labels of their own, and the pad is recomputed.

    A vector of amounts that is computed lets the axes pass whose amounts are zeros written in it.
    """
    rank, labels = flow.rank(node.inputs[0]), flow.moved(node, 0)
    written, pads = vector(node, 1, "pads"), _amounts(node, rank)
    out = list(labels)
    for axis, cells in enumerate(labels):
        before, after = pads[axis], pads[axis + rank]
        if cells is None or before == after == 0:
            continue
        if written is None or before is None or after is None:
            flow.atoms.pin(cells, f"amounts of Pad '{node.name}' are computed")
            out[axis] = None
        elif before < 0 or after < 0 or node.attrs.get("mode", "constant") not in ("constant", b"constant"):
            flow.atoms.pin(cells, f"Pad '{node.name}' crops or repeats it")
            out[axis] = None
        else:
            head, tail = (flow.atoms.fresh(n) if n else None for n in (before, after))
            out[axis] = stack([head, cells, tail], [before, len(cells), after])
            flow.fixes.append(Padding(node.name, axis, rank, head, tail))
    flow.put(node.outputs[0], out)


def _amounts(node: gs.Node, rank: int) -> Sequence[int | None]:
    """Positions that a Pad adds before and behind every axis, where they are known."""
    given = edit.get(node, 1)
    known = node.attrs["pads"] if "pads" in node.attrs else None if given is None else entries(given)
    return known if known and len(known) == 2 * rank and edit.get(node, 3) is None else [None] * (2 * rank)


def tile(flow: Flow, node: gs.Node) -> None:
    """Labels repeat; how often does not depend on what goes, so it may be computed."""
    labels = flow.moved(node, 0)
    times = [n // max(m, 1) for m, n in zip(flow.size(node.inputs[0]), flow.size(node.outputs[0]))]
    flow.put(node.outputs[0], [None if c is None else np.tile(c, (r, 1)) for c, r in zip(labels, times)])


RULES: dict[str, Callable[[Any, gs.Node], None]] = {
    "Transpose": transpose,
    "Concat": concat,
    "Split": split,
    "Slice": slice_,
    "Gather": gather,
    "Pad": pad,
    "Tile": tile,
}
