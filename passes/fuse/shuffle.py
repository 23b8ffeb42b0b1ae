"""Data movements spelled out over several operators, as the one that does the same.

The chain is run on the positions of its source's elements; what comes out is compared with taking positions along
one axis of the source. So no index arithmetic is trusted: equal positions are equal data. Exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ..operands import slice_bounds
from ..rewrite import Outcome, Rewriter, Rule
from .reshape import RESHAPES, reshaped

# Tensors up to this many elements are followed position by position.
LIMIT = 1 << 22
DEPTH = 6


def positions(rw: Rewriter, node: gs.Node, values: np.ndarray) -> np.ndarray | None:
    """What a data-moving node makes of an array; None when it is not one, or its parameters are not constant."""
    if node.op == "Transpose":
        perm = node.attrs.get("perm")
        return values.transpose(perm) if perm is None or sorted(perm) == list(range(values.ndim)) else None
    if node.op in RESHAPES:
        shape = reshaped(rw, node, values.shape)
        known = shape is not None and all(isinstance(d, int) for d in shape)
        return values.reshape(shape) if known and np.prod(shape, dtype=np.int64) == values.size else None  # type: ignore[arg-type]
    if node.op == "Gather":
        return _gathered(values, rw.const(node.inputs[1]), node.attrs.get("axis", 0))
    bounds = slice_bounds(rw, node) if node.op == "Slice" else None
    return None if bounds is None else _sliced(values, bounds)


def _gathered(values: np.ndarray, indices: np.ndarray | None, axis: int) -> np.ndarray | None:
    size = values.shape[axis] if -values.ndim <= axis < values.ndim else 0
    inside = indices is not None and bool(np.all((-size <= indices) & (indices < size)))
    return np.take(values, indices, axis) if inside and size else None  # type: ignore[arg-type]


def _sliced(values: np.ndarray, bounds: Any) -> np.ndarray | None:
    for start, end, axis, step in zip(*bounds):
        if step <= 0:
            return None
        at = [slice(None)] * values.ndim
        at[axis] = slice(start, end, step)
        values = values[tuple(at)]
    return values


def _chain(rw: Rewriter, node: gs.Node) -> list[gs.Node]:
    """The data-moving nodes above a node, nearest first."""
    found: list[gs.Node] = []
    above = rw.maker(node.inputs[0], *RESHAPES, "Transpose")
    while above is not None and len(found) < DEPTH and rw.together(node, above):
        found.append(above)
        above = rw.maker(above.inputs[0], *RESHAPES, "Transpose")
    return found


def _along_one_axis(source: np.ndarray, result: np.ndarray) -> tuple[int, np.ndarray] | None:
    """The axis and positions with which `take` gives the result; None when there are none."""
    if source.ndim != result.ndim or not result.size:
        return None
    for axis in range(source.ndim):
        if source.shape[:axis] != result.shape[:axis] or source.shape[axis + 1 :] != result.shape[axis + 1 :]:
            continue
        line = np.moveaxis(result, axis, -1).reshape(-1, result.shape[axis])[0]
        stride = int(np.prod(source.shape[axis + 1 :]))
        taken = line // stride % source.shape[axis]
        if np.array_equal(np.take(source, taken, axis), result):
            return axis, taken
    return None


def _one_move(rw: Rewriter, node: gs.Node) -> Outcome:
    """Channel shuffles, and splits into every n-th channel, spelled with Reshape, Transpose and Gather."""
    chain = _chain(rw, node)
    if not any(n.op == "Transpose" for n in (node, *chain)) or len(chain) < (1 if node.op != "Reshape" else 2):
        return None
    for depth in range(len(chain), 0, -1):
        x = chain[depth - 1].inputs[0]
        shape = rw.static(x)
        if shape is None or np.prod(shape) > LIMIT or not _all_go(rw, node, chain[:depth]):
            continue
        source = np.arange(int(np.prod(shape)), dtype=np.int32).reshape(shape)
        found = _follow(rw, node, chain[:depth], source)
        if found is not None:
            return _write(rw, node, x, *found, shape)
    return None


def _follow(rw: Rewriter, node: gs.Node, chain: list[gs.Node], source: np.ndarray) -> tuple[int, np.ndarray] | None:
    values: np.ndarray | None = source
    for step in (*reversed(chain), node):
        values = None if values is None else positions(rw, step, values)
    return None if values is None else _along_one_axis(source, values)


def _all_go(rw: Rewriter, node: gs.Node, chain: list[gs.Node]) -> bool:
    """Whether nothing but takers like this node reads the end of the chain, so that it goes with the last of them."""
    end = chain[0].outputs[0]
    takers = all(u.op in ("Gather", "Slice") and u.inputs[0] is end for u in rw.readers(end))
    inner = all(rw.sole(n.outputs[0]) for n in chain[1:])
    return inner and not rw.is_output(end) and (takers if node.op != "Reshape" else rw.sole(end))


def _write(rw: Rewriter, node: gs.Node, x: Any, axis: int, taken: np.ndarray, shape: list[int]) -> Outcome:
    steps = np.diff(taken)
    step = int(steps[0]) if len(steps) else 1
    if rw.opset >= 10 and step > 0 and np.all(steps == step):
        if len(taken) == shape[axis]:
            return None  # nothing moves: the rules for reshapes see to that
        values = (int(taken[0]), min(int(taken[-1]) + 1, shape[axis]), axis, step)
        return rw.become(node, "Slice", [x, *(rw.constant(f"{node.name}_slice", np.array([v])) for v in values)])
    return rw.become(node, "Gather", [x, rw.constant(f"{node.name}_index", taken.astype(np.int64))], {"axis": axis})


RULES = (Rule("data movements joined", ("Gather", "Slice", "Reshape"), _one_move),)
