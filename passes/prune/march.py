"""Marching through a model layer by layer: every feed goes through every node once, though weights change on the way.

Layers are taken level by level (no layer of a level feeds another), so that each is fitted on what the already fitted
ones really put out. Between levels only the live tensors are kept, for all feeds: in memory up to a budget, in
temporary files beyond it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import Model
from ...ir.order import reads
from ...runtime.loading import Tide
from ...runtime.session import Session
from ...runtime.taps import given
from .layers import Layer, levels

Array = np.ndarray


class Shelf:
    """Arrays by (tensor, feed); those beyond `budget` bytes lie in a temporary folder."""

    def __init__(self, budget: int):
        self.budget, self.used = budget, 0
        self.held: dict[tuple[str, int], Array] = {}
        self.filed: dict[tuple[str, int], str] = {}
        self.count = 0  # of files ever made: a name that a dropped file had is never given again
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def put(self, name: str, feed: int, value: Array) -> None:
        """Keep one array."""
        if self.used + value.nbytes <= self.budget:
            self.held[name, feed] = value
            self.used += value.nbytes
            return
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="onnxslim-")
        path = os.path.join(self._folder.name, f"{self.count}.npy")
        self.count += 1
        np.save(path, value)
        self.filed[name, feed] = path

    def get(self, name: str, feed: int) -> Array:
        """One array."""
        found = self.held.get((name, feed))
        return np.load(self.filed[name, feed]) if found is None else found

    def drop(self, names: set[str]) -> None:
        """Forget tensors."""
        for key in [k for k in self.held if k[0] in names]:
            self.used -= self.held.pop(key).nbytes
        for key in [k for k in self.filed if k[0] in names]:
            os.unlink(self.filed.pop(key))


class March:
    """Runs a model in segments that end before the next level of layers."""

    def __init__(self, model: Model, found: Sequence[Layer], feeds: Any, threads: int, budget: int):
        self.model, self.feeds, self.threads = model, feeds, threads
        self.level = levels(model, [x.node for x in found])
        self.shelf = Shelf(budget)
        self.have: set[str] = {t.name for t in model.graph.inputs}
        self.inputs = set(self.have)
        self.done: set[str] = set()

    def to(self, level: int, wanted: Sequence[str]) -> Iterator[Mapping[str, Array]]:
        """Run up to the inputs of this level's layers; yields, feed by feed, the wanted tensors."""
        segment = [n for n in self.model.graph.nodes if n.name not in self.done and self.level[n.name] < level]
        self.done |= {n.name for n in segment}
        live = self._live(segment, wanted)
        made = {t.name for n in segment for t in n.outputs}
        outputs = [n for n in live if n in made]
        session = self._session(segment, outputs) if outputs else None
        needed, defaults = self._needed(session, wanted), self.model.header.defaults
        tide = Tide()
        for k, feed in enumerate(self._read(needed)):
            values = {n: given(feed, n, defaults) if n in self.inputs else self.shelf.get(n, k) for n in needed}
            if session is not None:
                values.update(session.run({n: values[n] for n in session.inputs}))
                for name in outputs:
                    self.shelf.put(name, k, values[name])
            yield {n: values[n] for n in wanted}
            del values
            tide.turn()
        self.shelf.drop({n for n in self.have if n not in live and n not in self.inputs})
        self.have = live | self.inputs

    def _read(self, needed: set[str]) -> Iterable[Mapping[str, Any]]:
        """The feeds, which most levels do not look at: reading them may mean to decode every image again."""
        return self.feeds if needed & self.inputs else ({} for _ in range(len(self.feeds)))

    def _needed(self, session: Session | None, wanted: Sequence[str]) -> set[str]:
        inside = set(session.inputs) if session is not None else set()
        return inside | {n for n in wanted if n in self.have}

    def _live(self, segment: Sequence[gs.Node], wanted: Sequence[str]) -> set[str]:
        """Tensors that nodes still to run will read, of those that exist after the segment."""
        there = self.have | {t.name for n in segment for t in n.outputs}
        rest = [n for n in self.model.graph.nodes if n.name not in self.done]
        return (there & {t.name for n in rest for t in reads(n)}) | (there & set(wanted))

    def _session(self, segment: Sequence[gs.Node], outputs: Sequence[str]) -> Session:
        graph = self.model.graph
        part = Model(gs.Graph(list(segment), name=graph.name, opset=graph.opset), self.model.header).copy()
        nodes = list(part.graph.nodes)
        tensors = {t.name: t for n in nodes for t in (*n.inputs, *n.outputs) if t.name}
        made = {t.name for n in nodes for t in n.outputs}
        read = dict.fromkeys(t.name for n in nodes for t in reads(n) if t.name in self.have and t.name not in made)
        part.graph.inputs = [tensors[n] if n in tensors else _captured(nodes, n) for n in read]
        for tensor in part.graph.inputs:
            if tensor.dtype is None:  # shape inference knows no type where it does not know the operator
                tensor.dtype = self.shelf.get(tensor.name, 0).dtype
        part.graph.outputs = [tensors[n] for n in outputs]
        part.header.input_order = ()
        part.header.protos = {}
        return Session(part, threads=self.threads, arena=False)


def _captured(nodes: Sequence[gs.Node], name: str) -> Any:
    """A tensor that only subgraphs read."""
    return next(t for n in nodes for t in reads(n) if t.name == name)
