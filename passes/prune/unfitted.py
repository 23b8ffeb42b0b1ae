"""Nodes that multiply with weights and are no layers that can be fitted, with the reasons."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import Model, cost, ops
from ...ir.flow import Flow, stored
from .cut import alive_after
from .layers import Layer, shares_weights, unfit

INSIDE = "it stands in a branch or the body of a loop"


def unfitted(model: Model, found: Sequence[Layer], keep: Callable[[gs.Node], bool]) -> dict[str, str]:
    """Reason by name, for every node of every level that holds weights and is not among the layers that were found.

    keep: the nodes that were to be left alone when they were looked for.
    """
    layers, top, weights = {x.node for x in found}, {n.name for n in model.graph.nodes}, stored(model)
    left = [n for n in model.nodes() if n.name not in layers and _holds_weights(n, weights)]
    return {n.name: _reason(n, n.name in top, keep) for n in left}


def that_lost(
    model: Model, flow: Flow, gone: np.ndarray, found: Sequence[Layer], keep: Callable[[gs.Node], bool]
) -> dict[str, str]:
    """Of these the ones whose inputs lost channels: nothing made up for it."""
    alive = alive_after(flow, gone)
    lost = {p.node for p in flow.products if p.inner is not None and not alive(p.inner).all()}
    return {name: why for name, why in unfitted(model, found, keep).items() if name in lost}


def unlabelled(flow: Flow) -> dict[str, str]:
    """Reason by name, for every node of every level that holds weights of which propagation saw nothing."""
    top, weights = {n.name for n in flow.model.graph.nodes}, stored(flow.model)
    seen = {one.node for one in flow.origins} | {one.node for one in flow.cuts}
    found = {}
    for node in flow.model.nodes():
        if node.name not in seen and _holds_weights(node, weights):
            why = INSIDE if node.name not in top else flow.refused.get(node.name)
            if why is None and ops.flow_rule(node) is None:
                why = f"no facts for op {node.op}"
            found.update({node.name: why} if why else {})
    return found


def _reason(node: gs.Node, top: bool, keep: Callable[[gs.Node], bool]) -> str:
    if keep(node):
        return "excluded"
    if top and not unfit(node, gates=True) and shares_weights(node):
        return "the weight is shared by several nodes"
    # what else could be fitted is no layer because its bias, an Add of its own, is to be left alone
    return unfit(node) or ("its bias is excluded" if top else INSIDE)


def _holds_weights(node: gs.Node, weights: Mapping[str, gs.Constant]) -> bool:
    """Whether a node multiplies data with a stored matrix, or may do so: an operator of another domain."""
    facts, foreign = ops.facts(node), node.domain not in (None, "", "ai.onnx")
    if not foreign and facts.macs is ops.UNKNOWN.macs:
        return False
    sources = (t if isinstance(t, gs.Constant) else weights.get(t.name) for t in node.inputs)
    return any(_is_matrix(t) for t in sources)


def _is_matrix(tensor: Any) -> bool:
    return isinstance(tensor, gs.Constant) and len(tensor.shape) > 1 and cost.is_weight(tensor)
