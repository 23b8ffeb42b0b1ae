"""Weights of large models kept in a file of their own, so that memory holds them only while somebody reads them.

A run has the original, the model as it stands and a candidate in its hands, and ONNX Runtime takes up to three times a
model's size while it loads one. What is mapped from a file can be let go of before that and comes back by itself.
"""

from __future__ import annotations

import contextlib
import mmap
import tempfile
import weakref
from collections.abc import Sequence
from typing import IO, Any

import numpy as np
import onnx_graphsurgeon as gs

from .model import Model
from .values import LARGE, ProtoValues

PAGE = 4096
_maps: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()


def spill(model: Model) -> int:
    """Move the weights of 64 KiB and more from memory to an unnamed temporary file; returns the bytes that moved.

    The constants then hold arrays that are mapped, read-only like all weights, and equal to those before. Where there
    is no room for the file, everything stays where it is.
    """
    held = {id(v): v for t in model.constants().values() if _in_memory(v := t._values)}
    arrays = _written({key: _bytes(values) for key, values in held.items()})
    for tensor in model.constants().values():
        if id(tensor._values) in arrays:
            _replace(tensor, arrays[id(tensor._values)])
    return sum(a.size for a in arrays.values())


def aside(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The same arrays, read-only, mapped from an unnamed temporary file; views of one array stay views of one.

    Where there is no room for the file they come back as they are.
    """
    own = (r for r in map(_root, arrays) if r.nbytes and not _is_mapped(r))
    roots = {id(r): r for r in own if _flat(r).flags.c_contiguous}
    moved = _written({key: _bytes(_flat(r)) for key, r in roots.items()})
    return [_view(a, _root(a), moved.get(id(_root(a)))) for a in arrays]


def _root(array: np.ndarray) -> np.ndarray:
    """The array that owns the memory of a view."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _flat(array: np.ndarray) -> np.ndarray:
    """In the order in which it lies in memory."""
    return array if array.flags.c_contiguous else array.T


def _view(array: np.ndarray, root: np.ndarray, raw: np.ndarray | None) -> np.ndarray:
    """What `array` is of `root`, of the bytes that `root` became."""
    if raw is None:
        return array
    start = array.__array_interface__["data"][0] - root.__array_interface__["data"][0]
    return np.ndarray(array.shape, array.dtype, raw, start, array.strides)


def _written(data: dict[int, Any]) -> dict[int, np.ndarray]:
    """Buffers by key as mapped bytes of one file; nothing where they cannot be written."""
    if not data:
        return {}
    try:
        with tempfile.TemporaryFile(prefix="onnxslim-") as file:
            places = {key: _append(file, raw) for key, raw in data.items()}
            file.flush()
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):  # disk full, no temporary folder, no mapping
        return {}
    _maps.add(mapped)
    return {key: np.frombuffer(mapped, np.uint8, size, start) for key, (start, size) in places.items()}


def scratch(array: np.ndarray) -> np.ndarray:
    """A copy that may be written to, mapped from an unnamed temporary file of its own; in memory where there is no
    room for the file."""
    try:
        with tempfile.TemporaryFile(prefix="onnxslim-") as file:
            file.write(np.ascontiguousarray(array).data.cast("B"))  # room that is taken now cannot run out later
            file.flush()
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_WRITE)
    except (OSError, ValueError):
        return array.copy()
    _maps.add(mapped)
    return np.frombuffer(mapped, array.dtype).reshape(array.shape)


def let_go(array: np.ndarray | None = None) -> None:
    """Free the memory of what is mapped, or of one array if that is mapped; the next read takes it from the file
    again, with all that was written to a `scratch`."""
    for mapped in list(_maps) if array is None else filter(None, [_mapping(array)]):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # Windows has no madvise
            mapped.madvise(mmap.MADV_DONTNEED)


def _in_memory(values: Any) -> bool:
    """Whether these are large plain values in this process's own memory."""
    if isinstance(values, ProtoValues):
        return isinstance(values.raw, bytes) and len(values.raw) >= LARGE
    plain = isinstance(values, np.ndarray) and values.dtype.kind in "fiub" and values.flags.c_contiguous
    return plain and values.nbytes >= LARGE and not _is_mapped(values)


def _is_mapped(array: np.ndarray) -> bool:
    return _mapping(array) is not None


def _mapping(array: np.ndarray) -> mmap.mmap | None:
    """What the memory of an array or a view is mapped by, if it is."""
    base: Any = array
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap):
            return base._mmap  # type: ignore[attr-defined]
        base = base.base
    base = base if isinstance(base, mmap.mmap) else getattr(base, "obj", None)
    return base if isinstance(base, mmap.mmap) else None


def _bytes(values: Any) -> Any:
    return values.raw if isinstance(values, ProtoValues) else memoryview(values).cast("B")


def _append(file: IO[bytes], data: Any) -> tuple[int, int]:
    """(start, size) of what was written, on a page of its own: ONNX Runtime reads weights in place, aligned."""
    file.write(b"\0" * (-file.tell() % PAGE))
    start = file.tell()
    file.write(data)
    return start, len(data)


def _replace(tensor: gs.Constant, raw: np.ndarray) -> None:
    values = tensor._values
    if isinstance(values, ProtoValues):
        values.move(raw)
    else:
        tensor._values = raw.view(values.dtype).reshape(values.shape)


__all__ = ["aside", "let_go", "scratch", "spill"]
