"""The time of a whole model as channels leave it: a table for every layer, a share of the elements for the rest.

How a layer's time falls comes from the tables of `clock`; what every node takes in the model as it is, from one profile
of it, but no more than the layer takes alone: a profile reads the wall clock, which other programs stretch. What is no
layer (element-wise operators, pools, products of two activations) is taken in proportion. The whole is timed for
itself; what the parts leave of it (conversions of layout, the runtime's own work) stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import Model
from ...ir.flow import Product
from ...runtime import latency, profiling
from .clock import Clock, Shape, Table
from .grouping import Groups
from .ledger import Ledger

Array = np.ndarray
SIZED = ("strides", "dilations", "pads", "auto_pad", "kernel_shape", "transB")


@dataclass(frozen=True)
class Row:
    """One layer. us: as the model is. full: its counts (`clock.Shape`). lines: of its input channels, of the summed
    axis, of its output channels (-1: they stay)."""

    node: str
    us: float
    kind: str
    full: tuple[int, ...]
    lines: tuple[int, int, int]
    table: Table

    def at(self, fractions: Array) -> float:
        """Microseconds when these fractions of every line live (the last entry is 1)."""
        ins, inner, out = (float(fractions[line]) for line in self.lines)
        if self.kind == "plain":
            counts: tuple[float, ...] = (self.full[0] * inner, self.full[1] * out)
        elif self.kind == "depthwise":
            counts = (self.full[0] * out,)
        else:
            groups = ins / max(inner, 1e-9)
            counts = (self.full[0] * groups, self.full[1] * inner, self.full[2] * out / max(groups, 1e-9))
        return self.us * self.table.at(counts)


class Timetable:
    """What a model takes when a ledger has so much left. total: microseconds as it is."""

    def __init__(self, rows: Sequence[Row], ledger: Ledger, rest: Any, total: float):
        self.rows, self.ledger, self.rest = list(rows), ledger, rest
        self.fixed = max(total - sum(r.us for r in rows) - float(rest[0].sum()), 0.0)
        self.total = self.fixed + sum(r.us for r in rows) + float(rest[0].sum())
        self.touching: dict[int, list[int]] = {}
        for k, row in enumerate(self.rows):
            for line in set(row.lines) - {-1}:
                self.touching.setdefault(line, []).append(k)

    def now(self) -> float:
        """Microseconds with what the ledger has left."""
        return self.fixed + sum(self.times()) + self.ledger.amount(self.rest)

    def times(self) -> list[float]:
        """Of every row, with what the ledger has left."""
        fractions = self.ledger.fractions()
        return [row.at(fractions) for row in self.rows]

    def saved(self, times: Sequence[float], worth: Array, lost: Mapping[int, int]) -> float:
        """Microseconds that go when lines lose so many more positions. times, worth: of rows and of a position of the
        rest now."""
        fractions = self.ledger.fractions()
        for line, n in lost.items():
            fractions[line] -= n / max(int(self.ledger.total[line]), 1)
        hit = sorted({k for line in lost for k in self.touching.get(line, ())})
        rows = sum(times[k] - self.rows[k].at(fractions) for k in hit)
        return rows + sum(float(worth[line]) * n for line, n in lost.items())


def timetable(model: Model, groups: Groups, feed: Mapping[str, Any], clock: Clock) -> Timetable:
    """Profile the model, and time its layers at fewer channels."""
    us = profiling.kernels(model, feed, threads=clock.threads, timings=clock.timings)
    total = latency.bench([model], feed, threads=clock.threads, timings=clock.timings)[0].ms * 1e3
    nodes = {n.name: n for n in model.graph.nodes}
    rows, rest, owned = [], [], set()
    for product in groups.flow.products:
        owner = _owner(nodes[product.node], us)
        if owner is None or owner in owned:
            continue
        owned.add(owner)
        row = _row(nodes[product.node], product, us[owner], groups, clock)
        if row is not None:
            rows.append(row)
        else:
            rest.append((us[owner], [c for c in map(groups.flow.atoms.resolve, product.sized) if c is not None]))
    for name, time in us.items():
        if name not in owned:
            rest.append((time, _largest(nodes[name], groups)))
    shares = groups.ledger.table([r for r in rest if r[1]])
    groups.ledger.reset()
    return Timetable(rows, groups.ledger, shares, total)


def _owner(node: gs.Node, us: Mapping[str, float]) -> str | None:
    """The node under which a layer's kernel was counted: itself, or the last of those that were fused to it."""
    while node.name not in us:
        users = node.outputs[0].outputs
        if len({id(u) for u in users}) != 1:
            return None
        node = users[0]
    return str(node.name)


def _largest(node: gs.Node, groups: Groups) -> list[Any]:
    """Labels of the largest tensor of a node: its time goes with its elements."""
    tensors = [t for t in (*node.inputs, *node.outputs) if t.name and not isinstance(t, gs.Constant)]
    if not tensors:
        return []
    flow = groups.flow
    largest = max(tensors, key=lambda t: np.prod(flow.size(t), dtype=np.int64))
    return [c for c in flow.of(largest) if c is not None]


def _row(node: gs.Node, product: Product, us: float, groups: Groups, clock: Clock) -> Row | None:
    """A layer with a table; None for what has none: two activations, recurrent units, ConvTranspose, odd layouts."""
    shape = _shape(node, product, groups)
    if shape is None:
        return None
    flow, ledger = groups.flow, groups.ledger
    axis = 1 if node.op == "Conv" else -1
    cells = flow.of(node.inputs[0])[axis], product.inner, flow.of(node.outputs[0])[axis]
    lines = tuple(ledger.line(flow.atoms.resolve(c)) for c in cells)
    if lines == (-1, -1, -1):
        return None
    table = clock.table(shape)
    least = min(us, table.full) if table.full > 1 else us  # 1: not timed
    return Row(node.name, least, shape.kind, shape.full, (lines[0], lines[1], lines[2]), table)


def _shape(node: gs.Node, product: Product, groups: Groups) -> Shape | None:
    flow = groups.flow
    if product.weight != 1 or node.op not in ("Conv", "Gemm", "MatMul") or node.attrs.get("transA", 0):
        return None
    x, weight = flow.size(node.inputs[0]), flow.size(node.inputs[1])
    if len(weight) < 2 or (node.op != "Conv" and len(weight) != 2):
        return None
    attrs = tuple((k, _plain(node.attrs[k])) for k in SIZED if k in node.attrs)
    dtype = np.dtype(node.inputs[1].dtype).name
    if node.op != "Conv":
        full = weight[::-1] if node.attrs.get("transB", 0) else weight
        return Shape(node.op, "plain", tuple(full), x, (), attrs, dtype)
    count = int(node.attrs.get("group", 1))
    if count == 1:
        return Shape("Conv", "plain", (weight[1], weight[0]), x, weight[2:], attrs, dtype)
    if weight[1] == 1 and weight[0] == count:
        return Shape("Conv", "depthwise", (count,), x, weight[2:], attrs, dtype)
    return Shape("Conv", "grouped", (count, weight[1], weight[0] // count), x, weight[2:], attrs, dtype)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


__all__ = ["Timetable", "timetable"]
