"""Losses where no regression is solved: two activations that contract (q·kᵀ), stacked matrices, Einsums of more.

What a position of the contracted axis adds to the products is about E[a²]·E[b²]; its share of all of them is the loss.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import Model, edit
from ...ir.flow import Flow, Product
from ...runtime.feeds import Feeds
from ...runtime.taps import Tap
from ..base import Context

Array = np.ndarray
FEEDS = 16  # to look at
OPS = ("Conv", "MatMul", "Gemm", "ConvTranspose", "Einsum", "Attention")
QLINEAR, INTEGER = {0: 2, 3: 5}, {0: 2, 1: 3}  # operand: where its zero point is
ZEROS = {"QLinearConv": QLINEAR, "QLinearMatMul": QLINEAR, "ConvInteger": INTEGER, "MatMulInteger": INTEGER}


def shares(
    model: Model, flow: Flow, fitted: set[str], feeds: Feeds, ctx: Context
) -> list[tuple[Product, dict[int, float]]]:
    """Losses by unit of every contraction that is not among the `fitted` nodes."""
    nodes = {n.name: n for n in model.graph.nodes}
    todo = {
        p.node: (p, dict(zip(p.operands, p.axes)))
        for p in flow.products
        if p.node not in fitted and nodes[p.node].op in (*OPS, *ZEROS) and flow.atoms.resolve(p.inner) is not None
    }
    todo = {n: t for n, t in todo.items() if all(nodes[n].inputs[k].shape is not None for k in t[1])}
    read = [nodes[n].inputs[k] for n, (_, both) in todo.items() for k in both]
    names = list(dict.fromkeys(t.name for t in read if not isinstance(t, gs.Constant)))
    if not names:
        return []
    tap, energy = Tap(model, names, threads=ctx.workers), dict[tuple[str, int], Any]()
    for feed in feeds.spread(FEEDS):
        values = tap.run(feed)
        for name, (_, both) in todo.items():
            for k, axis in both.items():
                tensor = nodes[name].inputs[k]
                x = tensor.values if isinstance(tensor, gs.Constant) else values[tensor.name]
                energy[name, k] = energy.get((name, k), 0.0) + _mean_square(_centred(nodes[name], k, x), axis)
    found = []
    for name, (product, both) in todo.items():
        cells = flow.atoms.resolve(product.inner)
        each = [energy[name, k] for k in both]
        if cells is not None and all(len(e) % len(cells) == 0 for e in each):
            alike = [e.reshape(-1, len(cells)).mean(0) for e in each]  # the groups of a convolution
            found.append((product, _by_unit(cells, np.prod(alike, axis=0))))
    return found


def _centred(node: gs.Node, index: int, x: Array) -> Array:
    """An operand less its zero point (which may be one a channel of a weight); a zero point that is computed counts as
    the middle of the range that it has."""
    where = ZEROS.get(node.op, {}).get(index)
    if where is None:
        return x
    zero = edit.const(node, where)
    if zero is None:
        zero = np.array(128 if x.dtype == np.uint8 else 0)
    along = 0 if node.op in ("QLinearConv", "ConvInteger") else x.ndim - 1
    shaped = zero.reshape([-1 if a == along else 1 for a in range(x.ndim)]) if zero.size > 1 else zero.reshape(-1)
    return x.astype(np.float64) - shaped.astype(np.float64)


def _mean_square(x: Array, axis: int) -> Array:
    rest = tuple(a for a in range(x.ndim) if a != axis)
    return np.asarray(np.square(x, dtype=np.float64).mean(rest))


def _by_unit(cells: Array, energy: Array) -> dict[int, float]:
    share = energy / max(float(np.sum(energy)), 1e-30)
    found: dict[int, float] = {}
    for position, row in enumerate(cells):
        for atom in row[row > 0]:
            found[int(atom)] = found.get(int(atom), 0.0) + float(share[position])
    return found
