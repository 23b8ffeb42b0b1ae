"""Weights set to zero, any or N of every M, chosen and made up for by second-order statistics.

Column by column, a weight that goes costs w² / [H⁻¹]ⱼⱼ, and the columns after it take its part over (Optimal Brain
Surgeon; SparseGPT, arXiv 2301.00774), H the covariance of the layer's input. Layers are taken level by level: each is
first fitted to what the original puts out, on the inputs that the layers with zeros before it give, and then gets its
own zeros. What the mean loses goes into the bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ..ir import Model
from ..ir.errors import OptionError
from ..runtime.feeds import Feeds
from .base import Context, LossyPass, PassResult, Skip
from .prune import plan as planning
from .prune.layers import CONVOLUTIONS, Layer, layers, matrix, store, tied
from .prune.left import Left
from .prune.refit import refit
from .prune.stats import Target
from .prune.unfitted import unfitted

Array = np.ndarray
DEFAULT = 0.5  # share of the weights at strength 1 when nobody says
BLOCK = 128  # columns whose zeros are chosen together
RIDGE = 1e-2  # of the mean of the diagonal
REFITS = ("droplayers", "prune", "lowrank")  # passes that make new weights


@dataclass
class Plan:
    """The layers that may get zeros, what the original puts out there, and the feeds (none: no real data).

    left: names of what holds weights and is left alone, with the reasons.
    """

    layers: list[Layer]
    left: Mapping[str, str]
    goals: Mapping[str, Target] = field(default_factory=dict)
    feeds: Feeds | None = None


@dataclass(frozen=True)
class Sparsify(LossyPass):
    """Set weights to zero where the outputs feel it least; the rest takes their part over.

    The file keeps its size and ONNX Runtime on CPUs multiplies with zeros as with any number: nothing gets faster here.
    Zeros help where files are compressed, and runtimes with sparse kernels.
    """

    name: ClassVar[str] = "sparsify"

    ratio: float | None = field(
        default=None,
        metadata={
            "help": "share of every layer's weights to set to zero; half where neither this nor nm is given",
            "min": 0,
            "max": 0.99,
        },
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

    def plan(self, model: Model, ctx: Context) -> Plan:
        """The layers that may get zeros, and what they put out."""
        ctx.note("sparsify: ONNX Runtime on CPUs does not skip zeros: the model gets no faster, its file no smaller")
        found = layers(model, keep=ctx.excluded)
        shared = tied(model, found)
        found = [x for x in found if x.node not in shared]
        left = unfitted(model, found, ctx.excluded)
        if after := [name for name in REFITS if name in ctx.follows]:
            ctx.note(f"sparsify: {after[0]}, which comes after it, fills zeros again: give sparsify behind it")
        if ctx.source == "random":
            ctx.note("sparsify: no real data was given; weights go by magnitude, nothing makes up for them")
            return Plan(found, left)
        feeds = planning.fitting_feeds(ctx)
        return Plan(found, left, planning.goals(model, found, feeds, ctx), feeds)

    def apply(self, model: Model, plan: Plan, strength: float, ctx: Context) -> PassResult:
        """Set zeros: this share of the ratio, or the pattern in this share of the layers, the largest last."""
        nodes, pattern = {n.name: n for n in model.graph.nodes}, self._pattern()
        left = {**plan.left, **{x.node: why for x in plan.layers if (why := _unfit(nodes[x.node], pattern))}}
        chosen = [x for x in plan.layers if x.node not in left]
        if pattern and strength < 1:
            order = sorted(chosen, key=lambda x: (matrix(nodes[x.node]).size, x.node))
            later = order[max(1, round(strength * len(order))) :]
            left.update((x.node, f"the pattern at strength {strength:g} is for smaller layers only") for x in later)
            chosen = [x for x in chosen if x.node not in left]
        ratio = strength * (DEFAULT if self.ratio is None else self.ratio)
        zeros, done = 0, set[str]()

        def finish(layer: Layer, found: Array, sums: Any | None) -> Array:
            nonlocal zeros
            new = sparse(nodes[layer.node], found, sums, ratio, pattern, layer.bias is not None)
            if np.isfinite(new).all():
                zeros += int((new == 0).sum())
                done.add(layer.node)
            return new

        if plan.feeds is None:
            for layer in chosen:
                store(model, layer, nodes, finish(layer, matrix(nodes[layer.node]).astype(np.float64), None), None)
        else:
            kept = {x.node: Left.whole(int(np.prod(matrix(nodes[x.node]).shape[:2]))) for x in chosen}
            refit(model, chosen, plan.feeds, plan.goals, kept, ctx, finish=finish)
        left.update((x.node, "its weights could not be fitted to finite values") for x in chosen if x.node not in done)
        total = sum(matrix(nodes[x.node]).size for x in chosen if x.node in done)
        did = {"weights set to zero": zeros, "of": total, "layers": len(done)}
        return PassResult(zeros > 0, did, tuple(Skip(name, why) for name, why in left.items()))


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
    width, taps = int(matrix(node).shape[2]), node.inputs[1].shape[2:] if node.op in CONVOLUTIONS else ()
    return width // int(np.prod(taps))


def sparse(
    node: gs.Node, old: Array, sums: Any | None, ratio: float, pattern: tuple[int, int] | None, centred: bool = True
) -> Array:
    """Weights `[G, M/G, D]` with zeros; sums: over rows of their inputs (None: zeros by magnitude); centred: whether a
    bias keeps the mean."""
    order = _input_channels_last(node, old.shape[2])
    back, new = np.argsort(order), np.empty_like(old)
    for g, weight in enumerate(old):
        covariance, spread = _covariance(sums, g, old.shape[2], centred)
        if covariance is None:
            new[g] = magnitudes(weight[:, order], spread[order], ratio, pattern)[:, back]
        else:
            new[g] = surgeon(weight[:, order], covariance[np.ix_(order, order)], ratio, pattern)[:, back]
    return new


def _input_channels_last(node: gs.Node, width: int) -> Array:
    """Columns tap by tap, so that the input channels of one tap are neighbours, as N:M kernels want them."""
    channels = _channels(node)
    return np.arange(width).reshape(channels, -1).T.reshape(-1)


def _covariance(sums: Any | None, group: int, width: int, centred: bool) -> tuple[Array | None, Array]:
    """Covariance of a group's inputs, or None where there is none or it is too wide; and the variances."""
    if sums is None:
        return None, np.ones(width)  # magnitudes: every input counts alike
    return sums.covariance(group, centred)  # type: ignore[no-any-return]


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
