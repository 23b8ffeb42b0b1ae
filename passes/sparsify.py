"""Weights set to zero, any or N of every M, chosen and made up for by second-order statistics.

Column by column, a weight that goes costs w² / [H⁻¹]ⱼⱼ, and the columns after it take its part over (Optimal Brain
Surgeon; SparseGPT, arXiv 2301.00774), H the covariance of the layer's input. What the mean loses goes into the bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ..ir import Model, edit
from ..ir.errors import OptionError
from ..runtime import moments
from ..runtime.moments import Moment
from .base import Context, LossyPass, PassResult, Skip
from .prune.layers import Layer, layers, matrix, store

Array = np.ndarray
DEFAULT = 0.5  # share of the weights at strength 1 when nobody says
BLOCK = 128  # columns whose zeros are chosen together
RIDGE = 1e-2  # of the mean of the diagonal
WIDEST = 6144  # columns whose covariance is inverted (8 · K² bytes, twice)
FEEDS = 256  # feeds that statistics look at, at most


@dataclass(frozen=True)
class Sparsify(LossyPass):
    """Set weights to zero where the outputs feel it least; the rest takes their part over.

    The file keeps its size and ONNX Runtime on CPUs multiplies with zeros as with any number: nothing gets faster here.
    Zeros help where files are compressed, and runtimes with sparse kernels.
    """

    name: ClassVar[str] = "sparsify"

    ratio: float | None = field(
        default=None,
        metadata={"help": "share of every layer's weights to set to zero, e.g. 0.5", "min": 0, "max": 0.99},
    )
    nm: str | None = field(
        default=None, metadata={"help": "keep N of every M weights along the input channels, e.g. 2:4"}
    )

    def __post_init__(self) -> None:
        if self.ratio is not None and self.nm is not None:
            raise OptionError("sparsify: give one of ratio and nm, not both")
        if self.nm is not None:
            self._pattern()

    def _pattern(self) -> tuple[int, int] | None:
        """(N, M) of `nm`."""
        if self.nm is None:
            return None
        kept, colon, of = self.nm.partition(":")
        if not colon or not kept.isdecimal() or not of.isdecimal() or not 0 < int(kept) < int(of):
            raise OptionError(f"sparsify: nm={self.nm} is not N:M with 0 < N < M, e.g. 2:4")
        return int(kept), int(of)

    @property
    def explicit(self) -> bool:
        """Whether ratio or nm says how much."""
        return self.ratio is not None or self.nm is not None

    def plan(self, model: Model, ctx: Context) -> list[Layer]:
        """The layers that may get zeros. Statistics stream in `apply`, since they would fill the memory."""
        ctx.note("sparsify: ONNX Runtime on CPUs does not skip zeros: the model gets no faster, its file no smaller")
        if ctx.source == "random":
            ctx.note("sparsify: no real data was given; weights go by magnitude, nothing makes up for them")
        nodes = {n.name: n for n in model.graph.nodes}
        return [x for x in layers(model) if not ctx.excluded(nodes[x.node])]

    def apply(self, model: Model, plan: list[Layer], strength: float, ctx: Context) -> PassResult:
        """Set zeros: this share of the ratio, or the pattern in this share of the layers, the largest last."""
        nodes, pattern = {n.name: n for n in model.graph.nodes}, self._pattern()
        skipped = [Skip(x.node, why) for x in plan if (why := _unfit(nodes[x.node], pattern))]
        unfit = {s.node for s in skipped}
        chosen = [x for x in plan if x.node not in unfit]
        if pattern and strength < 1:
            order = sorted(chosen, key=lambda x: (matrix(nodes[x.node]).size, x.node))
            names = {x.node for x in order[: max(1, round(strength * len(order)))]}
            chosen = [x for x in chosen if x.node in names]
        ratio = strength * (DEFAULT if self.ratio is None else self.ratio)
        zeros = total = 0
        for layer, moment in _statistics(model, chosen, ctx):
            new, bias = sparse(nodes, layer, moment, ratio, pattern)
            store(model, layer, nodes, new, bias)
            zeros, total = zeros + int((new == 0).sum()), total + new.size
        did = {"weights set to zero": zeros, "of": total, "layers": len(chosen)}
        return PassResult(zeros > 0, did, tuple(skipped))


def _unfit(node: gs.Node, pattern: tuple[int, int] | None) -> str:
    """Why a layer stays as it is; "" where it need not."""
    channels = _channels(node)
    if matrix(node).shape[2] < 8:
        return "fewer than 8 weights an output"
    if pattern and channels % pattern[1]:
        return f"{channels} input channels are no multiple of {pattern[1]}"
    return ""


def _channels(node: gs.Node) -> int:
    """Input channels of one group."""
    return int(node.inputs[1].shape[1]) if node.op == "Conv" else int(matrix(node).shape[2])


def _statistics(model: Model, chosen: list[Layer], ctx: Context) -> Any:
    """(layer, moment or None), with the statistics of the model as it came."""
    by_node = {x.node: x for x in chosen}
    if ctx.source == "random":
        yield from ((x, None) for x in chosen)
        return
    feeds = ctx.fit.spread(FEEDS)
    stream = moments.stream(
        model.copy(), list(by_node), feeds,
        memory_mb=ctx.memory_mb // 2, seed=ctx.seed, threads=ctx.workers, progress=ctx.progress,
    )  # fmt: skip
    yield from ((by_node[name], moment) for name, moment in stream)


def sparse(
    nodes: Mapping[str, gs.Node], layer: Layer, moment: Moment | None, ratio: float, pattern: tuple[int, int] | None
) -> tuple[Array, Array | None]:
    """Weights `[G, M/G, D]` with zeros, and the bias that keeps the outputs' mean (None: as it was)."""
    node = nodes[layer.node]
    old = matrix(node).astype(np.float64)
    order = _input_channels_last(node, old.shape[2])
    back, new = np.argsort(order), np.empty_like(old)
    for g, weight in enumerate(old):
        covariance, spread = _covariance(moment, g, len(old))
        if covariance is None:
            new[g] = magnitudes(weight[:, order], spread[order], ratio, pattern)[:, back]
        else:
            new[g] = surgeon(weight[:, order], covariance[np.ix_(order, order)], ratio, pattern)[:, back]
    if moment is None or layer.bias is None:
        return new, None
    shift = np.einsum("gmd,gd->gm", old - new, moment.mean.reshape(len(old), -1)).reshape(-1)
    present = edit.const(nodes[layer.bias[0]], layer.bias[1])
    return new, shift + (0.0 if present is None else present)


def _input_channels_last(node: gs.Node, width: int) -> Array:
    """Columns tap by tap, so that the input channels of one tap are neighbours, as N:M kernels want them."""
    channels = _channels(node)
    return np.arange(width).reshape(channels, -1).T.reshape(-1)


def _covariance(moment: Moment | None, group: int, groups: int) -> tuple[Array | None, Array]:
    """Covariance of a group's inputs, or None where there is none or it is too wide; and the variances."""
    if moment is None:
        return None, np.ones(1 << 20)  # magnitudes: every input counts alike
    if moment.width > WIDEST and moment.X is not None:
        rows = moment.X.reshape(groups, -1, moment.width)[group]
        return None, rows.var(0, dtype=np.float64)
    mean = moment.mean.reshape(groups, -1)[group]
    second = moment.second.reshape(groups, moment.width, moment.width)[group]
    covariance = second - np.outer(mean, mean)
    return (covariance if moment.width <= WIDEST else None), np.diagonal(covariance)


def magnitudes(weight: Array, spread: Array, ratio: float, pattern: tuple[int, int] | None) -> Array:
    """Zeros where w² times the input's variance is least; nothing makes up for them."""
    return np.where(_zeros(np.square(weight) * spread[: weight.shape[1]], ratio, pattern), 0.0, weight)


def surgeon(weight: Array, covariance: Array, ratio: float, pattern: tuple[int, int] | None) -> Array:
    """Zeros column by column, the columns after it refitted; weight `[M, D]`, covariance `[D, D]`."""
    width = len(covariance)
    ridge = max(float(np.trace(covariance)) / width, 1e-12) * RIDGE
    inverse = np.linalg.inv(covariance + ridge * np.eye(width))
    upper = np.linalg.cholesky((inverse + inverse.T) / 2).T
    left, each = weight.copy(), np.square(np.diagonal(upper))
    block = BLOCK if pattern is None else pattern[1]
    for start in range(0, width, block):
        stop = min(start + block, width)
        gone = _zeros(np.square(left[:, start:stop]) / each[start:stop], ratio, pattern)
        for column in range(start, stop):
            lost = np.where(gone[:, column - start], left[:, column], 0.0) / upper[column, column]
            left[:, column:] -= np.outer(lost, upper[column, column:])
        left[:, start:stop][gone] = 0.0
    return left


def _zeros(score: Array, ratio: float, pattern: tuple[int, int] | None) -> Array:
    """Which weights go: the cheapest share of all, or the cheapest M - N of every M in a row."""
    gone = np.zeros(score.shape, bool)
    if pattern is None:
        count = round(ratio * score.size)
        gone.reshape(-1)[np.argsort(score, axis=None, kind="stable")[:count]] = True
        return gone
    kept, of = pattern
    tiles = score.reshape(len(score), -1, of)
    cheapest = np.argsort(tiles, axis=2, kind="stable")[:, :, : of - kept]
    np.put_along_axis(gone.reshape(tiles.shape), cheapest, True, axis=2)
    return gone
