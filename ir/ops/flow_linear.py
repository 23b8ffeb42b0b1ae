"""How labels pass through what contracts: Conv, ConvTranspose, Gemm, MatMul, Einsum."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from ..labels import Cells, join
from ..resizing import Count
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


def _repeat(cells: Cells | None, times: int) -> Cells | None:
    return None if cells is None else np.repeat(cells, times, axis=0)


def _tile(cells: Cells | None, times: int) -> Cells | None:
    return None if cells is None else np.tile(cells, (times, 1))


def conv(flow: Flow, node: gs.Node) -> None:
    """Input channels meet the weight's; output channels are new. Groups are thinned alike, or go whole."""
    x, weight = node.inputs[0], node.inputs[1]
    shape = flow.size(weight)
    groups = int(node.attrs.get("group", 1))
    rows, columns = flow.grid(node, flow.of(x)[1], groups)
    flow.meet(node, 1, 1, columns) if shape[1] > 1 else None
    flow.pin(weight, f"kernel of '{node.name}'", range(2, len(shape)))
    flow.pin(x, f"space of Conv '{node.name}'", range(2, len(flow.size(x))))
    out = _conv_out(flow, node, 0, shape[0], groups, rows)
    _finish_conv(flow, node, out, rows, columns, 1)


def _conv_out(flow: Flow, node: gs.Node, axis: int, channels: int, groups: int, rows: Cells | None) -> Cells | None:
    """Labels of the output channels: {group, position}; plain new ones without groups."""
    if groups == 1:
        return _weight_axis(flow, node, 1, axis)
    each = channels // groups
    out = rows
    if each > 1:
        made = np.tile(flow.atoms.fresh(each), (groups, 1))
        out = join(_repeat(rows, each), made)
        flow.origin(node, 1, axis, made)
    flow.meet(node, 1, axis, out)
    return flow.atoms.resolve(out)


def _finish_conv(
    flow: Flow, node: gs.Node, out: Cells | None, rows: Cells | None, columns: Cells | None, inner: int
) -> None:
    """`inner`: the axis of the weight that is summed."""
    flow.meet(node, 2, 0, out)
    if rows is not None:
        flow.fixes.append(Count(node.name, rows))
    flow.product(node, (0, 1), (1, inner), columns, out)
    labels = flow.of(node.inputs[0])
    flow.put(node.outputs[0], [labels[0], out] + [None] * (len(labels) - 2))


def conv_transpose(flow: Flow, node: gs.Node) -> None:
    """As Conv; the weight is `[C, M/groups, …]`."""
    x, weight = node.inputs[0], node.inputs[1]
    shape = flow.size(weight)
    groups = int(node.attrs.get("group", 1))
    rows, columns = flow.grid(node, flow.of(x)[1], groups)
    flow.pin(weight, f"kernel of '{node.name}'", range(2, len(shape)))
    flow.pin(x, f"space of ConvTranspose '{node.name}'", range(2, len(flow.size(x))))
    flow.meet(node, 1, 0, flow.atoms.resolve(join(_repeat(rows, shape[0] // groups), _tile(columns, groups))))
    made = _weight_axis(flow, node, 1, 1) if shape[1] > 1 else None
    out = made if groups == 1 else join(_repeat(rows, shape[1]), _tile(made, groups))
    _finish_conv(flow, node, out, rows, columns, 0)


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
    flow.product(node, (0, 1), (inner_a, inner_b), inner, rows, out)
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
    operands, axes = ((1, 0), (inner_b, rank_a - 1)) if isinstance(a, gs.Constant) else ((0, 1), (rank_a - 1, inner_b))
    flow.product(node, operands, axes, inner, rows, columns, *batch)
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
    _einsum_products(flow, node, terms, right, fields)
    flow.put(node.outputs[0], [flow.atoms.resolve(fields[x]) for x in right])


def _einsum_products(flow: Flow, node: gs.Node, terms: list[str], right: str, fields: dict[str, Cells | None]) -> None:
    """One product for every letter that two inputs sum over; the MACs count with the first."""
    order = sorted(range(len(terms)), key=lambda i: isinstance(node.inputs[i], gs.Constant))
    share = 1.0
    for letter, cells in fields.items():
        where = [i for i in order if letter in terms[i]]
        if letter in right or cells is None or len(where) != 2:
            continue
        axes = (terms[where[0]].index(letter), terms[where[1]].index(letter))
        flow.product(node, (where[0], where[1]), axes, cells, *fields.values(), share=share)
        share = 0.0
    if share and len(terms) > 1:
        flow.product(node, (order[0], order[1]), (-1, -1), None, *fields.values())


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
