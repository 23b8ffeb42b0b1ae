"""One label-flow rule an operator, by domain and name. What has none is pinned: "no facts for op X"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_graphsurgeon as gs

from . import (
    flow_attention,
    flow_elementwise,
    flow_index,
    flow_integer,
    flow_linear,
    flow_moves,
    flow_norms,
    flow_recurrent,
    flow_reshape,
)

Rule = Callable[[Any, gs.Node], None]

_RULES: dict[str, Rule] = {
    **flow_attention.RULES,
    **flow_elementwise.RULES,
    **flow_index.RULES,
    **flow_integer.RULES,
    **flow_linear.RULES,
    **flow_moves.RULES,
    **flow_norms.RULES,
    **flow_recurrent.RULES,
    **flow_reshape.RULES,
}
_MICROSOFT: dict[str, Rule] = {
    **dict.fromkeys(("Gelu", "FastGelu", "QuickGelu", "BiasGelu"), flow_elementwise.elementwise),
    **dict.fromkeys(("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"), flow_norms.skip_norm),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), flow_elementwise.quantize),
    **flow_integer.MICROSOFT,
    "FusedConv": flow_linear.fused_conv,
    "FusedGemm": flow_linear.gemm,
}


def flow_rule(node: gs.Node) -> Rule | None:
    """How labels pass through a node; None when nobody has said."""
    if node.domain in (None, "", "ai.onnx"):
        return _RULES.get(node.op)
    return _MICROSOFT.get(node.op) if node.domain == "com.microsoft" else None
