"""Transposes on both sides of a Reshape that only adds or removes axes of size 1: one Transpose, or none. Exact.

Axes of size 1 may stand anywhere without moving data, so such a Reshape can be done last.
"""

from __future__ import annotations

from typing import Any

import onnx_graphsurgeon as gs

from ..rewrite import Outcome, Rewriter, Rule, same_sizes
from .reshape import RESHAPES, one_reshape, reshaped, target_of


def _wide(shape: list[Any]) -> list[int]:
    """Axes that are not of size 1."""
    return [k for k, d in enumerate(shape) if d != 1]


def _across_ones(rw: Rewriter, node: gs.Node) -> Outcome:
    """Transpose(Reshape(Transpose(x))) with ones added or removed between: Reshape(Transpose(x)), or a Reshape."""
    middle = rw.inner(node.inputs[0], *RESHAPES)
    first = None if middle is None else rw.maker(middle.inputs[0], "Transpose")
    if middle is None or first is None or "perm" not in first.attrs or "perm" not in node.attrs:
        return None
    x, before, after = first.inputs[0], list(first.attrs["perm"]), list(node.attrs["perm"])
    source = rw.shape(x)
    if source is None or sorted(before) != list(range(len(source))) or not rw.together(node, middle):
        return None
    turned = [source[k] for k in before]
    given = reshaped(rw, middle, turned)
    if given is None or sorted(after) != list(range(len(given))):
        return None
    wide, kept = _wide(turned), _wide(given)
    if not same_sizes([turned[k] for k in wide], [given[k] for k in kept]):
        return None
    order = [before[wide[kept.index(k)]] for k in after if k in kept]
    perm = [*(k for k in range(len(source)) if k not in order), *order]
    end = [given[k] for k in after]
    if order == sorted(order):
        return one_reshape(rw, node, x, source, end)
    if target_of([source[k] for k in perm], end) is None:
        return None
    moved = rw.insert(node, "Transpose", [x], {"perm": perm})
    moved.dtype, moved.shape = node.outputs[0].dtype, [source[k] for k in perm]
    return one_reshape(rw, node, moved, moved.shape, end)


RULES = (Rule("transposes joined", ("Transpose",), _across_ones, since=5),)
