"""Moments of a compressed model's layers beside the original's, over the same rows: what a closed-form refit needs.

For a layer whose input became x̂ and whose target is t (the original's input x to that layer, or its output y), the
weight that minimises E‖t - W' x̂‖² is W' = G (H + λI)⁻¹ with G = E[t x̂ᵀ], H = E[x̂ x̂ᵀ]. For t = x the refit of the
original weight W is W·G·(H + λI)⁻¹. Rows are chosen as in `moments`, by the original layer's name.

Memory: as in `moments`, 8·K̂² + 8·T·K̂ bytes a layer and both models' tensors of the wave on one feed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ..ir.errors import PassError
from ..ir.model import Model
from . import probe, unfold
from .feeds import Feeds
from .moments import BLOCK, Progress, Rows, Sum, rows_per_feed, shown
from .taps import Tap, waves
from .unfold import Geometry


@dataclass(frozen=True)
class Pair:
    """A layer of the original and what became of it, by node names.

    target: "x" for the original's unfolded input, "y" for its output (bias included) as the target t.
    """

    original: str
    compressed: str
    target: str = "y"


@dataclass(frozen=True)
class PairMoment:
    """A compressed layer's unfolded input x̂ (K̂ entries) beside the target t (T entries).

    H: E[x̂ x̂ᵀ] [K̂, K̂]. G: E[t x̂ᵀ] [T, K̂]. mean: E[x̂] [K̂]. mean_target: E[t] [T]. energy: E‖t‖². With a leading
    group axis for G > 1 groups (T is then per group); all float64. samples: rows seen.
    """

    H: np.ndarray
    G: np.ndarray
    mean: np.ndarray
    mean_target: np.ndarray
    energy: float
    samples: int


@dataclass
class _Layer:
    """One pair in the making."""

    pair: Pair
    ours: Geometry
    theirs: Geometry
    source: str
    wanted: str
    most: int
    bytes: int
    H: Sum = field(default_factory=Sum)
    G: Sum = field(default_factory=Sum)
    means: list[Any] = field(default_factory=lambda: [0.0, 0.0])
    energy: float = 0.0
    samples: int = 0

    def __post_init__(self) -> None:
        self.waiting = Rows(BLOCK + self.most)

    def add(self, x: np.ndarray, t: np.ndarray, seed: int, index: int) -> None:
        """One feed: the compressed layer's input and the original's tensor."""
        total = unfold.count(self.theirs, x.shape)
        positions = unfold.choose(total, self.most, seed, self.pair.original, index)
        inputs = unfold.rows(self.theirs, x, positions)
        if self.pair.target == "x":
            self._same(unfold.count(self.ours, t.shape), total)
            wanted = unfold.rows(self.ours, t, positions)
        else:
            spatial = t.shape[2:] if self.ours.kernel else t.shape[1:-1]
            self._same(int(np.prod((t.shape[0], *spatial), dtype=np.int64)) if t.ndim > 1 else 1, total)
            wanted = unfold.targets(self.ours, t, positions)
        self.means[0] = self.means[0] + inputs.sum(axis=1, dtype=np.float64)
        self.means[1] = self.means[1] + wanted.sum(axis=1, dtype=np.float64)
        self.energy += float(np.einsum("gpk,gpk->", wanted, wanted, dtype=np.float64))
        self.samples += inputs.shape[1]
        self.waiting.add(inputs, wanted)
        if self.waiting.held >= BLOCK:
            self.flush()

    def flush(self) -> None:
        """Multiply what waits."""
        if self.waiting.held:
            x, t = self.waiting.take()
            self.H.add(x, x)
            self.G.add(t, x)

    def result(self) -> PairMoment:
        """The moments over all feeds."""
        self.flush()
        if self.H.total is None or self.G.total is None:
            raise PassError(f"node '{self.pair.compressed}' saw no rows: its input was empty on every feed")
        n = self.samples
        H, G, mean, target = self.H.total / n, self.G.total / n, self.means[0] / n, self.means[1] / n
        if self.theirs.groups == 1:
            H, G, mean, target = H[0], G[0], mean[0], target[0]
        return PairMoment(H, G, mean, target, self.energy / n, n)

    def _same(self, a: int, b: int) -> None:
        if a != b:
            raise PassError(
                f"nodes '{self.pair.original}' and '{self.pair.compressed}' do not run over the same positions "
                f"({a} and {b})"
            )


def collect_pairs(
    original: Model,
    compressed: Model,
    pairs: Sequence[Pair],
    feeds: Feeds,
    *,
    memory_mb: int = 512,
    seed: int = 0,
    max_rows_per_feed: int | None = None,
    threads: int = 1,
    progress: Progress | None = None,
) -> dict[str, PairMoment]:
    """{compressed node's name: PairMoment}, of Conv, Gemm and MatMul nodes of the main graphs.

    Raises PassError when a node is missing or linear only in name, or when the two differ in groups or positions.
    """
    budget = max(1, memory_mb << 20) // 2
    layers = _layers(original, compressed, pairs, len(feeds), budget, max_rows_per_feed)
    by_name = {layer.pair.compressed: layer for layer in layers}
    first = feeds.first()
    inputs = probe.sizes(compressed, first, {layer.source for layer in layers})
    wanted = probe.sizes(original, first, {layer.wanted for layer in layers})
    sizes = {n: p.bytes + inputs.get(p.source, 0) + wanted.get(p.wanted, 0) for n, p in by_name.items()}
    found: dict[str, PairMoment] = {}
    for wave in waves(by_name, sizes, budget):
        parts = [by_name[n] for n in wave]
        left = Tap(original, [p.wanted for p in parts], threads=threads)
        right = Tap(compressed, [p.source for p in parts], threads=threads)
        for index, feed in enumerate(shown(feeds, progress, "moments", len(feeds))):
            targets, sources = left.run(feed), right.run(feed)
            for part in parts:
                part.add(sources[part.source], targets[part.wanted], seed, index)
        found.update((p.pair.compressed, p.result()) for p in parts)
        for part in parts:
            part.H, part.G = Sum(), Sum()
    return {p.compressed: found[p.compressed] for p in pairs}


def _layers(
    original: Model, compressed: Model, pairs: Sequence[Pair], feeds: int, budget: int, most: int | None
) -> list[_Layer]:
    ours = {n.name: n for n in original.graph.nodes}
    theirs = {n.name: n for n in compressed.graph.nodes}
    order = {name: k for k, name in enumerate(theirs)}
    layers = []
    for pair in sorted(pairs, key=lambda p: order.get(p.compressed, 0)):
        a, b = _node(ours, pair.original, "original"), _node(theirs, pair.compressed, "compressed")
        left, right = unfold.geometry(a), unfold.geometry(b)
        if left.groups != right.groups:
            raise PassError(f"node '{b.name}' has {right.groups} groups, '{a.name}' {left.groups}: no common rows")
        each = rows_per_feed(right, feeds, budget)[0] if most is None else most
        wanted = a.inputs[0] if pair.target == "x" else a.outputs[0]
        height = left.width if pair.target == "x" else _height(a, left)
        size = 8 * right.groups * right.width * (right.width + height)
        layers.append(_Layer(pair, left, right, b.inputs[0].name, wanted.name, each, size))
    return layers


def _node(nodes: dict[str, gs.Node], name: str, which: str) -> gs.Node:
    if name not in nodes:
        raise PassError(f"the {which} model's main graph has no node '{name}'")
    return nodes[name]


def _height(node: gs.Node, geo: Geometry) -> int:
    """Outputs per group."""
    shape = node.inputs[1].shape
    if geo.kernel:
        return int(shape[0]) // geo.groups
    last = shape[0] if node.op == "Gemm" and node.attrs.get("transB", 0) else shape[-1]
    return int(last) if len(shape) > 1 else 1


__all__ = ["Pair", "PairMoment", "collect_pairs"]
