"""What an error of a layer's output does to the model's outputs, channel by channel and place by place.

The Gauss-Newton curvature of the heads' squared error (each head relative to its variance) at a layer's output is
E[g gᵀ], where g is the gradient of Σ r · head for random signs r (Hutchinson's probe; K-FAC, arXiv 1503.05671). Of it
two diagonals are kept: by channel, since channels that the outputs do not feel need no good fit, and by place: in a
detector a few places hold the objects, and the many others must not decide what is kept and how it is fitted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...ir import Model, cost
from ...ir.errors import PassError
from ...runtime.feeds import Feeds
from ...runtime.gradients import Gradients
from ...runtime.loading import give_back
from ...runtime.room import Room
from ..base import Context
from .layers import Layer
from .stats import Target, rows_of
from .trial import heads

Array = np.ndarray
WORK = 2e11  # MACs of the feeds that are run backwards
CHANNEL_POWER = PLACE_POWER = 0.5  # of the curvature: 1 counts in output errors, 0 in errors of the layer's own output
LEAST, MOST = 1e-2, 1e2  # of the mean


@dataclass
class Fisher:
    """Of one layer: channels `[M]`, g² summed over all places and feeds; places: by feed, g² summed over channels at
    the places of its `Target` (empty where not every feed was run)."""

    channels: Array
    places: list[Array] = field(default_factory=list)
    _room: Room | None = None

    def add(self, felt: Array, feeds: int) -> None:
        """Keep what was felt at the places of one of so many feeds."""
        self._room = self._room or Room(feeds * len(felt))
        self.places.append(self._room.keep(felt))


def collect(
    model: Model, layers: Sequence[Layer], goals: Mapping[str, Target], feeds: Feeds, ctx: Context
) -> dict[str, Fisher]:
    """By layer; empty where no gradient is known on the way to an output."""
    names = [t.name for t in heads(model)]
    give_back()  # what the plan has put aside so far: activations of a whole feed and their gradients come now
    try:
        gradients = Gradients(model, names, [x.y for x in layers], ctx.workers)
        return _collect(gradients, layers, goals, _affordable(model, feeds), len(feeds), ctx)
    except PassError as error:
        ctx.note(f"prune: {error}; errors of all channels and places count alike")
        return {}


def _affordable(model: Model, feeds: Feeds) -> Feeds:
    return feeds.spread(max(8, int(WORK / max(float(cost.of(model).macs), 1.0))))


def _collect(
    gradients: Gradients, layers: Sequence[Layer], goals: Mapping[str, Target], some: Feeds, every: int, ctx: Context
) -> dict[str, Fisher]:
    spread = _spreads(gradients, some)
    found: dict[str, Fisher] = {}
    readers: dict[str, list[Layer]] = {}
    for layer in layers:
        readers.setdefault(layer.y, []).append(layer)
    for index, feed in enumerate(ctx.progress(some, "gradients", len(some))):
        for name, gradient in _back(gradients, feed, spread, np.random.default_rng([ctx.seed, index])):
            for layer in readers.get(name, ()):
                goal = goals.get(layer.node) if len(some) == every else None
                _add(found, layer, gradient, None if goal is None else goal.places[index], every)
    return found


def _back(
    gradients: Gradients, feed: Mapping[str, Any], spread: Mapping[str, float], rng: Any
) -> Iterator[tuple[str, Array]]:
    """Gradients on one feed, by tensor; its activations are let go on the way, before those of the next come."""
    values = gradients.forward(feed)
    return gradients.backward(values, {h: _signs(rng, values[h], v) for h, v in spread.items()})


def _signs(rng: Any, value: Array, spread: float) -> Array:
    """Random signs, such that a squared gradient is in units of the head's mean squared error over its variance."""
    signs = rng.integers(0, 2, value.shape) * 2.0 - 1.0
    return np.asarray(signs / np.sqrt(spread * value.size), np.float32)


def _spreads(gradients: Gradients, feeds: Feeds) -> dict[str, float]:
    """Variance of every head of floats."""
    seen: dict[str, list[Array]] = {}
    for feed in feeds.spread(8):  # of all that a run gives, the heads alone are kept
        values = gradients.forward(feed)
        for head in gradients.heads:
            if values[head].dtype.kind == "f":
                seen.setdefault(head, []).append(values[head].reshape(-1).copy())
        del values
    return {h: max(float(np.concatenate(v).var(dtype=np.float64)), 1e-30) for h, v in seen.items()}


def _add(found: dict[str, Fisher], layer: Layer, gradient: Array, places: Array | None, feeds: int) -> None:
    made = tuple(a % gradient.ndim for a in layer.made)
    rest = tuple(a for a in range(gradient.ndim) if a not in made)
    felt = np.square(gradient).sum(rest, dtype=np.float64).transpose(np.argsort(np.argsort(made))).reshape(-1)
    if not np.isfinite(felt).all():  # an infinite slope, be it of what a Where leaves out
        raise PassError(f"the gradient at '{layer.y}' is not finite")
    one = found.setdefault(layer.node, Fisher(np.zeros(len(felt))))
    one.channels = one.channels + felt
    if places is not None:
        one.add(np.square(rows_of(layer, gradient, places)).sum(1, dtype=np.float64), feeds)


def emphasis(channels: Array, variance: Array, groups: int) -> Array:
    """What an error of each output counts `[G, M / G]`, so scaled that Σ count · variance is the layer's variance."""
    mean = max(float(channels.mean()), 1e-300)
    raw = np.clip(channels / mean, LEAST, MOST) ** CHANNEL_POWER
    scaled = raw * float(variance.sum()) / max(float((raw * variance).sum()), 1e-300)
    return np.asarray(scaled.reshape(groups, -1))


def weights(places: Sequence[Array]) -> list[Array]:
    """What an error at each place counts, feed by feed; 1 on average."""
    mean = max(float(np.mean(np.concatenate(places))), 1e-300)
    raw = [np.clip(p / mean, LEAST, MOST) ** PLACE_POWER for p in places]
    scale = float(np.mean(np.concatenate(raw)))
    return [np.asarray(r / scale, np.float32) for r in raw]
