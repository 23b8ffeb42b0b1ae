"""Which nodes could compute in integers on a target, and why the others cannot.

The rules are of three kinds: what the table of operator facts says (`Facts.quant`), what the target has kernels for,
and what the node itself looks like (a constant weight, no alpha, float32 tensors).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import Model, edit, ops
from ..base import Skip
from ..fuse import gelu
from ..rewrite import Rewriter
from ..target import Target


def activations(node: gs.Node) -> list[int]:
    """Input positions that carry activations (or constants in their place), by the operator's facts."""
    quant = ops.facts(node).quant
    if quant is None:
        return []
    places = quant.inputs or tuple(range(len(node.inputs)))
    if node.op == "MatMul" and isinstance(node.inputs[1], gs.Constant):
        places = (0,)
    return [k for k in places if edit.get(node, k) is not None]


def is_linear(node: gs.Node) -> bool:
    """Whether the node is a product with a weight, or of two activations: what integers make faster."""
    quant = ops.facts(node).quant
    return bool(quant and quant.weighted)


def moves(node: gs.Node) -> bool:
    """Whether values go through unchanged, so that input and output share one scale."""
    quant = ops.facts(node).quant
    return bool(quant and quant.shares)


def bias_by_output(node: gs.Node) -> bool:
    """Whether a product adds nothing, or a constant of one value or one for each output, which can be shifted, scaled
    and written as integers; a Gemm may also add a whole matrix, or one value for each row."""
    bias = edit.get(node, 2)
    if bias is None:
        return True
    return isinstance(bias, gs.Constant) and int(np.prod(bias.shape)) in (1, *bias.shape[-1:])


def _conv(node: gs.Node) -> str:
    if not isinstance(node.inputs[1], gs.Constant):
        return "its weight is computed in the graph"
    bias = edit.get(node, 2)
    return "" if bias is None or isinstance(bias, gs.Constant) else "its bias is computed in the graph"


def _gemm(node: gs.Node) -> str:
    a = node.attrs
    if (
        a.get("transA", 0)
        or a.get("alpha", 1.0) != 1.0
        or (a.get("beta", 1.0) != 1.0 and edit.get(node, 2) is not None)
    ):
        return "no integer kernel for transA, alpha or beta"
    return _conv(node) or ("" if bias_by_output(node) else "its bias is not one value per output")


def _matmul(node: gs.Node) -> str:
    if isinstance(node.inputs[0], gs.Constant):
        return "its left operand is a constant"
    weight = edit.const(node, 1)
    return "a vector operand" if weight is not None and weight.ndim < 2 else ""


def _binary(node: gs.Node) -> str:
    constants = [t for t in node.inputs if isinstance(t, gs.Constant)]
    if len(constants) == len(node.inputs):
        return "both operands are constants"
    return ""


def _all_variables(node: gs.Node) -> str:
    return "an operand is a constant" if any(isinstance(t, gs.Constant) for t in node.inputs) else ""


def _data_is_variable(node: gs.Node) -> str:
    return "its data is a constant" if isinstance(node.inputs[0], gs.Constant) else ""


def _resize(node: gs.Node) -> str:
    mode = node.attrs.get("mode", "nearest")
    return "" if mode == "nearest" else f"Resize with mode {mode} makes new values"


def _pool(node: gs.Node) -> str:
    return "a second output" if len([t for t in node.outputs if t.name]) > 1 else ""


def _average(node: gs.Node) -> str:
    if "dilations" in node.attrs:
        return "no integer kernel for dilations"
    return _data_is_variable(node)


def _softmax(node: gs.Node) -> str:
    return _data_is_variable(node)


CHECKS: dict[str, Callable[[gs.Node], str]] = {
    "Conv": _conv,
    "ConvTranspose": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Add": _binary,
    "Mul": _binary,
    "Concat": _all_variables,
    "Resize": _resize,
    "MaxPool": _pool,
    "AveragePool": _average,
    "Softmax": _softmax,
}


def refusal(node: gs.Node, target: Target) -> str:
    """Why a node cannot compute in integers on the target; empty when it can."""
    facts = ops.facts(node)
    if facts.op == "?":
        return f"no facts for op {node.op}"
    if facts.quant is None or node.op not in target.quantizable:
        return f"{node.op} has no integer kernel on {target.name}"
    why = CHECKS.get(node.op, _data_is_variable)(node)
    if why:
        return why
    tensors = [node.inputs[k] for k in activations(node)] + [node.outputs[0]]
    if any(_kind(t) is not None and _kind(t) != np.float32 for t in tensors):
        return "its tensors are not float32"
    return "" if all(_kind(t) is not None for t in tensors) else "the types of its tensors are unknown"


def _within_gelus(model: Model) -> set[str]:
    """Names of the nodes that spell a Gelu: rounded inside, it would be six kernels."""
    rw, found = Rewriter(model), set[str]()
    for node in model.graph.nodes:
        spelled = gelu.spelled(rw, node) if node.op in ("Mul", "Div") else None
        queue = [] if spelled is None else [node]
        while spelled is not None and queue:
            inner = queue.pop()
            found.add(str(inner.name))
            queue += [m for t in inner.inputs if t is not spelled[0] for m in t.inputs if m.name not in found]
    return found


def _kind(tensor: Any) -> Any:
    return None if tensor.dtype is None else np.dtype(tensor.dtype)


def find(
    model: Model, target: Target, excluded: Callable[[gs.Node], bool]
) -> tuple[dict[str, gs.Node], tuple[Skip, ...]]:
    """Nodes of the main graph that can compute in integers, by name, and the linear ones that cannot, with reasons.

    Nodes in subgraphs are refused: their statistics would depend on the branch taken.
    """
    able: dict[str, gs.Node] = {}
    skips: list[Skip] = []
    outer, gelus = {id(n) for n in model.graph.nodes}, _within_gelus(model)
    for node in model.nodes():
        why = "excluded by the user" if excluded(node) else refusal(node, target)
        if node.name in gelus:
            why = why or "a part of a Gelu, which is one kernel in float"
        if not why and id(node) not in outer:
            why = "inside a subgraph: integer kernels need ranges that do not depend on the branch"
        if not why:
            able[node.name] = node
        elif ops.facts(node).kind in ("weighted", "recurrent"):
            skips.append(Skip(node.name, why))
    return able, tuple(skips)
