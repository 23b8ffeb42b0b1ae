"""Matrix products."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_graphsurgeon as gs

from .. import edit, equations
from .facts import Facts, Quant, SizeOf, Weight


def _gemm_weight(node: gs.Node) -> Weight | None:
    transposed = bool(node.attrs.get("transB", 0))
    return Weight(1, 0 if transposed else 1, 1 if transposed else 0, bias=2)


def _matmul_weight(node: gs.Node) -> Weight | None:
    if not isinstance(node.inputs[1], gs.Constant) or len(node.inputs[1].shape) < 2:
        return None
    return Weight(1, -1, -2)


def _product_macs(node: gs.Node, sizes: SizeOf) -> int:
    """Output elements times the length of the contraction."""
    out, a = sizes(node.outputs[0]), sizes(node.inputs[0])
    if out is None or not a:
        return 0
    axis = 0 if node.op == "Gemm" and node.attrs.get("transA", 0) else -1
    return math.prod(out) * a[axis]


def _einsum_macs(node: gs.Node, sizes: SizeOf) -> int:
    """Product of the sizes of all labels."""
    terms, _ = equations.split(node.attrs.get("equation", ""))
    labels: dict[str, int] = {}
    for term, tensor in zip(terms, node.inputs):
        shape = sizes(tensor)
        if shape is None or len(shape) != len(term):
            return 0
        labels.update(zip(term, shape))
    return math.prod(labels.values()) if len(terms) > 1 else 0


def _attention_macs(node: gs.Node, sizes: SizeOf) -> int:
    """Queries times keys, and what comes of it times values: [B, H, S, D] or, heads together, [B, S, H·D]."""
    out, q, k = sizes(node.outputs[0]), sizes(node.inputs[0]), sizes(node.inputs[1])
    if out is None or q is None or k is None or len(node.inputs) > 4:
        return 0
    return (math.prod(q) + math.prod(out)) * k[-2]


def _integer(node: gs.Node, name: str) -> int:
    """An attribute of an operator that no schema checks; 0 where it is missing or no integer."""
    value = node.attrs.get(name)
    return value if isinstance(value, int) and value > 0 else 0


def _nbits_macs(node: gs.Node, sizes: SizeOf) -> int:
    """Rows times K times N: shapes are not inferred behind operators that are not ONNX's own, so of either side."""
    rows = sizes(node.outputs[0]) or sizes(node.inputs[0])
    return math.prod(rows[:-1]) * _integer(node, "K") * _integer(node, "N") if rows else 0


def _nbits_packed(node: gs.Node) -> Mapping[int, int]:
    """B, [N, blocks, bytes of a block], holds N·K weights; zero points in bytes, one a block, are packed as well."""
    length, width, block = (_integer(node, name) for name in ("K", "N", "block_size"))
    zeros = edit.get(node, 3)
    in_bytes = zeros is not None and zeros.dtype is not None and np.dtype(zeros.dtype) == np.uint8
    return {1: width * length} | ({3: width * -(-length // max(block, 1))} if in_bytes else {})


FACTS = (
    Facts("Gemm", "weighted", weight=_gemm_weight, macs=_product_macs, quant=Quant(weighted=True)),
    Facts(
        "MatMul",
        "weighted",
        weight=_matmul_weight,
        macs=_product_macs,
        quant=Quant(inputs=(0, 1), weighted=True),
    ),
    Facts("Einsum", "weighted", macs=_einsum_macs),
    Facts("Attention", "opaque", macs=_attention_macs),
    Facts("MatMulInteger", "opaque", macs=_product_macs),
    Facts("QLinearMatMul", "opaque", macs=_product_macs),
    Facts("MatMulNBits", "opaque", domain="com.microsoft", macs=_nbits_macs, packed=_nbits_packed),
)
