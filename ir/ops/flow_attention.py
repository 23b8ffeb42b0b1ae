"""How labels pass through the fused Attention and RotaryEmbedding of opset 23: heads and head dimensions go separately.

Tensors are `[B, H, S, D]`, or `[B, S, H·D]` with the heads in an attribute. Where query heads share a key head (grouped
queries), a key head goes with all of its query heads, or every key head loses the same of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from .. import edit
from ..labels import Cells, join
from ..resizing import Count, Written

if TYPE_CHECKING:
    from ..flow import Flow

Split = tuple["Cells | None", "Cells | None"]  # heads, dimensions
HEADS = ("q_num_heads", "kv_num_heads", "kv_num_heads")


def attention(flow: Flow, node: gs.Node) -> None:
    """Attention (Q, K, V, mask, past keys, past values): dimensions of Q and K unite, heads of all; tokens stay."""
    why = f"tokens of {node.op} '{node.name}'"
    for k in range(3):
        rank = flow.rank(node.inputs[k])
        flow.pin(node.inputs[k], why, (0, rank - 2))
    counts = _counts(flow, node)
    (q_heads, q_dims), (k_heads, k_dims), (v_heads, v_dims) = (_apart(flow, node, k, counts[k]) for k in range(3))
    _unite(flow, node, k_heads, v_heads)
    _unite(flow, node, q_dims, k_dims)
    shared = _shared(flow, node, q_heads, k_heads, counts[0] // counts[1])
    _masked(flow, node, shared)
    _cached(flow, node, flow.atoms.resolve(k_heads), q_dims, v_dims)
    heads, kept = (flow.atoms.resolve(c) for c in (shared, k_heads))
    for k, cells in enumerate((heads, kept)):
        if cells is not None and HEADS[k] in node.attrs:
            flow.fixes.append(Count(node.name, cells, HEADS[k]))
    if q_dims is not None and "scale" not in node.attrs:
        flow.fixes.append(Written(node.name, "scale", float(len(q_dims)) ** -0.5, q_dims))
    _products(flow, node, (q_dims, heads), (v_dims, heads))
    _put(flow, node.outputs[0], heads, v_dims, counts[0])
    for tensor, dims in zip(node.outputs[1:3], (q_dims, v_dims)):
        flow.put(tensor, [None, kept, None, dims])
    if len(node.outputs) > 3:
        flow.put(node.outputs[3], [None, heads, None, None])


def _counts(flow: Flow, node: gs.Node) -> list[int]:
    """Heads of Q, K and V."""
    return [
        flow.size(node.inputs[k])[1] if flow.rank(node.inputs[k]) == 4 else int(node.attrs[HEADS[k]]) for k in range(3)
    ]


def _apart(flow: Flow, node: gs.Node, index: int, heads: int) -> Split:
    """Labels of the heads and of the dimensions of an input."""
    labels = flow.of(node.inputs[index])
    if len(labels) == 4:
        return labels[1], labels[3]
    cells = labels[2]
    if cells is None:
        return None, None
    where = f"the input of '{node.name}'"
    rows, columns = flow.atoms.factor(cells.reshape(heads, len(cells) // heads, -1), where)
    return rows, columns


def _unite(flow: Flow, node: gs.Node, a: Cells | None, b: Cells | None) -> None:
    reason = f"meets what stays at {node.op} '{node.name}'"
    if a is None or b is None:
        flow.atoms.pin(a, reason)
        flow.atoms.pin(b, reason)
    else:
        flow.atoms.unify(a, b, reason)


def _shared(flow: Flow, node: gs.Node, queries: Cells | None, keys: Cells | None, each: int) -> Cells | None:
    """Labels of the query heads: `each` of them in a row read one key head."""
    if each == 1 or queries is None:
        _unite(flow, node, queries, keys)
        return queries
    grid = queries.reshape(len(queries) // each, each, -1)
    rows, columns = flow.atoms.factor(grid, f"the queries of '{node.name}'")
    _unite(flow, node, rows, keys)
    rows, columns = flow.atoms.resolve(rows), flow.atoms.resolve(columns)
    spread = None if rows is None else np.repeat(rows, each, axis=0)
    tiled = None if columns is None else np.tile(columns, (len(queries) // each, 1))
    return join(spread, tiled)


def _masked(flow: Flow, node: gs.Node, heads: Cells | None) -> None:
    """A mask `[[[B,] H,] S, T]` is of tokens, which stay, and may have heads: those of the queries."""
    mask = edit.get(node, 3)
    if mask is None:
        return
    rank = flow.rank(mask)
    flow.pin(mask, f"mask of {node.op} '{node.name}'", [a for a in range(rank) if a != rank - 3])
    if rank > 2 and flow.size(mask)[-3] > 1:
        flow.meet(node, 3, rank - 3, flow.atoms.resolve(heads))


def _cached(flow: Flow, node: gs.Node, heads: Cells | None, keys: Cells | None, values: Cells | None) -> None:
    """Past keys and values have heads and dimensions, and tokens that stay."""
    for index, dims in ((4, keys), (5, values)):
        if edit.get(node, index) is not None:
            flow.pin(node.inputs[index], f"tokens of {node.op} '{node.name}'", (0, 2))
            flow.meet(node, index, 1, heads)
            flow.meet(node, index, 3, dims)


def _products(flow: Flow, node: gs.Node, scores: Split, mixed: Split) -> None:
    """Queries times keys, and what comes of it times values."""
    four = flow.rank(node.inputs[0]) == 4
    share = _size(scores[0], flow, node, 0) / max(_size(scores[0], flow, node, 0) + _size(mixed[0], flow, node, 2), 1)
    axes = (3, 3) if four else (2, 2)
    flow.product(node, (0, 1), axes, scores[0], scores[1], share=share)
    flow.product(node, (0, 2), (-1, -1), None, *mixed, share=1 - share)


def _size(cells: Cells | None, flow: Flow, node: gs.Node, index: int) -> int:
    if cells is not None:
        return len(cells)
    size = flow.size(node.inputs[index])
    return size[3] if len(size) == 4 else size[2] // int(node.attrs[HEADS[index]])


def _put(flow: Flow, y: Any, heads: Cells | None, dims: Cells | None, count: int) -> None:
    size = flow.size(y)
    if len(size) == 4:
        flow.put(y, [None, heads, None, dims])
        return
    each = size[2] // count
    rows = None if heads is None else np.repeat(heads, each, axis=0)
    columns = None if dims is None else np.tile(dims, (count, 1))
    flow.put(y, [None, None, join(rows, columns)])


def rotary(flow: Flow, node: gs.Node) -> None:
    """RotaryEmbedding (X, cosines, sines): dimensions that turn together go together, with their angle."""
    x = node.inputs[0]
    rank = flow.rank(x)
    tokens = f"tokens of {node.op} '{node.name}'"
    flow.pin(x, tokens, (0, rank - 2))
    for tensor in node.inputs[1:3]:
        flow.pin(tensor, tokens, range(flow.rank(tensor) - 1))
    if int(node.attrs.get("rotary_embedding_dim", 0)):
        flow.pin(x, f"part of it turns at {node.op} '{node.name}'", [rank - 1])
        flow.put(node.outputs[0], flow.of(x))
        return
    heads = flow.size(x)[1] if rank == 4 else int(node.attrs["num_heads"])
    rows, dims = _apart(flow, node, 0, heads)
    if dims is not None:
        half = len(dims) // 2
        order, pair = ((half, 2), 0) if node.attrs.get("interleaved", 0) else ((2, half), 1)
        parts = flow.atoms.factor(dims.reshape(*order, -1), f"the input of '{node.name}'")
        flow.atoms.pin(parts[1 - pair], f"both halves of a rotation at '{node.name}'")
        for index in (1, 2):
            flow.meet(node, index, flow.rank(node.inputs[index]) - 1, flow.atoms.resolve(parts[pair]))
    rows = flow.atoms.resolve(rows)
    if rows is not None and "num_heads" in node.attrs:
        flow.fixes.append(Count(node.name, rows, "num_heads"))
    flow.put(node.outputs[0], flow.of(x))


RULES: dict[str, Callable[[Any, gs.Node], None]] = {"Attention": attention, "RotaryEmbedding": rotary}
