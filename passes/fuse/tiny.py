"""Weights too small to matter, which cost a hundred times the time of others: subnormal numbers and their makers.

Training drives whole channels to 1e-39; a processor multiplies such numbers in microcode (one trained network spends
two thirds of its time on them).
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues

from ...ir import edit
from ..rewrite import Outcome, Rewriter, Rule

_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
LARGEST = 1 << 22  # elements that are looked at: a larger weight is bound by memory, and reading it takes time
TINY, USUAL = 2.0**-100, 2.0**-40  # below the first, beside weights above the second, a weight is nothing


def _flush(rw: Rewriter, node: gs.Node) -> Outcome:
    """Weights under 2⁻¹⁰⁰ in a tensor whose largest is above 2⁻⁴⁰ become zero: a change of 2⁻⁶⁰ of the largest, where
    float32 keeps 2⁻²⁴.
    """
    held = edit.get(node, 1)
    if not isinstance(held, gs.Constant) or np.prod(held.shape, dtype=np.int64) > LARGEST or not held.shape:
        return None
    if np.dtype(held.dtype) != np.float32 or not _weighs_only(rw, held):
        return None
    lazy = held._values
    values = lazy.load() if isinstance(lazy, LazyValues) else lazy  # not kept: hardly any weight is changed
    size = np.abs(values)
    tiny = (size < TINY) & (size > 0)
    if not tiny.any() or size.max() < USUAL:
        return None
    rw.replace(held, rw.constant(held.name, np.where(tiny, np.float32(0), values)))
    return True


def _weighs_only(rw: Rewriter, held: gs.Constant) -> bool:
    """Whether a constant is nothing but the weight of products."""
    return not rw.is_output(held) and all(
        n.op in _PRODUCTS and not n.domain and [k for k, t in enumerate(n.inputs) if t is held] == [1]
        for n in rw.readers(held)
    )


RULES = (Rule("vanishing weights set to zero", _PRODUCTS, _flush),)
