"""Looking inside: the values of inner tensors, from a model cut down to what they need.

A wave is a set of tensors that are fetched together; waves are planned so that what one feed brings in at once stays
under a memory budget (by the shapes seen on the first feed; a tensor larger than the budget goes alone).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import onnx_graphsurgeon as gs

from ..ir.errors import ModelError
from ..ir.model import Model
from ..ir.order import reads
from .loading import Tide
from .session import Session


def outer_tensors(model: Model) -> dict[str, Any]:
    """Named tensors of the main graph: inputs, then as nodes read and make them, then outputs that are constants."""
    found = {t.name: t for t in model.graph.inputs}
    for tensor in (*(t for node in model.graph.nodes for t in (*node.inputs, *node.outputs)), *model.graph.outputs):
        if tensor.name:
            found.setdefault(tensor.name, tensor)
    return found


def cut(model: Model, names: Iterable[str]) -> Model:
    """A copy whose outputs are the named tensors, without the nodes that they do not need."""
    new = model.copy()
    tensors = outer_tensors(new)
    outputs = [tensors[n] for n in names]
    new.graph.nodes = above(new.graph.nodes, outputs)
    new.graph.outputs = outputs
    return new


def above(nodes: Sequence[gs.Node], tensors: Iterable[Any]) -> list[gs.Node]:
    """Of these nodes those that the tensors need, in their order."""
    makers = {id(t): k for k, node in enumerate(nodes) for t in node.outputs}
    needed: set[int] = set()
    queue = list(tensors)
    while queue:
        k = makers.get(id(queue.pop()))
        if k is not None and k not in needed:
            needed.add(k)
            queue.extend(reads(nodes[k]))
    return [node for k, node in enumerate(nodes) if k in needed]


class Tap:
    """Fetches named tensors of the main graph (inputs and constants too), feed by feed.

    Raises ModelError for a name that the main graph does not have.
    """

    def __init__(self, model: Model, names: Sequence[str], *, threads: int = 1, optimize: bool = True):
        tensors = outer_tensors(model)
        unknown = [n for n in names if n not in tensors]
        if unknown:
            raise ModelError(f"the model's main graph has no tensor '{unknown[0]}' to look at")
        inputs = {t.name for t in model.graph.inputs}
        self.names = list(dict.fromkeys(names))
        self.constants = {n: t for n in self.names if isinstance(t := tensors[n], gs.Constant)}
        self.direct = [n for n in self.names if n in inputs]
        made = [n for n in self.names if n not in inputs and n not in self.constants]
        self.session = None
        if made:
            self.session = Session(cut(model, made), threads=threads, optimize=optimize, arena=False)
        self._tide = Tide()
        self.defaults = model.header.defaults

    def run(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """{name: value} on one feed."""
        self._tide.turn()  # before the next activations, not beside these
        found = dict(self.session.run(feed)) if self.session is not None else {}
        for name in self.direct:
            found[name] = given(feed, name, self.defaults)
        found.update((n, t.values) for n, t in self.constants.items())
        return {n: found[n] for n in self.names}


def given(feed: Mapping[str, Any], name: str, defaults: Mapping[str, Any]) -> Any:
    """An input's value on one feed, which may leave out those that have a default."""
    value: Any = feed[name] if name in feed else defaults.get(name)
    return value.load() if hasattr(value, "load") else value


def waves(names: Iterable[str], sizes: Mapping[str, int], budget: int) -> list[list[str]]:
    """Names in their order, cut into runs whose sizes (bytes; unknown counts nothing) sum to at most the budget."""
    planned: list[list[str]] = []
    room = 0
    for name in names:
        size = sizes.get(name, 0)
        if not planned or size > room:
            planned.append([])
            room = budget
        planned[-1].append(name)
        room -= size
    return planned


__all__ = ["Tap", "above", "cut", "outer_tensors", "waves"]
