"""First and second moments of what linear layers multiply, streamed: one statistic for prune, lowrank and quant.

For a Conv, Gemm or MatMul with weight W and unfolded input rows x (see `unfold`): mean E[x] and H = E[x xᵀ], grouped
convolutions per group. Rows are subsampled per feed (seeded; the same rows for the same layer and feed). Products
are float32 GEMMs over 1,024 rows or what one feed brings, accumulated in float64: relative error about 1e-6.

Memory: layers are taken in waves, in the order of the graph, whose matrices (8·K² bytes each, or 4·rows·K for a
thin factor) and whose inputs on one feed stay under half of `memory_mb` each; a layer beyond that goes alone. `stream`
gives each wave's moments out before the next begins; `collect` keeps them all. A layer for which fewer than K rows
are seen keeps the rows themselves (the thin factor X, H = XᵀX / rows), as does one whose H would not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..ir.errors import PassError
from ..ir.model import Model
from . import probe, unfold
from .feeds import Feeds
from .loading import give_back
from .relay import relayed
from .taps import waves
from .unfold import Geometry

Progress = Callable[[Iterable[Any], str, "int | None"], Iterable[Any]]
BLOCK = 1024  # rows in a product, columns of H in a block of it
FEWEST, MOST = 2048, 16384  # rows aimed at over all feeds: 4·K between these


@dataclass(frozen=True)
class Moment:
    """What was seen of a layer's input over `samples` rows.

    mean: [K], or [G, K] for G > 1 groups; float64. H: E[x xᵀ], [K, K] or [G, K, K], float64; None where X is kept.
    X: the rows themselves, [samples, K] or [G, samples, K], float32; None where H is kept.
    """

    mean: np.ndarray
    H: np.ndarray | None
    X: np.ndarray | None
    samples: int

    @property
    def width(self) -> int:
        """K."""
        return int(self.mean.shape[-1])

    @property
    def second(self) -> np.ndarray:
        """H, formed from the thin factor where there is only that (8·K² bytes)."""
        if self.X is None:
            return self.H  # type: ignore[return-value]  # one of the two is always there
        wide = self.X.astype(np.float64)
        return np.swapaxes(wide, -1, -2) @ wide / max(1, self.samples)


@dataclass
class Sum:
    """Σ aᵀ b over rows, in float64, from blocks of float32 rows [G, P, ·]."""

    total: np.ndarray | None = None

    def add(self, a: np.ndarray, b: np.ndarray) -> None:
        """Add the products of some rows."""
        if self.total is None:
            self.total = np.zeros((a.shape[0], a.shape[2], b.shape[2]))
        for k in range(0, a.shape[2], BLOCK):
            self.total[:, k : k + BLOCK] += np.swapaxes(a[:, :, k : k + BLOCK], 1, 2) @ b


@dataclass
class Rows:
    """Rows waiting to be multiplied: products of many rows at once are far faster than one a feed.

    room: rows that may wait. Memory is taken for all of them at once: what is kept between the activations of two runs,
    feed by feed, would leave holes that nothing else fits into (800 MB were seen).
    """

    room: int
    held: int = 0
    _kept: list[np.ndarray] = field(default_factory=list)

    def add(self, *arrays: np.ndarray) -> None:
        """Put aside rows of one feed: arrays [G, P, ·] that belong together."""
        if not self._kept:
            self._kept = [np.empty((self.room, a.shape[0], a.shape[2]), a.dtype) for a in arrays]
        end = self.held + arrays[0].shape[1]
        for kept, array in zip(self._kept, arrays):
            kept[self.held : end] = array.swapaxes(0, 1)
        self.held = end

    def take(self) -> list[np.ndarray]:
        """All that waited, [G, P, ·]."""
        joined = [np.ascontiguousarray(kept[: self.held].swapaxes(0, 1)) for kept in self._kept]
        self._kept, self.held = [], 0
        return joined


class _Accumulator:
    """One layer's moments in the making. thin: keep the rows. room: rows that may wait at the same time."""

    def __init__(self, geo: Geometry, thin: bool, room: int):
        self.geo, self.thin = geo, thin
        self.mean = np.zeros((geo.groups, geo.width))
        self.samples = 0
        self.waiting, self.sum = Rows(room), Sum()

    def add(self, rows: np.ndarray) -> None:
        self.mean += rows.sum(axis=1, dtype=np.float64)
        self.samples += rows.shape[1]
        self.waiting.add(rows)
        if not self.thin and self.waiting.held >= BLOCK:
            self.flush()

    def flush(self) -> None:
        if self.waiting.held:
            (x,) = self.waiting.take()
            self.sum.add(x, x)

    def result(self) -> Moment:
        if not self.samples:
            raise PassError("a layer saw no rows: its input was empty on every feed")
        kept: np.ndarray | None = None
        if self.sum.total is None and (self.thin or self.samples < self.geo.width):
            (kept,) = self.waiting.take()
        else:
            self.flush()
        H, self.sum = self.sum.total, Sum()
        if H is not None:
            H /= self.samples
        mean = self.mean / self.samples
        if self.geo.groups > 1:
            return Moment(mean, H, kept, self.samples)
        return Moment(mean[0], None if H is None else H[0], None if kept is None else kept[0], self.samples)


def rows_per_feed(geo: Geometry, feeds: int, budget: int) -> tuple[int, bool]:
    """(rows to take from every feed, whether to keep them as a thin factor)."""
    matrix = 8 * geo.groups * geo.width**2
    if matrix > budget:
        total = max(16, budget // (4 * geo.groups * geo.width))
        return max(1, min(total, MOST) // feeds), True
    total = min(max(4 * geo.width, FEWEST), MOST)
    return -(-total // feeds), False


@dataclass(frozen=True)
class _Layer:
    """A layer to look at. most: rows of each feed. room: rows that wait. bytes: what its sums will take."""

    name: str
    geo: Geometry
    source: str
    most: int
    thin: bool
    room: int
    bytes: int


def stream(
    model: Model,
    nodes: Sequence[str],
    feeds: Feeds,
    *,
    memory_mb: int = 512,
    seed: int = 0,
    max_rows_per_feed: int | None = None,
    keep_rows: bool = False,
    geometry: Callable[[Any], Geometry] = unfold.geometry,
    threads: int = 1,
    progress: Progress | None = None,
    skip_unseen: bool = False,
) -> Iterator[tuple[str, Moment]]:
    """(node name, Moment), wave by wave in the order of the graph; see `collect`.

    keep_rows: keep the rows themselves (`Moment.X`, feed after feed) whatever their number. geometry: how a node is
    read; `unfold.regression` serves ConvTranspose output by output, and Einsum. skip_unseen: leave out layers that saw
    no rows (the second stage of a detector that found nothing), which else raise PassError.
    """
    budget = max(1, memory_mb << 20) // 2
    layers = _layers(model, nodes, len(feeds), budget, max_rows_per_feed, keep_rows, geometry)
    planned = _waves(layers, probe.sizes(model, feeds.first(), _sources(layers)), budget)
    for wave, walk in zip(planned, relayed(model, map(_sources, planned), feeds, threads=threads)):
        give_back()  # what the wave before has freed lies in pieces between what is kept
        sums = {layer.name: _Accumulator(layer.geo, layer.thin, layer.room) for layer in wave}
        _fill(sums, wave, shown(walk, progress, "moments", len(feeds)), seed)
        for layer in wave:
            found = sums.pop(layer.name)
            if found.samples or not skip_unseen:
                yield layer.name, found.result()


def _fill(sums: Mapping[str, _Accumulator], wave: Sequence[_Layer], walk: Iterable[Any], seed: int) -> None:
    """Add up the rows of all feeds; session and activations are gone before anybody works with the sums."""
    for index, values in enumerate(walk):
        for layer in wave:
            x = values[layer.source]
            picked = unfold.choose(unfold.count(layer.geo, x.shape), layer.most, seed, layer.name, index)
            sums[layer.name].add(unfold.rows(layer.geo, x, picked))


def collect(
    model: Model,
    nodes: Sequence[str],
    feeds: Feeds,
    *,
    memory_mb: int = 512,
    seed: int = 0,
    max_rows_per_feed: int | None = None,
    threads: int = 1,
    progress: Progress | None = None,
) -> dict[str, Moment]:
    """{node name: Moment} of the data inputs of Conv, Gemm and MatMul nodes of the main graph.

    max_rows_per_feed: output positions taken of each feed; when None as many as make about 4·K rows over all feeds
    (2,048 to 16,384). Raises PassError for a node that is none of these or is not in the main graph.
    """
    found = dict(
        stream(
            model,
            nodes,
            feeds,
            memory_mb=memory_mb,
            seed=seed,
            max_rows_per_feed=max_rows_per_feed,
            threads=threads,
            progress=progress,
        )
    )
    return {n: found[n] for n in nodes}


def _layers(
    model: Model,
    nodes: Sequence[str],
    feeds: int,
    budget: int,
    most: int | None,
    keep_rows: bool,
    geometry: Callable[[Any], Geometry],
) -> list[_Layer]:
    wanted, layers = set(nodes), []
    for node in model.graph.nodes:
        if node.name in wanted:
            geo = geometry(node)
            each, thin = rows_per_feed(geo, feeds, budget)
            each = each if most is None else (min(most, each) if thin else most)
            # Rows are kept while there are fewer of them than columns: the factor is then smaller than H.
            thin = thin or keep_rows or each * feeds < geo.width
            size = geo.groups * geo.width * (4 * each * feeds if thin else 8 * geo.width + 4 * BLOCK)
            room = each * feeds if thin else BLOCK + each
            layers.append(_Layer(node.name, geo, node.inputs[geo.source].name, each, thin, room, size))
    missing = wanted - {layer.name for layer in layers}
    if missing:
        raise PassError(f"the model's main graph has no node '{min(missing)}'")
    return layers


def _sources(layers: Iterable[_Layer]) -> list[str]:
    return list(dict.fromkeys(layer.source for layer in layers))


def _waves(layers: Sequence[_Layer], sizes: Mapping[str, int], budget: int) -> list[list[_Layer]]:
    """Layers in order, cut where their sums, or their inputs on one feed, would exceed the budget."""
    by_name = {layer.name: layer for layer in layers}
    planned = []
    for wave in waves(by_name, {n: layer.bytes for n, layer in by_name.items()}, budget):
        inputs: dict[str, list[_Layer]] = {}
        for name in wave:
            inputs.setdefault(by_name[name].source, []).append(by_name[name])
        for sources in waves(inputs, sizes, budget):
            planned.append([layer for s in sources for layer in inputs[s]])
    return planned


def shown(items: Iterable[Any], progress: Progress | None, label: str, total: int) -> Iterable[Any]:
    """So many items, with a progress bar where one is wanted."""
    return items if progress is None else progress(items, label, total)


__all__ = ["Moment", "Rows", "Sum", "collect", "rows_per_feed", "shown", "stream"]
