"""What a removal leaves of every layer's outputs: channels, and rows where the channels of another layer count them (a
linear layer over the frequencies of a convolution's image, token mixing)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...ir.flow import Flow
from ...ir.resizing import Alive
from .cut import alive_after
from .layers import Layer

Array = np.ndarray


@dataclass(frozen=True)
class Left:
    """Of one layer. channels: mask `[M]`. rows: by axis that rows are counted over, a mask, or None where all stay."""

    channels: Array
    rows: tuple[Array | None, ...] = ()

    @classmethod
    def whole(cls, count: int) -> Left:
        """All of so many channels, and all rows."""
        return cls(np.ones(count, bool))

    def places(self, old: Array, sizes: Sequence[int]) -> tuple[Array | None, Array]:
        """Which flat positions over rows of these sizes stay (None: all), and where those are among what is left."""
        if all(mask is None for mask in self.rows):
            return None, old
        masks = [np.ones(n, bool) if mask is None else mask for n, mask in zip(sizes, self.rows)]
        at = np.unravel_index(old, tuple(sizes))
        stays = np.logical_and.reduce([mask[index] for mask, index in zip(masks, at)])
        new = tuple((np.cumsum(mask) - 1)[index[stays]] for mask, index in zip(masks, at))
        return stays, np.ravel_multi_index(new, [int(mask.sum()) for mask in masks])


def left(flow: Flow, layers: Sequence[Layer], counts: Mapping[str, int], gone: Array) -> dict[str, Left]:
    """Of every layer, when these units are gone. counts: of their outputs."""
    alive = alive_after(flow, gone)
    return {x.node: Left(_channels(flow, x, counts[x.node], alive), _rows(flow, x, alive)) for x in layers}


def _channels(flow: Flow, layer: Layer, count: int, alive: Alive) -> Array:
    seen = layer.y if layer.gates else layer.witness
    labels = flow.labels.get(seen, [])
    if not labels:
        return np.ones(count, bool)
    mask = np.ones(1, bool)
    for axis in layer.made:
        cells = labels[axis]
        each = np.ones(flow.sizes[seen][axis], bool) if cells is None else alive(cells)
        mask = np.logical_and.outer(mask, each).reshape(-1)
    return np.tile(mask, max(layer.gates, 1))


def _rows(flow: Flow, layer: Layer, alive: Alive) -> tuple[Array | None, ...]:
    labels = flow.labels.get(layer.witness, [])
    made = {a % len(labels) for a in layer.made if labels}
    masks = [None if cells is None else alive(cells) for axis, cells in enumerate(labels) if axis not in made]
    return tuple(None if mask is None or mask.all() else mask for mask in masks)
