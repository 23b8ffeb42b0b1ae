"""What must change in a node when positions of a labelled axis go: the cut of a constant, or a size that repeats one.

Label-flow rules record these while they run; `passes.prune` applies them when it is decided what lives. Each is plain
data that names its node, so that it fits any copy of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from . import edit
from .labels import Cells
from .model import Model

Alive = Callable[[Cells], np.ndarray]  # cells [n, K] -> bool [n]


@dataclass(frozen=True)
class Cut:
    """Input `index` of a node is a constant whose `axis` has these labels."""

    node: str
    index: int
    axis: int
    cells: Cells


@dataclass(frozen=True)
class Sizes:
    """An int vector (input position, or attribute name) repeats sizes: entry -> labels of the axis that it counts.

    `keep` are entries that stay as written (-1 of a Reshape, 1 of an Expand). `fixed`: entries that must become
    literals, of these sizes where nothing of theirs goes. A vector that is computed gets its entries replaced behind
    the computation.
    """

    node: str
    where: int | str
    entries: Mapping[int, Cells]
    keep: tuple[int, ...] = ()
    fixed: Mapping[int, int] | None = None
    output: bool = False  # the vector is the node's output (Shape): later readers see the old sizes
    length: int = 0

    def apply(self, model: Model, node: gs.Node, alive: Alive) -> None:
        """Rewrite the entries whose axis was cut."""
        new = {p: int(alive(c).sum()) for p, c in self.entries.items() if not alive(c).all()}
        if not new and not self.fixed:  # what is copied from a size that goes is written down where nothing else goes
            return
        if self.output:
            old = {p: len(self.entries[p]) for p in new}
            _restore(model, node, old, self.length)
            return
        new = {**(self.fixed or {}), **new}
        if isinstance(self.where, str):
            written = list(node.attrs[self.where])
            node.attrs[self.where] = [v if v in self.keep else new.get(p, v) for p, v in enumerate(written)]
            return
        values = edit.const(node, self.where)
        if values is not None:
            changed = [v if v in self.keep else new.get(p, v) for p, v in enumerate(values.tolist())]
            name = node.inputs[self.where].name
            edit.set_input(node, self.where, edit.constant(model, name, np.array(changed, values.dtype)))
        else:
            vector = edit.get(node, self.where)
            edit.set_input(node, self.where, _override(model, node, vector, new, self.length))


def _override(model: Model, node: gs.Node, vector: Any, new: Mapping[int, int], length: int) -> Any:
    """A vector with some entries replaced by literals, the others computed as before."""
    parts, run = [], []
    for p in range(length + 1):
        if p < length and p not in new:
            run.append(p)
            continue
        if run:
            parts.append(_take(model, node, vector, run))
            run = []
        if p < length:
            parts.append(edit.constant(model, "size", np.array([new[p]], np.int64)))
    if len(parts) == 1 and isinstance(parts[0], gs.Constant):
        return parts[0]
    merged = edit.node(model, "Concat", parts, {"axis": 0}, [edit.variable(model, "sizes", np.int64, [length])])
    edit.add(edit.home(model, node), merged)
    return merged.outputs[0]


def _take(model: Model, node: gs.Node, vector: Any, positions: list[int]) -> Any:
    index = edit.constant(model, "entries", np.array(positions, np.int64))
    out = edit.variable(model, "entries_of", np.int64, [len(positions)])
    edit.add(edit.home(model, node), edit.node(model, "Gather", [vector, index], {"axis": 0}, [out]))
    return out


def _restore(model: Model, node: gs.Node, old: Mapping[int, int], length: int) -> None:
    """Let the readers of a Shape see the sizes from before the cut."""
    shape = node.outputs[0]
    users = list({id(n): n for n in shape.outputs}.values())
    seen = _override(model, node, shape, old, length)
    for user in users:
        for k, tensor in enumerate(user.inputs):
            if tensor is shape:
                edit.set_input(user, k, seen)


@dataclass(frozen=True)
class Count:
    """An attribute (`group`, `num_groups`, `hidden_size`) counts the positions that live."""

    node: str
    rows: Cells
    attr: str = "group"

    def apply(self, model: Model, node: gs.Node, alive: Alive) -> None:
        """Count what lives."""
        node.attrs[self.attr] = int(alive(self.rows).sum())


@dataclass(frozen=True)
class Written:
    """An attribute whose default follows from a size: it is written down as it was, once that size changes."""

    node: str
    attr: str
    value: float
    cells: Cells

    def apply(self, model: Model, node: gs.Node, alive: Alive) -> None:
        """Write it where something went."""
        if not alive(self.cells).all():
            node.attrs[self.attr] = self.value


@dataclass(frozen=True)
class Pick:
    """Constant indices (input 1) into a labelled axis: those of living positions, renumbered.

    axes: labels of every axis of the indices, whose slices go with what they pick.
    """

    node: str
    cells: Cells
    axes: tuple[Cells | None, ...]

    def apply(self, model: Model, node: gs.Node, alive: Alive) -> None:
        """Renumber; slices that pick what went are dropped."""
        mask = alive(self.cells)
        old = edit.const(node, 1)
        if old is None or mask.all():
            return
        index = np.where(old < 0, old + len(mask), old)
        for axis, cells in enumerate(self.axes):
            if cells is not None:
                index = np.compress(alive(cells), index, axis)
        new = (np.cumsum(mask) - 1)[index]
        edit.set_input(node, 1, edit.constant(model, node.inputs[1].name, np.asarray(new, old.dtype)))


@dataclass(frozen=True)
class Bounds:
    """A Slice of a labelled axis: position `at` of its starts and ends, over these labels."""

    node: str
    at: int
    cells: Cells
    start: int
    stop: int

    def apply(self, model: Model, node: gs.Node, alive: Alive) -> None:
        """Bounds in terms of what lives (step 1)."""
        mask = alive(self.cells)
        if mask.all():
            return
        before, inside = int(mask[: self.start].sum()), int(mask[self.start : self.stop].sum())
        for where, value in ((1, before), (2, before + inside)):
            _set_entry(model, node, where, ("starts", "ends")[where - 1], self.at, value)


@dataclass(frozen=True)
class Strides:
    """A Slice of a labelled axis with a step: becomes a Gather of the living positions that it took."""

    node: str
    at: int
    axis: int
    cells: Cells
    taken: tuple[int, ...]

    def apply(self, model: Model, node: gs.Node, alive: Alive) -> None:
        """Let the Slice pass the axis whole, and pick behind it."""
        mask = alive(self.cells)
        if mask.all():
            return
        number = np.cumsum(mask) - 1
        index = edit.constant(model, "taken", np.array([number[p] for p in self.taken if mask[p]], np.int64))
        for where, attr, value in ((1, "starts", 0), (2, "ends", len(mask)), (4, "steps", 1)):
            _set_entry(model, node, where, attr, self.at, value)
        out = node.outputs[0]
        whole = edit.variable(model, out.name, out.dtype, None)
        node.outputs[0] = whole
        edit.add(edit.home(model, node), edit.node(model, "Gather", [whole, index], {"axis": self.axis}, [out]))


@dataclass(frozen=True)
class Padding:
    """A Pad that adds channels: how many of the added positions live before and after."""

    node: str
    axis: int
    rank: int
    before: Cells | None
    after: Cells | None

    def apply(self, model: Model, node: gs.Node, alive: Alive) -> None:
        """Count the living added positions."""
        for at, cells in ((self.axis, self.before), (self.axis + self.rank, self.after)):
            if cells is not None:
                _set_entry(model, node, 1, "pads", at, int(alive(cells).sum()))


@dataclass(frozen=True)
class Parts:
    """A Split of a labelled axis: the labels of every part."""

    node: str
    parts: tuple[Cells, ...]

    def apply(self, model: Model, node: gs.Node, alive: Alive) -> None:
        """Explicit sizes, as the opset writes them."""
        sizes = [int(alive(c).sum()) for c in self.parts]
        node.attrs.pop("num_outputs", None)
        if model.opset >= 13:
            edit.set_input(node, 1, edit.constant(model, "split", np.array(sizes, np.int64)))
        else:
            node.attrs["split"] = sizes


def _set_entry(model: Model, node: gs.Node, index: int, attr: str, at: int, value: int) -> None:
    """One entry of an int vector that is an attribute in old opsets and an input in new ones."""
    if attr in node.attrs:
        values = list(node.attrs[attr])
        values[at] = value
        node.attrs[attr] = values
        return
    old = edit.const(node, index)
    if old is None:
        raise ValueError(f"{attr} of node '{node.name}' is not a constant")
    new = old.copy()
    new[at] = value
    edit.set_input(node, index, edit.constant(model, node.inputs[index].name, new))


Fix = Sizes | Count | Written | Pick | Bounds | Strides | Padding | Parts
