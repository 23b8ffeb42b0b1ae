"""Running a model part by part, all feeds through one part before the next: what one part ran, no later one runs again.

Between two parts only the tensors that later ones read are kept, for all feeds: in memory up to a budget, in temporary
files beyond it. Weights of nodes that have not run may change in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import onnx
import onnx_graphsurgeon as gs
from onnx import helper

from ..ir import ops
from ..ir.errors import ModelError
from ..ir.model import Model, subgraphs
from ..ir.order import reads
from .loading import Tide
from .session import Session
from .shelf import Shelf, fileable, size_of
from .specs import dtype_of
from .taps import above, given, outer_tensors

FILED = 1 << 30  # bytes that may lie in files where running a part again would do, too


class Relay:
    """Runs parts of the main graph, one after the other, over the same feeds.

    budget: bytes of what lies between two parts that may be held in memory; the rest lies in files.
    most: bytes that may lie in files altogether (None: any number). Where there would be more, or no room for the
    files, or what no file can hold, a part leaves nothing behind, and the next one begins where this one began.

    What hangs on constants alone is never kept: it belongs to every part that reads it.
    """

    def __init__(self, model: Model, feeds: Any, *, threads: int = 1, budget: int = 0, most: int | None = None):
        self.model, self.feeds, self.threads, self.most = model, feeds, threads, most
        self.shelf = Shelf(budget)
        self.inputs = {t.name for t in model.graph.inputs}
        self.have = set(self.inputs)
        self.done: set[str] = set()
        self.kinds: dict[str, str] = {}  # ONNX Runtime's types of what was made
        self.fixed = _of_constants(model.graph.nodes)

    def run(
        self, part: Sequence[gs.Node], wanted: Sequence[str], later: Sequence[gs.Node], kept: Iterable[str] = ()
    ) -> Iterator[Mapping[str, Any]]:
        """Run a part; yields the wanted tensors, feed by feed, and has to be taken to the end.

        part: nodes that read only what there is and each other. later: nodes of the parts to come. kept: tensors that
        are wanted then.
        """
        part, live = self._split(part, wanted, later, kept)
        made = {t.name for n in part for t in n.outputs if t.name}
        outputs = [n for n in dict.fromkeys([*sorted(live), *wanted]) if n in made]
        session = self._session(part, outputs) if outputs else None
        self.kinds |= session.kinds if session is not None else {}
        needed = {*(session.inputs if session is not None else ()), *(n for n in wanted if n not in made)}
        defaults, tide, passes_on, before = self.model.header.defaults, Tide(), True, self.shelf.filed
        for k, feed in enumerate(self._read(needed)):
            values = {n: given(feed, n, defaults) if n in self.inputs else self.shelf.get(n, k) for n in needed}
            if session is not None:
                values.update(session.run({n: values[n] for n in session.inputs}))
                passes_on = passes_on and self._put(k, {n: values[n] for n in outputs if n in live}, before)
            yield {n: values[n] for n in wanted}
            del values
            tide.turn()
        if passes_on:
            self.shelf.drop(self.have - live - self.inputs)
            self.have = live | self.inputs
            self.done |= {n.name for n in part if id(n) not in self.fixed}
        else:
            self.shelf.drop(made)

    def _split(
        self, part: Sequence[gs.Node], wanted: Sequence[str], later: Sequence[gs.Node], kept: Iterable[str]
    ) -> tuple[list[gs.Node], set[str]]:
        """The nodes to run, with those on constants that they need; and the tensors to keep for later ones."""
        own = [n for n in part if id(n) not in self.fixed]
        begun = {id(n) for n in own}
        read = {*(t.name for n in own for t in reads(n)), *wanted}
        fixed = [n for n in self.model.graph.nodes if id(n) in self.fixed]
        whole = {id(n) for n in above(fixed, [t for n in fixed for t in n.outputs if t.name in read])} | begun
        there = self.have | {t.name for n in own for t in n.outputs if t.name}
        live = there & {*(t.name for n in later for t in reads(n)), *kept}
        return [n for n in self.model.graph.nodes if id(n) in whole], live

    def _put(self, feed: int, values: Mapping[str, Any], before: int) -> bool:
        """Keep what lies between two parts on one feed; whether that may be. before: bytes in files when it began."""
        if self.most is not None:
            share = sum(map(size_of, values.values())) * len(self.feeds)
            if not all(map(fileable, values.values())) or before + share > self.most:
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
        new.header.input_order, new.header.protos = (), new.header.non_tensors
        for tensor in new.graph.inputs:
            if tensor.name not in self.inputs:
                self._describe(new, tensor)
        new.graph.outputs = [tensors[n] for n in outputs]
        return Session(new, threads=self.threads, arena=False)

    def _describe(self, part: Model, tensor: Any) -> None:
        """Say what a tensor of an earlier part is: the type that it had there, and no shape, since the model may be
        wrong about it, and ONNX Runtime checks what it is told of inputs."""
        kind, tensor.shape = self.kinds[tensor.name], None
        tensor.dtype = dtype_of(kind)
        if tensor.dtype is None:
            part.header.protos[tensor.name] = helper.make_value_info(tensor.name, _type(kind))


def _type(kind: str) -> onnx.TypeProto:
    """What ONNX Runtime calls "seq(tensor(float))" or "optional(...)"."""
    outer, _, inner = kind.removesuffix(")").partition("(")
    if outer == "tensor":
        return helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(dtype_of(kind)), None)
    return (helper.make_sequence_type_proto if outer == "seq" else helper.make_optional_type_proto)(_type(inner))


def _of_constants(nodes: Sequence[gs.Node]) -> set[int]:
    """Ids of nodes, in graph order, whose values hang on constants alone."""
    made, found = set[int](), set[int]()
    for node in nodes:
        known = not subgraphs(node) and ops.facts(node) is not ops.UNKNOWN and not ops.facts(node).random
        if known and all(isinstance(t, gs.Constant) or id(t) in made for t in reads(node)):
            found.add(id(node))
            made |= {id(t) for t in node.outputs}
    return found


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
    try:
        for k, names in enumerate(order):
            after = {n for names in order[k + 1 :] for n in names}
            nodes = [n for n in model.graph.nodes if n.name not in relay.done]
            part = above(nodes, (tensors[n] for n in names if n not in relay.have))
            later = above(nodes, (tensors[n] for n in after if n not in relay.have))
            begun = {id(n) for n in part}
            yield _wave(relay, names, tensors, part, [n for n in later if id(n) not in begun], after)
    finally:
        relay.shelf.close()


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


__all__ = ["Relay", "relayed"]
