"""How dimensions travel: labels flow through the graph as data do, one rule an operator.

`Flow` walks the main graph once, in order. Rules (`ops.flow_*`) put labels on the outputs of a node, tie the labels of
its inputs, and record what repeats a size (`resizing`). What no rule understands is pinned, with the reason. Sizes are
concrete: of the model's declared shapes, or of one run where those are not known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from . import cost, ops
from .labels import Atoms, Cells
from .model import Model, subgraphs
from .resizing import Cut, Fix


@dataclass(frozen=True)
class Origin:
    """Where atoms began: an output axis of a weight (`node`, input `index`, `axis`), or a table of embeddings."""

    node: str
    index: int
    axis: int
    cells: Cells


@dataclass(frozen=True)
class Product:
    """A node that contracts two of its inputs, and the labels that size it.

    operands: positions of the two inputs, a weight last. axes: the axis of each that is summed. constant: whether the
    second is a weight (or both are activations). inner: labels of the summed axis. sized: labels of every axis that its
    MACs multiply. share: of the node's MACs that these are (a recurrent node has two products).
    """

    node: str
    operands: tuple[int, int]
    axes: tuple[int, int]
    constant: bool
    inner: Cells | None
    sized: tuple[Cells, ...]
    share: float = 1.0

    @property
    def weight(self) -> int:
        """Position of the weight; -1 where two activations meet."""
        return self.operands[1] if self.constant else -1


@dataclass
class Flow:
    """Labels of every tensor of a model, and what follows from them.

    sizes: concrete shape by tensor name. again: the same with every dynamic size another one: what is the same in both
    is a constant, though shape inference may not see it. keep: nodes whose dimensions must stay (`--exclude`). norms:
    "allow" lets channels leave what a normalisation takes its statistics over.
    """

    model: Model
    sizes: Mapping[str, Sequence[int]]
    keep: Callable[[gs.Node], bool] = lambda node: False
    norms: str = "pin"
    again: Mapping[str, Sequence[int]] = field(default_factory=dict)
    atoms: Atoms = field(default_factory=Atoms)
    labels: dict[str, list[Cells | None]] = field(default_factory=dict)
    cuts: list[Cut] = field(default_factory=list)
    fixes: list[Fix] = field(default_factory=list)
    origins: list[Origin] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._weights: dict[tuple[str, int], Cells] = {}
        self._stored = stored(self.model)
        self._settled: list[Cells] = []  # labels that end at the node that is visited
        for node in self.model.graph.nodes:
            self._visit(node)
        for tensor in self.model.graph.outputs:
            self.pin(tensor, f"graph output '{tensor.name}'")

    def _visit(self, node: gs.Node) -> None:
        captured = [t for g in subgraphs(node) for n in _deep(g) for t in n.inputs if t.name in self.labels]
        captured += [t for g in subgraphs(node) for t in g.outputs if t.name in self.labels]
        for tensor in captured:
            self.pin(tensor, f"read inside a subgraph of {node.op} '{node.name}'")
        rule = ops.flow_rule(node)
        if rule is None or not all(self.knows(t) for t in (*node.inputs, *node.outputs) if t.name):
            if self.labelled(node):
                why = (
                    f"no facts for op {node.op}" if rule is None else f"shapes at {node.op} '{node.name}' are not known"
                )
                self.pin_inputs(node, why)
            return
        before = len(self.cuts), len(self.products)
        self._settled = []
        rule(self, node)
        self._guard(node, *before)
        if self.keep(node):
            for tensor in (*node.inputs, *node.outputs):
                self.pin(tensor, f"'{node.name}' is excluded")
            self.refused[node.name] = "excluded"

    def _guard(self, node: gs.Node, cuts: int, products: int) -> None:
        """Pin what the rule of a node lost sight of: labels of an input that are in no output, no constant that it
        cuts and no product, and of which it did not say that they end here."""
        mine = [(t, a, c) for t in node.inputs for a, c in enumerate(self.of(t)) if c is not None]
        if not mine:
            return
        seen = [*self._settled, *(one.cells for one in self.cuts[cuts:])]
        seen += [c for one in self.products[products:] for c in one.sized]
        found = [c for t in node.outputs for c in self.of(t)] + [self.atoms.resolve(c) for c in seen]
        known = np.zeros(self.atoms.count, bool)
        for cells in found:
            if cells is not None:
                known[cells] = True
        known[0] = False  # an empty slot
        for tensor, axis, cells in mine:
            if not known[cells].any():
                self.pin(tensor, f"nothing says what {node.op} '{node.name}' does with it", [axis])

    def settle(self, cells: Cells | None) -> None:
        """A rule's word that these labels rightly end at its node: whatever goes, nothing behind it changes."""
        if cells is not None:
            self._settled.append(cells)

    def stored(self, tensor: Any) -> bool:
        """Whether a tensor comes with the model: a constant, or made of constants alone (a weight in few bits)."""
        return isinstance(tensor, gs.Constant) or tensor.name in self._stored

    def labelled(self, node: gs.Node) -> bool:
        """Whether any input has labels that may go."""
        return any(c is not None for t in node.inputs for c in self.labels.get(t.name, ()))

    def knows(self, tensor: Any) -> bool:
        """Whether a tensor's shape is known."""
        return isinstance(tensor, gs.Constant) or tensor.name in self.sizes

    def size(self, tensor: Any) -> tuple[int, ...]:
        """Concrete shape of a tensor; () for an omitted one. Rules run only where every shape is known."""
        return tuple(tensor.shape if isinstance(tensor, gs.Constant) else self.sizes.get(tensor.name, ()))

    def rank(self, tensor: Any) -> int:
        """Number of dimensions."""
        return len(self.size(tensor))

    def static(self, tensor: Any, axis: int) -> bool:
        """Whether this size is a constant of the model, so that a literal may repeat it."""
        shape = tensor.shape
        if shape is not None and axis < len(shape) and isinstance(shape[axis], (int, np.integer)):
            return True
        size, other = self.size(tensor), self.again.get(tensor.name, ())
        return axis < len(size) == len(other) and size[axis] == other[axis]

    def of(self, tensor: Any) -> list[Cells | None]:
        """Labels of a tensor by axis (None: this axis stays), as primitive free atoms."""
        found = self.labels.get(tensor.name)
        if found is None:
            return [None] * self.rank(tensor)
        return [self.atoms.resolve(c) for c in found]

    def put(self, tensor: Any, labels: Sequence[Cells | None]) -> None:
        """Set a tensor's labels. An axis of one position cannot lose it."""
        if not tensor.name:
            return
        kept = [self.atoms.resolve(c) for c in labels]
        for axis, cells in enumerate(kept):
            if cells is not None and len(cells) == 1:
                self.atoms.pin(cells, f"without it nothing is left of '{tensor.name}'")
                kept[axis] = None
        if any(c is not None for c in kept):
            self.labels[tensor.name] = kept

    def pin(self, tensor: Any, reason: str, axes: Sequence[int] | None = None) -> None:
        """The positions of a tensor (along some axes) stay."""
        found = self.labels.get(tensor.name)
        for axis, cells in enumerate(found or ()):
            if axes is None or axis in axes:
                self.atoms.pin(cells, reason)

    def pin_inputs(self, node: gs.Node, reason: str) -> None:
        """Everything that a node reads stays."""
        self.refused[node.name] = reason
        for tensor in node.inputs:
            self.pin(tensor, reason)

    def constant(self, node: gs.Node, index: int, axis: int, origin: bool = False) -> Cells:
        """Labels of an axis of a constant that starts atoms of its own; the same for all its users."""
        tensor = node.inputs[index]
        key = (tensor.name, axis)
        if key not in self._weights:
            self._weights[key] = self.atoms.fresh(tensor.shape[axis])
            if origin:
                self.origin(node, index, axis, self._weights[key])
        return self._weights[key]

    def moved(self, node: gs.Node, index: int) -> list[Cells | None]:
        """Labels of an input; axes of a constant start atoms of their own: what is only moved can be cut anywhere."""
        tensor = node.inputs[index]
        if not isinstance(tensor, gs.Constant):
            return self.of(tensor)
        labels: list[Cells | None] = []
        for axis, n in enumerate(tensor.shape):
            labels.append(self.constant(node, index, axis) if n > 1 else None)
            self.cut(node, index, axis, labels[-1])
        return labels

    def origin(self, node: gs.Node, index: int, axis: int, cells: Cells) -> None:
        """These atoms began at an output axis of this input: they are channels that may go."""
        self.origins.append(Origin(node.name, index, axis, cells))

    def grid(self, node: gs.Node, cells: Cells | None, groups: int) -> tuple[Cells | None, Cells | None]:
        """Channels as a grid of groups × positions: labels of the groups, labels of the positions."""
        if cells is None or groups == 1:
            return None, cells
        shaped = cells.reshape(groups, len(cells) // groups, -1)
        rows, columns = self.atoms.factor(shaped, f"the input of '{node.name}'")
        return rows, columns

    def product(
        self,
        node: gs.Node,
        operands: tuple[int, int],
        axes: tuple[int, int],
        inner: Cells | None,
        *sized: Cells | None,
        share: float = 1.0,
    ) -> None:
        """This node contracts one axis of each of two inputs; `sized` are its other labelled axes."""
        every = tuple(c for c in (inner, *sized) if c is not None)
        constant = isinstance(node.inputs[operands[1]], gs.Constant)
        self.products.append(Product(node.name, operands, axes, constant, inner, every, share))

    def cut(self, node: gs.Node, index: int, axis: int, cells: Cells | None) -> None:
        """A constant follows these labels along an axis."""
        if cells is not None and index < len(node.inputs) and isinstance(node.inputs[index], gs.Constant):
            self.cuts.append(Cut(node.name, index, axis, cells))

    def meet(self, node: gs.Node, index: int, axis: int, cells: Cells | None) -> None:
        """An axis of an input, constant or not, has the same positions as `cells` (None: positions that stay)."""
        if index >= len(node.inputs) or not node.inputs[index].name:
            return
        tensor = node.inputs[index]
        if isinstance(tensor, gs.Constant):
            self.cut(node, index, axis, cells)
            return
        mine = self.of(tensor)[axis]
        reason = f"meets what stays at {node.op} '{node.name}'"
        if mine is None or cells is None:
            self.atoms.pin(mine, reason)
            self.atoms.pin(cells, reason)
        else:
            self.atoms.unify(mine, cells, reason)


def _deep(graph: gs.Graph) -> list[gs.Node]:
    found, queue = [], [graph]
    while queue:
        current = queue.pop()
        found.extend(current.nodes)
        queue.extend(g for n in current.nodes for g in subgraphs(n))
    return found


def stored(model: Model) -> dict[str, gs.Constant]:
    """What is made of constants alone, such as a weight that is kept in few bits, with the largest of these."""
    found: dict[str, gs.Constant] = {}
    for node in model.nodes():
        sources = [t if isinstance(t, gs.Constant) else found.get(t.name) for t in node.inputs if t.name]
        known = [t for t in sources if t is not None]
        if known and len(known) == len(sources) and not subgraphs(node):
            found.update((t.name, max(known, key=cost.size)) for t in node.outputs if t.name)
    return found
