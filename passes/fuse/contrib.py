"""Operators of ONNX Runtime's own (com.microsoft), for targets that have them: only where it is faster at them.

Most of its own operators ONNX Runtime 1.32 makes itself at load, from the standard ones that are written here. What it
does not see on a CPU: Gelu by tanh (one kernel, 3 times faster than its parts), and attention, whose heads
MultiHeadAttention takes apart and puts together itself. Both differ from the spelled-out form by float rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ...ir.shapes import is_lacking
from ..rewrite import Outcome, Rewriter, Rule, same_sizes
from . import attention, gelu
from .reshape import reshaped

DOMAIN = "com.microsoft"
# Above this many sequences (the windows of a Swin) MultiHeadAttention mostly adds its mask more slowly than its parts
# do, for each sequence and head anew: 0.82 to 1.05 times as fast for 4 to 64, 1.03 to 1.20 for 1 and 2.
_WINDOWS = 2
_KEYS_TURNED = [0, 2, 3, 1]  # [B, L, H, D] to [B, H, D, L]


def _become(rw: Rewriter, node: gs.Node, op: str, inputs: list[Any], attrs: dict[str, Any] | None = None) -> bool:
    rw.become(node, op, inputs, attrs)
    node.domain = DOMAIN
    return True


def _fast_gelu(rw: Rewriter, node: gs.Node) -> Outcome:
    """x · Φ(x) with Φ by tanh, below the opset that has Gelu."""
    found = gelu.spelled(rw, node) if rw.opset < 20 else None
    if found is None or not found[1] or np.dtype(found[0].dtype) != np.float32:
        return None
    return _become(rw, node, "FastGelu", [found[0]])


def _multi_head(rw: Rewriter, node: gs.Node) -> Outcome:
    """Heads taken apart, softmax(q · kᵀ · scale + mask) · v, heads put together, below the opset that has Attention."""
    transpose = rw.inner(node.inputs[0], "Transpose") if rw.opset < 23 else None
    last = None if transpose is None else rw.inner(transpose.inputs[0], "MatMul")
    if transpose is None or last is None or list(transpose.attrs.get("perm", [])) != attention.HEADS_APART:
        return None
    found = attention.spelled(rw, last)
    if not isinstance(found, attention.Spelled):
        return found
    if not rw.together(node, transpose, last):
        return None
    q, k, v = (
        attention.together(rw, t, perm)
        for t, perm in zip(found.operands, (attention.HEADS_APART, _KEYS_TURNED, attention.HEADS_APART))
    )
    if q is None or k is None or v is None or not q[1] == k[1] == v[1]:
        return None
    shape = rw.shape(q[0])
    end = None if shape is None else reshaped(rw, node, [*shape[:2], q[1], v[2]])
    if shape is None or not same_sizes(end, [*shape[:2], q[1] * v[2]]):
        return None
    mask = found.mask
    if mask is not None and rw.rank(mask) != 4:
        return "the mask has other than four axes"
    if mask is not None and (is_lacking(shape[:1]) or (isinstance(shape[0], int) and shape[0] > _WINDOWS)):
        return "slower where a mask is added to many short sequences"
    inputs = [q[0], k[0], v[0], *([] if mask is None else [None, None, mask])]
    return _become(rw, node, "MultiHeadAttention", inputs, {"num_heads": q[1], "scale": found.scale})


RULES = (
    Rule("FastGelu", ("Mul", "Div"), _fast_gelu),
    Rule("MultiHeadAttention", ("Reshape",), _multi_head),
)
