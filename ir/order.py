"""Topological order: a stable, iterative Kahn sort that counts what subgraphs capture."""

from __future__ import annotations

import heapq
from typing import Any

import onnx_graphsurgeon as gs

from .errors import ModelError
from .model import Model, subgraphs


def reads(node: gs.Node) -> list[Any]:
    """Every named tensor that a node reads: its inputs, and all that its subgraphs read, outer or own."""
    found = [t for t in node.inputs if t.name]
    queue = subgraphs(node)
    while queue:
        graph = queue.pop()
        found.extend(t for t in graph.outputs if t.name)
        for inner in graph.nodes:
            found.extend(t for t in inner.inputs if t.name)
            queue.extend(subgraphs(inner))
    return found


def _sort_graph(graph: gs.Graph) -> None:
    nodes = graph.nodes
    producer = {id(t): k for k, node in enumerate(nodes) for t in node.outputs if t.name}
    users: list[list[int]] = [[] for _ in nodes]
    waiting = [0] * len(nodes)
    in_order = True
    for k, node in enumerate(nodes):
        for source in {producer[id(t)] for t in reads(node) if id(t) in producer}:
            users[source].append(k)
            waiting[k] += 1
            in_order &= source < k
    if in_order:
        return
    ready = [k for k, n in enumerate(waiting) if n == 0]
    heapq.heapify(ready)
    done: list[int] = []
    while ready:
        k = heapq.heappop(ready)
        done.append(k)
        for user in users[k]:
            waiting[user] -= 1
            if waiting[user] == 0:
                heapq.heappush(ready, user)
    if len(done) < len(nodes):
        stuck = next(nodes[k] for k, n in enumerate(waiting) if n)
        raise ModelError(f"the graph has a cycle through node '{stuck.name}' ({stuck.op})")
    graph.nodes = [nodes[k] for k in done]


def sort(model: Model) -> None:
    """Put the nodes of every graph in topological order, keeping the given order where it is free.

    Raises ModelError that names a node on a cycle.
    """
    for graph in model.graphs():
        _sort_graph(graph)
