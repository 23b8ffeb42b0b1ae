"""From the runtime's streamed moments to the norms in which layers are approximated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ...ir import Model
from ...runtime import moments
from ...runtime.moments import Moment
from ..base import Context
from .layer import Layer
from .norm import Norm


def norms(model: Model, layers: Sequence[Layer], ctx: Context) -> Iterator[tuple[Layer, list[Norm]]]:
    """(layer, norm of each group's input) in the order of the graph; one wave of moments is alive at a time.

    Without real data every norm is the identity: the plain decomposition of the weights.
    """
    if ctx.source == "random":
        yield from ((layer, [Norm.identity(layer.width)] * layer.groups) for layer in layers)
        return
    by_name = {layer.node.name: layer for layer in layers}
    found = moments.stream(
        model,
        list(by_name),
        ctx.fit,
        memory_mb=ctx.memory_mb // 2,
        seed=ctx.seed,
        threads=ctx.workers,
        progress=ctx.progress,
    )
    for name, moment in found:
        parts = [_norm(by_name[name], part) for part in _groups(moment)]
        del moment  # nothing of the size of a norm waits here for the next one
        yield by_name[name], parts


def _groups(moment: Moment) -> list[Moment]:
    """One moment a group."""
    if moment.mean.ndim == 1:
        return [moment]
    return [
        Moment(
            mean, None if moment.H is None else moment.H[g], None if moment.X is None else moment.X[g], moment.samples
        )
        for g, mean in enumerate(moment.mean)
    ]


def _norm(layer: Layer, moment: Moment) -> Norm:
    """Of the unfolded input; a transposed convolution unfolds its output, and its taps all see the same inputs."""
    if layer.op == "ConvTranspose":
        return Norm.of(moment.mean, moment.samples, second=moment.second, centre=False).repeated(layer.taps)
    if moment.X is None:
        return Norm.of(moment.mean, moment.samples, second=moment.H, centre=layer.adjustable)
    thin = np.divide(moment.X, np.float32(np.sqrt(moment.samples)), out=moment.X)  # nobody else reads the rows
    return Norm.of(moment.mean, moment.samples, thin=thin, centre=layer.adjustable)
