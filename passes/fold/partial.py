"""Shape arithmetic with partly known sizes.

Small integer tensors are followed as lists whose entries are numbers, symbols (a size that the model names, or one
that is known only as "axis k of tensor t") or unknown. What comes out wholly known becomes a constant; what is known
but for symbols is still enough for Reshape (0 copies a size, one -1 is worked out), Expand (1 keeps a size) and Slice
(an end at the size itself is an end at infinity). Symbols keep their names: nothing is made static that is not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import Model, edit
from ..rewrite import Rewriter

LIMIT = 256
_INT64 = np.dtype(np.int64)
Entry = int | float | bool | str | None


@dataclass(frozen=True)
class Known:
    """Entries of a tensor of rank 0 or 1, and its type."""

    values: tuple[Entry, ...]
    scalar: bool
    dtype: Any = _INT64

    @property
    def complete(self) -> bool:
        """Whether every entry is a number."""
        return all(v is not None and not isinstance(v, str) for v in self.values)

    def array(self) -> np.ndarray:
        """The value, when complete."""
        return np.array(self.values[0] if self.scalar else list(self.values), self.dtype)


class Follower:
    """Follows the values of small integer tensors through one model."""

    def __init__(self, model: Model):
        self.model = model
        self.view = Rewriter(model)
        self.known: dict[int, Known] = {}

    def sizes(self, tensor: Any) -> list[Entry] | None:
        """The shape of a tensor, unknown sizes named after the tensor and the axis."""
        shape = self.view.shape(tensor)
        if shape is None:
            return None
        return [f"{tensor.name}\x00{k}" if d is None else d for k, d in enumerate(shape)]

    def of(self, tensor: Any) -> Known | None:
        """What is known of a tensor's entries."""
        if tensor is None:
            return None
        if isinstance(tensor, gs.Constant):
            if len(tensor.shape) > 1 or np.prod(tensor.shape, dtype=np.int64) > LIMIT:
                return None
            if np.dtype(tensor.dtype).kind not in "iub" and np.dtype(tensor.dtype) not in _FLOATS:
                return None
            values = tensor.values
            return Known(tuple(values.reshape(-1).tolist()), values.ndim == 0, values.dtype)
        return self.known.get(id(tensor))

    def run(self) -> None:
        """Follow every node of every level, outer graphs first."""
        for graph in self.model.graphs():
            for node in graph.nodes:
                step = None if node.domain else _STEPS.get(node.op)
                if step is None or not node.outputs[0].name:
                    continue
                found = step(self, node)
                if found is not None and len(found.values) <= LIMIT:
                    self.known[id(node.outputs[0])] = found


_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
_INTS = (np.dtype(np.int64), np.dtype(np.int32))


def _shape(f: Follower, node: gs.Node) -> Known | None:
    sizes = f.sizes(node.inputs[0])
    if sizes is None:
        return None
    rank = len(sizes)
    start, end = node.attrs.get("start", 0), node.attrs.get("end", rank)
    start, end = (min(max(v + rank if v < 0 else v, 0), rank) for v in (start, end))
    return Known(tuple(sizes[start:end]), False)


def _size(f: Follower, node: gs.Node) -> Known | None:
    sizes = f.view.static(node.inputs[0])
    return None if sizes is None else Known((int(np.prod(sizes, dtype=np.int64)),), True)


def _gather(f: Follower, node: gs.Node) -> Known | None:
    data, index = f.of(node.inputs[0]), f.of(node.inputs[1])
    if data is None or index is None or data.scalar or not index.complete:
        return None
    count = len(data.values)
    if any(not -count <= int(k) < count for k in index.values):  # type: ignore[arg-type]
        return None
    return Known(tuple(data.values[int(k)] for k in index.values), index.scalar, data.dtype)  # type: ignore[arg-type]


def _slice(f: Follower, node: gs.Node) -> Known | None:
    data = f.of(node.inputs[0])
    bounds = slice_bounds(f.view, node)
    if data is None or data.scalar or bounds is None:
        return None
    values = data.values
    for start, end, axis, step in zip(*bounds):
        if axis not in (0, -1) or step == 0:
            return None
        values = values[_python_slice(start, end, step, len(values))]
    return Known(values, False, data.dtype)


def _python_slice(start: int, end: int, step: int, size: int) -> slice:
    start = start + size if start < 0 else start
    end = end + size if end < 0 else end
    if step > 0:
        return slice(min(max(start, 0), size), min(max(end, 0), size), step)
    end = min(max(end, -1), size - 1)
    return slice(min(max(start, 0), size - 1), None if end < 0 else end, step)


def slice_bounds(view: Rewriter, node: gs.Node) -> tuple[list[int], list[int], list[int], list[int]] | None:
    """Starts, ends, axes and steps of a Slice, when all are constant (attributes below opset 10)."""
    if "starts" in node.attrs:
        starts, ends = list(node.attrs["starts"]), list(node.attrs["ends"])
        return starts, ends, list(node.attrs.get("axes", range(len(starts)))), [1] * len(starts)
    found = [view.ints(edit.get(node, k)) for k in range(1, 5)]
    starts, ends = found[0] or [], found[1] or []
    if found[0] is None or found[1] is None:
        return None
    for k in (3, 4):
        if edit.get(node, k) is not None and found[k - 1] is None:
            return None
    axes = list(range(len(starts))) if found[2] is None else found[2]
    return starts, ends, axes, [1] * len(starts) if found[3] is None else found[3]


def _concat(f: Follower, node: gs.Node) -> Known | None:
    parts = [f.of(t) for t in node.inputs]
    if node.attrs.get("axis", 1) not in (0, -1) or any(p is None or p.scalar for p in parts):
        return None
    return Known(tuple(v for p in parts if p for v in p.values), False, parts[0].dtype)  # type: ignore[union-attr]


def _unsqueeze(f: Follower, node: gs.Node) -> Known | None:
    data = f.of(node.inputs[0])
    axes = node.attrs.get("axes") if "axes" in node.attrs else f.view.ints(edit.get(node, 1))
    if data is None or not data.scalar or axes is None or list(axes) not in ([0], [-1]):
        return None
    return Known(data.values, False, data.dtype)


def _squeeze(f: Follower, node: gs.Node) -> Known | None:
    data = f.of(node.inputs[0])
    given = edit.get(node, 1)
    axes = node.attrs.get("axes", [0]) if given is None else f.view.ints(given)
    if data is None or data.scalar or len(data.values) != 1 or axes is None or list(axes) not in ([0], [-1]):
        return None
    return Known(data.values, True, data.dtype)


def _reshape(f: Follower, node: gs.Node) -> Known | None:
    data = f.of(node.inputs[0])
    target = node.attrs.get("shape") if "shape" in node.attrs else f.view.ints(edit.get(node, 1))
    if data is None or target is None or len(target) > 1:
        return None
    if list(target) in ([-1], [len(data.values)]):
        return Known(data.values, False, data.dtype)
    return Known(data.values, True, data.dtype) if not target and len(data.values) == 1 else None


def _same(f: Follower, node: gs.Node) -> Known | None:
    return f.of(node.inputs[0])


def _cast(f: Follower, node: gs.Node) -> Known | None:
    import onnx

    data = f.of(node.inputs[0])
    if data is None:
        return None
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(node.attrs["to"]))
    if dtype in _INTS and data.dtype.kind in "iub":
        ok = all(not isinstance(v, (int, bool)) or abs(int(v)) < 2**31 for v in data.values)
        values = tuple(int(v) if isinstance(v, bool) else v for v in data.values)
        return Known(values, data.scalar, dtype) if ok else None
    if dtype in _FLOATS and data.dtype.kind in "iub":
        ok = all(not isinstance(v, (int, bool)) or abs(int(v)) < 2**24 for v in data.values)
        values = tuple(float(v) if isinstance(v, (int, bool)) else None for v in data.values)
        return Known(values, data.scalar, dtype) if ok else None
    if dtype in _INTS and data.dtype in _FLOATS:
        values = tuple(int(v) if _whole(v) else None for v in data.values)  # type: ignore[arg-type]
        return Known(values, data.scalar, dtype)
    return None


def _whole(value: Entry) -> bool:
    return isinstance(value, (int, float)) and np.isfinite(value) and abs(value) < 2**31


def _pairs(a: Known, b: Known) -> list[tuple[Entry, Entry]] | None:
    n = max(len(a.values), len(b.values))
    if {len(a.values), len(b.values)} - {1, n}:
        return None
    x = a.values * n if len(a.values) == 1 else a.values
    y = b.values * n if len(b.values) == 1 else b.values
    return list(zip(x, y))


def _binary(rule: Callable[[Entry, Entry, Any], Entry], dtype: Any = None) -> Callable[..., Known | None]:
    def step(f: Follower, node: gs.Node) -> Known | None:
        a, b = f.of(node.inputs[0]), f.of(node.inputs[1])
        if a is None or b is None or a.dtype != b.dtype:
            return None
        pairs = _pairs(a, b)
        if pairs is None:
            return None
        values = tuple(rule(x, y, a.dtype) for x, y in pairs)
        return Known(values, a.scalar and b.scalar, np.dtype(dtype or a.dtype))

    return step


def _numbers(x: Entry, y: Entry) -> bool:
    return not (x is None or y is None or isinstance(x, str) or isinstance(y, str))


def _arith(ufunc: Callable[..., Any], neutral: int | None, right_only: bool = False) -> Callable[..., Any]:
    def rule(x: Entry, y: Entry, dtype: Any) -> Entry:
        if _numbers(x, y):
            with np.errstate(all="ignore"):
                return ufunc(dtype.type(x), dtype.type(y)).item()
        if neutral is not None and not isinstance(y, str) and y == neutral:
            return x
        if neutral is not None and not right_only and not isinstance(x, str) and x == neutral:
            return y
        return None

    return rule


def _divide(x: Entry, y: Entry, dtype: Any) -> Entry:
    if not isinstance(y, str) and y == 1:
        return x
    if not _numbers(x, y) or y == 0:
        return None
    if dtype.kind == "f":
        return (dtype.type(x) / dtype.type(y)).item()
    quotient = abs(int(x)) // abs(int(y))  # type: ignore[arg-type]
    return quotient if (x < 0) == (y < 0) else -quotient  # type: ignore[operator]


def _equal(x: Entry, y: Entry, dtype: Any) -> Entry:
    if _numbers(x, y):
        return bool(x == y)
    for symbol, number in ((x, y), (y, x)):  # a size is never negative
        if isinstance(symbol, str) and isinstance(number, int) and number < 0:
            return False
    return True if isinstance(x, str) and x == y else None


def _where(f: Follower, node: gs.Node) -> Known | None:
    test, a, b = (f.of(t) for t in node.inputs)
    if test is None or a is None or b is None or a.dtype != b.dtype:
        return None
    n = max(len(k.values) for k in (test, a, b))
    if any(len(k.values) not in (1, n) for k in (test, a, b)):
        return None
    c, x, y = (k.values * n if len(k.values) == 1 else k.values for k in (test, a, b))
    values = tuple(None if t is None or isinstance(t, str) else (u if t else v) for t, u, v in zip(c, x, y))
    return Known(values, test.scalar and a.scalar and b.scalar, a.dtype)


def _filled(f: Follower, node: gs.Node) -> Known | None:
    shape = f.of(node.inputs[0])
    if shape is None or shape.scalar or not shape.complete or len(shape.values) > 1:
        return None
    value = node.attrs.get("value")
    fill = np.zeros(1, np.float32) if value is None else value.values
    count = int(shape.values[0]) if shape.values else 1  # type: ignore[arg-type]
    if fill.dtype.kind not in "iu" or not 0 <= count <= LIMIT:
        return None
    return Known((int(fill.reshape(-1)[0]),) * count, not shape.values, fill.dtype)


def _product(f: Follower, node: gs.Node) -> Known | None:
    data = f.of(node.inputs[0])
    given = edit.get(node, 1)
    axes = node.attrs.get("axes") if given is None else f.view.ints(given)
    if data is None or data.scalar or not data.complete or data.dtype.kind not in "iu":
        return None
    if node.attrs.get("noop_with_empty_axes", 0) or (axes is not None and list(axes) not in ([0], [-1])):
        return None
    value = int(np.prod(data.array(), dtype=data.dtype))
    return Known((value,), not node.attrs.get("keepdims", 1), data.dtype)


def _neg(f: Follower, node: gs.Node) -> Known | None:
    data = f.of(node.inputs[0])
    if data is None or data.dtype.kind not in "if":
        return None
    return Known(tuple(-v if isinstance(v, (int, float)) else None for v in data.values), data.scalar, data.dtype)


_STEPS: dict[str, Callable[[Follower, gs.Node], Known | None]] = {
    "Shape": _shape,
    "Size": _size,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "Identity": _same,
    "Cast": _cast,
    "Where": _where,
    "ConstantOfShape": _filled,
    "ReduceProd": _product,
    "Neg": _neg,
    "Add": _binary(_arith(np.add, 0)),
    "Sub": _binary(_arith(np.subtract, 0, right_only=True)),
    "Mul": _binary(_arith(np.multiply, 1)),
    "Div": _binary(_divide),
    "Equal": _binary(_equal, np.bool_),
}
