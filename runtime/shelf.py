"""Values put aside: in memory up to a budget, in one unnamed temporary file beyond it."""

from __future__ import annotations

import math
import tempfile
from typing import Any

import numpy as np


class Shelf:
    """Values by (tensor, feed): arrays beyond `budget` bytes in a file, what a file cannot hold (sequences, strings,
    types that numpy does not know) in memory."""

    def __init__(self, budget: int):
        self.budget = budget
        self.used, self.filed = 0, 0  # bytes in memory, and in the file
        self._held: dict[tuple[str, int], Any] = {}
        self._places: dict[tuple[str, int], tuple[int, np.dtype[Any], tuple[int, ...]]] = {}
        self._free: list[tuple[int, int]] = []  # (start, end) in the file, ascending
        self._end = 0
        self._file: Any = None

    def put(self, name: str, feed: int, value: Any) -> None:
        """Keep one value, in place of what there was. Raises OSError where there is no room for it."""
        if (name, feed) in self:
            self._forget([(name, feed)])
        if not fileable(value) or self.used + value.nbytes <= self.budget:
            self._held[name, feed] = value
            self.used += size_of(value)
        else:
            self._places[name, feed] = (self._write(value), value.dtype, value.shape)
            self.filed += value.nbytes

    def get(self, name: str, feed: int) -> Any:
        """One value."""
        if (name, feed) in self._held:
            return self._held[name, feed]
        start, dtype, shape = self._places[name, feed]
        value = np.empty(shape, dtype)
        self._file.seek(start)
        view = value.reshape(-1).view(np.uint8).data
        while view:
            view = view[self._file.readinto(view) :]
        return value

    def drop(self, names: set[str]) -> None:
        """Forget tensors."""
        self._forget([k for k in (*self._held, *self._places) if k[0] in names])

    def close(self) -> None:
        """Forget everything."""
        self.drop({name for name, _ in (*self._held, *self._places)})
        if self._file is not None:
            self._file.close()
            self._file = None

    def __contains__(self, key: tuple[str, int]) -> bool:
        return key in self._held or key in self._places

    def _write(self, value: np.ndarray) -> int:
        """Where in the file an array lies now."""
        if self._file is None:
            self._file = tempfile.TemporaryFile(buffering=0, prefix="onnxslim-")  # noqa: SIM115  (as long as the shelf)
        start = self._take(value.nbytes)
        view = np.ascontiguousarray(value).reshape(-1).view(np.uint8).data
        try:
            self._file.seek(start)
            while view:
                view = view[self._file.write(view) :]
        except OSError:
            self._release([(start, start + value.nbytes)])
            raise
        return start

    def _take(self, size: int) -> int:
        """The first place in the file that is free and large enough."""
        for k, (start, end) in enumerate(self._free):
            if end - start >= size:
                self._free[k : k + 1] = [(start + size, end)] if end - start > size else []
                return start
        self._end += size
        return self._end - size

    def _forget(self, keys: list[tuple[str, int]]) -> None:
        places = []
        for key in keys:
            if key in self._held:
                self.used -= size_of(self._held.pop(key))
            else:
                start, dtype, shape = self._places.pop(key)
                places.append((start, start + dtype.itemsize * math.prod(shape)))
                self.filed -= places[-1][1] - start
        self._release(places)

    def _release(self, places: list[tuple[int, int]]) -> None:
        """Let others have these places; the file ends with the last that is taken."""
        merged: list[tuple[int, int]] = []
        for start, end in sorted([*self._free, *places]):
            if merged and merged[-1][1] == start:
                merged[-1] = (merged[-1][0], end)
            else:
                merged.append((start, end))
        if merged and merged[-1][1] == self._end:
            self._end = merged.pop()[0]
            if self._file is not None:
                self._file.truncate(self._end)
        self._free = merged


def fileable(value: Any) -> bool:
    """Whether the bytes of a value, its type and its shape say all of it."""
    return isinstance(value, np.ndarray) and value.dtype.isbuiltin == 1 and value.dtype.kind in "fiubc"


def size_of(value: Any) -> int:
    """Bytes of an array, or of the arrays of a sequence."""
    return sum(map(size_of, value)) if isinstance(value, list) else int(getattr(value, "nbytes", 0))


__all__ = ["Shelf", "fileable", "size_of"]
