"""Loops of constants that may not end: how many trips folding runs of them, and how it learns that there are more.

What stands in a branch that is never taken may loop for ever without harm until somebody computes it ahead of time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper, numpy_helper

from ...ir import edit
from ...ir.model import subgraphs
from .fills import CEILING

# Trips over all levels of a loop that folding runs at most: a tenth of a second where the body is a few small nodes.
TRIPS = 10_000


def refusal(node: gs.Node) -> str | None:
    """Why a node that holds loops is not run; None where those inside it surely end soon."""
    if _inside(node) > TRIPS:
        return f"a loop inside it may take more than {TRIPS} trips"
    return None


def waits(node: gs.Node) -> bool:
    """Whether a Loop's limit is still to be computed: it is run once that is a constant."""
    limit = edit.get(node, 0) if _is_loop(node) else None
    return limit is not None and not isinstance(limit, gs.Constant)


def allowed(node: gs.Node, size_of: Callable[[Any], int]) -> int | None:
    """How many trips a Loop is run for where it may take more; None where it may not, or where the node is no Loop.

    size_of: bytes of a tensor, for what is put together over the trips.
    """
    if not _is_loop(node):
        return None
    body = node.attrs["body"]
    each = sum(size_of(t) for t in body.outputs[max(len(node.inputs) - 1, 1) :])
    most = min(TRIPS // max(int(_inside(node)), 1), CEILING // max(each, 1))
    return most if _limit(node) > most else None


def cut_short(proto: onnx.NodeProto, trips: int) -> tuple[list[onnx.TensorProto], str]:
    """Let a Loop take so many trips and no more: the constants that it needs for that, and the name of a new output,
    which is true where it would have gone on."""
    limit, start, more, again = (f"{proto.name}__{part}" for part in ("limit", "start", "more", "again"))
    constants = [numpy_helper.from_array(np.array(trips, np.int64), limit)]
    proto.input.extend([""] * (2 - len(proto.input)))
    states = len(proto.input) - 2
    if not proto.input[1]:
        constants.append(numpy_helper.from_array(np.array(True), start))
    proto.input.append(proto.input[1] or start)
    proto.input[0] = limit
    body = next(a.g for a in proto.attribute if a.name == "body")
    body.input.append(_flag(f"{again}_before"))
    body.node.append(helper.make_node("Identity", [body.output[0].name], [again]))
    _insert(body.output, 1 + states, _flag(again))
    proto.output.extend([""] * (states - len(proto.output)))
    _insert(proto.output, states, more)
    return constants, more


def _flag(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, onnx.TensorProto.BOOL, None)


def _insert(field: Any, at: int, value: Any) -> None:
    """Put a value into a repeated field."""
    values = [*field[:at], value, *field[at:]]
    del field[:]
    field.extend(values)


def _is_loop(node: gs.Node) -> bool:
    return node.op == "Loop" and not node.domain


def _inside(node: gs.Node) -> float:
    """Trips of the loops in a node's subgraphs, for one pass through these."""
    return sum(_trips(n) for graph in subgraphs(node) for n in graph.nodes)


def _trips(node: gs.Node) -> float:
    """Trips of a node that stands in a subgraph. A Scan takes what it is given apart, so it ends."""
    return _limit(node) * max(_inside(node), 1) if _is_loop(node) else _inside(node)


def _limit(node: gs.Node) -> float:
    """The most trips of a Loop; infinite where nothing says."""
    values = edit.const(node, 0)
    return float(values.reshape(-1)[0]) if values is not None and values.size == 1 else math.inf
