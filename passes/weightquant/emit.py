"""The forms in which a file holds block-wise weights.

`folded`: integers → Cast → (Sub zero) → Mul(scale) → Reshape, which ONNX Runtime folds at load: exact, at the speed of
float.
`dequantize`: DequantizeLinear with block_size before a MatMul; ONNX Runtime makes it a MatMulNBits, which reads an
eighth of the bytes (fast for few rows) and quantizes activations to 8 bits inside (45 dB).
`nbits`: com.microsoft MatMulNBits itself, with the same arithmetic.

Names are short on purpose: five of them a layer would weigh as much as its scales.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from ...ir import Model, edit
from .blocks import Blocks

CONTRIB = "com.microsoft"
ACCURACY = 4  # of MatMulNBits: activations in int8 inside, the fast path


@dataclass(frozen=True)
class Layer:
    """A MatMul or Gemm with a constant weight. columns: of the weight as [rows, columns], the contraction."""

    node: gs.Node
    rows: int
    columns: int

    @property
    def transposed(self) -> bool:
        """Whether the weight is kept as [rows, columns]."""
        return bool(self.node.attrs.get("transB", 0))

    @property
    def key(self) -> tuple[str, bool]:
        """The weight and how it is read."""
        return str(self.node.inputs[1].name), self.transposed

    def matrix(self) -> np.ndarray:
        """The weight, [rows, columns]."""
        values = self.node.inputs[1].values
        return values if self.transposed else values.T


@dataclass
class Pool:
    """What layers of one model have in common. shapes: targets of Reshape. held: constants of a weight's blocks, and
    restored: what is made of them, for every layer that has the same ones."""

    model: Model
    shapes: dict[tuple[int, ...], gs.Constant] = field(default_factory=dict)
    held: dict[tuple[int, str], gs.Constant] = field(default_factory=dict)
    restored: dict[int, gs.Variable] = field(default_factory=dict)

    def constant(self, found: Blocks, what: str, values: np.ndarray) -> gs.Constant:
        """A part of these blocks."""
        key = (id(found), what)
        if key not in self.held:
            self.held[key] = edit.constant(self.model, what, values)
        return self.held[key]


def folded(pool: Pool, layer: Layer, found: Blocks) -> None:
    """Restore the weight by operators that are folded at load."""
    if id(found) not in pool.restored:
        pool.restored[id(found)] = _restored(pool.model, layer, found, pool.shapes)
    edit.set_input(layer.node, 1, pool.restored[id(found)])


def _restored(model: Model, layer: Layer, found: Blocks, shapes: dict[tuple[int, ...], gs.Constant]) -> gs.Variable:
    held = layer.node.inputs[1]
    # blocks of the contraction stay neighbours: [rows, blocks, block], or [blocks, block, rows] for a [columns, rows]
    side = (layer.rows, found.scale.shape[1], 1)
    turn = (lambda a: a) if layer.transposed else (lambda a: np.moveaxis(a, 0, -1))
    now = _float(model, "q", turn(found.values.reshape(*side[:2], found.block)), found)
    wide = now.shape
    if found.zero is not None:
        now = _made(model, "Sub", [now, _float(model, "z", turn(found.zero.reshape(side)), found)], wide)
    scale: Any = np.ascontiguousarray(turn(found.scale.reshape(side)))
    half = edit.constant(model, "s", scale.astype(np.float16) if found.half else scale)
    now = _made(model, "Mul", [now, _cast(model, half, scale.shape) if found.half else half], wide)
    shape = tuple(held.shape)
    if shape not in shapes:
        shapes[shape] = edit.constant(model, "shape", np.array(shape, np.int64))
    now = _made(model, "Reshape", [now, shapes[shape]], shape)
    if found.divisor is not None:
        part = found.divisor if layer.transposed else found.divisor[:, None]
        now = _made(model, "Mul", [now, edit.constant(model, "divisor", np.ascontiguousarray(1 / part))], shape)
    return now


def dequantize(pool: Pool, layer: Layer, found: Blocks) -> None:
    """DequantizeLinear with blocks along the contraction; a Gemm becomes MatMul and Add, as runtimes fuse it."""
    model = pool.model
    parts = [_integers(found.values.T, found), np.ascontiguousarray(found.scale.T)]
    if found.zero is not None:
        parts.append(_integers(found.zero.T, found))
    inputs = [pool.constant(found, what, a) for what, a in zip("qsz", parts)]
    attrs = {"axis": 0, "block_size": found.block}
    out = _made(model, "DequantizeLinear", inputs, (layer.columns, layer.rows), attrs)
    _product(model, layer, "MatMul", [_divided(model, layer, found), out], {}, "")


def nbits(pool: Pool, layer: Layer, found: Blocks) -> None:
    """ONNX Runtime's MatMulNBits."""
    model, blocks = pool.model, found.scale.shape[1]
    offset = 0 if found.zero is not None else 2 ** (found.bits - 1)  # its integers are unsigned
    values = (found.values + offset).astype(np.uint8).reshape(layer.rows, blocks, found.block)
    packed = _nibbles(values) if found.bits == 4 else values
    inputs = [
        _divided(model, layer, found),
        pool.constant(found, "q", packed),
        pool.constant(found, "s", found.scale.reshape(-1)),
    ]
    if found.zero is not None:
        zero = found.zero.astype(np.uint8)
        if found.bits == 4:
            zero = _nibbles(np.pad(zero, ((0, 0), (0, zero.shape[1] % 2))))
        inputs.append(pool.constant(found, "z", zero.reshape(-1)))
    attrs = {"K": layer.columns, "N": layer.rows, "bits": found.bits, "block_size": found.block}
    _product(model, layer, "MatMulNBits", inputs, attrs | {"accuracy_level": ACCURACY}, CONTRIB)
    model.header.opsets.setdefault(CONTRIB, 1)


FORMS = {"folded": folded, "dequantize": dequantize, "nbits": nbits}


def _product(model: Model, layer: Layer, op: str, inputs: list[Any], attrs: dict[str, Any], domain: str) -> None:
    """Exchange the layer for a product and, where it has a bias, an Add behind it."""
    node, graph = layer.node, model.graph
    out, bias, name = node.outputs[0], edit.get(node, 2), node.name
    edit.unlink(node)
    graph.nodes = [n for n in graph.nodes if n is not node]
    last = out if bias is None else edit.variable(model, f"{name}_product", np.float32, out.shape)
    edit.add(graph, edit.node(model, op, inputs, attrs, [last], name, domain))
    if bias is not None:
        edit.add(graph, edit.node(model, "Add", [last, bias], None, [out], f"{name}_Add"))


def _divided(model: Model, layer: Layer, found: Blocks) -> Any:
    """The layer's input, divided as the columns of its weight were multiplied."""
    x = layer.node.inputs[0]
    if found.divisor is None:
        return x
    return _made(model, "Mul", [x, edit.constant(model, "divisor", 1 / found.divisor)], x.shape)


def _nibbles(values: np.ndarray) -> np.ndarray:
    """Two integers of 4 bits in a byte, the first in the low half."""
    return np.ascontiguousarray(values[..., 0::2] | np.left_shift(values[..., 1::2], 4)).astype(np.uint8)


def _integers(values: np.ndarray, found: Blocks) -> np.ndarray:
    kind = {(4, True): ml_dtypes.int4, (4, False): ml_dtypes.uint4, (8, True): np.int8, (8, False): np.uint8}
    return np.ascontiguousarray(values.astype(kind[found.bits, found.zero is None]))


def _float(model: Model, hint: str, values: np.ndarray, found: Blocks) -> gs.Variable:
    """Integers as a float tensor."""
    return _cast(model, edit.constant(model, hint, _integers(values, found)), values.shape)


def _cast(model: Model, held: gs.Constant, shape: tuple[int, ...]) -> gs.Variable:
    return _made(model, "Cast", [held], shape, {"to": int(TensorProto.FLOAT)})


def _made(model: Model, op: str, inputs: list[Any], shape: Any, attrs: dict[str, Any] | None = None) -> gs.Variable:
    """The float output of a new node."""
    out = edit.variable(model, "w", np.float32, None if shape is None else list(shape))
    edit.add(model.graph, edit.node(model, op, inputs, attrs, [out]))
    return out
