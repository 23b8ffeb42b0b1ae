"""Channels that provably change nothing, and what takes over their part.

A channel may go when every reader multiplies it with zeros, when it is zero, when it is a constant that the reader's
bias can take over (not where the reader pads with zeros: the borders would differ), or when it equals another channel
whose weights can take over its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import Model, edit
from ...ir.flow import Product
from ...ir.labels import Cells
from .constant import Analysis, constants, is_padded
from .energy import ZEROS
from .grouping import Groups
from .layers import CONVOLUTIONS, Layer, layers, matrix, store
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

    layer: None where nothing can be taken over.
    """

    cells: Cells
    used: Array
    value: Array  # NaN: no constant
    key: Array  # 0: unknown
    layer: Layer | None
    padded: bool

    def gone(self, position: int) -> bool:
        """Whether this position adds nothing that the bias could not."""
        value = self.value[position]
        foldable = self.layer is not None and self.layer.bias is not None and not self.padded
        return not self.used[position] or value == 0 or (foldable and not np.isnan(value))


def order(model: Model, groups: Groups) -> tuple[Order, dict[str, Fold]]:
    """Dead units, in an order that keeps every axis alive, and what layers take over."""
    readers = _readers(model, groups)
    places: dict[int, list[tuple[_Reader, int]]] = {}
    for reader in readers:
        for position, row in enumerate(reader.cells):
            for atom in dict.fromkeys(row.tolist()):
                places.setdefault(int(atom), []).append((reader, position))
    units = [u for u in groups.units.tolist() if u in places]
    groups.ledger.reset()
    gone, folds, first = [], dict[str, Fold](), dict[tuple, int]()
    for unit in units:
        if all(reader.gone(p) for reader, p in places[unit]):
            if groups.ledger.remove(unit):
                gone.append(unit)
                _take_values(folds, places[unit])
            continue
        alike = _signature(places[unit])
        keeper = first.setdefault(alike, unit) if alike else unit
        if keeper != unit and groups.ledger.remove(unit):
            gone.append(unit)
            _join(folds, places[unit], places[keeper])
    none = [0.0] * len(gone)
    return Order(gone, none, none, none), folds


def _take_values(folds: dict[str, Fold], places: Sequence[tuple[_Reader, int]]) -> None:
    for reader, position in places:
        value = float(reader.value[position])
        if reader.layer is not None and reader.used[position] and not np.isnan(value) and value != 0:
            folds.setdefault(reader.layer.node, Fold()).values[position] = value


def _join(
    folds: dict[str, Fold], places: Sequence[tuple[_Reader, int]], keepers: Sequence[tuple[_Reader, int]]
) -> None:
    for (reader, position), (_, keeper) in zip(places, keepers):
        assert reader.layer is not None  # or it had no signature
        folds.setdefault(reader.layer.node, Fold()).joined[position] = keeper


def _signature(places: Sequence[tuple[_Reader, int]]) -> tuple | None:
    """What is read of a unit, by whom: two units with one signature are equal everywhere."""
    if any(r.layer is None or not r.key[p] or r.cells.shape[1] > 1 for r, p in places):
        return None
    return tuple((r.layer.node, int(r.key[p])) for r, p in places if r.layer is not None)


def _readers(model: Model, groups: Groups) -> list[_Reader]:
    flow, analysis = groups.flow, Analysis(model)
    nodes = {n.name: n for n in model.graph.nodes}
    fitted = {x.node: x for x in layers(model) if x.op != "Einsum"}
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
        found.append(_Reader(cells, used, value, key, layer, padded))
    return found


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


def take_over(model: Model, folds: Mapping[str, Fold]) -> None:
    """Put into biases and weights what the channels that go have done; before the cut."""
    nodes = {n.name: n for n in model.graph.nodes}
    for layer in layers(model):
        fold = folds.get(layer.node)
        if fold is None:
            continue
        old = matrix(nodes[layer.node]).astype(np.float64)[0]
        channels = _channels(nodes[layer.node])
        each = old.reshape(len(old), channels, -1)
        new, bias = each.copy(), None
        if fold.values:
            places, values = np.array(list(fold.values)), np.array(list(fold.values.values()))
            present = None if layer.bias is None else edit.const(nodes[layer.bias[0]], layer.bias[1])
            bias = each[:, places].sum(2) @ values + (0.0 if present is None else present)
        for position, keeper in fold.joined.items():
            new[:, keeper] += each[:, position]
        store(model, layer, nodes, new.reshape(1, len(old), -1), bias)


def _channels(node: gs.Node) -> int:
    """Positions of a layer's contracted axis."""
    shape = node.inputs[1].shape
    if node.op in CONVOLUTIONS:
        return int(shape[1 if node.op == "Conv" else 0])
    return int(shape[1] if node.op == "Gemm" and node.attrs.get("transB", 0) else shape[0])
