"""Views by computed indices: what exporters write for as_strided with an open batch, as a pick of whole rows. Exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ..rewrite import Outcome, Rewriter, Rule


def _rows(rw: Rewriter, node: gs.Node) -> Outcome:
    """Gather(Reshape(x, [-1]), range(n)·k + arange(k)): rows range(n) of Reshape(x, [-1, k]).

    The indices take element j of row i for i·k + j. The rows come out even since x has sizes that k divides.
    """
    flat, total = rw.maker(node.inputs[0], "Reshape"), rw.maker(node.inputs[1], "Add")
    if flat is None or total is None or node.attrs.get("axis", 0) != 0 or rw.ints(flat.inputs[1]) != [-1]:
        return None
    for at in (0, 1):
        inside, start = rw.small(total.inputs[at]), _start(rw, total.inputs[1 - at])
        if inside is None or start is None or inside.ndim < 2 or inside.shape[0] != 1:
            continue
        count, k = start
        sizes = rw.static_tail(flat.inputs[0], 1 - (rw.rank(flat.inputs[0]) or 1))
        even = sizes is not None and int(np.prod(sizes)) % k == 0
        if not even or not np.array_equal(inside.reshape(-1), np.arange(k)) or rw.rank(total.outputs[0]) != inside.ndim:
            continue
        table = rw.insert(node, "Reshape", [flat.inputs[0], rw.constant("rows", np.array([-1, k]))])
        table.dtype, table.shape = node.outputs[0].dtype, [None, k]
        picked = rw.insert(node, "Gather", [table, count], {"axis": 0})
        picked.dtype, picked.shape = node.outputs[0].dtype, [None, k]
        return rw.become(node, "Reshape", [picked, rw.constant("view", np.array([-1, *inside.shape[1:]]))])
    return None


def _start(rw: Rewriter, tensor: Any) -> tuple[Any, int] | None:
    """(range(n), k) of a tensor range(n)·k of shape [n, 1, …]."""
    spread = rw.maker(tensor, "Unsqueeze", "Reshape")
    product = None if spread is None else rw.maker(spread.inputs[0], "Mul")
    shape = rw.shape(tensor)
    if product is None or not shape or any(d != 1 for d in shape[1:]):
        return None
    for at in (0, 1):
        count, k = rw.maker(product.inputs[at], "Range"), rw.scalar(product.inputs[1 - at])
        if count is None or k is None or int(k) < 1 or rw.rank(product.outputs[0]) != 1:
            continue
        if rw.scalar(count.inputs[0]) == 0 and rw.scalar(count.inputs[2]) == 1:
            return count.outputs[0], int(k)
    return None


RULES = (Rule("strided view as rows", ("Gather",), _rows, since=11),)
