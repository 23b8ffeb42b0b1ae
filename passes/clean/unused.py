"""Outputs that nobody reads: optional ones are left out, and so are those of an If, in both branches."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import onnx
import onnx_graphsurgeon as gs

from ...ir import Model, edit, ops


@lru_cache(maxsize=2048)
def _optional_outputs(op: str, opset: int) -> tuple[bool, ...] | None:
    try:
        schema = onnx.defs.get_schema(op, opset, "")
    except onnx.defs.SchemaError:
        return None
    kinds = [o.option for o in schema.outputs]
    if onnx.defs.OpSchema.FormalParameterOption.Variadic in kinds:
        return None
    return tuple(k == onnx.defs.OpSchema.FormalParameterOption.Optional for k in kinds)


def _demands_all(node: gs.Node) -> bool:
    """Whether an operator wants outputs that are optional in general: statistics it trains, a cache it carries on."""
    if node.op == "BatchNormalization":
        return ops.trains(node)
    return node.op == "Attention" and any(edit.get(node, k) is not None for k in (4, 5))


def drop_outputs(model: Model) -> int:
    """Leave out outputs without a reader, at every level; returns how many."""
    needed = edit.output_ids(model)
    dropped = 0
    for node in list(model.nodes()):
        if node.domain or _demands_all(node):
            continue
        idle = [k for k, t in enumerate(node.outputs) if t.name and not t.outputs and id(t) not in needed]
        if not idle or len(idle) == len([t for t in node.outputs if t.name]):
            continue
        if node.op == "If":
            dropped += _drop_branches(node, idle)
        else:
            optional = _optional_outputs(node.op, model.opset)
            if optional is not None:
                dropped += _drop_optional(node, [k for k in idle if k < len(optional) and optional[k]])
    return dropped


def _drop_optional(node: gs.Node, idle: list[int]) -> int:
    """Omitted in the middle, cut off at the end. BatchNormalization's statistics, LSTM's last states, masks."""
    outputs: list[Any] = [gs.Variable.empty() if k in idle else t for k, t in enumerate(node.outputs)]
    while outputs and not outputs[-1].name:
        outputs.pop()
    _set_outputs(node, outputs)
    return len(idle)


def _drop_branches(node: gs.Node, idle: list[int]) -> int:
    for branch in [v for v in node.attrs.values() if isinstance(v, gs.Graph)]:
        branch.outputs = [t for k, t in enumerate(branch.outputs) if k not in idle]
    _set_outputs(node, [t for k, t in enumerate(node.outputs) if k not in idle])
    return len(idle)


def _set_outputs(node: gs.Node, outputs: list[Any]) -> None:
    for tensor in node.outputs:
        list.clear(tensor.inputs)
    list.clear(node.outputs)
    list.extend(node.outputs, outputs)
    for tensor in outputs:
        list.append(tensor.inputs, node)
