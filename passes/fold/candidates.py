"""What is constant: the nodes whose value no input of the model can change, and what folding them leaves behind."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from ...ir import Model, edit
from ...ir.model import nbytes, subgraphs
from ...ir.order import reads
from ..rewrite import within
from . import endless
from .fills import CEILING, is_fill, stored

RANDOM = frozenset(
    ["RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"]
)
# A dequantization of constants is how a small weight is stored; folding it would blow the file up and hide it.
STORED_SMALL = frozenset({"DequantizeLinear"})
DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
# A cast of so few elements stores no weight worth the name.
FEW = 32


def deterministic(node: gs.Node) -> bool:
    """Whether a node of a standard domain gives the same outputs for the same inputs, its subgraphs included."""
    for inner in (node, *within(node)):
        if (inner.domain or "") not in DOMAINS or inner.op in RANDOM:
            return False
        if inner.op == "Dropout" and edit.get(inner, 2) is not None and not _is_false(inner.inputs[2]):
            return False
        if inner.op == "Dropout" and inner.attrs.get("is_test", 1) == 0:
            return False
        if any(isinstance(v, onnx.AttributeProto) and v.ref_attr_name for v in inner.attrs.values()):
            return False
    return True


def _is_false(tensor: Any) -> bool:
    return isinstance(tensor, gs.Constant) and tensor.values.size == 1 and not bool(tensor.values.reshape(-1)[0])


def itemsize(dtype: Any) -> float:
    """Bytes of one element in a file."""
    return nbytes(gs.Constant("", np.zeros(2, dtype))) / 2


def refusal(node: gs.Node, known: Any) -> str | None:
    """Why a node with constant inputs is left alone; None when it may be folded."""
    if node.op in STORED_SMALL:
        return "the constant is stored quantized; folding it would grow the file"
    if node.op == "Cast" and isinstance(known, gs.Constant):
        small, count = itemsize(known.dtype), int(np.prod(known.shape, dtype=np.int64))
        out = node.outputs[0].dtype
        if known.dtype != np.bool_ and count > FEW and out is not None and itemsize(out) > small and small <= 2:
            return "the constant is stored in a narrow type; folding the Cast would grow the file"
    for tensor in node.outputs:
        if tensor.name and size_of(tensor) > CEILING:
            return "the result is too large to compute"
    return None


def size_of(tensor: Any) -> int:
    """Bytes of a tensor whose shape and type are known; 0 otherwise."""
    if isinstance(tensor, gs.Constant):
        return stored(tensor)
    if tensor.shape is None or tensor.dtype is None or not all(isinstance(d, int) for d in tensor.shape):
        return 0
    return int(np.prod([float(d) for d in tensor.shape]) * itemsize(tensor.dtype))


def find(model: Model, barred: dict[str, str]) -> list[gs.Node]:
    """Nodes of all levels that only constants feed, in an order in which they can run.

    barred: names of nodes left alone, with reasons; those found here are added.
    """
    constant: set[int] = set()
    found: list[gs.Node] = []
    for graph in model.graphs():
        for node in graph.nodes:
            if node.name in barred or not _fed_by_constants(node, constant):
                continue
            if not deterministic(node) or endless.waits(node):
                continue
            reason = refusal(node, node.inputs[0] if node.inputs else None) or endless.refusal(node)
            if reason is not None:
                barred[node.name] = reason
                continue
            constant.update(id(t) for t in node.outputs if t.name)
            found.append(node)
    inside = {id(n) for node in found for n in within(node)}
    return [n for n in found if id(n) not in inside]


def _fed_by_constants(node: gs.Node, constant: set[int]) -> bool:
    own: set[int] = set()
    if subgraphs(node):
        queue = subgraphs(node)
        while queue:
            graph = queue.pop()
            own.update(id(t) for t in graph.inputs)
            own.update(id(t) for n in graph.nodes for t in n.outputs)
            queue.extend(g for n in graph.nodes for g in subgraphs(n))
    return all(isinstance(t, gs.Constant) or id(t) in constant or id(t) in own for t in reads(node))


def frontier(nodes: list[gs.Node], outputs: set[int]) -> list[Any]:
    """Tensors made by these nodes that something else reads: the constants that folding leaves."""
    inside = {id(n) for node in nodes for n in (node, *within(node))}
    return [
        t
        for node in nodes
        for t in node.outputs
        if t.name and (id(t) in outputs or any(id(u) not in inside for u in t.outputs))
    ]


def components(nodes: list[gs.Node], outputs: set[int]) -> list[list[gs.Node]]:
    """Nodes grouped by what they share: a tensor that one makes for another, or a constant that dies with them."""
    inside = {id(n): k for k, node in enumerate(nodes) for n in (node, *within(node))}
    parent = list(range(len(nodes)))

    def root(k: int) -> int:
        while parent[k] != k:
            parent[k] = parent[parent[k]]
            k = parent[k]
        return k

    seen: dict[int, int] = {}
    for k, node in enumerate(nodes):
        for tensor in reads(node):
            shared = not isinstance(tensor, gs.Constant) or _dies(tensor, inside, outputs)
            if shared and tensor.inputs and id(tensor.inputs[0]) in inside:
                parent[root(k)] = root(inside[id(tensor.inputs[0])])
            elif shared and isinstance(tensor, gs.Constant):
                parent[root(k)] = root(seen.setdefault(id(tensor), k))
    groups: dict[int, list[gs.Node]] = {}
    for k, node in enumerate(nodes):
        groups.setdefault(root(k), []).append(node)
    return list(groups.values())


def _dies(tensor: gs.Constant, inside: Any, outputs: set[int]) -> bool:
    return id(tensor) not in outputs and all(id(u) in inside for u in tensor.outputs)


def removable(nodes: list[gs.Node], outputs: set[int]) -> int:
    """Bytes of the constants that only these nodes read."""
    inside = {id(n) for node in nodes for n in (node, *within(node))}
    dying = {
        id(t): t for node in nodes for t in reads(node) if isinstance(t, gs.Constant) and _dies(t, inside, outputs)
    }
    return sum(stored(t) for t in dying.values())


def of_fills(nodes: list[gs.Node]) -> bool:
    """Whether a fill is among what the nodes read."""
    return any(isinstance(t, gs.Constant) and is_fill(t._values) for n in nodes for t in reads(n))
