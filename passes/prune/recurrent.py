"""What LSTM, GRU and RNN make of their inputs and states before anything is squashed: regressions like any other.

With W `[D, G·H, I]`, R `[D, G·H, H]` and B `[D, 2·G·H]` of D directions, G gates and H units, a step of LSTM or RNN
computes X·Wᵀ + Wb from its input and R·h from the state before. Both together are one matrix `[D, G·H, I + H]`. States
are the original's, of the units that are left: what a fitted layer puts out comes close to them. Of a GRU, and
where sequences have lengths of their own, W alone is fitted, as `[1, D·G·H, I]`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import Model, edit
from ...ir.ops.flow_recurrent import GATES
from ...runtime.moments import Moment

Array = np.ndarray
LENGTHS, INITIAL = 4, 5  # positions among the inputs


def fitting(node: gs.Node) -> bool:
    """Whether a node's input weights can be fitted."""
    constant = all(isinstance(node.inputs[k], gs.Constant) and node.inputs[k].dtype == np.float32 for k in (1, 2))
    bias = edit.get(node, 3)
    return constant and not isinstance(node.inputs[0], gs.Constant) and (bias is None or isinstance(bias, gs.Constant))


def joint(node: gs.Node) -> bool:
    """Whether inputs and states are fitted together."""
    return node.op in ("LSTM", "RNN") and edit.get(node, LENGTHS) is None and not node.attrs.get("layout", 0)


def states(node: gs.Node) -> tuple[str, str]:
    """Names of all states (`named`) and of the first ones ("": zeros)."""
    first = edit.get(node, INITIAL)
    return node.outputs[0].name or f"{node.name}_states", "" if first is None else first.name


def named(model: Model, nodes: Sequence[str]) -> Model:
    """The model, or a copy in which the omitted states of these nodes have a name."""
    if all(n.outputs[0].name for n in model.graph.nodes if n.name in nodes):
        return model
    copy = model.copy()
    for node in copy.graph.nodes:
        if node.name in nodes and not node.outputs[0].name:
            node.outputs[0] = gs.Variable(states(node)[0], np.float32)
    return copy


def matrix(node: gs.Node) -> Array:
    """`[D, G·H, I + H]`, or W as `[1, D·G·H, I]`."""
    weight: Array = node.inputs[1].values
    if joint(node):
        return np.concatenate([weight, node.inputs[2].values], axis=2)
    return weight.reshape(1, -1, weight.shape[2])


def repeats(node: gs.Node) -> int:
    """How often the outputs repeat the units: directions times gates."""
    return int(node.inputs[1].shape[0]) * GATES[node.op]


def first_half(bias: Array) -> Array:
    """Wb `[D·G·H]` of B."""
    return bias[:, : bias.shape[1] // 2].reshape(-1)


def whole(bias: Array, present: Array | None, ways: int) -> Array:
    """B with another Wb `[D·G·H]`, and Rb as it was (zeros where there was none)."""
    first = bias.reshape(ways, -1)
    second = np.zeros_like(first) if present is None else present[:, present.shape[1] // 2 :]
    return np.concatenate([first, second], axis=1)


def before(node: gs.Node, every: Array, first: Array | None) -> Array:
    """The state that each step reads, `[T·B, D, H]`, from all states `[T, D, B, H]` and the first `[D, B, H]`."""
    ways, found = every.shape[1], []
    for way in range(ways):
        start = np.zeros_like(every[:1, way]) if first is None else first[None, way]
        back = way == 1 or str(node.attrs.get("direction", "forward")) == "reverse"
        found.append(np.concatenate([every[1:, way], start] if back else [start, every[:-1, way]]))
    return np.stack(found, axis=2).reshape(-1, ways, every.shape[3])


def rows(x: Array, state: Array) -> Array:
    """`[D, P, I + H]` of inputs `[P, I]` and states `[P, D, H]`."""
    return np.stack([np.concatenate([x, state[:, d]], axis=1) for d in range(state.shape[1])])


def moment(read: Sequence[tuple[Array, Array]]) -> Moment:
    """Moments of inputs and states, feed by feed."""
    count = sum(len(x) for x, _ in read)
    parts = (rows(x, state).astype(np.float64) for x, state in read)
    sums = [(p.sum(1), np.swapaxes(p, 1, 2) @ p) for p in parts]
    mean, second = (np.sum(part, axis=0) / count for part in zip(*sums))
    return Moment(mean, second, None, count)


__all__ = [
    "GATES",
    "before",
    "first_half",
    "fitting",
    "joint",
    "matrix",
    "moment",
    "named",
    "repeats",
    "rows",
    "states",
    "whole",
]
