"""How labels pass through what contracts: Conv, ConvTranspose, Gemm, MatMul, Einsum."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from ..labels import Cells, join
from ..resizing import Groups
from .flow_elementwise import align

if TYPE_CHECKING:
    from ..flow import Flow


def _weight_axis(flow: Flow, node: gs.Node, index: int, axis: int) -> Cells | None:
    """Labels of an output axis of a weight: atoms of its own for a constant, what flowed there for anything else."""
    tensor = node.inputs[index]
    if isinstance(tensor, gs.Constant):
        cells = flow.constant(node, index, axis, origin=True)
        flow.cut(node, index, axis, cells)
        return cells
    return flow.of(tensor)[axis]


def _grid(flow: Flow, node: gs.Node, cells: Cells | None, groups: int) -> tuple[Cells | None, Cells | None]:
    """Channels as a grid of groups × positions: labels of the groups, labels of the positions."""
    if cells is None or groups == 1:
        return None, cells
    grid = cells.reshape(groups, len(cells) // groups, -1)
    rows, columns = flow.atoms.factor(grid, f"the input of '{node.name}'")
    return rows, columns


def _repeat(cells: Cells | None, times: int) -> Cells | None:
    return None if cells is None else np.repeat(cells, times, axis=0)


def _tile(cells: Cells | None, times: int) -> Cells | None:
    return None if cells is None else np.tile(cells, (times, 1))


def conv(flow: Flow, node: gs.Node) -> None:
    """Input channels meet the weight's; output channels are new. Groups are thinned alike, or go whole."""
    x, weight = node.inputs[0], node.inputs[1]
    shape = flow.size(weight)
    groups = int(node.attrs.get("group", 1))
    rows, columns = _grid(flow, node, flow.of(x)[1], groups)
    flow.meet(node, 1, 1, columns) if shape[1] > 1 else None
    flow.pin(weight, f"kernel of '{node.name}'", range(2, len(shape)))
    flow.pin(x, f"space of Conv '{node.name}'", range(2, len(flow.size(x))))
    out = _conv_out(flow, node, 0, shape[0], groups, rows)
    _finish_conv(flow, node, out, rows, columns)


def _conv_out(flow: Flow, node: gs.Node, axis: int, channels: int, groups: int, rows: Cells | None) -> Cells | None:
    """Labels of the output channels: {group, position}; plain new ones without groups."""
    if groups == 1:
        return _weight_axis(flow, node, 1, axis)
    each = channels // groups
    if not isinstance(node.inputs[1], gs.Constant):
        flow.pin(node.inputs[1], f"computed weight of a grouped Conv '{node.name}'")
        flow.atoms.pin(rows, f"computed weight of a grouped Conv '{node.name}'")
        return None
    if each == 1:
        out = _repeat(rows, 1)
    else:
        made = np.tile(flow.atoms.fresh(each), (groups, 1))
        out = join(_repeat(rows, each), made)
        flow.origin(node, 1, axis, made)
    flow.cut(node, 1, axis, out)
    return out


def _finish_conv(flow: Flow, node: gs.Node, out: Cells | None, rows: Cells | None, columns: Cells | None) -> None:
    flow.meet(node, 2, 0, out)
    if rows is not None:
        flow.fixes.append(Groups(node.name, rows))
    flow.product(node, 0, 1, 1, columns, out)
    labels = flow.of(node.inputs[0])
    flow.put(node.outputs[0], [labels[0], out] + [None] * (len(labels) - 2))


def conv_transpose(flow: Flow, node: gs.Node) -> None:
    """As Conv; the weight is `[C, M/groups, …]`."""
    x, weight = node.inputs[0], node.inputs[1]
    shape = flow.size(weight)
    groups = int(node.attrs.get("group", 1))
    cells = flow.of(x)[1]
    rows, columns = _grid(flow, node, cells, groups)
    flow.pin(weight, f"kernel of '{node.name}'", range(2, len(shape)))
    flow.pin(x, f"space of ConvTranspose '{node.name}'", range(2, len(flow.size(x))))
    flow.meet(node, 1, 0, flow.atoms.resolve(join(_repeat(rows, shape[0] // groups), _tile(columns, groups))))
    if groups > 1 and isinstance(weight, gs.Constant) and shape[1] > 1:
        made = flow.constant(node, 1, 1, origin=True)
        flow.cut(node, 1, 1, made)
        out = join(_repeat(rows, shape[1]), _tile(made, groups))
    elif groups > 1:
        flow.pin(weight, f"computed weight of a grouped ConvTranspose '{node.name}'")
        out = rows if shape[1] == 1 else None
    else:
        out = _weight_axis(flow, node, 1, 1)
    _finish_conv(flow, node, out, rows, columns)


def gemm(flow: Flow, node: gs.Node) -> None:
    """`A·B + C`, either transposed."""
    ta, tb = (int(node.attrs.get(k, 0)) for k in ("transA", "transB"))
    inner_a, rows_a = (0, 1) if ta else (1, 0)
    inner_b, out_b = (1, 0) if tb else (0, 1)
    inner = _contract(flow, node, inner_a, inner_b)
    rows = _side(flow, node, 0, rows_a)
    out = _side(flow, node, 1, out_b)
    if len(node.inputs) > 2 and node.inputs[2].name:
        size = flow.size(node.inputs[2])
        for back, cells in ((1, out), (2, rows)):
            if len(size) >= back and size[-back] > 1:
                flow.meet(node, 2, len(size) - back, cells)
    weight = 1 if isinstance(node.inputs[1], gs.Constant) else -1
    flow.product(node, 0, weight, inner_a, inner, rows, out)
    flow.put(node.outputs[0], [rows, out])


def _side(flow: Flow, node: gs.Node, index: int, axis: int) -> Cells | None:
    """A field that is not contracted passes through; that of a constant starts here."""
    return _weight_axis(flow, node, index, axis)


def _contract(flow: Flow, node: gs.Node, axis_a: int, axis_b: int) -> Cells | None:
    """The contracted axes of inputs 0 and 1 are the same positions."""
    a_const, b_const = (isinstance(t, gs.Constant) for t in node.inputs[:2])
    if a_const:
        cells = None if b_const else flow.of(node.inputs[1])[axis_b]
        flow.cut(node, 0, axis_a, cells)
        return cells
    cells = flow.of(node.inputs[0])[axis_a]
    flow.meet(node, 1, axis_b, cells)
    return flow.atoms.resolve(cells)


def matmul(flow: Flow, node: gs.Node) -> None:
    """numpy's matmul in all ranks: contracted axes unite, rows and columns pass, batch axes align with broadcasting."""
    a, b = node.inputs[:2]
    rank_a, rank_b = flow.rank(a), flow.rank(b)
    if rank_a == 0 or rank_b == 0:
        flow.pin_inputs(node, f"MatMul '{node.name}' of a scalar")
        return
    inner_b = rank_b - 2 if rank_b > 1 else 0
    inner = _contract(flow, node, rank_a - 1, inner_b)
    rows = _side(flow, node, 0, rank_a - 2) if rank_a > 1 else None
    columns = _side(flow, node, 1, rank_b - 1) if rank_b > 1 else None
    batch = _batch(flow, node, rank_a, rank_b)
    weight = 1 if isinstance(b, gs.Constant) else 0 if isinstance(a, gs.Constant) else -1
    data, axis = (1, inner_b) if weight == 0 else (0, rank_a - 1)
    flow.product(node, data, weight, axis, inner, rows, columns, *batch)
    out = [*batch]
    out += [rows] if rank_a > 1 else []
    out += [columns] if rank_b > 1 else []
    flow.put(node.outputs[0], out)


def _batch(flow: Flow, node: gs.Node, rank_a: int, rank_b: int) -> list[Cells | None]:
    shapes = [flow.size(t)[: max(r - 2, 0)] for t, r in ((node.inputs[0], rank_a), (node.inputs[1], rank_b))]
    return align(flow, node, (0, 1), shapes, max(len(s) for s in shapes))


def einsum(flow: Flow, node: gs.Node) -> None:
    """Every letter is one field; letters that only a constant has start there."""
    equation = node.attrs.get("equation", "")
    equation = (equation.decode() if isinstance(equation, bytes) else str(equation)).replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if not arrow or "." in equation or any(len(set(t)) != len(t) for t in terms):
        flow.pin_inputs(node, f"Einsum '{node.name}' with an ellipsis, a repeated or an implicit output letter")
        return
    fields = {
        letter: _letter(flow, node, terms, letter, letter in right) for letter in dict.fromkeys(left) if letter != ","
    }
    inner = [x for x in fields if x not in right and fields[x] is not None]
    data = next((i for i, t in enumerate(node.inputs) if not isinstance(t, gs.Constant)), 0)
    axis = terms[data].find(inner[0]) if inner else -1
    flow.product(node, data, -1, axis, fields[inner[0]] if inner else None, *fields.values())
    flow.put(node.outputs[0], [flow.atoms.resolve(fields[x]) for x in right])


def _letter(flow: Flow, node: gs.Node, terms: list[str], letter: str, out: bool) -> Cells | None:
    where = [
        (i, t.index(letter))
        for i, t in enumerate(terms)
        if letter in t and flow.size(node.inputs[i])[t.index(letter)] > 1
    ]
    live = [(i, p) for i, p in where if not isinstance(node.inputs[i], gs.Constant)]
    if not where:
        return None
    if not live:
        cells = flow.constant(node, *where[0], origin=True) if out else None
    else:
        cells = flow.of(node.inputs[live[0][0]])[live[0][1]]
    for i, p in where:
        flow.meet(node, i, p, cells)
    return flow.atoms.resolve(cells)


RULES = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gemm": gemm,
    "MatMul": matmul,
    "Einsum": einsum,
}
