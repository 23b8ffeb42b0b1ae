"""Which inputs and outputs of a node may change from float to half: read off the operator's own schema.

A schema names a type variable for every input and output ("T") and the types it may stand for. A variable that is
bound to float32 by an input and may be half becomes half, with every output it stands for; one that may not (the
scales of a Resize), and outputs whose type an attribute decides (Cast, ConstantOfShape), stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from ...ir import ops
from ...ir.model import subgraphs
from .formats import Format

# Operators whose result is a sum of squares or exponentials: it is formed inside, where no range can be watched.
SUMS_INSIDE = frozenset({"ReduceL2", "ReduceSumSquare", "ReduceLogSumExp", "ReduceLogSum", "LpNormalization", "LpPool"})
# Positions that a runtime multiplies sizes with: 11 bits are too few, whatever the schema allows.
COORDINATES = {"Resize": (1, 2), "RoiAlign": (1,), "GridSample": (1,), "AffineGrid": (0,)}
MAKES_TYPES = frozenset({"Cast", "CastLike", "Range", "BitCast"})
# Operators whose type inference or function body, in onnx itself, is right in float only.
FLOAT_ONLY = frozenset({"LinearAttention", "MeanVarianceNormalization"})


@dataclass(frozen=True)
class Ports:
    """Positions of inputs and outputs that become half; `reason` when the node stays as it is."""

    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    reason: str = ""


def ports(node: gs.Node, opset: int, half: Format) -> Ports:
    """What of a node may become half."""
    reason = _kept(node)
    if reason:
        return Ports(reason=reason)
    try:
        schema = onnx.defs.get_schema(node.op, opset, node.domain or "")
    except Exception:  # onnx's own error type is not public
        return Ports(reason=f"no schema for op {node.op}, so nothing says which types it takes")
    allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
    types = [_formal(schema.inputs, k) for k in range(len(node.inputs))]
    fixed = COORDINATES.get(node.op, ())
    inputs = tuple(
        k
        for k, t in enumerate(types)
        if k not in fixed and is_float(node.inputs[k]) and half.type_str in allowed.get(t, ())
    )
    turned = {types[k] for k in inputs}
    outputs = tuple(k for k, t in enumerate(node.outputs) if t.name and _formal(schema.outputs, k) in turned)
    if not inputs:
        return Ports(reason=f"op {node.op} takes no {half.name} at opset {opset}" if _reads_float(node) else "")
    return Ports(inputs, outputs)


def is_float(tensor: gs.Tensor) -> bool:
    """Whether a tensor is known to be float32."""
    return bool(tensor.name) and tensor.dtype is not None and np.dtype(tensor.dtype) == np.float32


def _kept(node: gs.Node) -> str:
    """Why a node stays float whatever its schema says; "" when it may change."""
    facts = ops.facts(node)
    if subgraphs(node) or facts.kind == "control":
        return f"op {node.op} has subgraphs, whose values cannot be watched for overflow"
    if facts.kind in ("quantize", "sequence") or node.op in MAKES_TYPES:
        return f"op {node.op} decides types itself"
    if node.op in FLOAT_ONLY:
        return f"op {node.op} is well defined in float only"
    if node.attrs.get("training_mode", 0) or (node.op == "BatchNormalization" and ops.trains(node)):
        return "it updates statistics, which want more than 11 bits"
    if node.op.startswith("Scatter") and node.attrs.get("reduction", "none") != "none":
        return "it adds up at indices, which runtimes do in float"
    if facts.random:
        return f"op {node.op} draws random numbers of its own type"
    if node.op in SUMS_INSIDE:
        return f"op {node.op} sums inside, where overflow cannot be seen"
    named = [t for t in (*node.inputs, *node.outputs) if t.name]
    if any(t.dtype is None for t in named):
        return "a type beside it is not known"
    return ""


def _formal(parameters: Sequence[onnx.defs.OpSchema.FormalParameter], index: int) -> str:
    """The type variable of an actual parameter; those of a variadic one share its variable where they are one type."""
    if not parameters:
        return ""
    last = parameters[-1]
    if index < len(parameters) - 1 or (
        index == len(parameters) - 1 and last.option != onnx.defs.OpSchema.FormalParameterOption.Variadic
    ):
        return str(parameters[index].type_str)
    variadic = last.option == onnx.defs.OpSchema.FormalParameterOption.Variadic
    return str(last.type_str) if variadic and last.is_homogeneous else ""


def _reads_float(node: gs.Node) -> bool:
    return any(is_float(t) for t in node.inputs)
