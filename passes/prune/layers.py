"""Linear layers with a constant weight, as regressions y = W·x + b over sampled output positions (`runtime.unfold`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import Model, edit
from ...ir.edit import output_ids
from ...ir.order import reads

Array = np.ndarray


@dataclass(frozen=True)
class Layer:
    """One Conv, Gemm or MatMul.

    x, y: names of data input and output. bias: where the bias is, (node, input), or None. A MatMul whose bias is an
    Add behind it ends with that Add. witness: the tensor that an error of the output is felt in (the sum of a residual
    block, or y itself); other: the summand that is added there.
    """

    node: str
    op: str
    x: str
    y: str
    bias: tuple[str, int] | None
    witness: str
    other: str | None


def layers(model: Model) -> list[Layer]:
    """Every layer that can be fitted, in the order of the graph."""
    outputs = output_ids(model)
    found = [x for x in (_layer(n, outputs) for n in model.graph.nodes) if x is not None]
    level = levels(model, [x.node for x in found])
    maker = {t.name: n.name for n in model.graph.nodes for t in n.outputs}
    return [_settled(x, level, maker) for x in found]


def levels(model: Model, fitted: Sequence[str]) -> dict[str, int]:
    """Level of every node by name: how many fitted layers lie on the longest way to its output, itself included."""
    names = set(fitted)
    level: dict[str, int] = {}
    made: dict[int, int] = {}
    for node in model.graph.nodes:
        above = max((made.get(id(t), 0) for t in reads(node)), default=0)
        level[node.name] = above + (node.name in names)
        for tensor in node.outputs:
            made[id(tensor)] = level[node.name]
    return level


def _settled(layer: Layer, level: dict[str, int], maker: dict[str, str]) -> Layer:
    """Without the sum behind it where the other summand is not settled before this layer."""
    if layer.other is None or level.get(maker.get(layer.other, ""), 0) < level[layer.node]:
        return layer
    return replace(layer, witness=layer.y, other=None)


def _layer(node: gs.Node, outputs: set[int]) -> Layer | None:
    if node.op not in ("Conv", "Gemm", "MatMul") or node.domain not in (None, "", "ai.onnx"):
        return None
    weight = edit.get(node, 1)
    if not isinstance(weight, gs.Constant) or isinstance(node.inputs[0], gs.Constant) or weight.dtype != np.float32:
        return None
    if node.op == "Gemm" and (
        node.attrs.get("transA", 0) or any(node.attrs.get(k, 1.0) != 1.0 for k in ("alpha", "beta"))
    ):
        return None
    if node.op == "MatMul" and len(weight.shape) != 2:
        return None
    third = edit.get(node, 2)
    if third is not None and (not isinstance(third, gs.Constant) or len(third.shape) != 1):
        return None
    return _described(node, outputs)


def _described(node: gs.Node, outputs: set[int]) -> Layer:
    y = node.outputs[0]
    bias: tuple[str, int] | None = (node.name, 2)
    if node.op == "MatMul":
        bias, y = _added_bias(y, outputs, node.inputs[1].shape[1])
    witness, other = _witness(y, outputs)
    return Layer(node.name, node.op, node.inputs[0].name, y.name, bias, witness.name, other)


def _only_user(tensor: Any, outputs: set[int]) -> gs.Node | None:
    users = {id(n): n for n in tensor.outputs}
    return next(iter(users.values())) if len(users) == 1 and id(tensor) not in outputs else None


def _added_bias(y: Any, outputs: set[int], width: int) -> tuple[tuple[str, int] | None, Any]:
    """The constant vector that is added to a MatMul, and the sum."""
    user = _only_user(y, outputs)
    if user is None or user.op != "Add":
        return None, y
    index = 1 if user.inputs[0] is y else 0
    tensor = user.inputs[index]
    if not isinstance(tensor, gs.Constant) or tuple(tensor.shape) != (width,):
        return None, y
    return (user.name, index), user.outputs[0]


def _witness(y: Any, outputs: set[int]) -> tuple[Any, str | None]:
    user = _only_user(y, outputs)
    if user is not None and user.op == "Add" and len(user.inputs) == 2 and user.inputs[0] is not user.inputs[1]:
        other = user.inputs[1] if user.inputs[0] is y else user.inputs[0]
        known = other.shape is not None and y.shape is not None
        if not isinstance(other, gs.Constant) and known and list(other.shape) == list(y.shape):
            return user.outputs[0], other.name
    return y, None


def matrix(node: gs.Node) -> Array:
    """The weight as `[groups, M/groups, D]`."""
    weight = node.inputs[1].values
    if node.op == "Conv":
        groups = int(node.attrs.get("group", 1))
        return weight.reshape(groups, weight.shape[0] // groups, -1)
    return (weight if node.op == "Gemm" and node.attrs.get("transB", 0) else weight.T)[None]


def store(model: Model, layer: Layer, nodes: dict[str, gs.Node], matrices: Array, bias: Array | None) -> None:
    """Put fitted weights `[groups, M/groups, D]`, and a new bias, in place of the old."""
    node = nodes[layer.node]
    old = node.inputs[1]
    if layer.op == "Conv":
        new = matrices.reshape(old.shape)
    else:
        new = matrices[0] if layer.op == "Gemm" and node.attrs.get("transB", 0) else matrices[0].T
    edit.set_input(node, 1, edit.constant(model, old.name, np.ascontiguousarray(new, dtype=np.float32)))
    if bias is not None and layer.bias is not None:
        where, index = nodes[layer.bias[0]], layer.bias[1]
        present = edit.get(where, index)
        hint = f"{old.name}_bias" if present is None else present.name
        edit.set_input(where, index, edit.constant(model, hint, bias.astype(np.float32)))
