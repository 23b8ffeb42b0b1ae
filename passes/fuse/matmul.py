"""The forms of a matrix product: with its bias as one Gemm, without Reshapes around it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import edit
from ..rewrite import Outcome, Rewriter, Rule, same_sizes
from .affine import FLOATS
from .reshape import reshaped


def _through_reshapes(rw: Rewriter, node: gs.Node) -> Outcome:
    """[..., K] reshaped to [M, K], times a matrix, reshaped to [..., N]: MatMul does that itself. Exact.

    A Gemm becomes MatMul + Add; ONNX Runtime joins them again at load as it sees fit.
    """
    linear_node = rw.inner(node.inputs[0], "MatMul", "Gemm")
    first = None if linear_node is None else rw.maker(linear_node.inputs[0], "Reshape", "Flatten")
    w = None if linear_node is None else edit.get(linear_node, 1)
    if linear_node is None or first is None or not isinstance(w, gs.Constant) or len(w.shape) != 2:
        return None
    x = first.inputs[0]
    start, middle = rw.shape(x), rw.shape(linear_node.inputs[0])
    if start is None or middle is None or len(start) < 3 or len(middle) != 2 or not rw.together(node, linear_node):
        return None
    plain = linear_node.op == "MatMul" or not any(
        (linear_node.attrs.get("transA", 0), linear_node.attrs.get("transB", 0))
    )
    units = linear_node.attrs.get("alpha", 1.0) == 1.0 and linear_node.attrs.get("beta", 1.0) == 1.0
    if not (plain and units) or start[-1] != w.shape[0] or middle[1] != w.shape[0]:
        return None
    end = [*start[:-1], w.shape[1]]
    if not any(same_sizes(reshaped(rw, node, shape), end) for shape in _product_shapes(rw, node, middle, end)):
        return None
    bias = edit.get(linear_node, 2)
    if bias is None:
        return rw.become(node, "MatMul", [x, w])
    shape = rw.shape(bias)
    if shape is None or len(shape) > 1 or not rw.sole(first.outputs[0]) or rw.opset < 7:
        return None
    product = rw.insert(node, "MatMul", [x, w])
    product.dtype, product.shape = node.outputs[0].dtype, end
    return rw.become(node, "Add", [product, bias])


def _product_shapes(rw: Rewriter, node: gs.Node, middle: list[Any], end: list[Any]) -> list[list[Any]]:
    """What the Reshape after the product may be read as reshaping: [M, N], and [..., N] where it copies no size."""
    target = rw.ints(edit.get(node, 1))
    return [[middle[0], end[-1]], *([end] if target is not None and 0 not in target else [])]


def _to_gemm(rw: Rewriter, node: gs.Node) -> Outcome:
    """MatMul + Add → Gemm: for matrices, where it is one kernel with the bias inside."""
    for at in (0, 1):
        matmul = rw.inner(node.inputs[at], "MatMul") if len(node.inputs) == 2 else None
        if matmul is None or not rw.together(node, matmul):
            continue
        a, b, c = matmul.inputs[0], matmul.inputs[1], node.inputs[1 - at]
        left, right, bias = rw.shape(a), rw.shape(b), rw.shape(c)
        if left is None or right is None or len(left) != 2 or len(right) != 2 or bias is None or len(bias) > 2:
            continue
        if a.dtype is None or np.dtype(a.dtype).name not in FLOATS:
            continue
        rows, cols = ([1, 1] + bias)[-2:] if bias else (1, 1)
        sure_cols = cols == 1 or (cols is not None and cols == right[1])
        sure_rows = rows == 1 or (rows is not None and rows == left[0])
        if sure_cols and sure_rows:
            return rw.become(node, "Gemm", [a, b, c])
    return None


RULES = (
    Rule("reshapes around MatMul removed", ("Reshape",), _through_reshapes),
    Rule("MatMul + Add to Gemm", ("Add",), _to_gemm, since=11),
)
