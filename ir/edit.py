"""The one door for edits: small functions that leave nothing dangling.

graphsurgeon's lists compare nodes deeply and unlink the first equal one; everything here goes by identity.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from .errors import PassError
from .model import Model, subgraphs
from .order import reads


def get(node: gs.Node, index: int) -> Any | None:
    """Input `index` of a node; None when it is absent or omitted."""
    if index >= len(node.inputs) or not node.inputs[index].name:
        return None
    return node.inputs[index]


def const(node: gs.Node, index: int) -> np.ndarray | None:
    """The array at input `index` when it is a constant; None otherwise."""
    tensor = get(node, index)
    return tensor.values if isinstance(tensor, gs.Constant) else None


def producer(tensor: Any) -> gs.Node | None:
    """The node that makes a tensor; None for inputs and constants."""
    return tensor.inputs[0] if tensor is not None and tensor.inputs else None


def is_output(model: Model, tensor: Any) -> bool:
    """Whether a tensor is an output of the main graph or of any subgraph."""
    return any(t is tensor for graph in model.graphs() for t in graph.outputs)


def output_ids(model: Model) -> set[int]:
    """`id` of every tensor that is a graph output at any level (one sweep, for loops over many tensors)."""
    return {id(t) for graph in model.graphs() for t in graph.outputs}


def homes_of_constants(model: Model) -> dict[int, gs.Graph]:
    """{`id` of a constant: the graph that all its readers stand in; the main graph where they stand in several}."""
    found: dict[int, gs.Graph] = {}
    for graph in model.graphs():
        for n in graph.nodes:
            for tensor in n.inputs:
                if isinstance(tensor, gs.Constant) and found.setdefault(id(tensor), graph) is not graph:
                    found[id(tensor)] = model.graph
    return found


def home(model: Model, node: gs.Node) -> gs.Graph:
    """The graph that a node stands in."""
    for graph in model.graphs():
        if any(n is node for n in graph.nodes):
            return graph
    raise PassError(f"node '{node.name}' is in no graph of the model")


class Namer:
    """Fresh names; make one per pass, so that the tables are built once."""

    def __init__(self, model: Model):
        self.taken = set(model.tensors()) | {n.name for n in model.nodes()}
        self.taken |= {t.name for t in model.graph.inputs} | set(model.header.defaults)
        self.counts: dict[str, int] = {}

    def __call__(self, hint: str) -> str:
        """`hint`, or `hint_k`: a name that neither a tensor nor a node has."""
        name, k = hint or "t", self.counts.get(hint, 0)
        while name in self.taken:
            k += 1
            name = f"{hint}_{k}"
        self.counts[hint] = k
        self.taken.add(name)
        return name


def namer(model: Model) -> Namer:
    """The model's namer, made on first use and kept with it."""
    found = model.__dict__.get("_namer")
    if found is None:
        found = model.__dict__["_namer"] = Namer(model)
    return found


def fresh(model: Model, hint: str) -> str:
    """A name that neither a tensor nor a node of the model has."""
    return namer(model)(hint)


def constant(model: Model, hint: str, values: Any) -> gs.Constant:
    """A new constant with a fresh name."""
    return gs.Constant(fresh(model, hint), np.asarray(values))


def variable(model: Model, hint: str, dtype: Any = None, shape: Sequence[Any] | None = None) -> gs.Variable:
    """A new variable with a fresh name."""
    return gs.Variable(fresh(model, hint), dtype, None if shape is None else list(shape))


def node(
    model: Model,
    op: str,
    inputs: Sequence[Any],
    attrs: dict[str, Any] | None = None,
    outputs: Sequence[Any] | None = None,
    name: str | None = None,
    domain: str = "",
) -> gs.Node:
    """A new node, not yet in a graph; one fresh output when `outputs` is None; None inputs are omitted ones.

    The name is made fresh from `name` (or the op).
    """
    given = [gs.Variable.empty() if t is None else t for t in inputs]
    name = fresh(model, name or op)
    made = [variable(model, f"{name}_out")] if outputs is None else list(outputs)
    return gs.Node(op, name, dict(attrs or {}), given, made, domain=domain or None)


def add(graph: gs.Graph, *nodes: gs.Node) -> None:
    """Append nodes; `order.sort` puts them in place (the pipeline sorts after every pass)."""
    graph.nodes.extend(nodes)


def set_input(node: gs.Node, index: int, tensor: Any | None) -> None:
    """Exchange one input, extending the list with omitted ones as needed."""
    while len(node.inputs) <= index:
        node.inputs.append(gs.Variable.empty())
    old, new = node.inputs[index], gs.Variable.empty() if tensor is None else tensor
    if old is not new:
        for place in [k for k, n in enumerate(old.outputs) if n is node][:1]:
            list.__delitem__(old.outputs, place)
        list.__setitem__(node.inputs, index, new)
        list.append(new.outputs, node)


def _unlink_outputs(node: gs.Node) -> None:
    for tensor in node.outputs:
        makers = [n for n in tensor.inputs if n is not node]
        list.clear(tensor.inputs)
        list.extend(tensor.inputs, makers)
    list.clear(node.outputs)


def replace(model: Model, old: Any, new: Any, outputs: set[int] | None = None) -> None:
    """Let every reader of `old` read `new` instead.

    Where `old` is a graph output the output keeps its name: `new` takes the name over when it is an inner variable
    of that graph, else an Identity is put between. An output that is an input of its graph stays that input.
    outputs: `output_ids(model)`, when the caller has them: without, every call looks through the whole model.
    """
    if old is new:
        return
    users = list({id(n): n for n in old.outputs}.values())
    for user in users:
        for k, tensor in enumerate(list(user.inputs)):
            if tensor is old:
                set_input(user, k, new)
    if outputs is not None and id(old) not in outputs:
        return
    for graph in model.graphs():
        for k, tensor in enumerate(graph.outputs):
            if tensor is old and not any(t is old for t in graph.inputs):
                _replace_output(model, graph, k, new)


def _replace_output(model: Model, graph: gs.Graph, index: int, new: Any) -> None:
    old = graph.outputs[index]
    local = any(t is new for n in graph.nodes for t in n.outputs)
    taken = any(t is new for g in model.graphs() for t in (*g.outputs, *g.inputs))
    if local and not taken:
        name = old.name
        old.name = fresh(model, f"{name}_old")
        new.name = name
        new.shape = old.shape  # as declared, and no more than that: the interface stays
        new.dtype = new.dtype if old.dtype is None else old.dtype
        graph.outputs[index] = new
        return
    makers = list(old.inputs)
    for maker in makers:  # the old producer gets an output of its own, so that the name is free for the Identity
        stray = variable(model, f"{old.name}_old", old.dtype, old.shape)
        outputs = [stray if t is old else t for t in maker.outputs]
        _unlink_outputs(maker)
        maker.outputs.extend(outputs)
    add(graph, node(model, "Identity", [new], outputs=[old]))


def drop(model: Model, nodes: Iterable[gs.Node]) -> None:
    """Remove nodes. Raises PassError when something outside still reads one of their outputs."""
    doomed = {id(n): n for n in nodes}
    outputs = output_ids(model)
    for gone in doomed.values():
        for tensor in gone.outputs:
            if id(tensor) in outputs or any(id(n) not in doomed for n in tensor.outputs):
                raise PassError(f"node '{gone.name}' cannot be removed: '{tensor.name}' is still used")
    for graph in list(model.graphs()):
        if any(id(n) in doomed for n in graph.nodes):
            graph.nodes = [n for n in graph.nodes if id(n) not in doomed]
    unlink(*doomed.values())


def unlink(*nodes: gs.Node) -> None:
    """Take the links of nodes away, their subgraphs' captures included; linear in nodes, however many read a tensor."""
    gone: dict[int, gs.Node] = {}
    queue = list(nodes)
    while queue:
        n = queue.pop()
        gone[id(n)] = n
        queue.extend(inner for graph in subgraphs(n) for inner in graph.nodes)
    for tensor in {id(t): t for n in gone.values() for t in n.inputs}.values():
        users = [n for n in tensor.outputs if id(n) not in gone]
        list.clear(tensor.outputs)
        list.extend(tensor.outputs, users)
    for n in gone.values():
        list.clear(n.inputs)
        _unlink_outputs(n)


def sweep(model: Model) -> int:
    """Remove every node that nothing needs, at every level; returns how many. Linear in nodes."""
    total = 0
    for graph in reversed(list(model.graphs())):
        total += _sweep_graph(graph)
    return total


def _sweep_graph(graph: gs.Graph) -> int:
    maker = {id(t): n for n in graph.nodes for t in n.outputs if t.name}
    alive: set[int] = set()
    queue = [maker[id(t)] for t in graph.outputs if id(t) in maker]
    while queue:
        n = queue.pop()
        if id(n) not in alive:
            alive.add(id(n))
            queue.extend(maker[id(t)] for t in reads(n) if id(t) in maker)
    dead = [n for n in graph.nodes if id(n) not in alive]
    if dead:
        graph.nodes = [n for n in graph.nodes if id(n) in alive]
        unlink(*dead)
    return len(dead)
