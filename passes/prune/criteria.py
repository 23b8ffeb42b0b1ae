"""Scores of units that need no second moments: magnitudes of weights, distances between them, sizes of activations.

Each is relative to the mean over the axis that it is taken along, and averaged over everything that a unit cuts, so
that layers can be compared; none says what a unit costs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import Model, edit
from ...ir.labels import Cells
from ...runtime.feeds import Feeds
from ...runtime.taps import Tap, waves
from ..bands import bands
from ..base import Context
from .grouping import Groups

Array = np.ndarray
FEEDS = 16  # that activations are looked at on


def _averaged(groups: Groups, rows: Iterator[tuple[Cells | None, Array]]) -> dict[int, float]:
    """unit -> mean of the scores of its positions; rows: labels of an axis, and a score of every position."""
    free = set(groups.units.tolist())
    total: dict[int, float] = {}
    count: dict[int, int] = {}
    for cells, score in rows:
        relative = score / max(float(score.mean()), 1e-30)
        for position, row in enumerate(cells if cells is not None else ()):
            for atom in row.tolist():
                if atom in free:
                    total[atom] = total.get(atom, 0.0) + float(relative[position])
                    count[atom] = count.get(atom, 0) + 1
    return {u: total[u] / count[u] for u in total}


def magnitudes(model: Model, groups: Groups, power: int) -> dict[int, float]:
    """Norm of a unit's slices of every weight that it cuts."""

    def rows() -> Iterator[tuple[Cells | None, Array]]:
        for cells, values in _weights(model, groups):
            yield cells, _sums(values, power)

    return _averaged(groups, rows())


def gammas(model: Model, groups: Groups, fused: Mapping[str, Array]) -> dict[int, float]:
    """|gamma| of the batch norms that a unit passes (Network Slimming, arXiv 1708.06519).

    fused: |gamma| by tensor of the batch norms that the model had before they went into its weights.
    """
    flow, nodes = groups.flow, {n.name: n for n in model.graph.nodes}
    standing = set[str]()

    def rows() -> Iterator[tuple[Cells | None, Array]]:
        for one in flow.cuts:
            values = edit.const(nodes[one.node], one.index)
            if nodes[one.node].op == "BatchNormalization" and one.index == 1 and values is not None:
                standing.update(t.name for t in (nodes[one.node].inputs[0], nodes[one.node].outputs[0]))
                each = np.moveaxis(np.abs(values.astype(np.float64)), one.axis, 0)  # [C, H, W] where spatial=0
                yield flow.atoms.resolve(one.cells), each.reshape(len(each), -1).mean(1)
        for tensor, values in fused.items():
            labels = flow.labels.get(tensor, ())
            cells = flow.atoms.resolve(labels[1]) if len(labels) > 1 and tensor not in standing else None
            if cells is not None and len(cells) == len(values):
                yield cells, values

    return _averaged(groups, rows())


def distances(model: Model, groups: Groups) -> dict[int, float]:
    """How far a unit's slice is from the others of its weight: near all of them, they can stand in for it (geometric
    median, arXiv 1811.00250)."""

    def rows() -> Iterator[tuple[Cells | None, Array]]:
        for cells, values in _weights(model, groups):
            yield cells, _apart(values)

    return _averaged(groups, rows())


def _sums(values: Array, power: int) -> Array:
    """Sum of |x| to a power, row by row, in double precision."""
    return np.concatenate([(np.abs(values[k].astype(np.float64)) ** power).sum(1) for k in bands(values.shape)])


def _apart(values: Array) -> Array:
    """Sum of the distances of each row to all rows, in double precision."""
    square, total = _sums(values, 2), np.zeros(len(values))
    for k in bands(values.shape):
        own = values[k].astype(np.float64)
        for j in bands(values.shape):
            apart = square[k, None] + square[None, j] - 2 * own @ values[j].astype(np.float64).T
            total[k] += np.sqrt(np.maximum(apart, 0.0)).sum(1)
    return total


def _weights(model: Model, groups: Groups) -> Iterator[tuple[Cells | None, Array]]:
    """Labels of every cut axis of a weight, and its slices along it, `[positions, rest]`."""
    flow, nodes = groups.flow, {n.name: n for n in model.graph.nodes}
    for one in flow.cuts:
        values = _meant(nodes[one.node], one.index)
        if values is not None and values.ndim >= 2:
            turned = np.moveaxis(values, one.axis, 0)
            yield flow.atoms.resolve(one.cells), turned.reshape(len(turned), -1)


def _meant(node: gs.Node, index: int) -> Array | None:
    """A constant input of a node; of DequantizeLinear the numbers that its integers stand for."""
    values, scale = edit.const(node, index), edit.const(node, 1)
    if node.op != "DequantizeLinear" or index or values is None or scale is None or node.attrs.get("block_size", 0):
        return values
    along = [1] * values.ndim
    if scale.size > 1:
        along[int(node.attrs.get("axis", 1))] = scale.size
    zero = edit.const(node, 2)
    shift = 0.0 if zero is None else zero.astype(np.float32).reshape(-1 if zero.size == 1 else along)
    return (values.astype(np.float32) - shift) * scale.astype(np.float32).reshape(-1 if scale.size == 1 else along)


def activations(model: Model, groups: Groups, feeds: Feeds, ctx: Context) -> dict[int, float]:
    """Mean of |x| at a unit's positions of what its readers contract."""
    read = _contracted(model, groups)
    sums: dict[tuple[str, int], Array] = {}
    sizes = {t: 4 * int(np.prod(groups.flow.sizes[t])) for t, _, _ in read if t in groups.flow.sizes}
    few = feeds.spread(FEEDS)
    for wave in waves(dict.fromkeys(t for t, _, _ in read), sizes, max(1, ctx.memory_mb << 20) // 4):
        tap = Tap(model, wave, threads=ctx.workers)
        for feed in few:
            values = tap.run(feed)
            for tensor, axis in dict.fromkeys((t, a) for t, a, _ in read):
                if tensor in values:
                    rest = tuple(a for a in range(values[tensor].ndim) if a != axis)
                    mean = np.abs(values[tensor]).mean(rest, dtype=np.float64)
                    sums[tensor, axis] = sums.get((tensor, axis), np.zeros(())) + mean
    each = ((cells, sums[t, a], n) for (t, a, n), cells in read.items() if (t, a) in sums)
    # heads and the groups of a convolution repeat their positions
    return _averaged(groups, ((cells, s.reshape(-1, n).mean(0)) for cells, s, n in each if len(s) % n == 0))


def _contracted(model: Model, groups: Groups) -> dict[tuple[str, int, int], Cells]:
    """Labels of the axes that nodes contract, by tensor, axis and count of labelled positions."""
    flow, nodes = groups.flow, {n.name: n for n in model.graph.nodes}
    found = {}
    for product in flow.products:
        cells = flow.atoms.resolve(product.inner)
        if cells is not None and product.axes[0] >= 0:  # states that a recurrent layer reads are no input of its own
            found[nodes[product.node].inputs[product.operands[0]].name, product.axes[0], len(cells)] = cells
    return found
