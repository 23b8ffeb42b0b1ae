"""How often a Loop or Scan passes through its body, where that is certain, and whether spelling it out pays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import Model, edit
from ...ir.order import reads
from ...ir.shapes import is_static
from ..rewrite import within
from . import candidates

OPS = ("Loop", "Scan")
# More trips than this are never spelled out, however much of them folds.
MOST = 32
# Bytes of a result that surely fold: counters, sizes, indices. What is larger might grow the file once a trip.
_SMALL = 1024


@dataclass(frozen=True)
class Trips:
    """A loop whose body is passed through `count` times.

    lead: inputs of the body before the states, counter and condition of a Loop; `tail`: its outputs before them.
    states: what goes in first. sliced: what a Scan takes apart. stacked: outputs of the body that are put together.
    """

    node: gs.Node
    count: int
    lead: int
    tail: int
    states: tuple[Any, ...]
    sliced: tuple[Any, ...]
    stacked: tuple[Any, ...]

    @property
    def body(self) -> Any:
        """The graph that is passed through."""
        return self.node.attrs["body"]


def known(node: gs.Node, opset: int, outputs: set[int]) -> Trips | None:
    """The trips of a well-formed Loop or Scan whose number of them follows from constants and static sizes.

    outputs: ids of the tensors whose shapes are only declared: what graphs put out, and what bodies take in.
    """
    if node.domain or node.op not in OPS or not isinstance(node.attrs.get("body"), gs.Graph) or opset < 9:
        return None
    found = _loop(node) if node.op == "Loop" else _scan(node, outputs)
    if found is None or any(not t.name for t in (*found.states, *found.sliced)):
        return None
    fits = len(found.body.inputs) == found.lead + len(found.states) + len(found.sliced)
    fits &= found.tail + len(found.states) <= len(found.body.outputs)
    return found if fits and len(node.outputs) <= len(found.body.outputs) - found.tail else None


def _loop(node: gs.Node) -> Trips | None:
    count = _count(node)
    states = tuple(node.inputs[2:])
    stacked = tuple(node.attrs["body"].outputs[1 + len(states) :])
    return None if count is None else Trips(node, count, 2, 1, states, (), stacked)


def _count(node: gs.Node) -> int | None:
    """min(limit, first time that the condition is false); None when either is unknown."""
    limit = np.inf if edit.get(node, 0) is None else _one(node.inputs[0])
    start = True if edit.get(node, 1) is None else _one(node.inputs[1])
    if (limit is not None and limit <= 0) or (start is not None and not start):
        return 0
    if limit is None or start is None:
        return None
    again = _again(node.attrs["body"])
    if limit == 1 or again is False:
        return 1
    return int(limit) if again and np.isfinite(limit) else None


def _again(body: Any) -> bool | None:
    """Whether a trip that was begun is always, or never, followed by the next; None when that depends."""
    if len(body.inputs) < 2 or not body.outputs:
        return None
    tensor = body.outputs[0]
    while not isinstance(tensor, gs.Constant) and tensor.inputs and hands_on(tensor.inputs[0]):
        tensor = tensor.inputs[0].inputs[0]
    if tensor is body.inputs[1]:
        return True  # the condition of the first trip, which was true
    value = _one(tensor)
    return None if value is None else bool(value)


def hands_on(node: gs.Node) -> bool:
    """Whether a node is a plain Identity."""
    return node.op == "Identity" and not node.domain


def _one(tensor: Any) -> Any | None:
    if not isinstance(tensor, gs.Constant) or np.prod(tensor.shape, dtype=np.int64) != 1:
        return None
    return tensor.values.reshape(-1)[0]


def _scan(node: gs.Node, outputs: set[int]) -> Trips | None:
    number = node.attrs.get("num_scan_inputs", 0)
    if not 0 < number <= len(node.inputs):
        return None
    states, sliced = tuple(node.inputs[:-number]), tuple(node.inputs[-number:])
    axes = node.attrs.get("scan_input_axes", [0] * number)
    lengths = {_length(t, axis, outputs) for t, axis in zip(sliced, axes)} - {None}
    if len(axes) != number or len(lengths) != 1:
        return None
    (count,) = lengths
    stacked = tuple(node.attrs["body"].outputs[len(states) :])
    # What comes of no trips is for the runtime to say.
    return Trips(node, count, 0, 0, states, sliced, stacked) if count else None


def _length(tensor: Any, axis: int, outputs: set[int]) -> int | None:
    """Size of a tensor along an axis, where it is a number that is more than declared by an output or a body."""
    shape = getattr(tensor, "inferred", None) if id(tensor) in outputs else tensor.shape
    if shape is None or not -len(shape) <= axis < len(shape) or not is_static((shape[axis],)):
        return None
    return int(shape[axis])


def refusal(model: Model, trips: Trips) -> str | None:
    """Why a loop stays; None when its trips may be spelled out and give no more nodes than it has.

    One trip always pays: what is outside and inside can then be simplified together.
    """
    if trips.count > MOST:
        return f"{trips.count} trips are not spelled out"
    odd = [t for t in trips.states if t.dtype is None]
    if odd:
        return f"its state '{odd[0].name}' is not known to be a tensor"
    used = [t for k, t in enumerate(trips.stacked) if is_read(trips, k, model)]
    if any(t.dtype is None or np.dtype(t.dtype).isbuiltin != 1 for t in used):
        return "an output that is put together has a type that Concat may not take"
    if trips.count == 0 and used:
        return "the shape of its empty output is for the runtime to say: ONNX Runtime goes by what the body declares"
    if trips.count < 2:
        return None
    if not candidates.deterministic(trips.node):
        return "its body draws random numbers, or holds operators of other domains"
    before = 1 + sum(1 + len(within(n)) for n in trips.body.nodes)
    if nodes_after(model, trips, before) > before:
        return f"{trips.count} trips of it would take more than the {before} nodes that it has"
    return None


def is_read(trips: Trips, k: int, model: Model) -> bool:
    """Whether somebody reads what comes of output `k` that is put together."""
    at = len(trips.states) + k
    if at >= len(trips.node.outputs) or not trips.node.outputs[at].name:
        return False
    return bool(trips.node.outputs[at].outputs) or edit.is_output(model, trips.node.outputs[at])


def nodes_after(model: Model, trips: Trips, enough: int) -> int:
    """How many nodes the trips leave at most once constants are folded; counts on only up to more than `enough`."""
    body, first, last = trips.body, trips.lead, trips.lead + len(trips.states)
    fixed = {id(t) for t in body.inputs[:first]}
    fixed |= {id(t) for t, given in zip(body.inputs[last:], trips.sliced) if isinstance(given, gs.Constant)}
    varied = [isinstance(t, gs.Constant) for t in trips.states]
    read = [t for t in body.inputs[last:] if id(t) not in fixed and t.outputs]
    used = [t for k, t in enumerate(trips.stacked) if is_read(trips, k, model)]
    total = trips.count * len(read)
    for _ in range(trips.count):
        constant = fixed | {id(t) for t, known in zip(body.inputs[first:last], varied) if known}

        def folds(t: Any, constant: set[int] = constant) -> bool:
            return isinstance(t, gs.Constant) or id(t) in constant

        total += _left(body, constant, folds)
        results = body.outputs[trips.tail : trips.tail + len(varied)]
        varied = [folds(t) for t in results]
        total += sum(not folds(t) for t in used)
        if total > enough:
            break
    return total + len(used)


def _left(body: Any, constant: set[int], folds: Callable[[Any], bool]) -> int:
    """Nodes of one trip that do not fold; what folds is added to `constant`."""
    total = 0
    for node in body.nodes:
        if all(folds(t) for t in reads(node)) and all(_is_small(t) for t in node.outputs if t.name):
            constant.update(id(t) for t in node.outputs)
        elif not hands_on(node):
            total += 1 + len(within(node))
    return total


def _is_small(tensor: Any) -> bool:
    return tensor.dtype is not None and is_static(tensor.shape) and candidates.size_of(tensor) <= _SMALL
