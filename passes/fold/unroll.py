"""Loop and Scan whose number of trips is known: the trips stand one after the other where the loop stood.

Exact: each trip is a copy of the body that reads what the trip before it put out. Constants are shared, not copied.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import Model, edit
from ...ir.model import subgraphs
from . import trips as counting
from .trips import Trips


def unroll_loops(model: Model, kept: dict[str, str]) -> int:
    """Spell out every Loop and Scan that gives no more nodes than it has, at every level; returns how many.

    kept: names of those that stay though their number of trips is known, with reasons; added to.
    """
    if not any(n.op in counting.OPS for n in model.nodes()):
        return 0
    total, outputs = 0, edit.output_ids(model)
    outputs |= {id(t) for graph in list(model.graphs())[1:] for t in graph.inputs}
    queue = [model.graph]
    while queue:
        graph = queue.pop()
        pending = [n for n in graph.nodes if n.op in counting.OPS]
        while pending:
            node = pending.pop()
            found = counting.known(node, model.opset, outputs)
            reason = None if found is None else counting.refusal(model, found)
            if found is None or reason is not None:
                kept.update({node.name: reason} if reason else {})
                continue
            kept.pop(node.name, None)
            pending += [n for n in _spell_out(model, graph, found) if n.op in counting.OPS]
            total += 1
        queue.extend(g for n in graph.nodes for g in subgraphs(n))
    return total


def _spell_out(model: Model, graph: gs.Graph, trips: Trips) -> list[gs.Node]:
    """Put the trips in the place of their loop; returns their nodes."""
    node, states, rows = trips.node, list(trips.states), [[] for _ in trips.stacked]  # type: ignore[var-annotated]
    copier, made = _Copier(model, trips.body), []
    for k in range(trips.count):
        given, slices = _given(model, trips, k)
        made += slices
        nodes, results = copier.copy(trips.body, [*given[: trips.lead], *states, *given[trips.lead :]])
        made += nodes
        states = results[trips.tail : trips.tail + len(states)]
        for row, tensor in zip(rows, results[trips.tail + len(states) :]):
            row.append(tensor)
    for k, row in enumerate(rows):
        used = counting.is_read(trips, k, model)
        tensor, nodes = _together(model, trips, k, row) if used else (None, [])
        made += nodes
        states.append(tensor)
    at = next(k for k, n in enumerate(graph.nodes) if n is node)
    graph.nodes = [*graph.nodes[: at + 1], *made, *graph.nodes[at + 1 :]]
    for before, after in zip(list(node.outputs), states):
        if before.name and after is not None:
            edit.replace(model, before, after)
    graph.nodes = [n for n in graph.nodes if n is not node]
    edit.unlink(node)
    return made


def _given(model: Model, trips: Trips, k: int) -> tuple[list[Any], list[gs.Node]]:
    """What trip `k` gets besides the states, counter and condition or slices, and the nodes that make these."""
    if trips.node.op == "Loop":
        values = (np.array(k, np.int64), np.array(True))
        ranks = (len(t.shape or ()) for t in trips.body.inputs)  # some models declare vectors of one element
        return [edit.constant(model, "trip", v.reshape((1,) * r)) for v, r in zip(values, ranks)], []
    attrs, number = trips.node.attrs, len(trips.sliced)
    axes, back = (attrs.get(f"scan_input_{key}", [0] * number) for key in ("axes", "directions"))
    given, nodes = [], []
    inner = trips.body.inputs[len(trips.states) :]
    for tensor, axis, backward, wanted in zip(trips.sliced, axes, back, inner):
        out = edit.variable(model, wanted.name, wanted.dtype or tensor.dtype)
        given.append(out)
        if not wanted.outputs and not any(t is wanted for t in trips.body.outputs):
            continue
        if trips.count == 1:
            nodes.append(_axes(model, "Squeeze", tensor, axis, out))
        else:
            index = edit.constant(model, "trip", np.array(trips.count - 1 - k if backward else k, np.int64))
            nodes.append(edit.node(model, "Gather", [tensor, index], {"axis": axis}, [out]))
    return given, nodes


def _axes(model: Model, op: str, tensor: Any, axis: int, out: Any = None) -> gs.Node:
    """A Squeeze or Unsqueeze of one axis, in the form of the model's operator set."""
    outputs = [out if out is not None else edit.variable(model, tensor.name, tensor.dtype)]
    if model.opset < 13:
        return edit.node(model, op, [tensor], {"axes": [axis]}, outputs)
    return edit.node(model, op, [tensor, edit.constant(model, "axes", np.array([axis], np.int64))], None, outputs)


def _together(model: Model, trips: Trips, k: int, row: list[Any]) -> tuple[Any, list[gs.Node]]:
    """The tensors of all trips along a new axis: the result, and the nodes that make it."""
    attrs, number, inner = trips.node.attrs, len(trips.stacked), trips.stacked[k]
    axis = attrs.get("scan_output_axes", [0] * number)[k]
    if attrs.get("scan_output_directions", [0] * number)[k]:
        row = row[::-1]
    nodes = [_axes(model, "Unsqueeze", t, axis) for t in row]
    parts = [n.outputs[0] for n in nodes]
    if len(parts) == 1:
        return parts[0], nodes
    out = edit.variable(model, inner.name, inner.dtype)
    return out, [*nodes, edit.node(model, "Concat", parts, {"axis": axis}, [out])]


class _Copier:
    """Copies of a loop's body: what it makes is new in each, what it reads from outside is shared.

    The names of the body are free for the first copy, since the body itself goes.
    """

    def __init__(self, model: Model, body: Any):
        self.model, self.inner, self.known = model, set(), {}  # type: ignore[var-annotated]
        taken, queue = edit.namer(model).taken, [body]
        while queue:
            graph = queue.pop()
            if graph is not body:
                self._free(taken, graph.inputs)
            for node in graph.nodes:
                taken.discard(node.name)
                self._free(taken, node.outputs)
                queue.extend(subgraphs(node))

    def _free(self, taken: set[str], tensors: list[Any]) -> None:
        self.inner.update(id(t) for t in tensors)
        taken.difference_update(t.name for t in tensors)

    def copy(self, body: Any, given: list[Any]) -> tuple[list[gs.Node], list[Any]]:
        """Nodes and outputs of one more copy that reads `given` for the body's inputs."""
        self.known = {id(t): new for t, new in zip(body.inputs, given)}
        nodes = []
        for node in body.nodes:
            if counting.hands_on(node):
                self.known[id(node.outputs[0])] = self._tensor(node.inputs[0])
            else:
                nodes.append(self._node(node))
        return nodes, [self._tensor(t) for t in body.outputs]

    def _tensor(self, tensor: Any) -> Any:
        if not tensor.name:
            return gs.Variable.empty()
        if id(tensor) in self.known or id(tensor) not in self.inner:
            return self.known.get(id(tensor), tensor)
        new = edit.variable(self.model, tensor.name, tensor.dtype)
        protos = self.model.header.protos
        if tensor.name in protos and tensor.name != new.name:
            protos[new.name] = type(protos[tensor.name])(name=new.name, type=protos[tensor.name].type)
        self.known[id(tensor)] = new
        return new

    def _node(self, node: gs.Node) -> gs.Node:
        outputs = [self._tensor(t) for t in node.outputs]
        inputs = [self._tensor(t) for t in node.inputs]
        attrs = {key: self._value(v) for key, v in node.attrs.items()}
        new = gs.Node(node.op, edit.fresh(self.model, node.name), attrs, inputs, outputs, domain=node.domain)
        if hasattr(node, "extra"):
            new.extra = node.extra
        return new

    def _value(self, value: Any) -> Any:
        if not isinstance(value, gs.Graph):
            return list(value) if isinstance(value, list) else value
        new = gs.Graph(name=value.name, doc_string=value.doc_string, opset=value.opset)
        new.inputs = [self._copied_input(t) for t in value.inputs]
        new.nodes = [self._node(n) for n in value.nodes]
        new.outputs = [self._own(t) for t in value.outputs]
        return new

    def _own(self, tensor: Any) -> Any:
        """The output of an inner graph: a constant there belongs to that graph alone."""
        if not isinstance(tensor, gs.Constant):
            return self._tensor(tensor)
        return gs.Constant(edit.fresh(self.model, tensor.name), tensor._values)

    def _copied_input(self, tensor: Any) -> Any:
        new = self._tensor(tensor)
        new.shape = None if tensor.shape is None else list(tensor.shape)
        return new
