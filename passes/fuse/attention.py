"""Attention spelled out, as the operator that opset 23 has for it.

softmax(Q·Kᵀ·scale + mask)·V by definition; the operator scales at another place, so results differ by float rounding.
Rows whose mask is all -inf are NaN in the spelled-out form, rows whose mask is all the lowest float are means; both are
0 from ONNX Runtime's operator: a mask is taken only where no row can be so. The operator is as fast as what it replaces
where queries, keys and values come with their heads apart, and 1.1 to 1.6 times faster where it takes the heads apart
itself (ONNX Runtime 1.32, one core).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import edit
from ..rewrite import Outcome, Rewriter, Rule, same_sizes
from .normal import only_reader
from .reshape import RESHAPES, reshaped
from .upsampling import repeated

HEADS_APART = [0, 2, 1, 3]  # [B, S, H, D] to [B, H, S, D], and back
# ONNX Runtime's Attention takes this number in a mask for -inf; its MultiHeadAttention does not.
LOWEST = float(np.finfo(np.float32).min)
LAST_TWO = {3: [0, 2, 1], 4: [0, 1, 3, 2]}
_PASSES_ON = ("Unsqueeze", "Reshape", "Slice", "Expand", "Transpose", "Identity")


def _scaled(rw: Rewriter, tensor: Any) -> tuple[Any, float]:
    """For x·c or x / c with one constant number that only this reads: x and the factor."""
    node = rw.inner(tensor, "Mul", "Div")
    if node is None:
        return tensor, 1.0
    for at in (1, 0):
        c = rw.scalar(node.inputs[at]) if len(node.inputs[at].shape or ()) <= 1 else None
        if c is None or isinstance(node.inputs[1 - at], gs.Constant) or (node.op == "Div" and (at == 0 or c == 0)):
            continue
        return node.inputs[1 - at], float(c) if node.op == "Mul" else 1.0 / float(c)
    return tensor, 1.0


@dataclass(frozen=True)
class Spelled:
    """Attention spelled out: queries, keys with their last axes turned, and values; what is added to scores; scale."""

    operands: tuple[Any, Any, Any]
    mask: Any
    scale: float


def spelled(rw: Rewriter, node: gs.Node, hidden: float = -np.inf) -> Spelled | str | None:
    """Read MatMul(Softmax(MatMul(q, kᵀ)·scale + mask), v), all of four axes or all of three (batch and heads as one).

    hidden: what the operator takes for -inf in a mask. A reason where the operator cannot be it.
    """
    softmax, v = rw.inner(node.inputs[0], "Softmax"), node.inputs[1]
    rank = rw.rank(v)
    if softmax is None or rank is None or rank not in LAST_TWO or v.dtype != np.float32:
        return None
    if softmax.attrs.get("axis", -1) not in (-1, rank - 1):
        return None
    scores, mask = _masked(rw, softmax.inputs[0])
    scores, scale = _scaled(rw, scores)
    product = rw.inner(scores, "MatMul")
    if product is None or not rw.together(node, softmax, product):
        return None
    q, before = _scaled(rw, product.inputs[0])
    turned, also = _scaled(rw, product.inputs[1])
    scale *= before * also
    across = rw.shape(turned)
    if across is None or len(across) != rank or not scale > 0 or not _turned(rw, turned):
        return None
    keys = [across[a] for a in LAST_TWO[rank]]
    if not _fits(rw.shape(q), keys, rw.shape(v)):
        return None
    wanted = [*rw.shape(q)[:-1], keys[-2]]  # type: ignore[index]
    if mask is not None and not (_covers(rw.shape(mask), wanted) and _some_seen(rw, mask, hidden)):
        return "the mask could hide whole rows, or is broadcast in a way that the operator does not take"
    return Spelled((q, turned, v), mask, scale)


def _attention(rw: Rewriter, node: gs.Node) -> Outcome:
    """MatMul(Softmax(MatMul(q, kᵀ)·scale + mask), v), four axes each, or three that Reshapes have made and take on."""
    found = spelled(rw, node, LOWEST)
    if not isinstance(found, Spelled):
        return found
    q, turned, v = found.operands
    rank = len(rw.shape(v) or ())
    k_shape = [rw.shape(turned)[a] for a in LAST_TWO[rank]]  # type: ignore[index]
    if rank == 3 and not (_reshaped_around(rw, node, q, v)):
        return None
    # The Transpose joins, or cancels, that which made the keys.
    k = _made(rw, node, "Transpose", [turned], k_shape, {"perm": LAST_TWO[rank]})
    mask = [] if found.mask is None else [found.mask]
    if rank == 4:
        return rw.become(node, "Attention", [q, k, v, *mask], {"scale": found.scale})
    first = rw.constant(f"{node.name}_axes", np.array([0], np.int64))
    inputs = [_made(rw, node, "Unsqueeze", [t, first], [1, *rw.shape(t)]) for t in (q, k, v)]  # type: ignore[misc]
    shape = [1, *rw.shape(q)[:-1], rw.shape(v)[-1]]  # type: ignore[index]
    out = _made(rw, node, "Attention", [*inputs, *mask], shape, {"scale": found.scale})
    return rw.become(node, "Squeeze", [out, first])


def _made(rw: Rewriter, node: gs.Node, op: str, inputs: list[Any], shape: list[Any], attrs: Any = None) -> Any:
    out = rw.insert(node, op, inputs, attrs)
    out.dtype, out.shape = inputs[0].dtype, shape
    return out


def _reshaped_around(rw: Rewriter, node: gs.Node, q: Any, v: Any) -> bool:
    """Whether the Reshapes that an axis of 1 needs join others: else there would be more nodes, not fewer."""
    return all(rw.inner(t, *RESHAPES) is not None for t in (q, v)) and only_reader(rw, node, "Reshape") is not None


def _turned(rw: Rewriter, tensor: Any) -> bool:
    """Whether a Transpose made a tensor, Reshapes aside: turning it once more then costs nothing."""
    node = rw.maker(tensor, "Transpose", *RESHAPES)
    while node is not None and node.op in RESHAPES:
        node = rw.maker(node.inputs[0], "Transpose", *RESHAPES)
    return node is not None


def _masked(rw: Rewriter, scores: Any) -> tuple[Any, Any]:
    """For product + mask: both, the product being what a MatMul (scaled or not) makes."""
    add = rw.inner(scores, "Add")
    if add is None:
        return scores, None
    for at in (0, 1):
        if rw.inner(_scaled(rw, add.inputs[at])[0], "MatMul") is not None:
            return add.inputs[at], add.inputs[1 - at]
    return scores, None


def _fits(q: list[Any] | None, k: list[Any] | None, v: list[Any] | None) -> bool:
    """[.., S, D], [.., L, D] and [.., L, E], with nothing broadcast."""
    if q is None or k is None or v is None or not len(q) == len(k) == len(v):
        return False
    return same_sizes(q[:-2] + q[-1:], k[:-2] + k[-1:]) and same_sizes(k[:-1], v[:-1])


def _covers(mask: list[Any] | None, scores: list[Any]) -> bool:
    """Whether the operator takes a mask of this shape: rows and columns in full, heads and batch in full or 1."""
    if mask is None or not 2 <= len(mask) <= 4 or not same_sizes(mask[-2:], scores[-2:]):
        return False
    lead, whole = mask[:-2], scores[:-2]
    return len(lead) <= len(whole) and all(
        m == 1 or (m is not None and m == s) for m, s in zip(lead, whole[len(whole) - len(lead) :])
    )


def _some_seen(rw: Rewriter, mask: Any, hidden: float) -> bool:
    """Whether surely no row of a mask is hidden throughout: a constant, or chosen between finite numbers."""
    if isinstance(mask, gs.Constant):
        seen = np.isfinite(mask.values) & (mask.values > hidden)
        return bool(np.all(seen.any(axis=-1)) and not np.any(np.isnan(mask.values)))
    source = mask
    while (node := rw.maker(source, *_PASSES_ON)) is not None:
        source = node.inputs[0]
    where = rw.maker(source, "Where")
    if where is None:
        return False
    values = [rw.small(t) for t in where.inputs[1:3]]
    return all(v is not None and bool(np.all(np.isfinite(v) & (v > hidden))) for v in values)


def _grouped(rw: Rewriter, node: gs.Node) -> Outcome:
    """Keys and values whose heads are repeated for groups of queries: the operator repeats them itself. Exact."""
    if len(node.outputs) != 1 or len(node.inputs) > 4 or "q_num_heads" in node.attrs:
        return None
    makers = [rw.maker(t, "Reshape") for t in node.inputs[1:3]]
    found = [None if m is None or not rw.together(node, m) else repeated(rw, m) for m in makers]
    if found[0] is None or found[1] is None or found[0][1] != found[1][1]:
        return None
    (k, factors), (v, _) = found[0], found[1]
    if len(factors) != 4 or factors[1] == 1 or max(factors[0], *factors[2:]) > 1:
        return None
    return rw.rewire(node, [node.inputs[0], k, v, *node.inputs[3:]])


def _batch_apart(rw: Rewriter, node: gs.Node) -> Outcome:
    """Batch and heads that Reshapes have made one axis for it and take apart after it: it has both. Exact."""
    end = only_reader(rw, node, "Reshape")
    sources = [None if m is None else m.inputs[0] for m in (rw.inner(t, "Reshape") for t in node.inputs[:3])]
    shapes = [rw.shape(t) for t in sources]
    if end is None or len(node.inputs) > 4 or "q_num_heads" in node.attrs or any(len(s or ()) != 4 for s in shapes):
        return None
    q, k, v = (s for s in shapes if s is not None)
    given = [rw.static(t) for t in node.inputs[:3]]
    whole = all(g is not None and g[0] == 1 and same_sizes(g[2:], s[2:]) for g, s in zip(given, (q, k, v)))
    mask = rw.shape(edit.get(node, 3)) if len(node.inputs) == 4 else []
    if not whole or not _fits(q, k, v) or mask is None or any(d != 1 for d in mask[:-2]):
        return None
    out = node.outputs[0]
    if not same_sizes(rw.shape(end.outputs[0]), [*q[:-1], v[-1]]) or not rw.can_replace(end.outputs[0], out):
        return None
    rw.rewire(node, [*sources, *node.inputs[3:]])
    out.shape = [*q[:-1], v[-1]]
    return rw.replace(end.outputs[0], out)


def _heads_inside(rw: Rewriter, node: gs.Node) -> Outcome:
    """Heads taken apart before an Attention and put together after it: the operator does both. Exact."""
    if node.op == "Attention":  # what makes its inputs may have changed after the Reshape was looked at
        below = only_reader(rw, node, "Transpose")
        end = None if below is None else only_reader(rw, below, "Reshape")
        return None if end is None else _heads_inside(rw, end)
    transpose = rw.inner(node.inputs[0], "Transpose")
    attention = None if transpose is None else rw.inner(transpose.inputs[0], "Attention")
    if transpose is None or attention is None or list(transpose.attrs.get("perm", [])) != HEADS_APART:
        return None
    plain = len(attention.outputs) == 1 and len(attention.inputs) <= 4 and "q_num_heads" not in attention.attrs
    if not plain or not rw.together(node, transpose, attention):
        return None
    found = [together(rw, t, HEADS_APART) for t in attention.inputs[:3]]
    if any(f is None for f in found):
        return None
    (q, heads, _), (k, groups, _), (v, also, size) = (f for f in found if f is not None)
    shape = rw.shape(q)
    apart = None if shape is None else [*shape[:2], heads, size]
    end = None if apart is None else reshaped(rw, node, apart)
    if shape is None or groups != also or heads % groups or not same_sizes(end, [*shape[:2], heads * size]):
        return None
    attrs = {**attention.attrs, "q_num_heads": heads, "kv_num_heads": groups}
    return rw.become(node, "Attention", [q, k, v, *attention.inputs[3:]], attrs)


def together(rw: Rewriter, tensor: Any, perm: list[int]) -> tuple[Any, int, int] | None:
    """For [B, S, H·D] reshaped to [B, S, H, D] and transposed by `perm`: the tensor of three axes, H and D."""
    transpose = rw.maker(tensor, "Transpose")
    reshape = None if transpose is None else rw.maker(transpose.inputs[0], "Reshape")
    if transpose is None or reshape is None or list(transpose.attrs.get("perm", [])) != perm:
        return None
    shape = rw.shape(reshape.inputs[0])
    apart = None if shape is None or len(shape) != 3 else reshaped(rw, reshape, shape)
    if shape is None or apart is None or len(apart) != 4 or not same_sizes(shape[:2], apart[:2]):
        return None
    heads, size = apart[2:]
    if not isinstance(heads, int) or not isinstance(size, int) or shape[2] != heads * size:
        return None
    return reshape.inputs[0], heads, size


RULES = (
    Rule("Attention", ("MatMul",), _attention, since=23),
    Rule("keys and values of grouped heads", ("Attention",), _grouped, since=23),
    Rule("batch and heads apart", ("Attention",), _batch_apart, since=23),
    Rule("heads inside Attention", ("Reshape", "Attention"), _heads_inside, since=23),
)
