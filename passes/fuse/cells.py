"""One step of a recurrent network, spelled out: which products feed its gates, and the state that goes in and out.

LSTM: c' = σ(f)·c + σ(i)·tanh(g), h' = σ(o)·tanh(c'). GRU with the reset after the product:
n = tanh(x-part + σ(r)·(h-part)), h' = n + σ(z)·(h - n), or (1 - σ(z))·n + σ(z)·h. RNN: h' = tanh(a).
Every gate is a sum of products with constant matrices and of constants, or a slice of such a sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import edit
from ..operands import slice_bounds
from ..rewrite import Rewriter

# Nested sums and slices deeper than this are no gate that an exporter writes.
_DEPTH = 6


@dataclass(frozen=True)
class Product:
    """input [B, depth] times a part of a matrix: rows row .. row + depth, columns start .. start + size.

    transposed: the matrix is stored the other way round.
    """

    input: Any
    weight: Any
    transposed: bool
    row: int
    depth: int
    start: int
    size: int

    @property
    def key(self) -> tuple[int, bool, int, int, int, int]:
        """What is multiplied with, by identity."""
        return id(self.weight), self.transposed, self.row, self.depth, self.start, self.size

    def matrix(self) -> np.ndarray:
        """The weight as an operator has it: [size, depth]."""
        rows, columns = slice(self.row, self.row + self.depth), slice(self.start, self.start + self.size)
        values = self.weight.values
        return values[columns, rows] if self.transposed else values[rows, columns].T


@dataclass(frozen=True)
class Linear:
    """A sum of products and of a row of constants (of one element: of that in every column), and what computes it."""

    products: tuple[Product, ...]
    bias: np.ndarray
    nodes: tuple[gs.Node, ...] = ()

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.products[0].size if self.products else int(self.bias.size)


@dataclass(frozen=True)
class Step:
    """One step. gates: in the order of the operator. late: bias of the h-part of a GRU's last gate, inside the reset.

    c, c_before: cell states of an LSTM. h_before: where the step says itself what its last state is.
    """

    op: str
    h: Any
    gates: tuple[Linear, ...]
    nodes: tuple[gs.Node, ...]
    c: Any = None
    c_before: Any = None
    h_before: Any = None
    late: np.ndarray | None = None


def linear(rw: Rewriter, tensor: Any, depth: int = _DEPTH) -> Linear | None:
    """A tensor [B, N] as a sum of products with constants; None when it is anything else."""
    if isinstance(tensor, gs.Constant):
        return _constant(tensor)
    node = rw.maker(tensor, *_READ)
    found = None if node is None or not depth else _READ[node.op](rw, node, tensor, depth - 1)
    return None if found is None or len(found.products) > 2 else replace(found, nodes=(*found.nodes, node))


def _constant(tensor: gs.Constant) -> Linear | None:
    """A row, or rows that are all alike."""
    if len(tensor.shape) > 2 or np.dtype(tensor.dtype) != np.float32:
        return None
    rows = tensor.values.reshape(-1, tensor.shape[-1] if tensor.shape else 1)
    return Linear((), rows[0]) if len(rows) and np.all(rows == rows[:1]) else None


def _sum(rw: Rewriter, node: gs.Node, _: Any, depth: int) -> Linear | None:
    return _added([linear(rw, t, depth) for t in node.inputs])


def _added(parts: list[Linear | None]) -> Linear | None:
    known = [p for p in parts if p is not None]
    if len(known) < len(parts) or len({p.width for p in known if p.width != 1}) > 1:
        return None
    size = max(p.bias.size for p in known)
    bias = np.sum([np.broadcast_to(p.bias, (size,)) for p in known], axis=0)
    return Linear(tuple(q for p in known for q in p.products), bias, _all(known))


def _all(parts: list[Linear]) -> tuple[gs.Node, ...]:
    return tuple(n for p in parts for n in p.nodes)


def _product(rw: Rewriter, node: gs.Node, _: Any, left: int) -> Linear | None:
    data, weight, rest = node.inputs[0], node.inputs[1], edit.get(node, 2)
    transposed = bool(node.attrs.get("transB", 0))
    plain = node.attrs.get("alpha", 1.0) == 1.0 and node.attrs.get("beta", 1.0) == 1.0
    if not plain or node.attrs.get("transA", 0) or not isinstance(weight, gs.Constant) or len(weight.shape) != 2:
        return None
    if isinstance(data, gs.Constant) or rw.rank(data) != 2 or np.dtype(weight.dtype) != np.float32:
        return None
    depth, columns = weight.shape[::-1] if transposed else weight.shape
    parts, nodes = _beside(rw, data, int(depth))
    starts = np.cumsum([0, *(size for _, size in parts)]).tolist()
    made = [Product(t, weight, transposed, row, size, 0, int(columns)) for row, (t, size) in zip(starts, parts)]
    own = Linear(tuple(made), np.zeros(1, np.float32), nodes)
    return own if rest is None else _added([own, linear(rw, rest, left)])


def _beside(rw: Rewriter, data: Any, depth: int) -> tuple[list[tuple[Any, int]], tuple[gs.Node, ...]]:
    """What a matrix is put together of, side by side, with the widths: input and state, as TensorFlow's cells do."""
    node = rw.maker(data, "Concat")
    tails = [rw.static_tail(t, -1) for t in node.inputs] if node is not None else []
    widths = [tail[0] for tail in tails if tail is not None]
    if node is None or node.attrs.get("axis") not in (1, -1) or len(widths) != 2 or sum(widths) != depth:
        return [(data, depth)], ()
    return list(zip(node.inputs, widths)), (node,)


def _split(rw: Rewriter, node: gs.Node, tensor: Any, depth: int) -> Linear | None:
    widths = [rw.static_tail(t, -1) for t in node.outputs]
    if node.attrs.get("axis", 0) not in (1, -1) or any(w is None for w in widths):
        return None
    at = next(k for k, t in enumerate(node.outputs) if t is tensor)
    start = sum(w[0] for w in widths[:at] if w)
    return _columns(linear(rw, node.inputs[0], depth), start, start + widths[at][0])  # type: ignore[index]


def _slice(rw: Rewriter, node: gs.Node, _: Any, depth: int) -> Linear | None:
    bounds, source = slice_bounds(rw, node), linear(rw, node.inputs[0], depth)
    if bounds is None or source is None or len(bounds[2]) != 1 or bounds[2][0] not in (1, -1) or bounds[3] != [1]:
        return None
    start, end, _step = slice(bounds[0][0], bounds[1][0]).indices(source.width)
    return _columns(source, start, end)


def _columns(source: Linear | None, start: int, end: int) -> Linear | None:
    if source is None or not 0 <= start < end <= source.width:
        return None
    products = tuple(replace(p, start=p.start + start, size=end - start) for p in source.products)
    return Linear(products, source.bias if source.bias.size == 1 else source.bias[start:end], source.nodes)


_READ: dict[str, Callable[[Rewriter, gs.Node, Any, int], Linear | None]] = {
    "Add": _sum,
    "Sum": _sum,
    "Gemm": _product,
    "MatMul": _product,
    "Split": _split,
    "Slice": _slice,
}


def _pairs(rw: Rewriter, tensor: Any, op: str, first: str, second: str = "") -> Iterator[tuple[gs.Node, Any, Any]]:
    """Readings of a tensor as `op` of two: the node, the maker of one operand, the other (or its maker)."""
    node = rw.maker(tensor, op)
    if node is None or len(node.inputs) != 2:
        return
    for k in (0, 1):
        one, other = rw.maker(node.inputs[k], first), node.inputs[1 - k]
        other = rw.maker(other, second) if second else other
        if one is not None and other is not None:
            yield node, one, other


def _gates(rw: Rewriter, *activations: gs.Node) -> tuple[Linear, ...] | None:
    found = [linear(rw, n.inputs[0]) for n in activations]
    known = tuple(g for g in found if g is not None and g.products)
    return known if len(known) == len(found) else None


def lstm(rw: Rewriter, h: Any) -> Step | None:
    """The step of an LSTM that puts out `h`."""
    for end, o, tanh in _pairs(rw, h, "Mul", "Sigmoid", "Tanh"):
        c = tanh.inputs[0]
        for add, keep, new in _pairs(rw, c, "Add", "Mul", "Mul"):
            for _, i, g in _pairs(rw, new.outputs[0], "Mul", "Sigmoid", "Tanh"):
                for _, f, before in _pairs(rw, keep.outputs[0], "Mul", "Sigmoid"):
                    gates = _gates(rw, i, o, f, g)
                    if gates is not None:
                        nodes = (end, o, tanh, add, keep, new, i, g, f, *_all(list(gates)))
                        return Step("LSTM", h, gates, nodes, c, before)
    return None


def gru(rw: Rewriter, h: Any) -> Step | None:
    """The step of a GRU that puts out `h`, the reset gate behind the product."""
    for nodes, n, z, before in (*_between(rw, h), *_weighed(rw, h)):
        for add, reset, first in _pairs(rw, n.inputs[0], "Add", "Mul"):
            for _, r, second in _pairs(rw, reset.outputs[0], "Mul", "Sigmoid"):
                gates, x, late = _gates(rw, z, r), linear(rw, first), linear(rw, second)
                if gates is None or x is None or late is None or any(p.input is before for p in x.products):
                    continue
                if any(p.input is not before for p in late.products):
                    continue
                new = Linear((*x.products, *late.products), x.bias, (*x.nodes, *late.nodes))
                all_nodes = (*nodes, n, z, add, reset, r, *_all([*gates, new]))
                return Step("GRU", h, (*gates, new), all_nodes, h_before=before, late=late.bias)
    return None


def _between(rw: Rewriter, h: Any) -> Iterator[tuple[tuple[gs.Node, ...], gs.Node, gs.Node, Any]]:
    """n + z · (h - n), as PyTorch has it: nodes, makers of n and z, the state before."""
    for add, n, mul in _pairs(rw, h, "Add", "Tanh", "Mul"):
        for _, z, sub in _pairs(rw, mul.outputs[0], "Mul", "Sigmoid", "Sub"):
            if sub.inputs[1] is n.outputs[0]:
                yield (add, mul, sub), n, z, sub.inputs[0]


def _weighed(rw: Rewriter, h: Any) -> Iterator[tuple[tuple[gs.Node, ...], gs.Node, gs.Node, Any]]:
    """z · h + (1 - z) · n, as Keras has it."""
    for add, old, new in _pairs(rw, h, "Add", "Mul", "Mul"):
        for _, n, sub in _pairs(rw, new.outputs[0], "Mul", "Tanh", "Sub"):
            for _, z, before in _pairs(rw, old.outputs[0], "Mul", "Sigmoid"):
                if sub.inputs[1] is z.outputs[0] and rw.scalar(sub.inputs[0]) == 1:
                    yield (add, old, new, sub), n, z, before


def rnn(rw: Rewriter, h: Any) -> Step | None:
    """The step of a plain recurrent network that puts out `h`."""
    tanh = rw.maker(h, "Tanh")
    gates = None if tanh is None else _gates(rw, tanh)
    return None if tanh is None or gates is None else Step("RNN", h, gates, (tanh, *gates[0].nodes))
