"""Shape arithmetic with partly known sizes.

Small integer tensors are followed as lists whose entries are numbers, symbols (a size that the model names, or one
that is known only as "axis k of tensor t") or unknown. What comes out wholly known becomes a constant; what is known
but for symbols is still enough for Reshape (0 copies a size, one -1 is worked out), Expand (1 keeps a size) and Slice
(an end at the size itself is an end at infinity). Symbols keep their names: nothing is made static that is not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import Model
from ..rewrite import Rewriter
from .known import FLOATS, LIMIT, Entry, Known
from .steps import STEPS


class Follower:
    """Follows the values of small integer tensors through one model."""

    def __init__(self, model: Model):
        self.model = model
        self.view = Rewriter(model)
        self.known: dict[int, Known] = {}

    def sizes(self, tensor: Any) -> list[Entry] | None:
        """The shape of a tensor, unknown sizes named after the tensor and the axis."""
        shape = self.view.shape(tensor)
        if shape is None:
            return None
        return [f"{tensor.name}\x00{k}" if d is None else d for k, d in enumerate(shape)]

    def of(self, tensor: Any) -> Known | None:
        """What is known of a tensor's entries."""
        if tensor is None:
            return None
        if isinstance(tensor, gs.Constant):
            if len(tensor.shape) > 1 or np.prod(tensor.shape, dtype=np.int64) > LIMIT:
                return None
            if np.dtype(tensor.dtype).kind not in "iub" and np.dtype(tensor.dtype) not in FLOATS:
                return None
            values = tensor.values
            return Known(tuple(values.reshape(-1).tolist()), values.ndim == 0, values.dtype)
        return self.known.get(id(tensor))

    def run(self) -> None:
        """Follow every node of every level, outer graphs first."""
        for graph in self.model.graphs():
            for node in graph.nodes:
                step = None if node.domain else STEPS.get(node.op)
                if step is None or not node.outputs[0].name:
                    continue
                found = step(self, node)
                if found is not None and len(found.values) <= LIMIT:
                    self.known[id(node.outputs[0])] = found
