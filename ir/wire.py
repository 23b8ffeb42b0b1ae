"""Protobuf's wire format, for what would take a large model's size in memory twice by way of messages.

Which files a model file names for its weights: the file is mapped, and weights are stepped over. And a message written
in parts, weight by weight: serialising one whole takes up to three times its size.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx

_TENSOR = "tensor"
# Message -> the fields that lead to tensors, by number in onnx.proto.
_INNER: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: _TENSOR, 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: _TENSOR, 6: "graph", 10: _TENSOR, 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: _TENSOR, 2: _TENSOR},
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


def parts(proto: onnx.ModelProto, sizes: Mapping[str, int], raw: Callable[[str], Any]) -> Iterator[Any]:
    """The bytes of a model, piece by piece. Edits `proto`.

    sizes: bytes of the initializers (of the main graph) whose data is not in `proto`. raw: the bytes of one.
    """
    heavy = [t for t in proto.graph.initializer if t.name in sizes]
    heads = {t.name: t.SerializeToString(deterministic=True) + _head(9, sizes[t.name]) for t in heavy}
    for k in reversed(range(len(proto.graph.initializer))):
        if proto.graph.initializer[k].name in sizes:
            del proto.graph.initializer[k]
    graph = proto.graph.SerializeToString(deterministic=True)
    proto.ClearField("graph")
    lengths = {name: len(head) + sizes[name] for name, head in heads.items()}
    weights = sum(len(_head(5, n)) + n for n in lengths.values())
    yield proto.SerializeToString(deterministic=True) + _head(7, len(graph) + weights) + graph
    for name, head in heads.items():
        yield _head(5, lengths[name]) + head
        yield raw(name)


def _head(number: int, size: int) -> bytes:
    """Tag and length of a length-delimited field."""
    found = [number << 3 | _BYTES]
    while size > 127:
        found.append(size & 127 | 128)
        size >>= 7
    return bytes([*found, size])
