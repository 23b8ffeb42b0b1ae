"""What is known of the int vectors that operators read: sizes, bounds, amounts, entry by entry.

Exporters put such vectors together from constants and computed sizes, and move the entries about: what a constant
says of an entry is followed through that, whatever is computed beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from .. import edit

LONGEST = 256  # entries; what is longer is no vector of sizes


def vector(node: gs.Node, index: int, attr: str, default: Any = None) -> list[int] | None:
    """An int vector that is an attribute in old opsets, a constant input in new ones; None when computed."""
    if attr in node.attrs:
        return [int(v) for v in node.attrs[attr]]
    if edit.get(node, index) is None:
        return default
    values = edit.const(node, index)
    return None if values is None else [int(v) for v in np.ravel(values)]


def entries(tensor: Any) -> list[int | None] | None:
    """What is known of a vector's entries, None for one that is computed; None: unknown length."""
    found = _known(tensor)
    return None if found is None else found.reshape(-1).tolist()


def _known(tensor: Any) -> np.ndarray | None:
    """Entries as objects, in the tensor's shape."""
    if isinstance(tensor, gs.Constant):
        return _whole_numbers(tensor.values) if math.prod(tensor.shape) <= LONGEST else None
    maker, shape = edit.producer(tensor), tensor.shape
    fixed = shape is not None and all(isinstance(d, (int, np.integer)) for d in shape)
    if fixed and math.prod(shape) > LONGEST:
        return None
    found = None
    if maker is not None and maker.domain in (None, "", "ai.onnx") and maker.op in _MOVES:
        try:
            found = _MOVES[maker.op](maker)
        except (IndexError, ValueError):  # it does not run
            return None
    return np.full(tuple(shape), None, object) if found is None and fixed else found


def _whole_numbers(values: np.ndarray) -> np.ndarray:
    flat = [int(v) if float(v).is_integer() else None for v in np.ravel(values).tolist()]
    found = np.empty(len(flat), object)
    found[:] = flat
    return found.reshape(np.shape(values))


def _same(node: gs.Node) -> np.ndarray | None:
    return _known(node.inputs[0])


def _concat(node: gs.Node) -> np.ndarray | None:
    parts = [_known(t) for t in node.inputs]
    some = [p for p in parts if p is not None]
    return np.concatenate(some, int(node.attrs["axis"])) if len(some) == len(parts) else None


def _reshape(node: gs.Node) -> np.ndarray | None:
    data, target = _known(node.inputs[0]), vector(node, 1, "shape")
    return None if data is None or target is None or 0 in target else data.reshape(target)


def _transpose(node: gs.Node) -> np.ndarray | None:
    data = _known(node.inputs[0])
    return None if data is None else data.transpose(node.attrs.get("perm"))


def _unsqueeze(node: gs.Node) -> np.ndarray | None:
    data, axes = _known(node.inputs[0]), vector(node, 1, "axes")
    return None if data is None or axes is None else np.expand_dims(data, tuple(axes))


def _squeeze(node: gs.Node) -> np.ndarray | None:
    data, axes = _known(node.inputs[0]), vector(node, 1, "axes", [])
    return None if data is None or axes is None else np.squeeze(data, tuple(axes) or None)


def _slice(node: gs.Node) -> np.ndarray | None:
    data, starts, ends = _known(node.inputs[0]), vector(node, 1, "starts"), vector(node, 2, "ends")
    if data is None or starts is None or ends is None:
        return None
    axes, steps = vector(node, 3, "axes", list(range(len(starts)))), vector(node, 4, "steps", [1] * len(starts))
    if axes is None or steps is None:
        return None
    where = [slice(None)] * data.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps):
        where[axis] = run(start, end, step)
    return data[tuple(where)]


def run(start: int, stop: int, step: int) -> slice:
    """ONNX's bounds as Python's: a backward slice to before the first position is written as a very small number."""
    if step < 0 and stop < -(2**31) + 1:
        return slice(start, None, step)
    return slice(start, stop, step)


def _gather(node: gs.Node) -> np.ndarray | None:
    data, index = _known(node.inputs[0]), edit.const(node, 1)
    return (
        None if data is None or index is None else np.asarray(data.take(index, int(node.attrs.get("axis", 0))), object)
    )


_MOVES: dict[str, Callable[[gs.Node], np.ndarray | None]] = {
    **dict.fromkeys(("Cast", "Identity"), _same),
    "Concat": _concat,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Slice": _slice,
    "Gather": _gather,
}
