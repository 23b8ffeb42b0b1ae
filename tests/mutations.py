"""Damaged models: seeds, and what a disk, a network or a careless tool may do to their bytes.

A mutant is a function of its number alone. Cuts and flips hit bytes anywhere; the others keep the wire format and
shuffle, drop, repeat, swap or rewrite fields at some depth, so that what comes out still parses and is wrong inside.
"""

from __future__ import annotations

import functools
import random
from pathlib import Path

import casefiles
import randomgraphs
import suite
import toys

from onnxslim_opt import ir

ZOO = Path(__file__).resolve().parents[1] / "model_zoo"
# Message -> field number -> the message in it, as in onnx.proto.
_INNER: dict[str, dict[int, str]] = {
    "model": {7: "graph", 8: "opset"},
    "opset": {},
    "graph": {1: "node", 5: "tensor", 11: "value", 12: "value", 13: "value"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph"},
    "value": {2: "type"},
    "type": {1: "tensor type"},
    "tensor type": {2: "shape"},
    "shape": {1: "dim"},
    "dim": {},
    "tensor": {},
}
Field = tuple[int, int, bytes]  # number, wire type, payload (a varint's bytes, or what is length-delimited)


@functools.cache
def seeds() -> list[bytes]:
    """Serialised sound models: mostly small ones over many operators, and those that come with the project."""
    found = [p.read_bytes() for p in sorted(ZOO.glob("*.onnx"))]
    found.append(toys.network().SerializeToString())
    for folder in ("clean", "fold", "fuse"):
        for path in casefiles.found(folder):
            parts = casefiles.sections(path)
            found.append(ir.to_bytes(casefiles.parse(parts["before"], parts.get("opset", "17"))))
    found += [c.model.SerializeToString() for c in suite.cases()[::5]]
    found += [randomgraphs.build(seed, 13 + seed % 10).SerializeToString() for seed in range(40)]
    return found


def mutant(number: int) -> bytes:
    """Damaged model number `number`."""
    rng = random.Random(number)
    # The zoo's files are large: they come often enough to matter, and not so often that they take all the time.
    data = seeds()[rng.randrange(3)] if rng.random() < 0.03 else rng.choice(seeds()[3:])
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        data = rng.choice([_cut, _flip, _fields_moved, _fields_moved, _values_changed, _values_changed])(data, rng)
    return data


def _cut(data: bytes, rng: random.Random) -> bytes:
    """The end is missing, or a piece in the middle."""
    at = rng.randrange(len(data) + 1)
    return data[:at] if rng.random() < 0.5 else data[:at] + data[at + rng.randrange(1, 40) :]


def _flip(data: bytes, rng: random.Random) -> bytes:
    """One to eight bits are wrong."""
    out = bytearray(data)
    for _ in range(rng.randrange(1, 9) if out else 0):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def _fields_moved(data: bytes, rng: random.Random) -> bytes:
    """Fields of one message in another order, one lost, one twice, or one put where another was."""

    def change(fields: list[Field]) -> list[Field]:
        if not fields:
            return fields
        k, j = rng.randrange(len(fields)), rng.randrange(len(fields))
        kind = rng.randrange(5)
        if kind == 0:
            rng.shuffle(fields)
        elif kind == 1:
            del fields[k]
        elif kind == 2:
            fields.insert(j, fields[k])
        elif kind == 3:
            fields[k], fields[j] = fields[j], fields[k]
        elif fields[k][1] == fields[j][1]:
            fields[k] = (fields[k][0], fields[k][1], fields[j][2])
        return fields

    return _somewhere(data, "model", change, rng)


def _values_changed(data: bytes, rng: random.Random) -> bytes:
    """A number becomes another (negative, huge, zero), a text another one's, or bytes are cut short."""

    def change(fields: list[Field]) -> list[Field]:
        if fields:
            k = rng.randrange(len(fields))
            number, wire, payload = fields[k]
            if wire == 0:
                payload = _varint(rng.choice([0, 1, 2, 3, 7, 13, 1 << 31, 1 << 40, (1 << 64) - 1, (1 << 63)]))
            elif wire == 2:
                texts = [f[2] for f in fields if f[1] == 2] + [b"", b"Relu", b"Reshape", b"x", payload[:-1]]
                payload = rng.choice(texts)
            fields[k] = (number, wire, payload)
        return fields

    return _somewhere(data, "model", change, rng)


def _somewhere(data: bytes, kind: str, change: object, rng: random.Random) -> bytes:
    """Apply `change` to the fields of one message, of `kind` or somewhere inside it."""
    try:
        fields = _parse(data)
    except (ValueError, IndexError):
        return data
    inner = [k for k, f in enumerate(fields) if f[1] == 2 and f[0] in _INNER[kind]]
    if inner and rng.random() < 0.8:
        k = rng.choice(inner)
        number, wire, payload = fields[k]
        fields[k] = (number, wire, _somewhere(payload, _INNER[kind][number], change, rng))
    else:
        fields = change(fields)  # type: ignore[operator]
    return b"".join(_varint(n << 3 | w) + (_varint(len(p)) if w == 2 else b"") + p for n, w, p in fields)


def _parse(data: bytes) -> list[Field]:
    at, found = 0, []
    while at < len(data):
        tag, at = _read_varint(data, at)
        wire, start = tag & 7, at
        if wire == 2:
            size, start = _read_varint(data, at)
            at = start + size
        elif wire == 0:
            _, at = _read_varint(data, at)
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            raise ValueError("no protobuf message")
        if at > len(data):
            raise ValueError("truncated")
        found.append((tag >> 3, wire, data[start:at]))
    return found


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def _varint(value: int) -> bytes:
    found = []
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])
