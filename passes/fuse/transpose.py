"""Transposes that join or cancel, across what does not mind the order of axes, sums and Concats. Exact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_graphsurgeon as gs

from ..rewrite import Outcome, Rewriter, Rule
from .crossing import BINARY, crossing, turn

# How many element-wise operators are crossed in search of a Transpose that cancels.
REACH = 16


def _perm(rw: Rewriter, node: gs.Node) -> list[int] | None:
    """The axes of a Transpose; None when they are not known, or do not fit the tensor."""
    rank = rw.rank(node.inputs[0])
    if "perm" not in node.attrs:
        return None if rank is None else list(range(rank))[::-1]
    perm = list(node.attrs["perm"])
    return perm if sorted(perm) == list(range(len(perm) if rank is None else rank)) else None


def _transpose_chain(rw: Rewriter, node: gs.Node) -> Outcome:
    """Transpose of a Transpose, element-wise operators between them crossed: one Transpose, or none."""
    outer = _perm(rw, node)
    path = [node]
    top = node.inputs[0]
    for _ in range(REACH):
        inner = rw.maker(top)
        if inner is None or outer is None:
            return None
        if inner.op == "Transpose":
            return _join(rw, node, path[1:], inner, outer)
        data = crossing(rw, inner, len(outer))
        if data is None or not rw.sole(top) or not rw.together(inner, node):
            return None
        path.append(inner)
        top = data
    return None


def _join(rw: Rewriter, node: gs.Node, path: list[gs.Node], inner: gs.Node, outer: list[int]) -> Outcome:
    first = _perm(rw, inner)
    if first is None or len(first) != len(outer):
        return None
    both = [first[k] for k in outer]
    if not path:
        if both == list(range(len(both))):
            return rw.replace(node.outputs[0], inner.inputs[0]) or rw.become(node, "Identity", [inner.inputs[0]])
        return rw.become(node, "Transpose", [inner.inputs[0]], {"perm": both})
    if not rw.sole(inner.outputs[0]) or not rw.together(inner, node):
        return None
    last = path[0]
    gone = both == list(range(len(both)))
    if gone and not rw.can_replace(node.outputs[0], last.outputs[0]):
        return None
    back = [first.index(k) for k in range(len(first))]
    for crossed in path:
        _permute_shape(crossed.outputs[0], back)
    for position, crossed in enumerate(path):
        x = path[position + 1].outputs[0] if position + 1 < len(path) else inner.inputs[0]
        turn(rw, crossed, x, back)
    if gone:
        return rw.replace(node.outputs[0], last.outputs[0])
    node.attrs["perm"] = both
    return True


def _permute_shape(tensor: Any, perm: Sequence[int]) -> None:
    if tensor.shape is not None and len(tensor.shape) == len(perm):
        tensor.shape = [tensor.shape[k] for k in perm]


def _both_transposed(rw: Rewriter, node: gs.Node) -> Outcome:
    """f(T(a), T(b)) = T(f(a, b)) for an element-wise f; a constant operand is transposed back at once."""
    makers = [rw.inner(t, "Transpose") for t in node.inputs]
    found = [m for m in makers if m is not None]
    if len(node.inputs) != 2 or not found or node.inputs[0] is node.inputs[1]:
        return None
    perm = _perm(rw, found[0])
    if perm is None or any(_perm(rw, m) != perm for m in found) or not rw.together(node, *found):
        return None
    if len(found) == 1:
        return None
    if any(rw.rank(m.inputs[0]) != len(perm) for m in found):
        return None
    out = node.outputs[0]
    middle = rw.insert(node, node.op, [m.inputs[0] for m in found], dict(node.attrs))
    middle.dtype = out.dtype
    back = [perm.index(k) for k in range(len(perm))]
    shape = rw.shape(out)
    middle.shape = None if shape is None else [shape[k] for k in back]
    return rw.become(node, "Transpose", [middle], {"perm": perm})


def _transposed_concat(rw: Rewriter, node: gs.Node) -> Outcome:
    """Concat of Transposes is the Transpose of a Concat."""
    makers = [rw.inner(t, "Transpose") for t in node.inputs]
    if len(makers) < 2 or any(m is None for m in makers) or len({id(t) for t in node.inputs}) < len(makers):
        return None
    found = [m for m in makers if m is not None]
    perm = _perm(rw, found[0])
    if perm is None or any(_perm(rw, m) != perm for m in found) or not rw.together(node, *found):
        return None
    axis = node.attrs["axis"]
    if not -len(perm) <= axis < len(perm):
        return None
    out, sources = node.outputs[0], [m.inputs[0] for m in found]
    middle = rw.insert(node, "Concat", sources, {"axis": perm[axis]})
    middle.dtype = out.dtype
    return rw.become(node, "Transpose", [middle], {"perm": perm})


def _into_gemm(rw: Rewriter, node: gs.Node) -> Outcome:
    """Transposes of a Gemm's matrices are its attributes."""
    for index, name in ((0, "transA"), (1, "transB")):
        inner = rw.maker(node.inputs[index], "Transpose")
        if inner is not None and _perm(rw, inner) == [1, 0]:
            node.attrs[name] = 1 - node.attrs.get(name, 0)
            inputs = list(node.inputs)
            inputs[index] = inner.inputs[0]
            return rw.rewire(node, inputs)
    return None


RULES = (
    Rule("transposes joined", ("Transpose",), _transpose_chain),
    Rule("transposes joined", BINARY, _both_transposed, since=7),
    Rule("transposes joined", ("Concat",), _transposed_concat),
    Rule("transposes joined", ("Gemm",), _into_gemm),
)
