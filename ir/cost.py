"""What a model costs: nodes, parameters, multiply-accumulates and bytes, whole and by node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from . import ops, shapes
from .exporting import bare, to_proto, weight_bytes
from .model import Model


@dataclass(frozen=True)
class Cost:
    """nodes: over all levels. params: values of float constants and of integer ones up to 16 bits. macs: for one run,
    with sizes that are not known counted as 1. bytes: of the serialised model, weights included."""

    nodes: int
    params: int
    macs: int
    bytes: int

    def to_json(self) -> dict[str, int]:
        """The fields as a dict."""
        return asdict(self)


@dataclass(frozen=True)
class NodeCost:
    """Cost of one node; `params` counts the constants it reads."""

    name: str
    op: str
    params: int
    macs: int


def is_weight(tensor: gs.Constant) -> bool:
    """Whether a constant counts as parameters: floats, and integers up to 16 bits."""
    dtype = np.dtype(tensor.dtype)
    return dtype.kind in "fV" or (dtype.itemsize <= 2 and dtype.kind in "iu")


def size(tensor: gs.Constant) -> int:
    """Elements of a constant."""
    return int(np.prod(tensor.shape, dtype=np.int64))


def _values(tensor: gs.Constant, node: gs.Node, index: int) -> int:
    """Values of a constant for a node that reads it: its elements, unless the operator unpacks them."""
    return ops.facts(node).packed(node).get(index, 0) or size(tensor)


def _params(tensor: gs.Constant) -> int:
    """Values of a constant, as the first node that reads it counts them."""
    if not tensor.outputs:
        return size(tensor)
    node = tensor.outputs[0]
    return _values(tensor, node, next(k for k, t in enumerate(node.inputs) if t is tensor))


class _Sizes:
    """Concrete shapes: those given by name, else inferred ones with unknown sizes as 1."""

    def __init__(self, known: Mapping[str, tuple[int, ...]] | None):
        self.known = known or {}

    def __call__(self, tensor: Any) -> tuple[int, ...] | None:
        if tensor is None or not tensor.name:
            return None
        shape = self.known.get(tensor.name) or shapes.of(tensor)
        return None if shape is None else tuple(int(d) if isinstance(d, (int, np.integer)) else 1 for d in shape)


def by_node(model: Model, known: Mapping[str, tuple[int, ...]] | None = None) -> list[NodeCost]:
    """Cost of every node, in order. `known`: measured shapes by tensor name (`runtime.probe`), for dynamic models."""
    sizes = _Sizes(known)
    rows = []
    for node in model.nodes():
        held = [(t, k) for k, t in enumerate(node.inputs) if isinstance(t, gs.Constant) and is_weight(t)]
        params = sum(_values(t, node, k) for t, k in held)
        rows.append(NodeCost(node.name, node.op, params, _macs(node, sizes)))
    return rows


def _macs(node: gs.Node, sizes: _Sizes) -> int:
    try:
        return int(ops.facts(node).macs(node, sizes))
    except IndexError:  # fewer inputs or dimensions than the operator has: ONNX Runtime will say so, not the counter
        return 0


def parameters(model: Model) -> int:
    """Values of all weights, as `Cost.params` counts them."""
    return sum(_params(t) for t in model.constants().values() if is_weight(t))


def of(model: Model, known: Mapping[str, tuple[int, ...]] | None = None) -> Cost:
    """Cost of the whole model."""
    nodes = by_node(model, known)
    graph_bytes = to_proto(model, store=bare).ByteSize()
    return Cost(len(nodes), parameters(model), sum(n.macs for n in nodes), graph_bytes + weight_bytes(model))
