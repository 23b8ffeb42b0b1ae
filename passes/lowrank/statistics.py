"""From the runtime's streamed moments to the norms in which layers are approximated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...ir import Model
from ...runtime import moments
from ..base import Context
from .layer import Layer
from .norm import Norm


def norms(model: Model, layers: Sequence[Layer], ctx: Context) -> Iterator[tuple[Layer, Norm]]:
    """(layer, norm of its input) in the order of the graph; one wave of moments is alive at a time.

    Without real data every norm is the identity: the plain decomposition of the weights.
    """
    if ctx.source == "random":
        yield from ((layer, Norm.identity(layer.width)) for layer in layers)
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
        layer = by_name[name]
        thin, second = moment.factor, None if moment.factor is not None else moment.second
        yield layer, Norm.of(moment.mean, moment.samples, second=second, thin=thin, centre=layer.adjustable)
