"""Chains of Reshape, Flatten, Squeeze, Unsqueeze and of Transposes that move nothing: one Reshape, or none. Exact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import edit
from ..operands import given_axes
from ..rewrite import Outcome, Rewriter, Rule, same_sizes

RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


def reshaped(rw: Rewriter, node: gs.Node, shape: Sequence[Any]) -> list[Any] | None:
    """The output shape of a reshape-like node for an input shape; unknown sizes None, None when it cannot be told."""
    rank = len(shape)
    if node.op == "Transpose":
        perm = node.attrs.get("perm", list(range(rank))[::-1])
        if sorted(perm) != list(range(rank)):
            return None
        moved = [p for p in perm if shape[p] != 1]
        return [shape[p] for p in perm] if moved == sorted(moved) else None
    if node.op == "Flatten":
        axis = node.attrs.get("axis", 1)
        axis = axis + rank if axis < 0 else axis
        return [_volume(shape[:axis]), _volume(shape[axis:])]
    if node.op == "Reshape":
        return _target(rw, node, shape)
    axes = given_axes(rw, node)
    if node.op == "Squeeze":
        if axes is None:
            ok = "axes" not in node.attrs and edit.get(node, 1) is None
            return [d for d in shape if d != 1] if ok and all(isinstance(d, int) for d in shape) else None
        if not axes:
            return None  # ONNX Runtime squeezes every axis then
        gone = {a % rank for a in axes} if rank else set()
        return [d for k, d in enumerate(shape) if k not in gone]
    if axes is None:
        return None
    full = rank + len(axes)
    added = {a % full for a in axes}
    rest = iter(shape)
    return [1 if k in added else next(rest) for k in range(full)]


def _volume(sizes: Sequence[Any]) -> Any:
    """Product of sizes; the one symbol among ones stays itself; None when unknown."""
    other = [d for d in sizes if d != 1]
    if len(other) == 1:
        return other[0]
    return int(np.prod(other, dtype=np.int64)) if all(isinstance(d, int) for d in other) else None


def _target(rw: Rewriter, node: gs.Node, shape: Sequence[Any]) -> list[Any] | None:
    target = node.attrs.get("shape") if "shape" in node.attrs else rw.ints(edit.get(node, 1))
    if target is None:
        return None
    copies = not node.attrs.get("allowzero", 0)
    if any(v == 0 and copies and k >= len(shape) for k, v in enumerate(target)):
        return None
    sizes: list[Any] = [shape[k] if v == 0 and copies else v for k, v in enumerate(target)]
    if -1 not in sizes:
        return sizes
    at = sizes.index(-1)
    sizes[at] = _remainder(list(shape), [d for k, d in enumerate(sizes) if k != at])
    return sizes


def _remainder(whole: list[Any], parts: list[Any]) -> Any:
    """What is left of the sizes of `whole` when those of `parts` are divided out; None when it cannot be told."""
    for d in list(parts):
        if not isinstance(d, int) and d is not None and d in whole:
            whole.remove(d)
            parts.remove(d)
    if not all(isinstance(d, int) for d in parts):
        return None
    size, symbols = (
        int(np.prod([d for d in whole if isinstance(d, int)], dtype=np.int64)),
        [d for d in whole if not isinstance(d, int)],
    )
    part = int(np.prod(parts, dtype=np.int64))
    if part <= 0 or size % part:
        return None
    if not symbols:
        return size // part
    return symbols[0] if len(symbols) == 1 and size == part else None


def _reshape_chain(rw: Rewriter, node: gs.Node) -> Outcome:
    """Reshape, Flatten, Squeeze, Unsqueeze and Transposes of ones, one after another: one Reshape, or none."""
    inner = rw.maker(node.inputs[0], *RESHAPES, "Transpose")
    if inner is None or node.inputs[0].dtype is None:
        return None
    start = rw.shape(inner.inputs[0])
    if start is None:
        return _absolute(rw, node, inner)
    middle = reshaped(rw, inner, start)
    end = None if middle is None else reshaped(rw, node, middle)
    if end is None:
        return _absolute(rw, node, inner)
    x = inner.inputs[0]
    if same_sizes(start, end):
        if not rw.replace(node.outputs[0], x):
            return rw.become(node, "Identity", [x])
        return True
    return one_reshape(rw, node, x, start, end) or _absolute(rw, node, inner)


def target_of(start: list[Any], end: list[Any]) -> list[int] | None:
    """A Reshape's target that makes `end` of the shape `start`; None where none can say that."""
    target, free = [], 0
    for k, d in enumerate(end):
        if isinstance(d, int) and d > 0:
            target.append(d)
        elif isinstance(d, str) and k < len(start) and start[k] == d:
            target.append(0)
        else:
            target.append(-1)
            free += 1
    return None if free > 1 or any(d == 0 for d in end if isinstance(d, int)) else target


def one_reshape(rw: Rewriter, node: gs.Node, x: Any, start: list[Any], end: list[Any]) -> Outcome:
    """Turn a node into the Reshape of `x` (of shape `start`) to `end`; None where that cannot be said."""
    target = target_of(start, end)
    if rw.opset < 5 or target is None:
        return None
    return rw.become(node, "Reshape", [x, rw.constant(f"{node.name}_shape", np.array(target, np.int64))])


def _absolute(rw: Rewriter, node: gs.Node, inner: gs.Node) -> Outcome:
    """A Reshape to sizes that copy none does not care what was reshaped before."""
    if node.op != "Reshape" or inner.op == "Transpose" or node.attrs.get("allowzero", 0):
        return None
    target = rw.ints(edit.get(node, 1))
    if target is None or 0 in target:
        return None
    return rw.rewire(node, [inner.inputs[0], node.inputs[1]])


def _sizes_copied(rw: Rewriter, node: gs.Node) -> Outcome:
    """A -1 that works out to the size at its own place copies it by 0: shape inference then keeps the size's name."""
    start, target = rw.shape(node.inputs[0]), rw.ints(edit.get(node, 1))
    if start is None or target is None or -1 not in target or 0 in target:
        return None
    at = target.index(-1)
    size = start[at] if at < len(start) else None
    end = reshaped(rw, node, start) if isinstance(size, str) else None
    if end is None or end[at] != size:
        return None
    copied = rw.constant(node.inputs[1].name, np.array([0 if v == -1 else v for v in target], np.int64))
    return rw.become(node, "Reshape", [node.inputs[0], copied])


RULES = (
    Rule("reshapes joined", (*RESHAPES, "Transpose"), _reshape_chain),
    Rule("sizes copied", ("Reshape",), _sizes_copied, since=5),
)
