"""Which files a model file names for its weights, read off protobuf's wire format.

Parsing a model for that would take its size in memory twice; here the file is mapped, and weights are stepped over.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

_TENSOR = "tensor"
# Message -> the fields that lead to tensors, by number in onnx.proto.
_INNER: dict[str, dict[int, str]] = {
    "model": {7: "graph"},
    "graph": {1: "node", 5: _TENSOR},
    "node": {5: "attribute"},
    "attribute": {5: _TENSOR, 6: "graph", 10: _TENSOR, 11: "graph"},
    _TENSOR: {13: "entry"},
}
_KEY, _VALUE, _BYTES = 1, 2, 2


def data_files(path: str | os.PathLike[str]) -> list[Path]:
    """Files beside a model that hold its weights, in order of appearance; those that exist.

    Nothing is checked and nothing raised for a file that is no model: `load` does that.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            named = dict.fromkeys(_locations(data))
    except (OSError, ValueError, IndexError):
        return []
    return [path.parent / name for name in named if (path.parent / name).is_file()]


def _locations(data: mmap.mmap) -> Iterator[str]:
    queue = [("model", 0, len(data))]
    while queue:
        kind, start, end = queue.pop()
        found = [(_INNER[kind][number], a, b) for number, a, b in _fields(data, start, end) if number in _INNER[kind]]
        if kind == _TENSOR:
            entries = ({n: data[a:b] for n, a, b in _fields(data, *span)} for _, *span in found)
            yield from (e.get(_VALUE, b"").decode() for e in entries if e.get(_KEY) == b"location")
        else:
            queue.extend(reversed(found))


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(number, start, end) of the length-delimited fields of a message."""
    while at < end:
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == _BYTES:
            size, at = _varint(data, at)
            yield tag >> 3, at, at + size
            at += size
        elif kind == 0:
            _, at = _varint(data, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError("no protobuf message")
    if at > end:
        raise ValueError("truncated")


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
