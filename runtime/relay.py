"""Running a model part by part, all feeds through one part before the next: what one part ran, no later one runs again.

Between two parts only the tensors that later ones read are kept, for all feeds: in memory up to a budget, in temporary
files beyond it. Weights of nodes that have not run may change in between.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import helper

from ..ir.errors import ModelError
from ..ir.model import Model
from ..ir.order import reads
from .loading import Tide
from .session import Session
from .taps import above, given, outer_tensors

FILED = 1 << 30  # bytes that may lie in files where running a part again would do, too

Array = np.ndarray


class Shelf:
    """Values by (tensor, feed); arrays beyond `budget` bytes lie in a temporary folder, sequences in memory."""

    def __init__(self, budget: int):
        self.budget, self.used = budget, 0
        self.held: dict[tuple[str, int], Any] = {}
        self.filed: dict[tuple[str, int], str] = {}
        self.count = 0  # of files ever made: a name that a dropped file had is never given again
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def put(self, name: str, feed: int, value: Any) -> None:
        """Keep one value."""
        if isinstance(value, list) or self.used + value.nbytes <= self.budget:
            self.held[name, feed] = value
            self.used += _bytes(value)
            return
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="onnxslim-")
        path = os.path.join(self._folder.name, f"{self.count}.npy")
        self.count += 1
        np.save(path, value)
        self.filed[name, feed] = path

    def get(self, name: str, feed: int) -> Any:
        """One value."""
        found = self.held.get((name, feed))
        return np.load(self.filed[name, feed]) if found is None else found

    def drop(self, names: set[str]) -> None:
        """Forget tensors."""
        for key in [k for k in self.held if k[0] in names]:
            self.used -= _bytes(self.held.pop(key))
        for key in [k for k in self.filed if k[0] in names]:
            os.unlink(self.filed.pop(key))


def _bytes(value: Any) -> int:
    """Of an array, or of the arrays of a sequence."""
    return sum(map(_bytes, value)) if isinstance(value, list) else int(value.nbytes)


class Relay:
    """Runs parts of the main graph, one after the other, over the same feeds.

    budget: bytes of what lies between two parts that may be held in memory; the rest lies in files.
    most: bytes that may lie between two parts altogether (None: any number). Where there would be more, or no room for
    the files, or what no file can hold, the part leaves nothing behind, and the next one begins where this one began.
    """

    def __init__(self, model: Model, feeds: Any, *, threads: int = 1, budget: int = 0, most: int | None = None):
        self.model, self.feeds, self.threads, self.most = model, feeds, threads, most
        self.shelf = Shelf(budget)
        self.inputs = {t.name for t in model.graph.inputs}
        self.have = set(self.inputs)
        self.done: set[str] = set()

    def run(
        self, part: Sequence[gs.Node], wanted: Sequence[str], later: Sequence[gs.Node], kept: Iterable[str] = ()
    ) -> Iterator[Mapping[str, Array]]:
        """Run a part, in graph order; yields the wanted tensors, feed by feed.

        later: nodes of the parts to come. kept: tensors that are wanted then.
        """
        made = {t.name for n in part for t in n.outputs if t.name}
        there = self.have | made
        live = there & {*(t.name for n in later for t in reads(n)), *kept}
        outputs = [n for n in dict.fromkeys([*sorted(live), *wanted]) if n in made]
        session = self._session(part, outputs) if outputs else None
        needed = {*(session.inputs if session is not None else ()), *(n for n in wanted if n not in made)}
        defaults, tide, passes_on = self.model.header.defaults, Tide(), True
        for k, feed in enumerate(self._read(needed)):
            values = {n: given(feed, n, defaults) if n in self.inputs else self.shelf.get(n, k) for n in needed}
            if session is not None:
                values.update(session.run({n: values[n] for n in session.inputs}))
                passes_on = passes_on and self._put(k, {n: values[n] for n in outputs if n in live})
            yield {n: values[n] for n in wanted}
            del values
            tide.turn()
        if passes_on:
            self.shelf.drop(self.have - live - self.inputs)
            self.have = live | self.inputs
            self.done |= {n.name for n in part}
        else:
            self.shelf.drop(made)

    def _put(self, feed: int, values: Mapping[str, Any]) -> bool:
        """Keep what lies between two parts on one feed; whether that may be."""
        if self.most is not None:
            arrays = [v for v in values.values() if isinstance(v, np.ndarray) and v.dtype.kind in "fiub"]
            if len(arrays) < len(values) or sum(v.nbytes for v in arrays) * len(self.feeds) > self.most:
                return False
        try:
            for name, value in values.items():
                self.shelf.put(name, feed, value)
        except OSError:
            if self.most is None:
                raise
            return False
        return True

    def _read(self, needed: set[str]) -> Iterable[Mapping[str, Any]]:
        """The feeds, which most parts do not look at: reading them may mean to decode every image again."""
        return self.feeds if needed & self.inputs else ({} for _ in range(len(self.feeds)))

    def _session(self, part: Sequence[gs.Node], outputs: Sequence[str]) -> Session:
        graph = self.model.graph
        new = Model(gs.Graph(list(part), name=graph.name, opset=graph.opset), self.model.header).copy()
        nodes = list(new.graph.nodes)
        tensors = {t.name: t for n in nodes for t in (*n.inputs, *n.outputs) if t.name}
        made = {t.name for n in nodes for t in n.outputs}
        read = dict.fromkeys(t.name for n in nodes for t in reads(n) if t.name in self.have and t.name not in made)
        new.graph.inputs = [tensors[n] if n in tensors else _captured(nodes, n) for n in read]
        new.header.input_order, new.header.protos = (), {}
        for tensor in new.graph.inputs:
            if tensor.dtype is None:  # a sequence, or what shape inference does not know the operator of
                _type(new, tensor, self.shelf.get(tensor.name, 0))
        new.graph.outputs = [tensors[n] for n in outputs]
        return Session(new, threads=self.threads, arena=False)


def _type(model: Model, tensor: Any, example: Any) -> None:
    """Say what an input is, by what it was on one feed."""
    if not isinstance(example, list):
        tensor.dtype = example.dtype
    elif example:
        kind = helper.np_dtype_to_tensor_dtype(example[0].dtype)
        model.header.protos[tensor.name] = helper.make_tensor_sequence_value_info(tensor.name, kind, None)


def _captured(nodes: Sequence[gs.Node], name: str) -> Any:
    """A tensor that only subgraphs read."""
    return next(t for n in nodes for t in reads(n) if t.name == name)


def relayed(
    model: Model, waves: Iterable[Sequence[str]], feeds: Any, *, threads: int = 1, most: int = FILED
) -> Iterator[Iterator[Mapping[str, Any]]]:
    """For each wave of named tensors of the main graph, {name: value} feed by feed, as a `Tap` gives them.

    The values of one wave have to be taken to the end before the next. Inputs and constants may be named, too.
    most: see `Relay`. Raises ModelError for a name that the main graph does not have.
    """
    tensors, order = outer_tensors(model), [list(dict.fromkeys(w)) for w in waves]
    unknown = [n for names in order for n in names if n not in tensors]
    if unknown:
        raise ModelError(f"the model's main graph has no tensor '{unknown[0]}' to look at")
    relay = Relay(model, feeds, threads=threads, most=most)
    for k, names in enumerate(order):
        after = {n for names in order[k + 1 :] for n in names}
        nodes = [n for n in model.graph.nodes if n.name not in relay.done]
        part = above(nodes, (tensors[n] for n in names if n not in relay.have))
        later = above(nodes, (tensors[n] for n in after if n not in relay.have))
        begun = {id(n) for n in part}
        yield _wave(relay, names, tensors, part, [n for n in later if id(n) not in begun], after)


def _wave(
    relay: Relay,
    names: Sequence[str],
    tensors: Mapping[str, Any],
    part: Sequence[gs.Node],
    later: Sequence[gs.Node],
    kept: Iterable[str],
) -> Iterator[Mapping[str, Any]]:
    constants = {n: t for n in names if isinstance(t := tensors[n], gs.Constant)}
    for values in relay.run(part, [n for n in names if n not in constants], later, kept):
        yield {n: constants[n].values if n in constants else values[n] for n in names}


__all__ = ["Relay", "Shelf", "relayed"]
