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
from .refine import Refiner
from .steps import STEPS


class Follower:
    """Follows the values of small integer tensors through one model."""

    def __init__(self, model: Model, tried: dict[str, Any] | None = None):
        self.model = model
        self.view = Rewriter(model)
        self.known: dict[int, Known] = {}
        self.refiner = Refiner(model, {} if tried is None else tried)

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
            if np.prod(tensor.shape, dtype=np.int64) > LIMIT:
                return None
            if np.dtype(tensor.dtype).kind not in "iub" and np.dtype(tensor.dtype) not in FLOATS:
                return None
            values = tensor.values
            return Known(tuple(values.reshape(-1).tolist()), values.shape, values.dtype)
        return self.known.get(id(tensor))

    def step(self, node: gs.Node) -> Any:
        """Follow one node, those before it done; returns its output when it can be made a constant.

        That is of rank 0 or 1 (sizes, pads, axes) and wholly known; whether larger ones pay is weighed by the batch.
        """
        self.refiner.refine(self, node)
        rule = None if node.domain else STEPS.get(node.op)
        tensor = node.outputs[0] if node.outputs and node.outputs[0].name else None
        found = None if rule is None or tensor is None else rule(self, node)
        if found is None or len(found.values) > LIMIT:
            return None
        self.known[id(tensor)] = found
        return tensor if found.complete and found.rank <= 1 and len(node.outputs) == 1 else None
