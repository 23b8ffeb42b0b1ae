"""Rows of a pruned copy's layers beside what the original computed there: the sums that the refit solves.

The original is run once. What it puts out at the sampled places is kept (`Target`), so that every later fit needs runs
of the smaller copy only. Places are chosen by seed, layer and feed, so they are the same in both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...ir import Model
from ...ir.spill import aside
from ...runtime import unfold
from ...runtime.contraction import picked_rows
from ...runtime.loading import give_back
from ...runtime.room import Room
from . import recurrent
from .layers import Layer, bias_of, matrix
from .left import Left
from .thin import Rows

Array = np.ndarray
MORE, FEWEST, MOST = 24, 8192, 32768  # rows aimed at: a column, at least, at most
BLOCK = 1024  # columns of a sum of products that are added to at once
HELD_OUT = 5  # every fifth feed chooses the ridge and fits only in the end


@dataclass
class Sums:
    """Σ over rows, each times its weight: of 1, x `[G, D]`, y `[G, T]`, x xᵀ `[G, D, D]`, x yᵀ `[G, D, T]`, and y² (a
    number)."""

    rows: float = 0
    x: Any = 0.0
    y: Any = 0.0
    xx: Any = 0.0
    xy: Any = 0.0
    yy: float = 0.0
    squares: Any = 0.0

    def add(self, x: Array, y: Array, weights: Array | None = None) -> None:
        """Rows x `[G, P, D]` and y `[G, P, T]`, float32; weights `[P]`, 1 each when None."""
        root = np.ones((1, 1, 1), np.float32) if weights is None else np.sqrt(weights, dtype=np.float32)[None, :, None]
        self.rows += x.shape[1] if weights is None else float(weights.sum(dtype=np.float64))
        if weights is not None:
            x, y = x * root, y * root
        self.x = self.x + (x * root).sum(1, dtype=np.float64)
        self.y = self.y + (y * root).sum(1, dtype=np.float64)
        self.xx, self.xy = _added(self.xx, x, x), _added(self.xy, x, y)
        self.yy += float(np.square(y, dtype=np.float64).sum())

    def take(self, other: Sums) -> Sums:
        """These and the other's, in place: the products are the largest arrays of a refit."""
        if not self.rows or not other.rows:
            return self if self.rows else other
        for name in ("rows", "x", "y", "xx", "xy", "yy"):
            mine = getattr(self, name)
            mine += getattr(other, name)
            setattr(self, name, mine)
        return self

    def means(self) -> tuple[Array, Array]:
        """Of x `[G, D]` and y `[G, T]`."""
        return self.x / self.rows, self.y / self.rows

    def covariance(self, group: int, centred: bool = True) -> tuple[Array | None, Array]:
        """Of one group's x `[D, D]`, and its diagonal; second moments about zero unless centred."""
        mean = self.x[group] / self.rows * centred
        found = self.xx[group] / self.rows - np.outer(mean, mean)
        return found, np.diagonal(found)


def _added(total: Any, a: Array, b: Array) -> Array:
    """total + aᵀb, in place and block by block, so that nothing of the size of the total is made beside it."""
    if isinstance(total, float):
        total = np.zeros((a.shape[0], a.shape[2], b.shape[2]))
    for k in range(0, a.shape[2], BLOCK):
        total[:, k : k + BLOCK] += np.swapaxes(a[:, :, k : k + BLOCK], 1, 2) @ b
    return total


@dataclass
class Target:
    """What the original computes at a layer's sampled places, feed by feed: rows `[P, M]` of the witness.

    sizes: of the axes that the places are flat positions over. weights: `[P]`, what an error at each place counts
    (`fisher`); empty: all alike.
    read: inputs `[P, I]` and states `[P, D, H]` of a recurrent layer that is fitted to both.
    variance: of the witness, summed over channels: what an error of this layer is measured against.
    """

    places: list[Array] = field(default_factory=list)
    rows: list[Array] = field(default_factory=list)
    weights: list[Array] = field(default_factory=list)
    read: list[tuple[Array, Array]] = field(default_factory=list)
    sizes: list[tuple[int, ...]] = field(default_factory=list)
    _rooms: tuple[Room, Room] | None = None

    def add(self, places: Array, rows: Array, sizes: tuple[int, ...], feeds: int) -> None:
        """Keep the places and rows of one of so many feeds."""
        self.sizes.append(sizes)
        if self._rooms is None:
            self._rooms = Room(feeds * len(places)), Room(feeds * len(rows))
        self.places.append(self._rooms[0].keep(places))
        self.rows.append(self._rooms[1].keep(np.asarray(rows, np.float32)))

    @property
    def variances(self) -> Array:
        """By channel; feed by feed, since all rows together are most of the memory of a plan."""
        count = sum(map(len, self.rows))
        mean = sum(r.sum(0, dtype=np.float64) for r in self.rows) / count
        return np.asarray(sum(np.square(r - mean).sum(0) for r in self.rows) / count)

    @property
    def variance(self) -> float:
        """Summed over channels."""
        return float(self.variances.sum())


def rows_per_feed(layers: Sequence[Layer], widths: Mapping[str, int], feeds: int, budget: int) -> dict[str, int]:
    """How many places to take of every feed: about 24 rows a column, within `budget` bytes of kept outputs."""
    wanted = {x.node: min(max(MORE * widths[x.node], FEWEST), MOST) for x in layers}
    return {name: max(1, -(-min(n, budget) // max(feeds, 1))) for name, n in wanted.items()}


def row_sizes(layer: Layer, shape: Sequence[int]) -> tuple[int, ...]:
    """Of the axes of an output of this shape that rows are counted over."""
    columns = {a % len(shape) for a in layer.made}
    return tuple(n for a, n in enumerate(shape) if a not in columns)


def rows_of(layer: Layer, tensor: Array, places: Array) -> Array:
    """Rows `[P, M]` of an output, or a tensor of its shape, at flat positions."""
    return picked_rows(tensor, layer.made, places)


def looked_at(wave: Sequence[Layer]) -> list[str]:
    """Tensors from which the targets of layers are made."""
    return [n for x in wave for n in (x.witness, *x.states) if n]


def targets(
    model: Model,
    wave: Sequence[Layer],
    walk: Iterable[Mapping[str, Array]],
    feeds: int,
    most: Mapping[str, int],
    seed: int,
) -> dict[str, Target]:
    """What the original's layers put out; of recurrent ones what they make of their inputs.

    walk: what is `looked_at`, on one after the other of so many feeds. most: places to take of each, by layer.
    """
    give_back()
    nodes = {n.name: n for n in model.graph.nodes}
    found = {x.node: Target() for x in wave}
    for index, values in enumerate(walk):
        for layer in wave:
            y = values[layer.witness]
            sizes = row_sizes(layer, y.shape)
            places = unfold.choose(int(np.prod(sizes)), most[layer.node], seed, layer.node, index)
            rows = rows_of(layer, y, places)
            if layer.gates:
                rows = _before_gates(layer, nodes, values, places, rows, found[layer.node])
            found[layer.node].add(places, rows, sizes, feeds)
    _put_aside(found.values())
    return found


def _put_aside(found: Iterable[Target]) -> None:
    """Keep rows in a file that is mapped: they are most of a plan, and nobody reads them until the refit."""
    every = iter(aside([r for target in found for r in target.rows]))
    for target in found:
        target.rows, target._rooms = [next(every) for _ in target.rows], None


def _before_gates(
    layer: Layer, nodes: Mapping[str, Any], values: Mapping[str, Array], places: Array, x: Array, goal: Target
) -> Array:
    """What a recurrent layer makes of inputs `[P, I]`, and of the states, `[P, M]`; keeps what was read."""
    node, rows = nodes[layer.node], x[None]
    if layer.states:
        every, first = layer.states
        start = values[first] if first else None
        state = recurrent.before(node, values[every], start)[places]
        goal.read.append((x, state))
        rows = recurrent.rows(x, state)
    made = rows @ np.swapaxes(matrix(node), 1, 2)
    return np.asarray(made.transpose(1, 0, 2).reshape(len(x), -1) + bias_of(layer, nodes))


def against(
    wave: Sequence[Layer],
    nodes: Mapping[str, Any],
    walk: Iterable[Mapping[str, Array]],
    goals: Mapping[str, Target],
    kept: Mapping[str, Left],
    room: int,
) -> dict[str, tuple[Any, Any]]:
    """A pruned copy's inputs against the original's outputs: of the feeds to fit on, and of held-out ones.

    walk: the tensors that the layers read in the copy, feed by feed. kept: what is left of a layer's outputs.
    room: bytes that a layer's second moments may take. Gives `Sums`, or `thin.Rows` where there are fewer rows than
    columns or the moments would not fit.
    Where a layer ends in a sum, the target is what the sum should be less the copy's other summand, so that the errors
    of the layers before are corrected too (He 2017).
    """
    geometry = {x.node: _geometry(x, nodes[x.node]) for x in wave}
    at = {x.node: _places(goals[x.node], kept[x.node]) for x in wave}
    sums = {x.node: _empty(geometry[x.node], [new for _, new in at[x.node]], room) for x in wave}
    for index, values in enumerate(walk):
        for layer in wave:
            goal, geo, (stays, places) = goals[layer.node], geometry[layer.node], at[layer.node][index]
            if not len(places):
                continue
            channels, stay = kept[layer.node].channels, slice(None) if stays is None else stays
            y = goal.rows[index][stay][:, channels]
            if layer.other:
                y = y - rows_of(layer, values[layer.other], places)
            grouped = y.reshape(len(y), geo.groups, -1).transpose(1, 0, 2)
            if layer.states:
                state = goal.read[index][1][stay]
                units = channels.reshape(geo.groups, -1, state.shape[2])[:, 0]
                state = state[:, units].reshape(len(places), geo.groups, -1)
                rows = recurrent.rows(rows_of(layer, values[layer.x], places), state)
            else:
                rows = np.ascontiguousarray(unfold.rows(geo, values[layer.x], places))
            sums[layer.node][index % HELD_OUT == HELD_OUT - 1].add(
                rows, np.ascontiguousarray(grouped), goal.weights[index][stay] if goal.weights else None
            )
    return sums


def _places(goal: Target, kept: Left) -> list[tuple[Array | None, Array]]:
    """Which sampled places are left in a pruned copy (None: all), and where they are there; feed by feed."""
    return [kept.places(places, sizes) for places, sizes in zip(goal.places, goal.sizes)]


def _geometry(layer: Layer, node: Any) -> unfold.Geometry:
    if not layer.states:
        return unfold.regression(node)
    groups, _, width = matrix(node).shape
    return unfold.Geometry(width, groups)


def _empty(geo: unfold.Geometry, places: Sequence[Array], room: int) -> tuple[Any, Any]:
    """What a layer's rows are collected in; two matrices of second moments are held, or rows with a working copy."""
    width, total = geo.groups * geo.width, sum(map(len, places))
    if total >= geo.width and 16 * width * geo.width <= room:
        return Sums(), Sums()
    most = max(1, room // (4 * 16 * width) // max(1, len(places)))
    return Rows(most), Rows(most)
