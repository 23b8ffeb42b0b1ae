"""How labels pass through what contracts: Conv, ConvTranspose, Gemm, MatMul, Einsum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from .. import equations
from ..labels import Cells, join
from ..resizing import Count
from .flow_elementwise import align, space

if TYPE_CHECKING:
    from ..flow import Flow

Pair = tuple[int, int]


def weight_axis(flow: Flow, node: gs.Node, index: int, axis: int) -> Cells | None:
    """Labels of an output axis of a weight: atoms of its own for a constant, what flowed there for anything else.

    They begin here where a weight is made of constants, as one that is stored in few bits is.
    """
    tensor = node.inputs[index]
    if isinstance(tensor, gs.Constant):
        cells = flow.constant(node, index, axis, origin=True)
        flow.cut(node, index, axis, cells)
        return cells
    found = flow.of(tensor)[axis]
    if found is not None and flow.stored(tensor):
        flow.origin(node, index, axis, found)
    return found


def _repeat(cells: Cells | None, times: int) -> Cells | None:
    return None if cells is None else np.repeat(cells, times, axis=0)


def _tile(cells: Cells | None, times: int) -> Cells | None:
    return None if cells is None else np.tile(cells, (times, 1))


@dataclass(frozen=True)
class Places:
    """Positions of an operator's inputs: the two that are multiplied, the bias, and vectors (scales, zero points)
    that go with the outputs of the second."""

    x: int = 0
    w: int = 1
    bias: int = 2
    vectors: tuple[int, ...] = ()


PLAIN = Places()


def conv(flow: Flow, node: gs.Node, at: Places = PLAIN) -> None:
    """Input channels meet the weight's; output channels are new. Groups are thinned alike, or go whole."""
    x, weight = node.inputs[at.x], node.inputs[at.w]
    shape = flow.size(weight)
    groups = int(node.attrs.get("group", 1))
    rows, columns = flow.grid(node, flow.of(x)[1], groups)
    flow.meet(node, at.w, 1, columns) if shape[1] > 1 else None
    flow.pin(weight, f"kernel of '{node.name}'", range(2, len(shape)))
    space(flow, node, x, shape[2:])
    out = _conv_out(flow, node, at.w, shape[0], groups, rows)
    for index in at.vectors:
        along_outputs(flow, node, index, out)
    _finish_conv(flow, node, out, rows, columns, 1, at)


def fused_conv(flow: Flow, node: gs.Node) -> None:
    """ONNX Runtime's convolution with an activation; a sum that it took in is a fourth input of the output's shape."""
    conv(flow, node)
    if len(node.inputs) > 3 and node.inputs[3].name:
        for axis, n in enumerate(flow.size(node.inputs[3])):
            if n > 1:
                flow.meet(node, 3, axis, flow.of(node.outputs[0])[axis])
        flow.put(node.outputs[0], flow.of(node.outputs[0]))


def along_outputs(flow: Flow, node: gs.Node, index: int, cells: Cells | None) -> None:
    """A vector input of one entry an output channel; a single entry is for all."""
    tensor = node.inputs[index] if index < len(node.inputs) else None
    if tensor is not None and tensor.name and flow.rank(tensor) == 1 and flow.size(tensor)[0] > 1:
        flow.meet(node, index, 0, cells)


def _conv_out(flow: Flow, node: gs.Node, index: int, channels: int, groups: int, rows: Cells | None) -> Cells | None:
    """Labels of the output channels: {group, position}; plain new ones without groups."""
    if groups == 1:
        return weight_axis(flow, node, index, 0)
    each = channels // groups
    out = rows
    if each > 1:
        made = np.tile(flow.atoms.fresh(each), (groups, 1))
        out = join(_repeat(rows, each), made)
        flow.origin(node, index, 0, made)
    flow.meet(node, index, 0, out)
    return flow.atoms.resolve(out)


def _finish_conv(
    flow: Flow,
    node: gs.Node,
    out: Cells | None,
    rows: Cells | None,
    columns: Cells | None,
    inner: int,
    at: Places = PLAIN,
) -> None:
    """`inner`: the axis of the weight that is summed."""
    flow.meet(node, at.bias, 0, out)
    if rows is not None:
        flow.fixes.append(Count(node.name, rows))
    batch, _, *places = flow.of(node.inputs[at.x])
    flow.product(node, (at.x, at.w), (1, inner), columns, out, batch, *places)
    flow.put(node.outputs[0], [batch, out, *places])


def conv_transpose(flow: Flow, node: gs.Node) -> None:
    """As Conv; the weight is `[C, M/groups, …]`."""
    x, weight = node.inputs[0], node.inputs[1]
    shape = flow.size(weight)
    groups = int(node.attrs.get("group", 1))
    rows, columns = flow.grid(node, flow.of(x)[1], groups)
    flow.pin(weight, f"kernel of '{node.name}'", range(2, len(shape)))
    space(flow, node, x, shape[2:])
    flow.meet(node, 1, 0, flow.atoms.resolve(join(_repeat(rows, shape[0] // groups), _tile(columns, groups))))
    made = weight_axis(flow, node, 1, 1) if shape[1] > 1 else None
    out = made if groups == 1 else join(_repeat(rows, shape[1]), _tile(made, groups))
    _finish_conv(flow, node, out, rows, columns, 0)


def gemm(flow: Flow, node: gs.Node) -> None:
    """`A·B + C`, either transposed."""
    ta, tb = (int(node.attrs.get(k, 0)) for k in ("transA", "transB"))
    inner_a, rows_a = (0, 1) if ta else (1, 0)
    inner_b, out_b = (1, 0) if tb else (0, 1)
    inner = _contract(flow, node, inner_a, inner_b)
    rows = weight_axis(flow, node, 0, rows_a)
    out = weight_axis(flow, node, 1, out_b)
    if len(node.inputs) > 2 and node.inputs[2].name:
        size = flow.size(node.inputs[2])
        for back, cells in ((1, out), (2, rows)):
            if len(size) >= back and size[-back] > 1:
                flow.meet(node, 2, len(size) - back, cells)
    flow.product(node, *_data_first(flow, node, (0, 1), (inner_a, inner_b)), inner, rows, out)
    flow.put(node.outputs[0], [rows, out])


def _data_first(flow: Flow, node: gs.Node, operands: Pair, axes: Pair) -> tuple[Pair, Pair]:
    """Operands of a product and the axes that they contract, a weight behind what it is multiplied with."""
    return (operands[::-1], axes[::-1]) if flow.stored(node.inputs[operands[0]]) else (operands, axes)


def _contract(flow: Flow, node: gs.Node, axis_a: int, axis_b: int, at: Places = PLAIN) -> Cells | None:
    """The contracted axes of the two operands are the same positions."""
    a, b = node.inputs[at.x], node.inputs[at.w]
    if isinstance(a, gs.Constant):
        cells = None if isinstance(b, gs.Constant) else flow.of(b)[axis_b]
        flow.cut(node, at.x, axis_a, cells)
        return cells
    cells = flow.of(a)[axis_a]
    flow.meet(node, at.w, axis_b, cells)
    return flow.atoms.resolve(cells)


def matmul(flow: Flow, node: gs.Node, at: Places = PLAIN) -> None:
    """numpy's matmul in all ranks: contracted axes unite, rows and columns pass, batch axes align with broadcasting."""
    a, b = node.inputs[at.x], node.inputs[at.w]
    rank_a, rank_b = flow.rank(a), flow.rank(b)
    if rank_a == 0 or rank_b == 0:
        flow.pin_inputs(node, f"MatMul '{node.name}' of a scalar")
        return
    inner_b = rank_b - 2 if rank_b > 1 else 0
    inner = _contract(flow, node, rank_a - 1, inner_b, at)
    rows = weight_axis(flow, node, at.x, rank_a - 2) if rank_a > 1 else None
    columns = weight_axis(flow, node, at.w, rank_b - 1) if rank_b > 1 else None
    for index in at.vectors:
        along_outputs(flow, node, index, columns)
    shapes = [flow.size(t)[: max(r - 2, 0)] for t, r in ((a, rank_a), (b, rank_b))]
    batch = align(flow, node, (at.x, at.w), shapes, max(len(s) for s in shapes))
    both = _data_first(flow, node, (at.x, at.w), (rank_a - 1, inner_b))
    flow.product(node, *both, inner, rows, columns, *batch)
    out = [*batch]
    out += [rows] if rank_a > 1 else []
    out += [columns] if rank_b > 1 else []
    flow.put(node.outputs[0], out)


def einsum(flow: Flow, node: gs.Node) -> None:
    """Every letter is one field; letters that only a constant has start there."""
    terms, right = equations.terms(node.attrs.get("equation", ""), [flow.rank(t) for t in node.inputs])
    if any(len(set(t)) != len(t) for t in terms):
        flow.pin_inputs(node, f"Einsum '{node.name}' with a letter twice in one term")
        return
    fields = {letter: _letter(flow, node, terms, letter, letter in right) for letter in dict.fromkeys("".join(terms))}
    _einsum_products(flow, node, terms, right, fields)
    flow.put(node.outputs[0], [flow.atoms.resolve(fields[x]) for x in right])


def _einsum_products(flow: Flow, node: gs.Node, terms: list[str], right: str, fields: dict[str, Cells | None]) -> None:
    """One product for every letter that two inputs sum over; the MACs count with the first. What one input alone sums
    over stays, as it does in a reduction, and so does what three or more do: a product has two sides."""
    order = sorted(range(len(terms)), key=lambda i: flow.stored(node.inputs[i]))
    share = 1.0
    for letter, cells in fields.items():
        where = [i for i in order if letter in terms[i]]
        if letter in right or cells is None:
            continue
        if len(where) != 2:
            flow.atoms.pin(cells, f"summed by Einsum '{node.name}'")
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
        if out and cells is not None and all(flow.stored(node.inputs[i]) for i, _ in where):
            flow.origin(node, *live[0], cells)
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
