"""The engine under `clean` and `fuse`: rules are values, a worklist drives them, one object is the door for edits.

A rule names the operators it starts from and a function `(rewriter, node) -> True | str | None`: True when it edited
the graph, a reason when the pattern is there but must be left alone, None when it is not there. After an edit only
the neighbourhood is looked at again, so the work is linear in nodes. Nodes whose last reader goes are unlinked at
once: what `readers` says is always true.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ..ir import Model, edit
from ..ir.model import subgraphs
from ..ir.order import reads
from .base import Skip

Outcome = bool | str | None

# Arrays up to this many elements are looked at to see whether they are all zeros, all ones and the like.
SMALL = 65536


@dataclass(frozen=True)
class Rule:
    """One rewrite.

    name: as it is counted in the report. ops: operators of the default domain that it starts from.
    since: first opset whose operators the result needs.
    """

    name: str
    ops: tuple[str, ...]
    apply: Callable[[Rewriter, Any], Outcome]
    since: int = 1


class Rewriter:
    """A model under rewriting: questions about it, and edits that keep the worklist and the liveness true."""

    def __init__(self, model: Model):
        self.model = model
        self.opset = model.opset
        self.outputs = edit.output_ids(model)
        self.inputs = {id(t) for g in model.graphs() for t in g.inputs}
        self.homes = {id(n): g for g in model.graphs() for n in g.nodes}
        self.dead: set[int] = set()
        self.queue: deque[gs.Node] = deque()
        self.queued: set[int] = set()
        self.added: list[gs.Node] = []

    # -- questions

    def shape(self, tensor: Any) -> list[Any] | None:
        """Sizes of a tensor: int, symbol or None each; None for unknown rank.

        The declared shape of a graph output is a claim that no runtime enforces: only what was inferred counts.
        """
        if tensor is None:
            return None
        if isinstance(tensor, gs.Constant):
            return list(tensor.shape)
        claimed = id(tensor) in self.outputs and id(tensor) not in self.inputs
        shape = getattr(tensor, "inferred", None) if claimed else tensor.shape
        return None if shape is None else list(shape)

    def rank(self, tensor: Any) -> int | None:
        """Number of dimensions; None when unknown."""
        shape = self.shape(tensor)
        return None if shape is None else len(shape)

    def static(self, tensor: Any) -> list[int] | None:
        """The shape, when every size is a number."""
        shape = self.shape(tensor)
        if shape is None or not all(isinstance(d, (int, np.integer)) for d in shape):
            return None
        return [int(d) for d in shape]

    def static_tail(self, tensor: Any, axis: int) -> list[int] | None:
        """The last `-axis` sizes, when all are numbers."""
        shape = self.shape(tensor)
        tail = None if shape is None or len(shape) < -axis else shape[axis:]
        return tail if tail is not None and all(isinstance(d, int) for d in tail) else None

    def const(self, tensor: Any) -> np.ndarray | None:
        """The array of a constant tensor; None for anything else."""
        return tensor.values if isinstance(tensor, gs.Constant) else None

    def small(self, tensor: Any) -> np.ndarray | None:
        """The array of a constant that is cheap to look at."""
        if isinstance(tensor, gs.Constant) and np.prod(tensor.shape, dtype=np.int64) <= SMALL:
            return tensor.values
        return None

    def scalar(self, tensor: Any) -> Any | None:
        """The one value of a constant with a single element."""
        if isinstance(tensor, gs.Constant) and np.prod(tensor.shape, dtype=np.int64) == 1:
            return tensor.values.reshape(-1)[0]
        return None

    def ints(self, tensor: Any) -> list[int] | None:
        """A small integer constant as a list."""
        values = self.small(tensor)
        if values is None or values.dtype.kind not in "iu" or values.ndim > 1:
            return None
        return [int(v) for v in values.reshape(-1)]

    def is_output(self, tensor: Any) -> bool:
        """Whether a tensor is an output of any graph."""
        return id(tensor) in self.outputs

    def readers(self, tensor: Any) -> list[gs.Node]:
        """Distinct nodes that read a tensor, at every level."""
        return list({id(n): n for n in tensor.outputs}.values())

    def sole(self, tensor: Any) -> bool:
        """Whether exactly one node reads a tensor, once, and no graph puts it out."""
        return len(tensor.outputs) == 1 and id(tensor) not in self.outputs

    def maker(self, tensor: Any, *ops: str) -> gs.Node | None:
        """The node of the default domain that makes a tensor, when it is one of `ops`."""
        if tensor is None or isinstance(tensor, gs.Constant) or not tensor.inputs:
            return None
        node = tensor.inputs[0]
        return node if not node.domain and (not ops or node.op in ops) else None

    def inner(self, tensor: Any, *ops: str) -> gs.Node | None:
        """Like `maker`, only when nothing else reads the tensor, so that the node can be absorbed."""
        node = self.maker(tensor, *ops)
        if node is None or not self.sole(tensor) or self.homes.get(id(node)) is None:
            return None
        return node

    def together(self, *nodes: gs.Node) -> bool:
        """Whether the nodes stand in the same graph (a loop body is not its surroundings)."""
        return len({id(self.homes.get(id(n))) for n in nodes}) == 1

    # -- edits

    def touch(self, *nodes: Any) -> None:
        """Look at these nodes again."""
        for node in nodes:
            if node is not None and id(node) not in self.queued and id(node) not in self.dead:
                self.queued.add(id(node))
                self.queue.append(node)

    def around(self, node: gs.Node) -> None:
        """Look at a node and its neighbours again."""
        self.touch(node)
        for tensor in node.inputs:
            if tensor.name and tensor.inputs:
                self.touch(tensor.inputs[0])
        for tensor in node.outputs:
            self.touch(*tensor.outputs)

    def constant(self, hint: str, values: Any) -> gs.Constant:
        """A new constant tensor."""
        return edit.constant(self.model, hint, values)

    def variable(self, like: Any, hint: str | None = None, shape: Sequence[Any] | None = None) -> gs.Variable:
        """A new variable with the type of another."""
        return edit.variable(self.model, hint or like.name, like.dtype, shape)

    def insert(
        self, beside: gs.Node, op: str, inputs: Sequence[Any], attrs: dict[str, Any] | None = None, out: Any = None
    ) -> Any:
        """A new node in the graph of `beside`; returns its first output (`out`, or a fresh variable)."""
        made = edit.node(self.model, op, inputs, attrs, None if out is None else [out], name=beside.name)
        home = self.homes[id(beside)]
        edit.add(home, made)
        self.homes[id(made)] = home
        self.added.append(made)
        self.around(made)
        return made.outputs[0]

    def become(self, node: gs.Node, op: str, inputs: Sequence[Any], attrs: dict[str, Any] | None = None) -> bool:
        """Turn a node into another operator with the same outputs; what only it read dies. Returns True."""
        node.op, node.domain = op, None
        node.attrs.clear()
        node.attrs.update(attrs or {})
        self.rewire(node, inputs)
        return True

    def rewire(self, node: gs.Node, inputs: Sequence[Any]) -> bool:
        """Give a node other inputs; what only it read dies. Returns True."""
        before = list(node.inputs)
        for index in range(max(len(before), len(inputs))):
            wanted = inputs[index] if index < len(inputs) else None
            if edit.get(node, index) is not wanted:
                edit.set_input(node, index, wanted)
        while node.inputs and not node.inputs[-1].name:
            node.inputs.pop()
        for tensor in before:
            self._release(tensor)
        self.around(node)
        return True

    def can_replace(self, old: Any, new: Any) -> bool:
        """Whether readers of `old` can read `new` with no Identity left: an output's name must find a producer."""
        if id(old) not in self.outputs:
            return True
        if isinstance(new, gs.Constant) or id(new) in self.outputs or id(new) in self.inputs or not new.inputs:
            return False
        return self.homes.get(id(new.inputs[0])) is self.homes.get(id(old.inputs[0]))

    def replace(self, old: Any, new: Any) -> bool:
        """Let every reader of `old` read `new`; False (and nothing done) where that would need an Identity."""
        if not self.can_replace(old, new):
            return False
        makers = [*old.inputs, *new.inputs]
        users = self.readers(old)
        if id(old) in self.outputs:
            declared, new.inferred = (old.dtype, old.shape), new.shape
            edit.replace(self.model, old, new)
            new.dtype, new.shape = declared
            self.outputs.discard(id(old))
            self.outputs.add(id(new))
        else:
            for user in users:
                for index, tensor in enumerate(list(user.inputs)):
                    if tensor is old:
                        edit.set_input(user, index, new)
        self.touch(*users, *makers)
        self._release(old)
        return True

    def _release(self, tensor: Any) -> None:
        """Unlink the makers of tensors that nothing reads any more, upwards."""
        stack = [tensor]
        while stack:
            tensor = stack.pop()
            if not tensor.name or isinstance(tensor, gs.Constant) or not tensor.inputs:
                continue
            node = tensor.inputs[0]
            if id(node) in self.dead or any(t.outputs or id(t) in self.outputs for t in node.outputs if t.name):
                continue
            stack.extend(reads(node))
            self.dead.update(id(n) for n in (node, *within(node)))
            edit.unlink(node)

    def finish(self) -> int:
        """Take dead nodes out of their graphs; returns how many there were."""
        if self.dead:
            for graph in {id(g): g for g in self.homes.values()}.values():
                if any(id(n) in self.dead for n in graph.nodes):
                    graph.nodes = [n for n in graph.nodes if id(n) not in self.dead]
        return len(self.dead)

    # -- the loop

    def run(self, rules: Iterable[Rule]) -> tuple[Counter[str], list[Skip]]:
        """Apply rules until none fires; returns counts by rule name, and refusals with reasons."""
        table: dict[str, list[Rule]] = {}
        for rule in rules:
            if rule.since <= self.opset:
                for op in rule.ops:
                    table.setdefault(op, []).append(rule)
        counts: Counter[str] = Counter()
        refused: dict[str, str] = {}
        for graph in self.model.graphs():
            self.touch(*graph.nodes)
        # A bound for rules that would undo each other; far above what any real graph needs.
        budget = 1000 + 50 * len(self.queue)
        while self.queue and budget:
            budget -= 1
            node = self.queue.popleft()
            self.queued.discard(id(node))
            if id(node) in self.dead or node.domain:
                continue
            for rule in table.get(node.op, ()):
                outcome = rule.apply(self, node)
                if outcome is True:
                    counts[rule.name] += 1
                    refused.pop(node.name, None)
                    self.around(node)
                    break
                if isinstance(outcome, str):
                    refused[node.name] = f"{rule.name}: {outcome}"
        self.finish()
        return counts, [Skip(name, reason) for name, reason in refused.items()]


def within(node: gs.Node) -> list[gs.Node]:
    """Every node in the subgraphs of a node, at any depth."""
    found: list[gs.Node] = []
    queue = subgraphs(node)
    while queue:
        nodes = queue.pop().nodes
        found.extend(nodes)
        queue.extend(g for n in nodes for g in subgraphs(n))
    return found


def same_sizes(a: Sequence[Any] | None, b: Sequence[Any] | None) -> bool:
    """Whether two shapes are surely equal: equal numbers, or the same symbol."""
    if a is None or b is None or len(a) != len(b):
        return False
    return all(x is not None and y is not None and x == y for x, y in zip(a, b))


def broadcast_keeps(shape: Sequence[Any] | None, other: Sequence[Any] | None) -> bool:
    """Whether broadcasting `other` against `shape` surely gives `shape` back."""
    if other is None:
        return False
    if not other:
        return True
    if shape is None or len(other) > len(shape):
        return False
    tail = shape[len(shape) - len(other) :]
    return all(b == 1 or (b is not None and a is not None and a == b) for a, b in zip(tail, other))
