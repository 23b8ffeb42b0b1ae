"""Channels that provably change nothing: those whose every reader multiplies them with zeros."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import Model, edit
from ...ir.flow import Product
from .grouping import Groups
from .order import Order


def order(model: Model, groups: Groups) -> Order:
    """Dead units, in an order that keeps every axis alive."""
    flow, nodes = groups.flow, {n.name: n for n in model.graph.nodes}
    read: dict[int, bool] = dict.fromkeys(groups.units.tolist(), False)
    seen: set[int] = set()
    for product in flow.products:
        cells = flow.atoms.resolve(product.inner)
        if cells is None:
            continue
        used = _used(nodes[product.node], product, len(cells))
        for position, row in enumerate(cells):
            for atom in row:
                if int(atom) in read:
                    seen.add(int(atom))
                    read[int(atom)] |= bool(used[position])
    groups.ledger.reset()
    units = [u for u in read if u in seen and not read[u] and groups.ledger.remove(u)]
    return Order(units, [0.0] * len(units), [0.0] * len(units), [0.0] * len(units))


def _used(node: gs.Node, product: Product, positions: int) -> np.ndarray:
    """Whether each position of the contracted axis meets a weight that is not zero."""
    values = edit.const(node, product.weight) if product.constant else None
    if values is None:
        return np.ones(positions, bool)
    rest = tuple(a for a in range(values.ndim) if a != product.axes[1])
    used = (values != 0).any(rest)
    return used if len(used) == positions else np.ones(positions, bool)
