"""Nodes that multiply with weights and are no layers that can be fitted, with the reasons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_graphsurgeon as gs

from ...ir import Model, cost, ops
from .layers import Layer, unfit


def unfitted(model: Model, found: Sequence[Layer], keep: Callable[[gs.Node], bool]) -> dict[str, str]:
    """Reason by name, for every node of every level that holds weights and is not among the layers that were found.

    keep: the nodes that were to be left alone when they were looked for.
    """
    layers, top = {x.node for x in found}, {n.name for n in model.graph.nodes}
    left = [n for n in model.nodes() if n.name not in layers and _holds_weights(n)]
    return {n.name: _reason(n, n.name in top, keep) for n in left}


def _reason(node: gs.Node, top: bool, keep: Callable[[gs.Node], bool]) -> str:
    if keep(node):
        return "excluded"
    # what else could be fitted is no layer because its bias, an Add of its own, is to be left alone
    return unfit(node) or ("its bias is excluded" if top else "it stands in a branch or the body of a loop")


def _holds_weights(node: gs.Node) -> bool:
    """Whether a node multiplies data with a stored matrix, or may do so: an operator of another domain."""
    facts, foreign = ops.facts(node), node.domain not in (None, "", "ai.onnx")
    if not foreign and facts.macs is ops.UNKNOWN.macs:
        return False
    return any(_is_matrix(t) or _is_matrix(_stored(t)) for t in node.inputs)


def _stored(tensor: Any) -> Any:
    """What a weight that is kept in few bits is made from."""
    makers = [n for n in tensor.inputs if n.op == "DequantizeLinear"]
    return makers[0].inputs[0] if makers else None


def _is_matrix(tensor: Any) -> bool:
    return isinstance(tensor, gs.Constant) and len(tensor.shape) > 1 and cost.is_weight(tensor)
