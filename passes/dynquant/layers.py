"""Which layers, at every level, can multiply integers with ranges found at run time, and why others cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import Model, edit, ops
from ..base import Skip

PRODUCTS = ("MatMul", "Gemm", "Conv")
CONTRIB = "com.microsoft"
SMALLEST = 512  # elements of a weight; below, there is nothing to win


@dataclass(frozen=True)
class Layer:
    """A node that may become dynamic. graph: where it stands. weights: positions of the float weights."""

    node: gs.Node
    graph: gs.Graph
    weights: tuple[int, ...]

    @property
    def name(self) -> str:
        """Of the node."""
        return str(self.node.name)

    def key(self, index: int) -> tuple[str, bool]:
        """(weight, whether it is read transposed): read the other way, a constant has other channels and integers."""
        return str(self.node.inputs[index].name), bool(self.node.attrs.get("transB", 0))


def find(model: Model, contrib: bool, excluded: Callable[[gs.Node], bool]) -> tuple[dict[str, Layer], list[Skip]]:
    """{node name: Layer}, and a reason for every layer with weights that cannot be one."""
    found, skips = {}, []
    for graph, node in _nodes(model):
        reason, weights = _suits(node, contrib)
        if reason is None:
            continue
        if not reason and excluded(node):
            reason = "excluded by the user"
        if reason:
            skips.append(Skip(str(node.name), reason))
        else:
            found[str(node.name)] = Layer(node, graph, weights)
    return found, skips


def _nodes(model: Model) -> Iterator[tuple[gs.Graph, gs.Node]]:
    for graph in model.graphs():
        for node in graph.nodes:
            yield graph, node


def _suits(node: gs.Node, contrib: bool) -> tuple[str | None, tuple[int, ...]]:
    """("", positions of weights) for a layer, (reason, ()) for one that is refused, (None, ()) for other nodes."""
    if node.op in PRODUCTS:
        return product_reason(node), (1,)
    facts = ops.facts(node)
    if facts.kind == "recurrent":
        return _recurrent(node, contrib), (1, 2)
    if node.op == "ConvTranspose":
        return "no runtime has an integer kernel for ConvTranspose with dynamic ranges", ()
    return None, ()


def product_reason(node: gs.Node) -> str:
    """Why a MatMul, Gemm or Conv has no weight to quantize by output channel; "" when it has one."""
    held = edit.get(node, 1)
    if not isinstance(held, gs.Constant):
        return "both factors are computed: no weight to keep in 8 bits"
    if not isinstance(edit.get(node, 0), gs.Variable):
        return "its input is a constant"
    if np.dtype(held.dtype) != np.float32:
        return f"its weight is {np.dtype(held.dtype).name}, not float32"
    if node.op == "MatMul" and len(held.shape) != 2:
        return f"its weight has {len(held.shape)} dimensions: integer kernels take two"
    if int(np.prod(held.shape)) < SMALLEST:
        return f"its weight is too small ({int(np.prod(held.shape))} elements)"
    if node.op == "Gemm" and (node.attrs.get("transA", 0) or node.attrs.get("alpha", 1.0) != 1.0):
        return "a Gemm with transA or alpha has no integer form"
    if node.op == "Gemm" and edit.get(node, 2) is not None and node.attrs.get("beta", 1.0) != 1.0:
        return "a Gemm with beta has no integer form"
    return ""


def _recurrent(node: gs.Node, contrib: bool) -> str:
    if node.op != "LSTM":
        return f"no runtime has an integer kernel for {node.op}"
    if not contrib:
        return "standard ONNX has no integer LSTM; ONNX Runtime's own is used with contrib=true"
    if any(not isinstance(edit.get(node, k), gs.Constant) for k in (1, 2)):
        return "its weights are computed at run time"
    kinds = {np.dtype(node.inputs[k].dtype).name for k in (1, 2)} - {"float32"}
    if kinds:
        return f"its weights are {min(kinds)}, not float32"
    if node.attrs.get("layout", 0):
        return "layout=1 is not supported by ONNX Runtime's integer LSTM"
    return ""
