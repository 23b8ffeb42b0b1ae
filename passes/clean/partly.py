"""Operators of which a part does nothing: pieces of size 0, and forms that a plainer operator says too. Exact."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from ..rewrite import Outcome, Rewriter, Rule


def _empty_pieces(rw: Rewriter, node: gs.Node) -> Outcome:
    """Concat takes nothing from a tensor whose size along the axis is 0."""
    axis, kept = node.attrs.get("axis", 1), []
    for tensor in node.inputs:
        shape = rw.shape(tensor)
        if shape is None or not -len(shape) <= axis < len(shape) or shape[axis] != 0:
            kept.append(tensor)
    return rw.rewire(node, kept) if kept and len(kept) < len(node.inputs) else None


def _whole_piece(rw: Rewriter, node: gs.Node) -> Outcome:
    """A Split of which one part is all of the tensor and the others, of size 0, have no reader."""
    x, axis = node.inputs[0], node.attrs.get("axis", 0)
    shape = rw.shape(x)
    read = [t for t in node.outputs if t.outputs or rw.is_output(t)]
    part = rw.shape(read[0]) if len(read) == 1 else None
    if shape is None or part is None or len(part) != len(shape) or not -len(shape) <= axis < len(shape):
        return None
    whole = isinstance(shape[axis], int) and shape[axis] == part[axis]
    return rw.replace(read[0], x) or None if whole else None


def _known_like(rw: Rewriter, node: gs.Node) -> Outcome:
    """CastLike to a type that is known is a Cast: what it takes the type from need not be there."""
    like = node.inputs[1]
    if like.dtype is None:
        return None
    to = int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(like.dtype)))
    return rw.become(node, "Cast", [node.inputs[0]], {**node.attrs, "to": to})


def _sequence_joined(rw: Rewriter, node: gs.Node) -> Outcome:
    """ConcatFromSequence of a sequence that was just put together is a Concat."""
    made = rw.maker(node.inputs[0], "SequenceConstruct")
    if made is None or node.attrs.get("new_axis", 0):
        return None
    return rw.become(node, "Concat", list(made.inputs), {"axis": node.attrs["axis"]})


RULES = (
    Rule("empty pieces left out", ("Concat",), _empty_pieces),
    Rule("empty pieces left out", ("Split",), _whole_piece),
    Rule("CastLike to Cast", ("CastLike",), _known_like),
    Rule("sequences joined", ("ConcatFromSequence",), _sequence_joined),
)
