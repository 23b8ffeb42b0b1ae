"""Marching through a model layer by layer: every feed goes through every node once, though weights change on the way.

Layers are taken level by level (no layer of a level feeds another), so that each is fitted on what the already fitted
ones really put out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ...ir import Model
from ...runtime.relay import Relay
from .layers import Layer, levels


class March:
    """Runs a model in parts that end before the next level of layers."""

    def __init__(self, model: Model, found: Sequence[Layer], feeds: Any, threads: int, budget: int):
        self.level = levels(model, [x.node for x in found])
        self.relay = Relay(model, feeds, threads=threads, budget=budget)

    def to(self, level: int, wanted: Sequence[str]) -> Iterator[Mapping[str, np.ndarray]]:
        """Run up to the inputs of this level's layers; yields, feed by feed, the wanted tensors."""
        rest = [n for n in self.relay.model.graph.nodes if n.name not in self.relay.done]
        part = [n for n in rest if self.level[n.name] < level]
        return self.relay.run(part, wanted, [n for n in rest if self.level[n.name] >= level])
