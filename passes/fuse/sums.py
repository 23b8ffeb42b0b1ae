"""Sums of three tensors and more as one Sum, and sums that a LayerNormalization reads. Exact: added in the same order.

With ONNX Runtime 1.32 on a CPU a Sum of three takes as long as two Adds. Where nothing but a LayerNormalization reads a
sum, ONNX Runtime joins Add and LayerNormalization into a kernel that is 3 to 5 times slower than both (197×768: 950 µs
for 210); a Sum it leaves alone. Passes that do not know Sum (quant has no integer kernel for it) get Adds again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ..rewrite import Outcome, Rewriter, Rule

_FLOATS = ("float16", "float32", "float64")
# What ONNX Runtime joins with an Add that reads it: convolutions, and integer kernels where the Add is quantized.
_JOINED = ("Conv", "DequantizeLinear")


def _addable(rw: Rewriter, node: gs.Node) -> bool:
    """Whether an Add may be part of a Sum."""
    quantized = any(u.op == "QuantizeLinear" for u in rw.readers(node.outputs[0]))
    return _is_float(node) and not quantized and all(rw.maker(t, *_JOINED) is None for t in node.inputs)


def _is_float(node: gs.Node) -> bool:
    dtype = node.outputs[0].dtype
    return dtype is not None and np.dtype(dtype).name in _FLOATS and len(node.inputs) >= 2


def _longer(rw: Rewriter, node: gs.Node) -> Outcome:
    """(a + b) + c is Sum(a, b, c), which adds in that order."""
    if not _addable(rw, node) or node.inputs[0] is node.inputs[1]:
        return None
    for at in (0, 1) if node.op == "Add" else (0,):
        inner = rw.inner(node.inputs[at], "Add", "Sum")
        if inner is None or not rw.together(node, inner) or not _addable(rw, inner):
            continue
        others = [t for k, t in enumerate(node.inputs) if k != at]
        if sum(isinstance(t, gs.Constant) for t in (*inner.inputs, *others)) > 1:
            return None  # constant terms are joined into one first
        return rw.become(node, "Sum", [*inner.inputs, *others])
    return None


def _normalized(rw: Rewriter, node: gs.Node) -> Outcome:
    """Add that only a LayerNormalization reads."""
    out = node.outputs[0]
    if not _is_float(node) or not rw.sole(out) or out.outputs[0].op != "LayerNormalization":
        return None
    if any(rw.maker(t, "Conv") is not None for t in node.inputs):
        return None
    return rw.become(node, "Sum", list(node.inputs))


def _apart(rw: Rewriter, node: gs.Node) -> Outcome:
    """Sum as Adds, in its order."""
    if len(node.inputs) < 2 or rw.opset < 8:
        return None
    total: Any = node.inputs[0]
    for term in node.inputs[1:-1]:
        total = rw.insert(node, "Add", [total, term])
        total.dtype = node.outputs[0].dtype
    return rw.become(node, "Add", [total, node.inputs[-1]])


NORMALIZED = Rule("sums before LayerNormalization", ("Add",), _normalized, since=8)
RULES = (Rule("sums joined", ("Add", "Sum"), _longer, since=8), NORMALIZED)
APART = (Rule("sums taken apart", ("Sum",), _apart, since=8),)
