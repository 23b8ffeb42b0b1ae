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
from ...runtime import unfold
from ...runtime.feeds import Feeds
from ...runtime.taps import Tap
from .layers import Layer

Array = np.ndarray
MORE, FEWEST, MOST = 24, 8192, 32768  # rows aimed at: a column, at least, at most
WIDEST = 6144  # columns whose second moments are kept (8 · K² bytes, twice); of wider ones only means
HELD_OUT = 5  # every fifth feed chooses the ridge and fits only in the end


@dataclass
class Sums:
    """Σ over rows, each times its weight: of 1, x `[G, D]`, y `[G, T]`, x xᵀ `[G, D, D]`, x yᵀ `[G, D, T]`, and y² (a
    number); squares: of x² `[G, D]` in place of the products where x is too wide for them."""

    rows: float = 0
    x: Any = 0.0
    y: Any = 0.0
    xx: Any = 0.0
    xy: Any = 0.0
    yy: float = 0.0
    squares: Any = 0.0

    def add(self, x: Array, y: Array, weights: Array | None = None) -> None:
        """Rows x `[G, P, D]` and y `[G, P, T]`, float32; weights `[P]`, 1 each when None."""
        if weights is not None:
            root = np.sqrt(weights, dtype=np.float32)[None, :, None]
            self._add(x * root, y * root, root)
            return
        self._add(x, y, None)

    def _add(self, x: Array, y: Array, root: Array | None) -> None:
        turned = np.swapaxes(x, 1, 2)
        if root is not None:
            self.rows += float(np.square(root, dtype=np.float64).sum())
            self.x = self.x + (x * root).sum(1, dtype=np.float64)
            self.y = self.y + (y * root).sum(1, dtype=np.float64)
        else:
            self.rows += x.shape[1]
            self.x = self.x + x.sum(1, dtype=np.float64)
            self.y = self.y + y.sum(1, dtype=np.float64)
        if x.shape[2] <= WIDEST:
            self.xx = self.xx + (turned @ x).astype(np.float64)
            self.xy = self.xy + (turned @ y).astype(np.float64)
        else:
            self.squares = self.squares + np.square(x).sum(1, dtype=np.float64)
        self.yy += float(np.square(y, dtype=np.float64).sum())

    def __add__(self, other: Sums) -> Sums:
        if not self.rows or not other.rows:
            return self if self.rows else other
        pairs = ((getattr(self, k), getattr(other, k)) for k in ("rows", "x", "y", "xx", "xy", "yy", "squares"))
        return Sums(*(a + b for a, b in pairs))


@dataclass
class Target:
    """What the original computes at a layer's sampled places, feed by feed: rows `[P, M]` of the witness.

    weights: `[P]`, what an error at each place counts (`fisher`); empty: all alike.
    variance: of the witness, summed over channels: what an error of this layer is measured against.
    """

    places: list[Array] = field(default_factory=list)
    rows: list[Array] = field(default_factory=list)
    weights: list[Array] = field(default_factory=list)
    _room: Array | None = None

    def add(self, places: Array, rows: Array, feeds: int) -> None:
        """Keep the rows of one feed, in memory taken for all of them at once: what is kept between the activations of
        two runs, feed by feed, would leave holes that nothing else fits into (up to 500 MB were seen)."""
        self.places.append(places)
        if self._room is None:
            self._room = np.empty((feeds * len(rows), rows.shape[1]), np.float32)
        room, self._room = self._room[: len(rows)], self._room[len(rows) :]
        if len(room) < len(rows):
            room = np.empty(rows.shape, np.float32)
        room[:] = rows
        self.rows.append(room)

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


def rows_of(layer: Layer, tensor: Array, places: Array) -> Array:
    """Rows `[P, M]` of an output, or a tensor of its shape, at flat positions."""
    if layer.op != "Conv":
        return tensor.reshape(-1, tensor.shape[-1])[places]
    flat = tensor.reshape(tensor.shape[0], tensor.shape[1], -1)
    return flat[places // flat.shape[2], :, places % flat.shape[2]]


def targets(
    model: Model, wave: Sequence[Layer], feeds: Feeds, most: Mapping[str, int], seed: int, threads: int
) -> dict[str, Target]:
    """Run the original once and keep what its layers put out."""
    tap = Tap(model, [x.witness for x in wave], threads=threads)
    found = {x.node: Target() for x in wave}
    for index, feed in enumerate(feeds):
        values = tap.run(feed)
        for layer in wave:
            y = values[layer.witness]
            total = y.size // y.shape[1 if layer.op == "Conv" else -1]
            places = unfold.choose(total, most[layer.node], seed, layer.node, index)
            found[layer.node].add(places, rows_of(layer, y, places), len(feeds))
    return found


def against(
    wave: Sequence[Layer],
    nodes: Mapping[str, Any],
    walk: Iterable[Mapping[str, Array]],
    goals: Mapping[str, Target],
    kept: Mapping[str, Array],
) -> dict[str, tuple[Sums, Sums]]:
    """Sums of a pruned copy's inputs against the original's outputs: of the feeds to fit on, and of held-out ones.

    walk: the tensors that the layers read in the copy, feed by feed. kept: which output channels of a layer are left.
    Where a layer ends in a sum, the target is what the sum should be less the copy's other summand, so that the errors
    of the layers before are corrected too (He 2017).
    """
    geometry = {x.node: unfold.geometry(nodes[x.node]) for x in wave}
    sums = {x.node: (Sums(), Sums()) for x in wave}
    for index, values in enumerate(walk):
        for layer in wave:
            goal, geo = goals[layer.node], geometry[layer.node]
            places = goal.places[index]
            y = goal.rows[index][:, kept[layer.node]]
            if layer.other:
                y = y - rows_of(layer, values[layer.other], places)
            grouped = y.reshape(len(y), geo.groups, -1).transpose(1, 0, 2)
            rows = np.ascontiguousarray(unfold.rows(geo, values[layer.x], places))
            sums[layer.node][index % HELD_OUT == HELD_OUT - 1].add(
                rows, np.ascontiguousarray(grouped), goal.weights[index] if goal.weights else None
            )
    return sums
