"""If with a constant condition: the branch that is taken moves into the surrounding graph.

What inlining makes known can be held against a sloppy model: a Range whose bounds are vectors of one element runs
while their shapes are hidden in a branch, and is refused once they are plain constants. `plain_ranges` mends that.
"""

from __future__ import annotations

from typing import Any

import onnx_graphsurgeon as gs

from ...ir import Model, edit


def inline_ifs(model: Model) -> int:
    """Inline every If whose condition is a constant, at every level; returns how many.

    Exact: names are unique over all levels, so the nodes of the branch can stand where the If stood.
    """
    total = 0
    queue = [model.graph]
    while queue:
        graph = queue.pop()
        while any(decided(n) for n in graph.nodes):
            for node in [n for n in graph.nodes if decided(n)]:
                _inline(model, graph, node)
                total += 1
        queue.extend(v for n in graph.nodes for v in n.attrs.values() if isinstance(v, gs.Graph))
    return total


def plain_ranges(model: Model) -> int:
    """Give Range its constant operands as scalars; returns how many were changed. Exact: the one value stays."""
    changed = 0
    for node in model.nodes():
        for index, tensor in enumerate(node.inputs if node.op == "Range" and not node.domain else ()):
            if isinstance(tensor, gs.Constant) and tuple(tensor.shape) == (1,):
                edit.set_input(node, index, edit.constant(model, tensor.name, tensor.values.reshape(())))
                changed += 1
    return changed


def decided(node: gs.Node) -> bool:
    """Whether a node is an If whose condition is a constant."""
    if node.op != "If" or node.domain or not isinstance(node.inputs[0], gs.Constant):
        return False
    return node.inputs[0].values.size == 1


def opened(model: Model, node: gs.Node, outputs: set[int]) -> tuple[list[gs.Node], list[Any]]:
    """Take a decided If apart, none of whose outputs a graph puts out: the nodes for its place, and their results.

    outputs: ids of the outputs of all graphs; those of the branch, which are none any more, are taken out.
    """
    branch = _taken(node)
    results, made = list(branch.outputs), {id(t) for n in branch.nodes for t in n.outputs}
    branch.outputs = []
    outputs.difference_update(id(t) for t in results if id(t) in made)
    for before, after in zip(node.outputs, results):
        if before.name:
            edit.replace(model, before, after, outputs)
    edit.unlink(node)
    return list(branch.nodes), results


def _taken(node: gs.Node) -> Any:
    return node.attrs.pop("then_branch" if bool(node.inputs[0].values.reshape(-1)[0]) else "else_branch")


def _inline(model: Model, graph: gs.Graph, node: gs.Node) -> None:
    branch = _taken(node)
    old, new = list(node.outputs), list(branch.outputs)
    branch.outputs = []
    at = next(k for k, n in enumerate(graph.nodes) if n is node)
    graph.nodes = [*graph.nodes[: at + 1], *branch.nodes, *graph.nodes[at + 1 :]]
    for before, after in zip(old, new):
        if before.name:
            edit.replace(model, before, after)
    graph.nodes = [n for n in graph.nodes if n is not node]
    edit.unlink(node)
