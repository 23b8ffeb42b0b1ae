"""What LSTM, GRU and RNN make of their inputs, before anything is squashed: X·Wᵀ + Wb, a regression like any other.

W `[D, G·H, I]` of D directions, G gates and H units is one matrix `[1, D·G·H, I]`; Wb is the first half of B
`[D, 2·G·H]`. What the units make of each other (R) is not linear in anything that both models have, and stays.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import edit
from ...ir.ops.flow_recurrent import GATES

Array = np.ndarray


def fitting(node: gs.Node) -> bool:
    """Whether a node's input weights can be fitted."""
    constant = all(isinstance(node.inputs[k], gs.Constant) for k in (1, 2))
    given = not isinstance(node.inputs[0], gs.Constant)
    bias = edit.get(node, 3)
    known = bias is None or isinstance(bias, gs.Constant)
    return constant and given and known and node.inputs[1].dtype == np.float32


def matrix(node: gs.Node) -> Array:
    """W as `[1, D·G·H, I]`."""
    weight: Array = node.inputs[1].values
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


__all__ = ["GATES", "first_half", "fitting", "matrix", "repeats", "whole"]
