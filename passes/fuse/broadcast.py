"""Expand before operators that broadcast by themselves: left out. Exact.

The Expand may stand further up: what is done to each element alone is then done before it is repeated.
"""

from __future__ import annotations

from typing import Any

import onnx_graphsurgeon as gs

from ..rewrite import Outcome, Rewriter, Rule, broadcast_keeps
from .crossing import BINARY, UNARY

_COMPARE = ("And", "Or", "Xor", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Mod")
_BROADCAST = frozenset([*BINARY, *_COMPARE, "Where"])
# How many operators an Expand is followed down.
_DEPTH = 4


def _needless(rw: Rewriter, node: gs.Node) -> Outcome:
    """Expand of which every reader, or what reads theirs, has another operand of the expanded shape."""
    x, out = node.inputs[0], node.outputs[0]
    start, end = rw.shape(x), rw.shape(out)
    if start is None or end is None or len(start) > len(end) or rw.opset < 8 or not rw.together(node, *rw.readers(out)):
        return None
    between: list[Any] = []
    if not out.outputs or not _repeated(rw, out, end, len(start), between, _DEPTH):
        return None
    if not rw.replace(out, x):
        return None
    for tensor in between:
        tensor.shape = list(start)
    return True


def _repeated(rw: Rewriter, tensor: Any, shape: list[Any], rank: int, between: list[Any], depth: int) -> bool:
    """Whether all readers give the same without the Expand; `between` gathers the tensors whose shape changes."""
    if rw.is_output(tensor) or not depth:
        return False
    for user in rw.readers(tensor):
        if user.domain or user.op not in UNARY | _BROADCAST or not rw.together(user, tensor.inputs[0]):
            return False
        others = [t for t in user.inputs if t is not tensor and t.name]
        if any(broadcast_keeps(rw.shape(t), shape) for t in others):
            if _hides_mask(rw, user):
                return False
            continue
        alone = all(isinstance(t, gs.Constant) and len(t.shape) <= rank and set(t.shape) <= {1} for t in others)
        if not alone or not _repeated(rw, user.outputs[0], shape, rank, between, depth - 1):
            return False
        between.append(user.outputs[0])
    return True


def _hides_mask(rw: Rewriter, node: gs.Node) -> bool:
    """Whether a node adds a mask to scores where Attention exists: that takes masks of full rows only."""
    read = rw.readers(node.outputs[0])
    return rw.opset >= 23 and node.op == "Add" and any(u.op == "Softmax" for u in read)


RULES = (Rule("expansions left to broadcasting", ("Expand",), _needless),)
