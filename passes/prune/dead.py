"""Channels that provably change nothing, and what takes over their part.

A channel may go when every reader multiplies it with zeros, when it is zero, when it is a constant that the reader's
bias can take over (not where the reader pads with zeros: the borders would differ), or when it equals another channel
whose weights can take over its own. Constants that several nodes read are changed only where all of them take over the
same: a copy for each would make the model larger.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import Model, edit
from ...ir.flow import Flow, Product
from ...ir.labels import Cells
from .constant import Analysis, constants, is_padded
from .cut import alive_after
from .energy import ZEROS
from .grouping import Groups
from .layers import CONVOLUTIONS, Layer, biased, layers, layout, matrix, readers
from .order import Order

Array = np.ndarray
CONTRACTIONS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum")  # zeros add nothing there


@dataclass
class Fold:
    """What a layer takes over: constants by position of its input, and positions whose weights join another's."""

    values: dict[int, float] = field(default_factory=dict)
    joined: dict[int, int] = field(default_factory=dict)


@dataclass
class _Reader:
    """A contraction: labels of its positions, which of them meet a weight, what is known of their values.

    layer: None where nothing can be taken over. weight, bias: the nodes that read the layer's constants; a bias that is
    not there yet would be read by those that read the weight.
    """

    cells: Cells
    used: Array
    value: Array  # NaN: no constant
    key: Array  # 0: unknown
    layer: Layer | None
    padded: bool
    weight: frozenset[str] = frozenset()
    bias: frozenset[str] = frozenset()

    def folded(self, position: int) -> float:
        """The constant that the bias takes over when this position goes; 0 where it is none."""
        value = float(self.value[position])
        return 0.0 if self.layer is None or not self.used[position] or np.isnan(value) else value

    def gone(self, position: int) -> bool:
        """Whether this position adds nothing that the bias could not."""
        value = self.value[position]
        foldable = self.layer is not None and self.layer.bias is not None and not self.padded
        return not self.used[position] or value == 0 or (foldable and not np.isnan(value))


Place = tuple[_Reader, int]


def order(
    model: Model, groups: Groups, keep: Callable[[gs.Node], bool] = lambda node: False, held: Iterable[int] = ()
) -> tuple[Order, dict[str, Fold]]:
    """Dead units, in an order that keeps every axis alive, and what layers take over.

    keep: nodes to leave alone. held: units that stay whatever is known of them.
    """
    places: dict[int, list[Place]] = {}
    for reader in _readers(model, groups, keep):
        for position, row in enumerate(reader.cells):
            for atom in dict.fromkeys(row.tolist()):
                places.setdefault(int(atom), []).append((reader, position))
    stay = set(held)
    groups.ledger.reset()
    gone, folds, first = [], dict[str, Fold](), dict[tuple, int]()
    for unit in (u for u in groups.units.tolist() if u in places and u not in stay):
        if all(reader.gone(p) for reader, p in places[unit]):
            if _values_agree(places[unit]) and groups.ledger.remove(unit):
                gone.append(unit)
                _take_values(folds, places[unit])
            continue
        alike = _signature(places[unit])
        keeper = first.setdefault(alike, unit) if alike else unit
        joined = [(r, p, k) for (r, p), (_, k) in zip(places[unit], places[keeper])]
        if keeper != unit and _joins_agree(joined) and groups.ledger.remove(unit):
            gone.append(unit)
            _join(folds, joined)
    none = [0.0] * len(gone)
    return Order(gone, none, none, none), folds


def _values_agree(places: Sequence[Place]) -> bool:
    """Whether no bias, and no weight without one, gets a copy for each of its users. The bias of a weight that one node
    reads may: the column that goes from there is no smaller."""
    taken: dict[Hashable, set[str]] = {}
    asked: list[tuple[Hashable, frozenset[str]]] = []
    for reader, position in places:
        value, layer = reader.folded(position), reader.layer
        if value and layer is not None and layer.bias is not None and len(reader.weight) > 1:
            what = (reader.weight, position, value)
            taken.setdefault(what, set()).add(layer.bias[0])
            asked.append((what, reader.bias))
    return all(len(users) == 1 or users <= taken[what] for what, users in asked)


def _joins_agree(joined: Sequence[tuple[_Reader, int, int]]) -> bool:
    """Whether all that read a weight add the same position to the same other one."""
    taken: dict[Hashable, set[str]] = {}
    for reader, position, keeper in joined:
        assert reader.layer is not None  # or it had no signature
        taken.setdefault((reader.weight, position, keeper), set()).add(reader.layer.node)
    return all(r.weight <= taken[r.weight, position, keeper] for r, position, keeper in joined)


def _take_values(folds: dict[str, Fold], places: Sequence[Place]) -> None:
    for reader, position in places:
        value = reader.folded(position)
        if value and reader.layer is not None:
            folds.setdefault(reader.layer.node, Fold()).values[position] = value


def _join(folds: dict[str, Fold], joined: Sequence[tuple[_Reader, int, int]]) -> None:
    for reader, position, keeper in joined:
        assert reader.layer is not None  # or it had no signature
        folds.setdefault(reader.layer.node, Fold()).joined[position] = keeper


def _signature(places: Sequence[Place]) -> tuple | None:
    """What is read of a unit, by whom: two units with one signature are equal everywhere."""
    if any(r.layer is None or not r.key[p] or r.cells.shape[1] > 1 for r, p in places):
        return None
    return tuple((r.layer.node, int(r.key[p])) for r, p in places if r.layer is not None)


def _readers(model: Model, groups: Groups, keep: Callable[[gs.Node], bool]) -> list[_Reader]:
    flow, analysis = groups.flow, Analysis(model)
    nodes = {n.name: n for n in model.graph.nodes}
    fitted = {x.node: x for x in layers(model, keep=keep) if x.op != "Einsum"}
    found = []
    for product in flow.products:
        cells = flow.atoms.resolve(product.inner)
        if cells is None:
            continue
        node, count = nodes[product.node], len(cells)
        known = analysis.of(node.inputs[product.operands[0]]) if node.op in CONTRACTIONS else None
        split = node.op in CONVOLUTIONS and int(node.attrs.get("group", 1)) > 1
        value, key = np.full(count, np.nan), np.zeros(count, np.int64)
        if known is not None and known.axis == product.axes[0] and len(known.lo) == count and not split:
            value, key = np.where(constants(known), known.lo, np.nan), known.key
        layer = None if split else fitted.get(product.node)
        used = _used(node, product, count)
        # What a constant makes of a ConvTranspose's outputs differs by their phase.
        padded = node.op == "ConvTranspose" or (node.op == "Conv" and is_padded(node))
        tied = (frozenset[str](), frozenset[str]()) if layer is None else _tied(nodes, layer)
        found.append(_Reader(cells, used, value, key, layer, padded, *tied))
    return found


def _tied(nodes: Mapping[str, gs.Node], layer: Layer) -> tuple[frozenset[str], frozenset[str]]:
    """Who reads the weight of a layer, and its bias."""
    weight = readers(nodes[layer.node], 1)
    bias = frozenset() if layer.bias is None else readers(nodes[layer.bias[0]], layer.bias[1])
    return weight, bias or weight


def _used(node: gs.Node, product: Product, positions: int) -> Array:
    """Whether each position of the contracted axis meets a weight that is not zero."""
    values = edit.const(node, product.weight) if product.constant else None
    zero = None if values is None else _zero_point(node, product)
    if values is None or zero is None:
        return np.ones(positions, bool)
    rest = tuple(a for a in range(values.ndim) if a != product.axes[1])
    used = (values != zero).any(rest)
    return used if len(used) == positions else np.ones(positions, bool)


def _zero_point(node: gs.Node, product: Product) -> int | None:
    """What a weight of no effect is: the zero point of integers; None where it is not one known number."""
    where = ZEROS.get(node.op, {}).get(product.weight)
    if where is None or edit.get(node, where) is None:
        return 0
    found = edit.const(node, where)
    return int(found.flat[0]) if found is not None and len(np.unique(found)) == 1 else None


def take_over(model: Model, flow: Flow, gone: Array, folds: Mapping[str, Fold]) -> None:
    """Put into biases and weights what the channels that go have done; before the cut. What nodes shared and change
    alike, they share again."""
    nodes, alive = {n.name: n for n in model.graph.nodes}, alive_after(flow, gone)
    made: dict[Hashable, gs.Constant] = {}
    for layer in layers(model):
        fold, node = folds.get(layer.node), nodes[layer.node]
        if fold is None:
            continue
        weight, old = node.inputs[1], matrix(node).astype(np.float64)[0]
        each = old.reshape(len(old), _channels(node), -1)
        if fold.joined:
            new = each.copy()
            for position, keeper in fold.joined.items():
                new[:, keeper] += each[:, position]
            what = (weight.name, *sorted(fold.joined.items()))
            _exchange(model, node, 1, weight.name, layout(node)(new.reshape(1, len(old), -1))[0], made, what)
        if fold.values and layer.bias is not None:
            where, at = nodes[layer.bias[0]], layer.bias[1]
            places, values = np.array(list(fold.values)), np.array(list(fold.values.values()))
            added, present = each[:, places].sum(2) @ values, edit.const(where, at)
            if present is None:  # no cut is known of a bias that was not there
                bias, name = biased(layer, None, added[_outputs_left(flow, node, alive)]), f"{weight.name}_bias"
            else:
                bias, name = biased(layer, present, added + present), where.inputs[at].name
            _exchange(model, where, at, name, bias, made, (weight.name, name, bias.tobytes()))


def _exchange(
    model: Model, node: gs.Node, index: int, hint: str, new: Array, made: dict[Hashable, gs.Constant], what: Hashable
) -> None:
    """Put a new constant in, or the one that was made of the same before."""
    if what not in made:
        made[what] = edit.constant(model, hint, new)
    edit.set_input(node, index, made[what])


def _outputs_left(flow: Flow, node: gs.Node, alive: Callable[[Cells], Array]) -> Array:
    """Mask over the outputs of a convolution or Gemm: what the cut leaves of its weight."""
    axis = 0 if node.op == "Conv" or node.attrs.get("transB", 0) else 1
    mask = np.ones(node.inputs[1].shape[axis], bool)
    for one in flow.cuts:
        if (one.node, one.index, one.axis) == (node.name, 1, axis):
            mask &= alive(one.cells)
    return mask


def _channels(node: gs.Node) -> int:
    """Positions of a layer's contracted axis."""
    shape = node.inputs[1].shape
    if node.op in CONVOLUTIONS:
        return int(shape[1 if node.op == "Conv" else 0])
    return int(shape[1] if node.op == "Gemm" and node.attrs.get("transB", 0) else shape[0])
