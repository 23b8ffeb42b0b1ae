"""The layer before a dropped block, fitted to what came out of the block: for trials, on the original's own inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ...ir import Model
from ...runtime.feeds import Feeds
from ...runtime.taps import Tap
from ..base import Context
from . import plan as planning
from .layers import Layer, bias_of, layers, matrix
from .left import Left
from .refit import fitted
from .stats import Target, against, rows_of
from .trial import Change

Array = np.ndarray
FEEDS = 16  # that trials are fitted on


def aimed(layer: Layer, takes: Mapping[str, str]) -> Layer:
    """A layer whose goal is the sum behind the dropped blocks that follow it. takes: `droplayers.takers`."""
    goal = layer.witness
    while goal in takes:
        goal = takes[goal]
    return replace(layer, witness=goal)


def goals(
    model: Model, found: Sequence[Layer], takes: Mapping[str, str], feeds: Feeds, ctx: Context
) -> dict[str, Target]:
    """What layers aim at when blocks are dropped behind them.

    Where a ReLU lies between a layer and the block, only what is positive is asked for: a place where nothing comes out
    of the ReLU behind keeps the layer's own negative value, since a linear fit of zeros would spoil the rest.
    """
    made = planning.goals(model, [aimed(x, takes) for x in found], feeds, ctx)
    rectified = {n.inputs[0].name for n in model.graph.nodes if n.op == "Relu" and n.outputs[0].name in takes}
    mended = [x for x in found if x.witness in takes and x.witness in rectified]
    if mended:
        tap = Tap(model, list(dict.fromkeys(x.witness for x in mended)), threads=ctx.workers)
        for index, feed in enumerate(feeds):
            values = tap.run(feed)
            for layer in mended:
                goal = made[layer.node]
                own = rows_of(layer, values[layer.witness], goal.places[index])
                goal.rows[index] = rectifying(own, goal.rows[index])
    return made


def rectifying(own: Array, aim: Array) -> Array:
    """What to fit where a ReLU follows: the aim, but a value below zero of its own where the aim is no farther from
    zero than it (moving it would cost the linear fit more than the ReLU can gain)."""
    return np.where((own > 0) | (aim > -own), np.maximum(aim, np.minimum(own, 0)), own)


class Neighbours:
    """Fits of the layers that take over, remembered by what they aim at."""

    def __init__(self, model: Model, takes: Mapping[str, str], feeds: Feeds, ctx: Context):
        """takes: tensor -> the sum behind the block that follows it, of every block that may go."""
        self.model, self.feeds, self.ctx = model, feeds.spread(FEEDS), ctx
        self.nodes = {n.name: n for n in model.graph.nodes}
        self.layers = [x for x in layers(model, keep=ctx.excluded) if x.witness in takes]
        self.known: dict[tuple[str, str], Change] = {}
        self._fit(self.layers, {x.witness: takes[x.witness] for x in self.layers})

    def changes(self, takes: Mapping[str, str]) -> dict[str, Change]:
        """What the layers before these dropped blocks become."""
        wanted = {x.node: (x, aimed(x, takes).witness) for x in self.layers if x.witness in takes}
        self._fit([x for n, (x, aim) in wanted.items() if (n, aim) not in self.known], takes)
        return {n: self.known[n, aim] for n, (_, aim) in wanted.items()}

    def _fit(self, wave: Sequence[Layer], takes: Mapping[str, str]) -> None:
        if not wave:
            return
        aims = goals(self.model, wave, takes, self.feeds, self.ctx)
        tap = Tap(self.model, [n for x in wave for n in (x.x, x.other) if n], threads=self.ctx.workers)
        old = {x.node: matrix(self.nodes[x.node]).astype(np.float64) for x in wave}
        kept = {n: Left.whole(int(np.prod(w.shape[:2]))) for n, w in old.items()}
        sums = against(wave, self.nodes, (tap.run(f) for f in self.feeds), aims, kept, self.ctx.memory_mb << 20)
        for layer in wave:
            weights, bias, _ = fitted(old[layer.node], *sums.pop(layer.node), layer.bias is not None)
            shift = np.zeros(len(kept[layer.node].channels))
            if bias is not None:
                shift = bias - bias_of(layer, self.nodes)
            self.known[layer.node, aimed(layer, takes).witness] = Change(weights, shift)
