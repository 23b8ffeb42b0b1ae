"""Scales and shifts after a BatchNormalization that no linear operator could take in: into its own scale and bias.

s·(γ·n + β) + t is (s·γ)·n + (s·β + t): the result differs by the rounding of one multiplication and addition.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import ops
from ..rewrite import Outcome, Rewriter, Rule
from .affine import FLOATS, arithmetic


def _into_norm(rw: Rewriter, node: gs.Node) -> Outcome:
    """Mul, Div, Add or Sub of a per-channel constant after a BatchNormalization in inference mode."""
    norm = next((n for n in (rw.inner(t, "BatchNormalization") for t in node.inputs) if n is not None), None)
    if norm is None or ops.trains(norm) or not rw.together(node, norm):
        return None
    gamma, beta, rank = rw.const(norm.inputs[1]), rw.const(norm.inputs[2]), rw.rank(norm.inputs[0])
    if gamma is None or beta is None or rank is None or rank < 2 or gamma.dtype.name not in FLOATS or rw.opset < 9:
        return None
    if gamma.ndim != 1 or gamma.shape != beta.shape or gamma.dtype != beta.dtype:
        return None
    affine = arithmetic(rw, node, norm.outputs[0], rank, 1, gamma.size)
    if affine is None:
        return None
    with np.errstate(all="ignore"):
        scale = np.ascontiguousarray((gamma * affine.scale).astype(gamma.dtype))
        shift = np.ascontiguousarray((beta * affine.scale + affine.shift).astype(gamma.dtype))
    if not np.all(np.isfinite(scale)) or not np.all(np.isfinite(shift)):
        return "the combined scale would not be finite"
    if not rw.can_replace(node.outputs[0], norm.outputs[0]):
        return "the name of a graph output cannot move"
    new = [rw.constant(t.name, v) for t, v in ((norm.inputs[1], scale), (norm.inputs[2], shift))]
    rw.rewire(norm, [norm.inputs[0], *new, *list(norm.inputs)[3:]])
    return rw.replace(node.outputs[0], norm.outputs[0])


RULES = (Rule("scales and shifts absorbed", ("Mul", "Div", "Add", "Sub"), _into_norm),)
