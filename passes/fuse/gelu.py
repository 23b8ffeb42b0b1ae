"""Gelu spelled out, by erf or by tanh: as the operator where the opset has it, and kept whole where it has not.

ONNX Runtime 1.32 joins one spelling by erf at load, also with the bias before it, into a kernel that is 1.5 to 2.4
times faster than its parts: x / √2 by a division, and the half at one of the ends. Other spellings of as many nodes are
written in this one, and a factor that closes a Gelu is not moved into the weights after it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ..rewrite import Outcome, Rewriter, Rule
from .factors import factors, fits, matches, near, polynomial

# What stands inside the erf or tanh of a Gelu, by power of x.
_ERF = {1: 0.5**0.5}
_TANH = {1: (2 / np.pi) ** 0.5, 3: (2 / np.pi) ** 0.5 * 0.044715}


def spelled(rw: Rewriter, node: gs.Node) -> tuple[Any, bool] | None:
    """For the last product of x · Φ(x), factors in any order: x, and whether Φ is approximated by tanh."""
    product = factors(rw, node)
    if product is None or len(product[1]) != 2:
        return None
    for at in (0, 1):
        x, gate = product[1][at], product[1][1 - at]
        curve = _halved(rw, gate, product[0])
        if curve is None or not fits(rw, x) or not rw.together(node, curve):
            continue
        inside = polynomial(rw, curve.inputs[0], x)
        if matches(inside, _ERF if curve.op == "Erf" else _TANH):
            return x, curve.op == "Tanh"
    return None


def closes(rw: Rewriter, node: gs.Node) -> bool:
    """Whether a node is the constant factor that makes a Gelu whole."""
    scaled = node.op in ("Mul", "Div") and any(isinstance(t, gs.Constant) for t in node.inputs)
    return scaled and spelled(rw, node) is not None


def _gelu(rw: Rewriter, node: gs.Node) -> Outcome:
    """x · Φ(x) with Φ as (1 + erf(x/√2)) / 2 or its tanh approximation, the factors in any order. By definition."""
    found = spelled(rw, node)
    if found is None:
        return None
    return rw.become(node, "Gelu", [found[0]], {"approximate": "tanh"} if found[1] else {})


def _halved(rw: Rewriter, gate: Any, number: float) -> gs.Node | None:
    """The Erf or Tanh node c for which number · gate is 1/2 + c/2."""
    add = rw.inner(gate, "Add")
    if add is None:
        return None
    for at in (0, 1):
        curve = rw.inner(add.inputs[at], "Erf", "Tanh")
        scaled = None if curve is not None else rw.inner(add.inputs[at], "Mul")
        slope = 1.0
        if scaled is not None:
            parts = factors(rw, scaled)
            if parts is None or len(parts[1]) != 1:
                continue
            slope, curve = parts[0], rw.inner(parts[1][0], "Erf", "Tanh")
        shift = rw.scalar(add.inputs[1 - at])
        if curve is not None and shift is not None and len(add.inputs[1 - at].shape) <= 1:
            halves = near(number * slope, 0.5) and near(number * float(shift), 0.5)
            return curve if halves and rw.together(add, curve) else None
    return None


def _joined_form(rw: Rewriter, node: gs.Node) -> Outcome:
    """x · Φ(x) by erf as ((erf(x / √2) + 1) · x) · ½. Differs by the rounding of 1/√2, where that was a factor."""
    found = spelled(rw, node) if rw.opset < 20 else None
    if found is None or found[1] or np.dtype(found[0].dtype) != np.float32 or _is_joined(rw, node, found[0]):
        return None
    x = found[0]
    half, one, root = (rw.constant(f"{node.name}_constant", np.float32(v)) for v in (0.5, 1.0, 2.0**0.5))
    last = x
    for op, *others in (("Div", root), ("Erf",), ("Add", one), ("Mul", x)):
        last = rw.insert(node, op, [last, *others])
        last.dtype, last.shape = x.dtype, rw.shape(x)
    return rw.become(node, "Mul", [last, half])


def _is_joined(rw: Rewriter, node: gs.Node, x: Any) -> bool:
    """Whether a Gelu stands as (x · g) · ½ or (x · ½) · g with g = erf(x / √2) + 1, in any order of operands."""
    for side, other in (node.inputs, list(node.inputs)[::-1]):
        inner = rw.inner(side, "Mul")
        if inner is None or node.op != "Mul" or not any(t is x for t in inner.inputs):
            continue
        rest = [next((t for t in inner.inputs if t is not x), x), other]
        for half, gate in (rest, rest[::-1]):
            if rw.scalar(half) == 0.5 and _is_gate(rw, gate):
                return True
    return False


def _is_gate(rw: Rewriter, tensor: Any) -> bool:
    add = rw.inner(tensor, "Add")
    erf = None if add is None else next((e for t in add.inputs if (e := rw.inner(t, "Erf")) is not None), None)
    return erf is not None and rw.inner(erf.inputs[0], "Div") is not None


RULES = (
    Rule("Gelu", ("Mul", "Div"), _gelu, since=20),
    Rule("Gelu spelled to be joined", ("Mul", "Div"), _joined_form, since=9),
)
