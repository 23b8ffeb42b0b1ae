"""Which nodes compute in integers, so that the whole gets faster: the borders between float and integers cost too.

Two-sided costs at nodes and conversion costs at tensors make this a minimum cut, solved exactly: source side integers,
sink side float. Nodes that cannot be quantized are tied to the float side, and whoever quantizes a tensor pays a toll
for its noise, so that accuracy is bought where it costs least time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from ...ir import Model
from ..target import Target
from . import costs
from .eligible import activations, is_linear
from .placement import folds, place

_FAR = 2**29  # "never": above any sum of costs after scaling


class _Network:
    """Nodes by key, integer capacities; 0 is the source (integers), 1 the sink (float)."""

    def __init__(self) -> None:
        self.keys: dict[str, int] = {"integers": 0, "float": 1}
        self.edges: list[tuple[int, int, float]] = []

    def at(self, key: str) -> int:
        return self.keys.setdefault(key, len(self.keys))

    def add(self, a: str, b: str, cost: float) -> None:
        if a != b:
            self.edges.append((self.at(a), self.at(b), cost))

    def sources(self) -> set[str]:
        """Keys on the source side of a minimum cut."""
        n = len(self.keys)
        total = sum(c for _, _, c in self.edges if np.isfinite(c)) or 1.0
        unit = (_FAR / 4) / total
        caps = [_FAR if not np.isfinite(c) else max(0, round(c * unit)) for _, _, c in self.edges]
        rows, cols = [a for a, _, _ in self.edges], [b for _, b, _ in self.edges]
        graph = coo_array((np.array(caps, np.int64), (rows, cols)), (n, n)).tocsr()
        graph.data = np.minimum(graph.data, _FAR)
        graph = graph.astype(np.int32)
        flow = maximum_flow(graph, 0, 1).flow
        residual = graph - flow
        residual.data = (residual.data > 0).astype(np.int32)
        residual.eliminate_zeros()
        seen = set(breadth_first_order(residual, 0, return_predecessors=False).tolist())
        return {k for k, i in self.keys.items() if i in seen}


@dataclass(frozen=True)
class Tolls:
    """What noise costs, in nanoseconds: of a group of tensors once any of them is quantized, and of a node's weight.

    group: {tensor: its group}; tensors without a group are free.
    """

    group: Mapping[str, str] = field(default_factory=dict)
    groups: Mapping[str, float] = field(default_factory=dict)
    nodes: Mapping[str, float] = field(default_factory=dict)


NO_TOLLS = Tolls()


def choose(
    model: Model,
    able: Mapping[str, gs.Node],
    target: Target,
    shapes: Mapping[str, tuple[int, ...]],
    conversion: float = 1.0,
    known: Mapping[str, tuple[float, float]] | None = None,
    tolls: Tolls = NO_TOLLS,
) -> set[str]:
    """Names of the able nodes that make the least sum of kernels, conversions and tolls.

    shapes: of every tensor, in numbers. conversion: factor on the cost of borders; larger means fewer regions. known:
    nanoseconds of nodes in float and in integers, where they were measured; the others cost what the table says.
    """
    return only_useful(model, cut(model, able, target, shapes, conversion, known, tolls), target)


def cut(
    model: Model,
    able: Mapping[str, gs.Node],
    target: Target,
    shapes: Mapping[str, tuple[int, ...]],
    conversion: float = 1.0,
    known: Mapping[str, tuple[float, float]] | None = None,
    tolls: Tolls = NO_TOLLS,
) -> set[str]:
    """The same with regions that hold no product and save all the same."""
    net, key = _Network(), _keys(model, able, target)
    for node in able.values():
        plain, integer = (known or {}).get(node.name) or costs.of(node, shapes)
        net.add("integers", key[node.name], plain)
        net.add(key[node.name], "float", integer + tolls.nodes.get(node.name, 0.0))
    _collect(net, able, key, target, tolls)
    tensors = {id(t): t for n in able.values() for t in (*n.outputs, *(n.inputs[k] for k in activations(n)))}
    for tensor in tensors.values():
        if isinstance(tensor, gs.Variable):
            _border(net, tensor, key, shapes, conversion)
    kept = net.sources()
    return {n for n in able if key[n] in kept}


def _keys(model: Model, able: Mapping[str, gs.Node], target: Target) -> dict[str, str]:
    """A flow node for every graph node; a Relu that folds shares its maker's."""
    key = {n: n for n in able}
    for name, reader in folds(model, target).items():
        if name in able and reader.name in able:
            key[reader.name] = name
    return key


def _collect(net: _Network, able: Mapping[str, gs.Node], key: Mapping[str, str], target: Target, tolls: Tolls) -> None:
    """A group pays once one of the nodes that make or read its tensors computes in integers."""
    for group, toll in tolls.groups.items():
        net.add(f"{group} quantized at all", "float", toll)
    for node in able.values():
        makes = [] if node.op in target.hands_out else node.outputs
        for tensor in (*makes, *(node.inputs[k] for k in activations(node))):
            group = tolls.group.get(tensor.name, "")
            if group in tolls.groups:
                net.add(key[node.name], f"{group} quantized at all", np.inf)


def _border(
    net: _Network, tensor: gs.Variable, key: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], factor: float
) -> None:
    """One dequantize when integers make a tensor that floats read, one quantize the other way round."""
    size = float(np.prod(shapes.get(tensor.name, (1,))))
    maker = key.get(tensor.inputs[0].name, "float") if tensor.inputs else "float"
    readers = dict.fromkeys(key.get(r.name, "float") for r in tensor.outputs)
    if not readers:
        readers = {"float": None}
    net.add(maker, f"{tensor.name} dequantized", costs.DEQUANTIZE * size * factor)
    net.add(f"{tensor.name} quantized", maker, costs.QUANTIZE * size * factor)
    for reader in readers:
        net.add(f"{tensor.name} dequantized", reader, np.inf)
        net.add(reader, f"{tensor.name} quantized", np.inf)


def without(
    able: Mapping[str, gs.Node],
    banned: Collection[str],
    target: Target,
    folded: Mapping[str, gs.Node] | None = None,
) -> dict[str, gs.Node]:
    """The able nodes that neither make nor read a banned tensor (what a kernel can hand out may stay float)."""
    beside = rounded_beside(able, target, folded)
    return {name: node for name, node in able.items() if not beside[name] & set(banned)}


def rounded_beside(
    able: Mapping[str, gs.Node], target: Target, folded: Mapping[str, gs.Node] | None = None
) -> dict[str, set[str]]:
    """{node: the tensors that are quantized when it computes in integers}.

    folded: the activations that vanish into nodes, by the nodes' names: what they read is never quantized, and what
    they make is what the kernel hands out.
    """
    ends, found = folded or {}, {}
    inner = {r.inputs[0].name for r in ends.values()}
    for name, node in able.items():
        last = ends.get(name, node)
        makes = set() if last.op in target.hands_out else {last.outputs[0].name}
        found[name] = ({node.inputs[k].name for k in activations(node)} - inner) | makes
    return found


def only_useful(model: Model, nodes: Collection[str], target: Target) -> set[str]:
    """Drop regions (nodes joined by quantized tensors) without a linear node: they have conversions and no gain."""
    kept, placement = set(nodes), place(model, nodes, target)
    near: dict[str, set[str]] = {n: set() for n in kept}
    useful: list[str] = []
    for node in model.graph.nodes:
        if node.name not in kept:
            continue
        if is_linear(node):
            useful.append(node.name)
        for tensor in node.outputs:
            for reader in tensor.outputs:
                inside = placement.decisions.get(tensor.name)
                if reader.name in kept and inside is not None:
                    near[node.name].add(reader.name)
                    near[reader.name].add(node.name)
    found: set[str] = set()
    while useful:
        name = useful.pop()
        if name not in found:
            found.add(name)
            useful.extend(near[name])
    return found
