"""Factors on channels through operators with a constant for each channel, and through those that only move them.

A product with a constant a channel is a depthwise layer of one weight; a sum lets factors through and scales its
constant; BatchNormalization makes channels anew, as does the quotient of a constant a channel (γ/σ in a
LayerNormalization that is spelled out). So attention and MLP blocks of older opsets give factors to their norms (see
`equalise`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import Model, edit, ops

if TYPE_CHECKING:
    from .equalise import Flow


def vector(node: gs.Node, index: int) -> tuple[np.ndarray, int] | None:
    """(values, how far its axis lies from the end, as a negative number) of a float constant with one value a
    channel at an input; None for others."""
    values = edit.const(node, index)
    if values is None or values.dtype != np.float32 or values.size < 2 or max(values.shape) != values.size:
        return None
    return values, values.shape.index(values.size) - values.ndim


def rank(tensor: Any) -> int | None:
    """The number of axes, where known."""
    shape = getattr(tensor, "shape", None)
    return None if shape is None else len(shape)


def step(flow: Flow, node: gs.Node) -> bool:
    """Carry labels over one node; False when it is none of this kind, and nothing was done."""
    rule = RULES.get(node.op)
    return rule is not None and len([t for t in node.outputs if t.name]) == 1 and rule(flow, node)


def _sides(node: gs.Node) -> tuple[int, tuple[np.ndarray, int]] | None:
    """(input that varies, the constant at the other one) of a sum, a difference or a product."""
    for k in (1, 0) if node.op in ("Add", "Mul") else (1,):
        found = vector(node, k) if len(node.inputs) == 2 else None
        if found is not None and isinstance(node.inputs[1 - k], gs.Variable):
            return 1 - k, found
    return None


def _product(flow: Flow, node: gs.Node) -> bool:
    sides, wide = _sides(node), rank(node.outputs[0])
    if wide is None:
        return False
    if sides is None:
        return _gate(flow, node)
    at, (values, axis) = sides
    known = flow.of.get(node.inputs[at].name)
    shape = node.outputs[0].shape
    if -axis > wide or shape[axis] != values.size or rank(node.inputs[at]) != wide:
        return False
    if known is not None and (known.axis != wide + axis or len(known.at) != values.size):
        flow.bar(node.inputs[at])
    flow.of[node.outputs[0].name] = flow.fresh(values.size, wide + axis)
    return True


def _gate(flow: Flow, node: gs.Node) -> bool:
    """A product of two tensors: factors on one of them come through while the other has none."""
    for x, other in (node.inputs, reversed(node.inputs)) if len(node.inputs) == 2 else ():
        known = flow.of.get(x.name)
        if known is None or x is other or rank(x) != rank(node.outputs[0]) or rank(other) != rank(x):
            continue
        if node.outputs[0].shape[known.axis] == len(known.at):
            flow.bar(other)
            flow.of[node.outputs[0].name] = known
            return True
    return False


def _sum(flow: Flow, node: gs.Node) -> bool:
    sides = _sides(node)
    if sides is None:
        return False
    at, (values, axis) = sides
    known, wide = flow.of.get(node.inputs[at].name), rank(node.inputs[at])
    if known is None or wide is None or known.axis != wide + axis or len(known.at) != values.size:
        return False
    flow.of[node.outputs[0].name] = known
    return True


def _quotient(flow: Flow, node: gs.Node) -> bool:
    """A constant a channel over something that all channels share."""
    found, wide = vector(node, 0), rank(node.outputs[0])
    if found is None or wide is None or rank(node.inputs[1]) != wide or -found[1] > wide:
        return False
    if node.inputs[1].shape[found[1]] != 1:
        return False
    flow.bar(node.inputs[1])
    flow.of[node.outputs[0].name] = flow.fresh(found[0].size, wide + found[1])
    return True


def _batch_norm(flow: Flow, node: gs.Node) -> bool:
    if ops.trains(node) or any(edit.const(node, k) is None for k in (1, 2)):
        return False
    flow.bar(node.inputs[0])
    flow.of[node.outputs[0].name] = flow.fresh(int(node.inputs[1].shape[0]), 1)
    return True


def _transpose(flow: Flow, node: gs.Node) -> bool:
    known, wide = flow.of.get(node.inputs[0].name), rank(node.inputs[0])
    if known is None or wide is None:
        return False
    order = list(node.attrs.get("perm", range(wide)[::-1]))
    flow.of[node.outputs[0].name] = type(known)(known.at, order.index(known.axis))
    return True


def _reshape(flow: Flow, node: gs.Node) -> bool:
    """The last axis stays where its size does."""
    known, x, y = flow.of.get(node.inputs[0].name), node.inputs[0].shape, node.outputs[0].shape
    if known is None or not x or not y or known.axis != len(x) - 1 or not x[-1] == y[-1] == len(known.at):
        return False
    flow.of[node.outputs[0].name] = type(known)(known.at, len(y) - 1)
    return True


RULES: dict[str, Callable[[Flow, gs.Node], bool]] = {
    "Mul": _product,
    "Add": _sum,
    "Sub": _sum,
    "Div": _quotient,
    "BatchNormalization": _batch_norm,
    "Transpose": _transpose,
    "Reshape": _reshape,
}


def scale(model: Model, node: gs.Node, rows: np.ndarray | None, columns: np.ndarray | None) -> bool:
    """Bring factors into a node's constants: `rows` on what it makes, `columns` taken from what it reads."""
    gain = _gain(node, rows, columns)
    if gain is None or (gain == 1).all():
        return False
    if node.op == "BatchNormalization":
        at = [1, 2]
    else:
        sides = _sides(node) if node.op != "Div" else (1, vector(node, 0))
        at = [] if sides is None or sides[1] is None else [1 - sides[0]]
    for k in at:
        held = node.inputs[k]
        values = (held.values.astype(np.float64) * gain.reshape(held.shape)).astype(np.float32)
        edit.set_input(node, k, edit.constant(model, held.name, values))
    return bool(at)


def _gain(node: gs.Node, rows: np.ndarray | None, columns: np.ndarray | None) -> np.ndarray | None:
    """What the constants of a node are multiplied with."""
    if node.op not in ("Mul", "Add", "Sub", "Div", "BatchNormalization"):
        return None
    if node.op != "Mul" or columns is None or (rows is not None and rows.size != columns.size):
        return rows  # of another size: along another axis, where there are none
    return 1 / columns if rows is None else rows / columns
