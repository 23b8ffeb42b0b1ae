"""One constant factor, as of attention scores, into the weights behind the scaled tensor, across what only moves data.

c · (q · kᵀ) is (c · q) · kᵀ, and c · q is made by a product whose weight takes the factor, wherever its output is only
reshaped, transposed or taken apart on the way. Differs by float rounding: a factor of 1/8 not at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ..operands import slice_bounds
from ..rewrite import Outcome, Rewriter, Rule
from . import affine, gelu
from .reshape import RESHAPES
from .shuffle import positions

_MOVES = (*RESHAPES, "Transpose")
_TAKES = ("Gather", "Slice")
_DEPTH = 8
# Elements of an array that follows where channels go.
_LIMIT = 1 << 20


@dataclass(frozen=True)
class Source:
    """Where a factor may go.

    linear: the product. bias: the Add of a constant behind it, if any. channels: which of its outputs; None for all.
    """

    linear: gs.Node
    bias: gs.Node | None
    channels: np.ndarray | None


def _into_weights(rw: Rewriter, node: gs.Node) -> Outcome:
    """Mul or Div by one number of what a product with a constant weight made, or of a product of two such."""
    found = _factor(rw, node)
    if found is None or gelu.closes(rw, node) or not rw.can_replace(node.outputs[0], found[0]):
        return None
    x, factor = found
    for source in _sources(rw, x):
        lin = affine.linear(rw, source.linear)
        if lin is None or not affine.writable(rw, source.linear) or not rw.together(node, source.linear):
            continue
        scale = np.full(lin.count, factor, affine.work(lin.weight.dtype))
        if source.channels is not None:
            scale[...] = 1
            scale[source.channels] = factor
        bias = None if lin.bias is None else lin.bias * scale
        if affine.write(rw, source.linear, lin, affine.scaled_out(lin, scale), bias) is not True:
            continue
        if source.bias is not None:
            scale_bias(rw, source.bias, scale)
        return rw.replace(node.outputs[0], x)
    return None


def _factor(rw: Rewriter, node: gs.Node) -> tuple[Any, float] | None:
    """For x · c or x / c that changes no shape: x and the factor."""
    for at in (1, 0) if node.op == "Mul" else (1,):
        x, c = node.inputs[1 - at], rw.scalar(node.inputs[at])
        if c is None or isinstance(x, gs.Constant) or np.asarray(c).dtype.name not in affine.FLOATS:
            continue
        rank = rw.rank(x)
        if rank is not None and len(node.inputs[at].shape) <= rank and np.isfinite(c) and c != 0:
            return x, float(c) if node.op == "Mul" else 1.0 / float(c)
    return None


def _sources(rw: Rewriter, tensor: Any) -> Iterator[Source]:
    """Every product that may take the factor of a tensor."""
    product = rw.inner(tensor, "MatMul")
    if product is not None and not any(isinstance(t, gs.Constant) for t in product.inputs):
        for side in product.inputs:
            found = _source(rw, side)
            if found is not None:
                yield found
        return
    found = _source(rw, tensor)
    if found is not None:
        yield found


def _source(rw: Rewriter, tensor: Any) -> Source | None:
    """Up across moves: all of a product's outputs, or those channels that nobody else takes."""
    path: list[gs.Node] = []
    while len(path) < _DEPTH:
        node = rw.maker(tensor, *_MOVES, *_TAKES)
        if node is None:
            break
        path.append(node)
        tensor = node.inputs[0]
    add = rw.maker(tensor, "Add")
    biased = add is not None and any(isinstance(t, gs.Constant) for t in add.inputs)
    made = (
        next((t for t in add.inputs if not isinstance(t, gs.Constant)), None) if add is not None and biased else tensor
    )
    linear = rw.maker(made, "MatMul", "Gemm")
    if linear is None or (biased and not rw.sole(made)) or not path:
        return None
    if all(rw.sole(n.outputs[0]) and n.op in _MOVES for n in path) and rw.sole(tensor):
        return Source(linear, add if biased else None, None)
    channels = _taken(rw, tensor, path)
    return None if channels is None else Source(linear, add if biased else None, channels)


def _taken(rw: Rewriter, tensor: Any, path: list[gs.Node]) -> np.ndarray | None:
    """Which channels (last axis) of a tensor come out at the end of a path, where no other reader takes any of them."""
    shape = rw.shape(tensor)
    if shape is None or not isinstance(shape[-1], int):
        return None
    sizes = _known(shape)
    if np.prod(sizes) > _LIMIT:
        return None
    values: np.ndarray | None = np.broadcast_to(np.arange(shape[-1]), sizes)
    for node in reversed(path):
        others = [n for n in rw.readers(node.inputs[0]) if n is not node]
        if rw.is_output(node.inputs[0]) or values is None or (others and node.op not in _TAKES):
            return None
        taken = _followed(rw, node, values)
        for other in others:
            apart = _followed(rw, other, values) if other.op in _TAKES and other.inputs[0] is node.inputs[0] else None
            if apart is None or taken is None or np.any(_among(shape[-1], apart) & _among(shape[-1], taken)):
                return None
        values = taken
    return _among(shape[-1], values) if values is not None and rw.sole(path[0].outputs[0]) else None


def _known(shape: list[Any]) -> list[int]:
    """Sizes, with 1 for unknown ones."""
    return [d if isinstance(d, int) else 1 for d in shape]


def _followed(rw: Rewriter, node: gs.Node, values: np.ndarray) -> np.ndarray | None:
    """What a node makes of an array in which unknown sizes stand as 1; None where that depends on them."""
    shape, end = rw.shape(node.inputs[0]), rw.shape(node.outputs[0])
    axes = _taken_along(rw, node)
    if shape is None or axes is None or not all(-len(shape) <= a < len(shape) for a in axes):
        return None
    if not all(isinstance(shape[a], int) for a in axes):
        return None
    found = positions(rw, node, values)
    if found is None or node.op not in RESHAPES:
        return found
    return found if end is not None and list(found.shape) == _known(end) else None


def _taken_along(rw: Rewriter, node: gs.Node) -> list[int] | None:
    """The axes along which a node takes some elements and leaves others; None when they cannot be told."""
    if node.op == "Gather":
        return [node.attrs.get("axis", 0)]
    if node.op != "Slice":
        return []
    bounds = slice_bounds(rw, node)
    return None if bounds is None else bounds[2]


def _among(count: int, values: np.ndarray) -> np.ndarray:
    """Which of `count` numbers are among the values."""
    found = np.zeros(count, bool)
    found[values.reshape(-1)] = True
    return found


def writable_bias(rw: Rewriter, add: Any) -> bool:
    """Whether the constant that a node adds may be replaced without leaving a large one twice."""
    bias = next(t for t in add.inputs if isinstance(t, gs.Constant))
    return rw.sole(bias) or bias.values.nbytes <= affine.COPY_LIMIT


def scale_bias(rw: Rewriter, add: gs.Node, scale: np.ndarray) -> None:
    """Multiply the constant that a node adds, channels on its last axis."""
    factor = scale[0] if np.all(scale == scale[0]) else scale
    scaled = [
        rw.constant(t.name, (t.values * factor).astype(t.dtype)) if isinstance(t, gs.Constant) else t
        for t in add.inputs
    ]
    rw.rewire(add, scaled)


RULES = (Rule("factors into weights", ("Mul", "Div"), _into_weights, since=7),)
