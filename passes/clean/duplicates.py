"""Duplicates: nodes that compute the same from the same, and constants that hold the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from ...ir import Model
from ...ir.model import subgraphs
from ..fold.candidates import RANDOM
from ..fold.fills import is_fill
from ..rewrite import Rewriter

# Bytes at both ends of an array that are compared before the whole of it is read.
_ENDS = 256


def merge_constants(rw: Rewriter) -> int:
    """Let one constant stand for all of the same type, shape and bytes; returns how many went.

    Arrays are read only where another has the same type and shape, and hashed only where the ends agree too.
    """
    constants = [t for t in rw.model.constants().values() if not rw.is_output(t) and t.outputs]
    merged = 0
    for alike in _group(constants, lambda t: (str(t.dtype), tuple(t.shape))):
        for close in _group(alike, _ends):
            for equal in _group(close, _digest):
                for other in equal[1:]:
                    merged += rw.replace(other, equal[0])
    return merged


def _group(items: Iterable[Any], key: Any) -> list[list[Any]]:
    table: dict[Any, list[Any]] = {}
    for item in items:
        table.setdefault(key(item), []).append(item)
    return [group for group in table.values() if len(group) > 1]


def _raw(tensor: gs.Constant) -> Any:
    """The bytes of a constant without decoding it, where it is still as in the file; of a fill the one value."""
    if is_fill(tensor._values):
        return bytes(tensor._values[(0,) * tensor._values.ndim].tobytes())
    proto = getattr(tensor._values, "tensor", None)
    if proto is not None and proto.HasField("raw_data"):
        return proto.raw_data
    values = tensor.values
    if values.dtype == np.object_:
        return repr(values.tolist()).encode()
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)


def _ends(tensor: gs.Constant) -> tuple[int, bytes, bytes]:
    raw = _raw(tensor)
    return len(raw), bytes(raw[:_ENDS]), bytes(raw[-_ENDS:])


def _digest(tensor: gs.Constant) -> bytes:
    raw = _raw(tensor)
    return bytes(raw) if len(raw) <= 2 * _ENDS else hashlib.blake2b(raw, digest_size=16).digest()


COMMUTATIVE = frozenset(["Add", "Mul", "And", "Or", "Xor", "Equal", "BitwiseAnd", "BitwiseOr", "BitwiseXor"])


def merge_nodes(rw: Rewriter) -> int:
    """Let one node stand for all that do the same to the same tensors, graph by graph; returns how many went.

    Nodes of random operators, of other domains, and with subgraphs stay as they are. Needs topological order.
    """
    merged = 0
    for graph in list(rw.model.graphs()):
        seen: dict[Any, gs.Node] = {}
        for node in list(graph.nodes):
            if id(node) in rw.dead or node.domain or node.op in RANDOM or subgraphs(node):
                continue
            key = _key(rw.model, node)
            if key is None:
                continue
            first = seen.setdefault(key, node)
            if first is not node and _merge(rw, node, first):
                merged += 1
    return merged


def _merge(rw: Rewriter, node: gs.Node, first: gs.Node) -> bool:
    pairs = [(a, b) for a, b in zip(node.outputs, first.outputs) if a.name]
    if not all(rw.can_replace(a, b) for a, b in pairs):
        return False
    for old, new in pairs:
        rw.replace(old, new)
    return True


def _key(model: Model, node: gs.Node) -> Any:
    if node.op == "Dropout" and len(node.inputs) > 2:
        return None
    ids = [id(t) if t.name else 0 for t in node.inputs]
    if node.op in COMMUTATIVE:
        ids.sort()
    attrs = []
    for name in sorted(node.attrs):
        value = _plain(node.attrs[name])
        if value is None:
            return None
        attrs.append((name, value))
    return node.op, tuple(ids), tuple(attrs), tuple(bool(t.name) for t in node.outputs)


def _plain(value: Any) -> Any:
    if isinstance(value, (int, float, str, bytes)):
        return type(value).__name__, repr(value)
    if isinstance(value, (list, tuple)):
        return tuple(repr(v) for v in value)
    if isinstance(value, gs.Constant):
        return str(value.dtype), tuple(value.shape), _digest(value)
    if isinstance(value, onnx.AttributeProto) and not value.ref_attr_name:
        return value.SerializeToString(deterministic=True)
    return None
