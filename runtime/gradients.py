"""Gradients of a model's inner tensors, in reverse mode, feed by feed; adjoints node by node (`adjoints`).

Only the part of the main graph between the tensors asked for and those whose gradients are given is run backwards.
Values on that way are fetched by one session; a gradient is dropped as soon as nobody needs it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ..ir.errors import PassError
from ..ir.model import Model
from ..ir.order import reads
from .adjoints import SEVERAL, Adjoint
from .taps import Tap

Array = np.ndarray


class Gradients:
    """Runs a model forwards and backwards.

    heads: tensors whose gradients are given. wanted: tensors whose gradients are asked for; one that no head depends on
    has none. Raises PassError where the way from a wanted tensor to a head passes an operator without an adjoint, and
    where no head moves with what the wanted ones lead to.
    """

    def __init__(self, model: Model, heads: Sequence[str], wanted: Sequence[str], threads: int = 1):
        self.heads, self.wanted = list(heads), set(wanted)
        self.way = _way(model, self.heads, self.wanted)
        self.adjoints = [(n, Adjoint(model, n, at)) for n, at in self.way]
        tensors = [t.name for n, _ in self.way for t in (*n.inputs, n.outputs[0]) if t.name]
        self.tap = Tap(model, list(dict.fromkeys([*self.heads, *tensors])), threads=threads)

    def forward(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """Values of the heads, and of everything on the way."""
        return self.tap.run(feed)

    def backward(self, values: dict[str, Any], seeds: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
        """(tensor, gradient of Σ seed · head there) for the wanted tensors, each as it is known, so that none need be
        kept; uses the values up."""
        gradients: dict[str, Array] = {h: np.asarray(s, np.float32) for h, s in seeds.items()}
        for node, adjoint in reversed(self.adjoints):
            names = [t.name for t in node.outputs]
            y, *_ = [values.pop(n, None) for n in names]  # whatever read them has had its turn
            own = [gradients.pop(n, None) for n in names]
            if all(g is None for g in own):
                continue
            yield from ((n, g) for n, g in zip(names, own) if g is not None and n in self.wanted)
            x = [values[t.name] if t.name else None for t in node.inputs]
            for k, g in adjoint(x, y, own).items():
                source = node.inputs[k].name
                gradients[source] = gradients[source] + g if source in gradients else g
        yield from ((n, g) for n, g in gradients.items() if n in self.wanted)


def _way(model: Model, heads: Sequence[str], wanted: set[str]) -> list[tuple[gs.Node, list[int]]]:
    """Nodes between wanted tensors and heads in the order of the graph, each with the inputs that lead to a wanted
    tensor."""
    active = set(wanted)  # tensors that depend on a wanted one, or are one
    found: list[tuple[gs.Node, list[int]]] = []
    for node in model.graph.nodes:
        at = [k for k, t in enumerate(node.inputs) if t.name in active and not isinstance(t, gs.Constant)]
        if at or any(t.name in active for t in reads(node)):
            active |= {t.name for t in node.outputs if t.name and _moves(node, t)}
            found.append((node, at))
    if found and active.isdisjoint(heads):
        raise PassError("no output moves with the layers other than by sizes, indices or decisions")
    needed, kept = active.intersection(heads), []
    for node, at in reversed(found):
        if any(t.name in needed for t in node.outputs):
            if not at or (node.op not in SEVERAL and any(t.name in needed for t in node.outputs[1:])):
                raise PassError(f"no gradient is known through '{node.name}' ({node.op})")
            needed |= {node.inputs[k].name for k in at}
            kept.append((node, at))
    return kept[::-1]


def _moves(node: gs.Node, output: Any) -> bool:
    """Whether an output moves with what the node reads: sizes, indices and decisions do not.

    Integers of other types may be the numbers of a quantized model, whose gradient is not known, and not nought.
    """
    return node.op not in ("Shape", "Size") and (output.dtype is None or np.dtype(output.dtype) not in _STILL)


_STILL = (np.dtype(np.int64), np.dtype(bool))

__all__ = ["Gradients"]
