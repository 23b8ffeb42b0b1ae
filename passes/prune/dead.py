"""Channels that provably change nothing: those whose every reader multiplies them with zeros."""

from __future__ import annotations

import numpy as np

from ...ir import Model, edit
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
        used = _used(model, nodes, product.node, product.weight, len(cells))
        for position, row in enumerate(cells):
            for atom in row:
                if int(atom) in read:
                    seen.add(int(atom))
                    read[int(atom)] |= bool(used[position])
    groups.ledger.reset()
    units = [u for u in read if u in seen and not read[u] and groups.ledger.remove(u)]
    return Order(units, [0.0] * len(units), [0.0] * len(units), [0.0] * len(units))


def _used(model: Model, nodes: dict, name: str, weight: int, positions: int) -> np.ndarray:
    """Whether each position of the contracted axis meets a weight that is not zero."""
    node = nodes[name]
    values = edit.const(node, weight) if weight >= 0 else None
    if values is None:
        return np.ones(positions, bool)
    if node.op == "Conv":
        axis = 1
    elif node.op == "ConvTranspose":
        axis = 0
    elif node.op == "Gemm":
        axis = 1 if node.attrs.get("transB", 0) else 0
    else:
        axis = max(values.ndim - 2, 0) if weight == 1 else values.ndim - 1
    rest = tuple(a for a in range(values.ndim) if a != axis)
    used = (values != 0).any(rest)
    return used if len(used) == positions else np.ones(positions, bool)
