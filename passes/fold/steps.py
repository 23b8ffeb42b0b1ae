"""How each operator of shape arithmetic carries what is known of its inputs to its output."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from ...ir import edit
from ..operands import given_axes, slice_bounds
from .known import FLOATS, INT64, INTS, LIMIT, Entry, Known, aligned, arith, compared, divide, equal, modulo, whole

if TYPE_CHECKING:
    from .partial import Follower


def _shape(f: Follower, node: gs.Node) -> Known | None:
    sizes = f.sizes(node.inputs[0])
    if sizes is None:
        return None
    rank = len(sizes)
    start, end = node.attrs.get("start", 0), node.attrs.get("end", rank)
    start, end = (min(max(v + rank if v < 0 else v, 0), rank) for v in (start, end))
    found = tuple(sizes[start:end])
    return Known(found, (len(found),))


def _size(f: Follower, node: gs.Node) -> Known | None:
    sizes = f.view.static(node.inputs[0])
    return None if sizes is None else Known((int(np.prod(sizes, dtype=np.int64)),), ())


def _gather(f: Follower, node: gs.Node) -> Known | None:
    data, index = f.of(node.inputs[0]), f.of(node.inputs[1])
    axis = node.attrs.get("axis", 0)
    if data is None or index is None or not index.complete or not -data.rank <= axis < data.rank:
        return None
    count = data.shape[axis]
    if any(not -count <= int(k) < count for k in index.values):  # type: ignore[arg-type]
        return None
    return data.at(np.asarray(np.take(data.positions, index.array().astype(np.int64), axis)))


def _slice(f: Follower, node: gs.Node) -> Known | None:
    data = f.of(node.inputs[0])
    bounds = slice_bounds(f.view, node)
    if data is None or bounds is None:
        return None
    where = [slice(None)] * data.rank
    for start, end, axis, step in zip(*bounds):
        if not -data.rank <= axis < data.rank or step == 0:
            return None
        where[axis] = _python_slice(start, end, step, data.shape[axis])
    return data.at(data.positions[tuple(where)])


def _python_slice(start: int, end: int, step: int, size: int) -> slice:
    start = start + size if start < 0 else start
    end = end + size if end < 0 else end
    if step > 0:
        return slice(min(max(start, 0), size), min(max(end, 0), size), step)
    end = min(max(end, -1), size - 1)
    return slice(min(max(start, 0), size - 1), None if end < 0 else end, step)


def _concat(f: Follower, node: gs.Node) -> Known | None:
    parts = [p for p in (f.of(t) for t in node.inputs) if p is not None]
    axis = node.attrs.get("axis", 1)
    if len(parts) != len(node.inputs) or len({p.rank for p in parts}) != 1:
        return None
    if not -parts[0].rank <= axis < parts[0].rank:
        return None
    values = tuple(v for p in parts for v in p.values)
    starts = np.cumsum([0, *(len(p.values) for p in parts)])
    try:
        positions = np.concatenate([p.positions + start for p, start in zip(parts, starts)], axis)
    except ValueError:  # sizes that do not fit: the model is for the runtime to refuse
        return None
    return Known(values, (len(values),), parts[0].dtype).at(positions)


def _unsqueeze(f: Follower, node: gs.Node) -> Known | None:
    data, axes = f.of(node.inputs[0]), given_axes(f.view, node)
    if data is None or axes is None:
        return None
    rank = data.rank + len(axes)
    if any(not -rank <= a < rank for a in axes) or len({a % rank for a in axes}) != len(axes):
        return None
    return data.at(np.expand_dims(data.positions, tuple(axes)))


def _squeeze(f: Follower, node: gs.Node) -> Known | None:
    data = f.of(node.inputs[0])
    given = edit.get(node, 1)
    if data is None:
        return None
    axes = node.attrs.get("axes") if given is None else f.view.ints(given)
    if axes is None and given is None:
        axes = [k for k, d in enumerate(data.shape) if d == 1]
    if axes is None or any(not -data.rank <= a < data.rank or data.shape[a] != 1 for a in axes):
        return None
    return data.at(np.squeeze(data.positions, tuple(axes)))


def _reshape(f: Follower, node: gs.Node) -> Known | None:
    data = f.of(node.inputs[0])
    target = node.attrs.get("shape") if "shape" in node.attrs else f.view.ints(edit.get(node, 1))
    if data is None or target is None or 0 in target or sum(d < 0 for d in target) > 1:
        return None
    known = int(np.prod([d for d in target if d > 0], dtype=np.int64))
    if len(data.values) % known if -1 in target else len(data.values) != known:
        return None
    return data.at(data.positions.reshape(target))


def _transpose(f: Follower, node: gs.Node) -> Known | None:
    data = f.of(node.inputs[0])
    if data is None:
        return None
    perm = list(node.attrs.get("perm", range(data.rank)[::-1]))
    return data.at(np.transpose(data.positions, perm)) if sorted(perm) == list(range(data.rank)) else None


def _expand(f: Follower, node: gs.Node) -> Known | None:
    data, target = f.of(node.inputs[0]), f.view.ints(edit.get(node, 1))
    if data is None or target is None or any(d < 1 for d in target) or np.prod(target, dtype=np.float64) > LIMIT:
        return None
    found = aligned(data, Known((0,), ()), _zeros(target))
    return None if found is None else Known(tuple(v[0] for v in found[1]), found[0], data.dtype)


def _zeros(shape: list[int]) -> Known:
    return Known((0,) * int(np.prod(shape, dtype=np.int64)), tuple(shape))


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
        return Known(values, data.shape, dtype) if ok else None
    if dtype in FLOATS and data.dtype.kind in "iub":
        ok = all(not isinstance(v, (int, bool)) or abs(int(v)) < 2**24 for v in data.values)
        values = tuple(float(v) if isinstance(v, (int, bool)) else None for v in data.values)
        return Known(values, data.shape, dtype) if ok else None
    if dtype in INTS and data.dtype in FLOATS:
        values = tuple(int(v) if whole(v) else None for v in data.values)  # type: ignore[arg-type]
        return Known(values, data.shape, dtype)
    return None


def _binary(rule: Callable[[Entry, Entry, Any], Entry], dtype: Any = None) -> Callable[..., Known | None]:
    def step(f: Follower, node: gs.Node) -> Known | None:
        a, b = f.of(node.inputs[0]), f.of(node.inputs[1])
        if a is None or b is None or a.dtype != b.dtype:
            return None
        pairs = aligned(a, b)
        if pairs is None:
            return None
        return Known(tuple(rule(x, y, a.dtype) for x, y in pairs[1]), pairs[0], np.dtype(dtype or a.dtype))

    return step


def _unary(ufunc: Callable[[Any], Any], kinds: str) -> Callable[..., Known | None]:
    def step(f: Follower, node: gs.Node) -> Known | None:
        data = f.of(node.inputs[0])
        if data is None or data.dtype.kind not in kinds:
            return None
        known = (isinstance(v, (int, float)) and not isinstance(v, bool) for v in data.values)
        values = tuple(ufunc(data.dtype.type(v)).item() if k else None for k, v in zip(known, data.values))
        return Known(values, data.shape, data.dtype)

    return step


def _remainder(f: Follower, node: gs.Node) -> Known | None:
    return None if node.attrs.get("fmod", 0) else _binary(modulo)(f, node)


def _where(f: Follower, node: gs.Node) -> Known | None:
    test, a, b = (f.of(t) for t in node.inputs)
    if test is None or a is None or b is None or a.dtype != b.dtype:
        return None
    rows = aligned(test, a, b)
    if rows is None:
        return None
    values = tuple(None if t is None or isinstance(t, str) else (u if t else v) for t, u, v in rows[1])
    return Known(values, rows[0], a.dtype)


def _filled(f: Follower, node: gs.Node) -> Known | None:
    shape = f.of(node.inputs[0])
    if shape is None or shape.rank != 1 or not shape.complete or any(int(d) < 0 for d in shape.values):  # type: ignore[arg-type]
        return None
    value = node.attrs.get("value")
    fill = np.zeros(1, np.float32) if value is None else value.values
    count = float(np.prod([float(d) for d in shape.values]))  # type: ignore[arg-type]
    if fill.dtype.kind not in "iu" or count > LIMIT:
        return None
    return Known((int(fill.reshape(-1)[0]),) * int(count), tuple(int(d) for d in shape.values), fill.dtype)  # type: ignore[arg-type]


def _range(f: Follower, node: gs.Node) -> Known | None:
    bounds = [f.of(t) for t in node.inputs]
    if any(b is None or not b.complete or b.rank or b.dtype != INT64 for b in bounds):
        return None
    start, stop, step = (int(b.values[0]) for b in bounds if b is not None)  # type: ignore[arg-type]
    if step == 0 or len(found := range(start, stop, step)) > LIMIT:
        return None
    return Known(tuple(found), (len(found),))


def _product(f: Follower, node: gs.Node) -> Known | None:
    data = f.of(node.inputs[0])
    given = edit.get(node, 1)
    axes = node.attrs.get("axes") if given is None else f.view.ints(given)
    if data is None or data.rank != 1 or not data.complete or data.dtype.kind not in "iu":
        return None
    if node.attrs.get("noop_with_empty_axes", 0) or (axes is not None and list(axes) not in ([0], [-1])):
        return None
    value = int(np.prod(data.array(), dtype=data.dtype))
    return Known((value,), (1,) if node.attrs.get("keepdims", 1) else (), data.dtype)


STEPS: dict[str, Callable[[Follower, gs.Node], Known | None]] = {
    "Shape": _shape,
    "Size": _size,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Expand": _expand,
    "Identity": _same,
    "Cast": _cast,
    "Where": _where,
    "ConstantOfShape": _filled,
    "Range": _range,
    "ReduceProd": _product,
    "Neg": _unary(np.negative, "if"),
    "Floor": _unary(np.floor, "f"),
    "Ceil": _unary(np.ceil, "f"),
    "Add": _binary(arith(np.add, 0)),
    "Sub": _binary(arith(np.subtract, 0, right_only=True)),
    "Mul": _binary(arith(np.multiply, 1)),
    "Div": _binary(divide),
    "Mod": _remainder,
    "Equal": _binary(equal, np.bool_),
    "Less": _binary(compared(np.less), np.bool_),
    "LessOrEqual": _binary(compared(np.less_equal), np.bool_),
    "Greater": _binary(compared(np.greater), np.bool_),
    "GreaterOrEqual": _binary(compared(np.greater_equal), np.bool_),
}
