"""Operators that a Transpose may cross: doing them before or after it is the same, their axes turned. Exact.

Element-wise operators of one tensor, or of a tensor and a constant; Pad, and reductions that keep their axes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import edit
from ..rewrite import Rewriter

# Element-wise operators of one tensor: moving data before them or after them is the same.
UNARY = frozenset(
    [
        "Relu",
        "Sigmoid",
        "Tanh",
        "Abs",
        "Neg",
        "Exp",
        "Log",
        "Sqrt",
        "Reciprocal",
        "Erf",
        "Floor",
        "Ceil",
        "Round",
        "Sign",
        "Not",
        "Softplus",
        "Softsign",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Elu",
        "Selu",
        "Celu",
        "ThresholdedRelu",
        "Cast",
        "Clip",
        "Identity",
        "Sin",
        "Cos",
        "Mish",
        "Gelu",
    ]
)
BINARY = ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min")
REDUCTIONS = (
    "ReduceMean",
    "ReduceSum",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceL1",
    "ReduceL2",
    "ReduceSumSquare",
)
# Operators whose parameters speak of axes.
AXIAL = frozenset([*REDUCTIONS, "Pad"])


def crossing(rw: Rewriter, node: gs.Node, rank: int) -> Any:
    """The data input of an operator that a Transpose may cross; None for all others."""
    if node.op in UNARY:
        plain = all(isinstance(t, gs.Constant) for t in node.inputs[1:] if t.name)
        return node.inputs[0] if plain else None
    if node.op in AXIAL:
        return node.inputs[0] if _axes(rw, node, rank) is not None else None
    if node.op not in BINARY or len(node.inputs) != 2 or rw.opset < 7:
        return None
    data = [t for t in node.inputs if not isinstance(t, gs.Constant)]
    fixed = [t for t in node.inputs if isinstance(t, gs.Constant)]
    if len(data) != 1 or rw.small(fixed[0]) is None or len(fixed[0].shape) > rank or rw.rank(data[0]) != rank:
        return None
    return data[0]


def turn(rw: Rewriter, node: gs.Node, x: Any, back: list[int]) -> None:
    """Let a crossed operator read `x`, its constant operand with its axes put back as they are there."""
    if node.op in UNARY:
        rw.rewire(node, [x, *list(node.inputs)[1:]])
        return
    if node.op in AXIAL:
        _turn_axes(rw, node, x, back)
        return
    inputs: list[Any] = []
    for tensor in node.inputs:
        if not isinstance(tensor, gs.Constant):
            inputs.append(x)
        elif np.prod(tensor.shape, dtype=np.int64) == 1 and len(tensor.shape) <= 1:
            inputs.append(tensor)
        else:
            full = tensor.values.reshape([1] * (len(back) - tensor.values.ndim) + list(tensor.shape))
            inputs.append(rw.constant(tensor.name, np.ascontiguousarray(full.transpose(back))))
    rw.rewire(node, inputs)


def _axes(rw: Rewriter, node: gs.Node, rank: int) -> list[int] | None:
    """Pads (begins, then ends) or reduced axes, where they are constant and name every axis plainly; else None."""
    if node.op == "Pad":
        given = node.attrs.get("pads") if rw.opset < 11 else rw.ints(edit.get(node, 1))
        fill = edit.get(node, 2)
        known = fill is None or isinstance(fill, gs.Constant)
        return list(given) if given and known and edit.get(node, 3) is None and len(given) == 2 * rank else None
    given = node.attrs.get("axes") if "axes" in node.attrs else rw.ints(edit.get(node, 1))
    if not given or not node.attrs.get("keepdims", 1) or not all(-rank <= a < rank for a in given):
        return None
    return [a % rank for a in given]


def _turn_axes(rw: Rewriter, node: gs.Node, x: Any, back: list[int]) -> None:
    """Let a Pad or a reduction read `x`. back: where each of its axes is among those that the operator knows."""
    rank = len(back)
    found = _axes(rw, node, rank) or []
    if node.op == "Pad":
        new, name = [found[back[k] + half] for half in (0, rank) for k in range(rank)], "pads"
    else:
        new, name = sorted(back.index(a) for a in found), "axes"
    if name in node.attrs:
        node.attrs[name] = new
        rw.rewire(node, [x, *list(node.inputs)[1:]])
    else:
        rw.rewire(node, [x, rw.constant(f"{node.name}_{name}", np.array(new, np.int64)), *list(node.inputs)[2:]])
