"""Operators that hand a tensor on unchanged, each with the reason why it surely does.

A predicate returns the tensor that the first output equals, bit for bit (the sign of a zero aside, for `x + 0`), or
None. Shapes count only where they are certain; a constant operand must not broadcast its partner to a larger shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_graphsurgeon as gs

from ...ir import edit
from ..rewrite import Outcome, Rewriter, Rule
from . import computing, moving, partly
from .computing import Source


def _first(rw: Rewriter, node: gs.Node) -> Any:
    return edit.get(node, 0)


def _single(rw: Rewriter, node: gs.Node) -> Any:
    """Concat, Max, Min, Mean, Sum of one tensor."""
    return edit.get(node, 0) if len(node.inputs) == 1 else None


def _optional(rw: Rewriter, node: gs.Node) -> Any:
    """The element of what is a plain tensor, or was just wrapped."""
    x = edit.get(node, 0)
    if x is None:
        return None
    wrapped = rw.maker(x, "Optional")
    if wrapped is not None:
        return edit.get(wrapped, 0)
    return x if x.dtype is not None and x.name not in rw.model.header.protos else None


def _sequence_at(rw: Rewriter, node: gs.Node) -> Any:
    """An element of a sequence that was just put together."""
    made, at = rw.maker(node.inputs[0], "SequenceConstruct"), rw.scalar(node.inputs[1])
    if made is None or at is None or not -len(made.inputs) <= int(at) < len(made.inputs):
        return None
    return made.inputs[int(at)]


def _first_of(*sources: Source) -> Source:
    def source(rw: Rewriter, node: gs.Node) -> Any:
        return next((t for t in (s(rw, node) for s in sources) if t is not None), None)

    return source


SOURCES: dict[str, Source] = {
    "Identity": _first,
    "Concat": _single,
    "Sum": _single,
    "Mean": _single,
    "Max": _first_of(_single, computing.same_pair),
    "Min": _first_of(_single, computing.same_pair),
    "Cast": computing.cast,
    "CastLike": computing.cast_like,
    "Dropout": computing.dropout,
    "Reshape": moving.reshape,
    "Flatten": moving.flatten,
    "Transpose": moving.transpose,
    "Squeeze": moving.squeeze,
    "Unsqueeze": moving.unsqueeze,
    "Tile": moving.tile,
    "Expand": moving.expand,
    "Slice": moving.slice,
    "Pad": moving.pad,
    "Resize": moving.resize,
    "Upsample": moving.resize,
    "Split": moving.split,
    "MaxPool": computing.pool,
    "AveragePool": computing.pool,
    "GlobalAveragePool": computing.global_pool,
    "GlobalMaxPool": computing.global_pool,
    "ReduceSum": computing.reduce,
    "ReduceMean": computing.reduce,
    "ReduceMax": computing.reduce,
    "ReduceMin": computing.reduce,
    "ReduceProd": computing.reduce,
    "DepthToSpace": moving.block,
    "SpaceToDepth": moving.block,
    "Einsum": computing.einsum,
    "Add": computing.neutral(0, either=True),
    "Sub": computing.neutral(0, either=False),
    "Mul": computing.neutral(1, either=True),
    "Div": computing.neutral(1, either=False),
    "Pow": computing.neutral(1, either=False),
    "And": _first_of(computing.neutral(True, either=True), computing.same_pair),
    "Or": _first_of(computing.neutral(False, either=True), computing.same_pair),
    "Xor": computing.neutral(False, either=True),
    "BitShift": computing.neutral(0, either=False),
    "Relu": computing.relu,
    "Abs": computing.idempotent,
    "Ceil": computing.idempotent,
    "Floor": computing.idempotent,
    "Round": computing.idempotent,
    "Sign": computing.idempotent,
    "Neg": computing.involution,
    "Not": computing.involution,
    "BitwiseNot": computing.involution,
    "Clip": computing.clip,
    "Where": computing.where,
    "Gather": moving.gather,
    "OptionalGetElement": _optional,
    "SequenceAt": _sequence_at,
}


def _bypass(rw: Rewriter, node: gs.Node) -> Outcome:
    source = SOURCES[node.op](rw, node)
    out = node.outputs[0]
    if source is None or source is out:
        return None
    if rw.replace(out, source):
        return True
    # an output cannot take the place of its source: what is left to save is the computation
    return rw.become(node, "Identity", [source]) if node.op != "Identity" and len(node.outputs) == 1 else None


def rules() -> Sequence[Rule]:
    """One rule for all operators that may do nothing, and those of operators with a part that does nothing."""
    return (Rule("identities removed", tuple(SOURCES), _bypass), *partly.RULES)
