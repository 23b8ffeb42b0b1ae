"""How each operator of shape arithmetic carries what is known of its inputs to its output."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from ...ir import edit
from ..operands import given_axes, slice_bounds
from .known import FLOATS, INTS, LIMIT, Entry, Known, arith, divide, equal, paired, whole

if TYPE_CHECKING:
    from .partial import Follower


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


def _concat(f: Follower, node: gs.Node) -> Known | None:
    parts = [f.of(t) for t in node.inputs]
    if node.attrs.get("axis", 1) not in (0, -1) or any(p is None or p.scalar for p in parts):
        return None
    return Known(tuple(v for p in parts if p for v in p.values), False, parts[0].dtype)  # type: ignore[union-attr]


def _unsqueeze(f: Follower, node: gs.Node) -> Known | None:
    data = f.of(node.inputs[0])
    axes = given_axes(f.view, node)
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
    data = f.of(node.inputs[0])
    if data is None:
        return None
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(node.attrs["to"]))
    if dtype in INTS and data.dtype.kind in "iub":
        ok = all(not isinstance(v, (int, bool)) or abs(int(v)) < 2**31 for v in data.values)
        values = tuple(int(v) if isinstance(v, bool) else v for v in data.values)
        return Known(values, data.scalar, dtype) if ok else None
    if dtype in FLOATS and data.dtype.kind in "iub":
        ok = all(not isinstance(v, (int, bool)) or abs(int(v)) < 2**24 for v in data.values)
        values = tuple(float(v) if isinstance(v, (int, bool)) else None for v in data.values)
        return Known(values, data.scalar, dtype) if ok else None
    if dtype in INTS and data.dtype in FLOATS:
        values = tuple(int(v) if whole(v) else None for v in data.values)  # type: ignore[arg-type]
        return Known(values, data.scalar, dtype)
    return None


def _binary(rule: Callable[[Entry, Entry, Any], Entry], dtype: Any = None) -> Callable[..., Known | None]:
    def step(f: Follower, node: gs.Node) -> Known | None:
        a, b = f.of(node.inputs[0]), f.of(node.inputs[1])
        if a is None or b is None or a.dtype != b.dtype:
            return None
        pairs = paired(a, b)
        if pairs is None:
            return None
        values = tuple(rule(x, y, a.dtype) for x, y in pairs)
        return Known(values, a.scalar and b.scalar, np.dtype(dtype or a.dtype))

    return step


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


STEPS: dict[str, Callable[[Follower, gs.Node], Known | None]] = {
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
    "Add": _binary(arith(np.add, 0)),
    "Sub": _binary(arith(np.subtract, 0, right_only=True)),
    "Mul": _binary(arith(np.multiply, 1)),
    "Div": _binary(divide),
    "Equal": _binary(equal, np.bool_),
}
