"""How labels pass through LSTM, GRU and RNN: hidden units are channels, the same of every gate and direction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from .. import edit
from ..labels import Cells
from ..resizing import Count
from .flow_linear import weight_axis

if TYPE_CHECKING:
    from ..flow import Flow

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
PEEPHOLES = 3


def _stacked(cells: Cells | None, times: int) -> Cells | None:
    """Labels of gates one after the other."""
    return None if cells is None else np.tile(cells, (times, 1))


def recurrent(flow: Flow, node: gs.Node) -> None:
    """X `[T, B, I]`, W `[D, G·H, I]`, R `[D, G·H, H]`, B `[D, 2G·H]`, states `[D, B, H]`, P `[D, 3H]`.

    Units are new; states that come in are united with them, whatever follows sees them on the last axis of Y, Y_h, Y_c.
    """
    x, r = node.inputs[0], node.inputs[2]
    gates, units = GATES[node.op], flow.size(r)[2]
    if not flow.stored(r):
        flow.pin_inputs(node, f"recurrent weight of '{node.name}' is computed")
        return
    _stay(flow, node)
    inputs = flow.of(x)[2]
    flow.meet(node, 1, 2, inputs)
    cells = weight_axis(flow, node, 2, 2)
    for index in (5, 6):
        if edit.get(node, index) is not None:
            flow.meet(node, index, 2, cells)
            cells = flow.atoms.resolve(cells)
    for index, times in ((1, gates), (2, gates), (3, 2 * gates), (7, PEEPHOLES)):
        if edit.get(node, index) is not None:
            flow.meet(node, index, 1, _stacked(cells, times))
    cells = flow.atoms.resolve(cells)
    if cells is not None and "hidden_size" in node.attrs:
        flow.fixes.append(Count(node.name, cells, "hidden_size"))
    _products(flow, node, inputs, cells, units)
    _outputs(flow, node.outputs, cells)


def _stay(flow: Flow, node: gs.Node) -> None:
    """Steps, batch and directions; of the lengths of sequences, which are one a sample, everything."""
    why = f"steps, batch or directions of {node.op} '{node.name}'"
    for index, axes in ((0, (0, 1)), (1, (0,)), (2, (0,)), (3, (0,)), (4, (0,)), (5, (0, 1)), (6, (0, 1)), (7, (0,))):
        if edit.get(node, index) is not None:
            flow.pin(node.inputs[index], why, axes)


def _products(flow: Flow, node: gs.Node, inputs: Cells | None, cells: Cells | None, units: int) -> None:
    share = units / (units + flow.size(node.inputs[0])[2])
    flow.product(node, (0, 1), (2, 2), flow.atoms.resolve(inputs), cells, share=1 - share)
    flow.product(node, (0, 2), (-1, 2), cells, cells, share=share)


def _outputs(flow: Flow, outputs: Sequence[gs.Variable], cells: Cells | None) -> None:
    for tensor in outputs:
        if tensor.name:
            flow.put(tensor, [None] * (flow.rank(tensor) - 1) + [cells])


RULES = dict.fromkeys(GATES, recurrent)
