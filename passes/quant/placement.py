"""Placement as data: what happens to every tensor around the nodes that compute in integers.

`place` reads only the graph. Its result can be printed (`describe`), tested without running a model, and is all that
the insertion step needs besides scales. A tensor is

    own     quantized with a range of its own
    shared  quantized with the range of its group (ops which only move data keep the integers as they are)
    fixed   quantized with a range that the operator guarantees (Sigmoid, Softmax, and what only moves their outputs)
    float   left as it is, with the reason
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_graphsurgeon as gs

from ...ir import Model, edit, ops
from ..target import Target
from .eligible import activations, is_linear, moves


@dataclass(frozen=True)
class Decision:
    """What happens to one tensor: how is "own", "shared", "fixed" or "float"; group: whose range it has."""

    tensor: str
    how: str
    reason: str
    group: str = ""

    def __str__(self) -> str:
        tail = f" with {self.group}" if self.how == "shared" else ""
        return f"{self.how:6s} {self.tensor}{tail}: {self.reason}"


@dataclass(frozen=True)
class Placement:
    """nodes: names of the nodes that compute in integers; decisions: by tensor name, in graph order; integers: names of
    the tensors that a kernel hands out in integers, so that nobody reads them as floats."""

    nodes: frozenset[str]
    decisions: Mapping[str, Decision] = field(default_factory=dict)
    integers: frozenset[str] = frozenset()

    def quantized(self) -> list[str]:
        """Names of the tensors that get a quantize/dequantize pair."""
        return [n for n, d in self.decisions.items() if d.how != "float"]

    def groups(self) -> dict[str, list[str]]:
        """Quantized tensors by the tensor that names their range."""
        found: dict[str, list[str]] = {}
        for name in self.quantized():
            found.setdefault(self.decisions[name].group, []).append(name)
        return found

    def describe(self) -> str:
        """One line a tensor, for `inspect --quant`."""
        return "\n".join(str(d) for d in self.decisions.values())


def folds(model: Model, target: Target) -> dict[str, gs.Node]:
    """Node name -> the Relu or Clip that vanishes into it: its only reader, with nothing else attached."""
    outputs = edit.output_ids(model)
    found = {}
    for node in model.graph.nodes:
        if len(node.outputs) != 1 or node.op in target.folds or moves(node):
            continue
        tensor = node.outputs[0]
        if id(tensor) in outputs or len(tensor.outputs) != 1:
            continue
        reader = tensor.outputs[0]
        if reader.op in target.folds and reader.inputs[0] is tensor and clip_is_constant(reader):
            found[node.name] = reader
    return found


def clip_is_constant(node: gs.Node) -> bool:
    """Whether both bounds of a Clip are known; true of any other node."""
    bounds = [edit.get(node, k) for k in (1, 2)] if node.op == "Clip" else []
    return all(b is None or isinstance(b, gs.Constant) for b in bounds)


def between(model: Model, able: Mapping[str, gs.Node], linear: Collection[str]) -> set[str]:
    """The linear nodes and everything able that lies between two of them.

    Without a linear node behind it nothing is saved by staying in integers: the tails that gather boxes and scores
    of different ranges in one tensor stay float for this reason.
    """
    forward = _reach(model.graph.nodes, able, linear, ahead=True)
    backward = _reach(reversed(model.graph.nodes), able, linear, ahead=False)
    return set(linear) | (forward & backward)


def _reach(nodes: Iterable[gs.Node], able: Mapping[str, gs.Node], linear: Collection[str], ahead: bool) -> set[str]:
    """Able nodes that a linear node reaches through able nodes only; in topological (or reversed) order."""
    found: set[str] = set()
    for node in nodes:
        if node.name not in able or node.name in linear:
            continue
        places = [node.inputs[k] for k in activations(node)] if ahead else node.outputs
        near = [n for t in places for n in (t.inputs if ahead else t.outputs)]
        if any(n.name in linear or n.name in found for n in near):
            found.add(node.name)
    return found


def place(model: Model, nodes: Collection[str], target: Target) -> Placement:
    """Decide every tensor, given the nodes that compute in integers. Reads only the graph."""
    chosen = [n for n in model.graph.nodes if n.name in nodes]
    names = frozenset(n.name for n in chosen)
    folded = {k: r for k, r in folds(model, target).items() if k in names}
    vanish = {id(r.inputs[0]): r for r in folded.values()}
    union, bounds = _Union(), {r.outputs[0].name: bounds_of(r) for r in folded.values()}
    wanted: dict[str, tuple[str, str]] = {}
    integers: set[str] = set()
    for node in chosen:
        for k in activations(node):
            if isinstance(node.inputs[k], gs.Variable) and id(node.inputs[k]) not in vanish:
                wanted.setdefault(node.inputs[k].name, ("own", f"read by {node.op} {node.name}"))
        if id(node.outputs[0]) not in vanish and _needs_quantized_output(node, names, target):
            integers.add(node.outputs[0].name)
            wanted[node.outputs[0].name] = _output_decision(node, wanted)
            if moves(node):
                _share(node, union, bounds)
    for reader in folded.values():
        if _needs_quantized_output(reader, names, target):
            integers.add(reader.outputs[0].name)
            wanted[reader.outputs[0].name] = ("own", f"{reader.op} {reader.name} folds into its range")
    inside = {} if target.residual else _residuals(chosen, wanted)
    wanted = {n: w for n, w in wanted.items() if n not in inside}
    decisions = {}
    for tensor in _in_order(model):
        if tensor.name in wanted:
            decisions[tensor.name] = _decide(tensor.name, *wanted[tensor.name], union.find(tensor.name))
        elif tensor.name in inside:
            why = f"added to the residual inside the kernel that makes it, at {inside[tensor.name].name}"
            decisions[tensor.name] = Decision(tensor.name, "float", why)
        elif id(tensor) in vanish:
            why = f"inside the fused kernel, before {vanish[id(tensor)].name}"
            decisions[tensor.name] = Decision(tensor.name, "float", why)
    return Placement(names, decisions, frozenset(integers & set(wanted)))


def _residuals(chosen: Iterable[gs.Node], wanted: Mapping[str, tuple[str, str]]) -> dict[str, gs.Node]:
    """{tensor: its Add} of sums that a weighted kernel forms itself: what it makes stays float, the other side is
    quantized (TensorRT's rule for skip connections)."""
    found = {}
    for node in chosen:
        if node.op != "Add" or any(t.name not in wanted for t in node.inputs):
            continue
        for tensor, other in (node.inputs, reversed(node.inputs)):
            maker = edit.producer(tensor)
            if tensor is not other and maker is not None and is_linear(maker) and len(tensor.outputs) == 1:
                found[tensor.name] = node
                break
    return found


def _decide(name: str, how: str, reason: str, group: str) -> Decision:
    if group != name and how == "own":
        how = "shared"
    return Decision(name, how, reason, group)


def _needs_quantized_output(node: gs.Node, names: Collection[str], target: Target) -> bool:
    """Whether a quantize must follow: the kernel cannot hand out floats, or all that read its output are integers."""
    if node.op not in target.hands_out:
        return True
    readers = node.outputs[0].outputs
    return bool(readers) and all(r.name in names for r in readers)


def _output_decision(node: gs.Node, wanted: Mapping[str, tuple[str, str]]) -> tuple[str, str]:
    quant = ops.facts(node).quant
    if quant is not None and quant.fixed is not None:
        low, high = quant.fixed
        return "fixed", f"{node.op} stays within {low:g} and {high:g}"
    if moves(node):
        guaranteed = all(wanted[node.inputs[k].name][0] == "fixed" for k in activations(node))
        return "fixed" if guaranteed else "own", f"{node.op} {node.name} only moves data"
    return "own", f"made by {node.op} {node.name}"


def _share(node: gs.Node, union: _Union, bounds: Mapping[str, tuple[float, float]]) -> None:
    """Unite input and output of an op that moves data; of a Concat, the inputs that nothing else computes with.

    bounds: of tensors whose activation folds into their range: such a range may only be shared with its like, or the
    activation, and with it the kernel before it, would come back as float.
    """
    tensors = [node.inputs[k] for k in activations(node)]
    limits = [bounds.get(union.find(t.name)) for t in tensors]
    alike = len(set(limits)) == 1
    for tensor, limit in zip(tensors, limits):
        alone = all(r is node or moves(r) for r in tensor.outputs)
        if node.op != "Concat" or (alone and (alike or limit is None)):
            union.unite(tensor.name, node.outputs[0].name)


def bounds_of(node: gs.Node) -> tuple[float, float]:
    """What a Relu or Clip lets through."""
    if node.op != "Clip":
        return 0.0, float("inf")
    low, high = node.attrs.get("min", edit.const(node, 1)), node.attrs.get("max", edit.const(node, 2))
    return float("-inf" if low is None else low), float("inf" if high is None else high)


def _in_order(model: Model) -> Iterable[Any]:
    """Variables of the main graph in the order in which they come to be."""
    yield from model.graph.inputs
    for node in model.graph.nodes:
        yield from node.outputs


class _Union:
    """Union-find over tensor names; a union is named after the tensor that it began with."""

    def __init__(self) -> None:
        self.parent: dict[str, str] = {}

    def find(self, name: str) -> str:
        root = name
        while self.parent.get(root, root) != root:
            root = self.parent[root]
        return root

    def unite(self, source: str, made: str) -> None:
        """Join what `made` belongs to, if anything yet, else take it in."""
        a, b = self.find(source), self.find(made)
        if a == b:
            return
        if b == made:
            self.parent[b] = a
        else:
            self.parent[a] = b
