"""Constants of one value, which a file may hold as a ConstantOfShape node of a few bytes.

While a model is simplified they are constants like all others, so that whatever folds and fuses with constants works
on them: arrays by `np.broadcast_to`, which take no memory. Afterwards as many as the file has room for are stored,
the smallest first, and the others are nodes again: simplifying never makes a model of a few KB one of many MB.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import Model, edit, order
from ...ir.exporting import bare, to_proto
from ...ir.model import nbytes

# No single result above this is computed at all (bytes).
CEILING = 1 << 30
# Types that ConstantOfShape makes in every operator set that has it.
KINDS = frozenset(
    ["float16", "float32", "float64", "bool", *(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64))]
)
# Arrays up to this many elements are stored as they are: a node takes as many bytes.
FEW = 16


@dataclass
class Opened:
    """What `close` needs to know of the model before.

    size: bytes of the file, about. known: ids of the arrays that it stored itself.
    """

    size: int
    known: dict[int, Any] = field(default_factory=dict)


def is_fill(array: Any) -> bool:
    """Whether an array is one value under many indices."""
    return isinstance(array, np.ndarray) and array.size > FEW and not any(array.strides)


def stored(tensor: gs.Constant) -> int:
    """Bytes that a constant takes in a file, a fill as the node that makes it."""
    return tensor._values.itemsize if is_fill(tensor._values) else nbytes(tensor)


def compact(array: Any) -> Any:
    """The array as a fill when all its elements are equal to the bit; else as it is."""
    if not isinstance(array, np.ndarray) or array.size <= FEW or array.dtype.name not in KINDS:
        return array
    line = array.reshape(-1)
    if line[0] != line[-1] or line[0] != line[line.size // 2] or not np.all(line == line[0]):
        return array
    signs = array.dtype.kind != "f" or np.all(np.signbit(line) == np.signbit(line[0]))
    return np.broadcast_to(line[0], array.shape) if signs else array


def open_fills(model: Model) -> Opened | None:
    """Turn ConstantOfShape nodes of constant shape into constants; None when there are none."""
    outputs = edit.output_ids(model)
    found = [(g, n) for g in model.graphs() for n in g.nodes if _plain(n, outputs)]
    if not found:
        return None
    names = sum(len(n.name) + 2 for n in model.nodes())  # which the file may have been without
    opened = Opened(file_size(model) - names, {id(t._values): t._values for t in model.constants().values()})
    gone = {id(n) for _, n in found}
    for _, node in found:
        tensor, shape, value = node.outputs[0], node.inputs[0].values, node.attrs.get("value")
        one = np.zeros(1, np.float32) if value is None else value.values
        edit.unlink(node)
        tensor.to_constant(np.broadcast_to(one.reshape(()), tuple(int(d) for d in shape)))
        tensor.__dict__.setdefault("_export_dtype", None)
    for graph in {id(g): g for g, _ in found}.values():
        graph.nodes = [n for n in graph.nodes if id(n) not in gone]
    return opened


def _plain(node: gs.Node, outputs: set[int]) -> bool:
    if node.op != "ConstantOfShape" or node.domain or not isinstance(node.inputs[0], gs.Constant):
        return False
    shape, value = node.inputs[0].values, node.attrs.get("value")
    kind = "float32" if value is None else np.dtype(value.dtype).name
    size = float(np.prod(shape.astype(np.float64))) * 8
    return id(node.outputs[0]) not in outputs and kind in KINDS and bool(np.all(shape >= 0)) and size <= CEILING


def file_size(model: Model) -> int:
    """Bytes of the model's file: the graph with its attributes, and the weights."""
    given = (gs.Constant(n, v) for n, v in model.header.defaults.items())
    return to_proto(model, store=bare).ByteSize() + sum(nbytes(t) for t in (*model.constants().values(), *given))


def close_fills(model: Model, opened: Opened, growth: float) -> None:
    """Store what the file has room for (its size before, and `growth` of it more); the rest become nodes again."""
    outputs = edit.output_ids(model)
    fills = []
    for tensor in model.constants().values():
        new = isinstance(tensor._values, np.ndarray) and id(tensor._values) not in opened.known
        if new and id(tensor) not in outputs:
            tensor._values = compact(tensor._values)
            if is_fill(tensor._values):
                fills.append(tensor)
    shapes: dict[tuple[int, ...], Any] = {}
    for tensor in fills:
        _to_node(model, tensor, shapes)
    room = int((1 + growth) * opened.size) - file_size(model)
    for tensor in sorted(fills, key=lambda t: (_size(t), t.name)):
        room -= _size(tensor) + 2 * len(tensor.name) + 32  # names, type and shape stand beside the data
        if room < 0:
            break
        _to_constant(tensor)
    edit.sweep(model)
    order.sort(model)


def _size(tensor: gs.Variable) -> int:
    return int(np.prod(tensor.shape, dtype=np.int64)) * np.dtype(tensor.dtype).itemsize


def _to_node(model: Model, tensor: Any, shapes: dict[tuple[int, ...], Any]) -> None:
    array = tensor._values
    if array.shape not in shapes:
        shapes[array.shape] = edit.constant(model, "shape", np.array(array.shape, np.int64))
    shape = shapes[array.shape]
    value = gs.Constant("value", np.array([array.flat[0]], array.dtype))
    tensor.to_variable(array.dtype, list(array.shape))
    made = edit.node(model, "ConstantOfShape", [shape], {"value": value}, [tensor], name="fill")
    edit.add(model.graph, made)


def _to_constant(tensor: Any) -> None:
    node = tensor.inputs[0]
    shape, value = tuple(tensor.shape), node.attrs["value"].values
    edit.unlink(node)
    tensor.to_constant(np.full(shape, value[0], value.dtype))
    tensor.__dict__.setdefault("_export_dtype", None)
