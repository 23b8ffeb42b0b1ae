"""The structural contract of a model, checked after every pass."""

from __future__ import annotations

from typing import Any

import onnx_graphsurgeon as gs

from .errors import ModelError
from .model import Model, subgraphs


def check(model: Model) -> None:
    """Raise ModelError, naming the node or tensor, unless the model keeps its contract:

    unique node and tensor names; one producer a tensor; nodes in topological order, reading only what is in scope;
    every graph output produced; links between nodes and tensors consistent both ways.
    """
    _check_names(model)
    _check_scope(model.graph, set())


def _check_names(model: Model) -> None:
    nodes: set[str] = set()
    tensors: dict[str, Any] = {}
    readers: dict[int, set[int]] = {}  # of a tensor: one constant may have thousands
    for node in model.nodes():
        if node.name in nodes or not node.name:
            raise ModelError(f"node name '{node.name}' ({node.op}) is empty or not unique")
        nodes.add(node.name)
        for tensor in (*node.inputs, *node.outputs):
            if tensor.name and tensors.setdefault(tensor.name, tensor) is not tensor:
                raise ModelError(f"two tensors are named '{tensor.name}' (one at node '{node.name}')")
        for tensor in node.outputs:
            if tensor.name and not (len(tensor.inputs) == 1 and tensor.inputs[0] is node):
                raise ModelError(f"tensor '{tensor.name}' is not linked to its producer '{node.name}' alone")
        for tensor in node.inputs:
            if tensor.name and id(tensor) not in readers:
                readers[id(tensor)] = {id(n) for n in tensor.outputs}
            if tensor.name and id(node) not in readers[id(tensor)]:
                raise ModelError(f"tensor '{tensor.name}' does not know its reader '{node.name}'")


def _check_scope(graph: gs.Graph, outer: set[int]) -> None:
    """Iterative over nodes, recursive over nesting only."""
    scope = outer | {id(t) for t in graph.inputs}
    for node in graph.nodes:
        for tensor in node.inputs:
            if tensor.name and id(tensor) not in scope and not isinstance(tensor, gs.Constant):
                raise ModelError(f"node '{node.name}' ({node.op}) reads '{tensor.name}', which is not made before it")
        for inner in subgraphs(node):
            _check_scope(inner, scope)
        scope.update(id(t) for t in node.outputs)
    for tensor in graph.outputs:
        if id(tensor) not in scope and not isinstance(tensor, gs.Constant):
            raise ModelError(f"graph output '{tensor.name}' is produced by no node")
