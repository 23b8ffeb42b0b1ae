"""Products whose output is read as heads: Reshape to [..., H, d], then Transpose to [..., H, S, d] or [..., H, d, S].

As exporters spell attention. What is found says how the same two nodes look at another size of a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import Model, edit, shapes
from .layer import Layer
from .norm import Array

SERVED = ("MatMul", "Gemm")


@dataclass(frozen=True)
class View:
    """A product's output as heads.

    reshape, transpose: the nodes. prefix: of the Reshape's target what is computed, tail: the numbers behind it, both
    up to the heads. heads: sizes of the axes that count heads. size: d of one. order: the Transpose's permutation.
    """

    reshape: gs.Node
    transpose: gs.Node
    prefix: tuple[Any, ...]
    tail: tuple[int, ...]
    heads: tuple[int, ...]
    size: int
    order: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of heads."""
        return math.prod(self.heads)

    @property
    def lead(self) -> int:
        """Number of axes before the heads."""
        return len(self.order) - len(self.heads) - 1

    @property
    def flipped(self) -> bool:
        """Whether d comes before the positions, as keys are spelled."""
        return self.order[-1] != len(self.order) - 1

    def target(self, size: int) -> tuple[int, ...]:
        """The numbers at the end of the Reshape's target for heads of another size."""
        return *self.tail, *self.heads, size

    def laid(self, blocks: Array) -> Array:
        """(H, a, b), a matrix a head, as what broadcasts to the batches that the Transpose makes: (..., a, b)."""
        axes = [a - self.lead for a in self.order[:-2] if a >= self.lead]
        some = blocks.reshape(*self.heads, *blocks.shape[1:])
        some = some.transpose(*axes, len(axes), len(axes) + 1)
        batch = [self.heads[a - self.lead] if a >= self.lead else 1 for a in self.order[:-2]]
        while batch and batch[0] == 1:
            batch.pop(0)
        return np.ascontiguousarray(some.reshape(*batch, *blocks.shape[1:]))


def seen(model: Model, layer: Layer) -> Layer:
    """The layer with what is known of its heads."""
    return replace(layer, view=find(model, layer))


def known(layer: Layer) -> list[View | str | None]:
    """What is known of the heads of a layer, or of all members of a joint one."""
    return [m.view for m in layer.members or (layer,)]


def find(model: Model, layer: Layer) -> View | str:
    """How the layer's output is read as heads, or why it is not."""
    if layer.op not in SERVED:
        return "heads serves MatMul and Gemm"
    if layer.op == "Gemm" and not layer.adjustable:
        return "the bias is not one constant a column"
    reshape = _reader(model, (layer.slot or layer.node).outputs[0])
    if reshape is None or reshape.op != "Reshape":
        return "its output is not only read by a Reshape to heads"
    transpose = _reader(model, reshape.outputs[0])
    if transpose is None or transpose.op != "Transpose":
        return "no Transpose right behind the Reshape makes its heads batches"
    order = tuple(int(a) for a in transpose.attrs.get("perm") or ())
    prefix, tail = _target(reshape)
    sizes = _sizes(reshape, tail, len(order))
    count = _axes(sizes, layer.outputs)
    if not count or len(tail) < count:
        return "its Reshape does not end in [heads, size of a head]"
    heads, size = tuple(sizes[-count:-1]), sizes[-1]
    lead, own = len(order) - count, tail[: len(tail) - count]
    copied = [len(order) - len(tail) + k for k, n in enumerate(tail) if n == 0]
    if any(k >= min(lead, len(layer.size) - 1) for k in copied):
        return "its Reshape copies sizes that would change"
    if len(order) - 1 not in order[-2:] or any(lead <= a < len(order) - 1 for a in order[-2:]):
        return "its Transpose does not make heads batches"
    return View(reshape, transpose, prefix, own, heads, size, order)


def _reader(model: Model, tensor: Any) -> gs.Node | None:
    """The one node that reads a tensor as its first input, or None."""
    if len(tensor.outputs) != 1 or edit.is_output(model, tensor):
        return None
    reader: gs.Node = tensor.outputs[0]
    return reader if edit.get(reader, 0) is tensor else None


def _target(reshape: gs.Node) -> tuple[tuple[Any, ...], tuple[int, ...]]:
    """A Reshape's target as (what is computed, the numbers behind that)."""
    values = edit.const(reshape, 1)
    if values is not None:
        return (), tuple(int(v) for v in values)
    concat = edit.producer(edit.get(reshape, 1))
    if concat is None or concat.op != "Concat":
        return (), ()
    parts = list(concat.inputs)
    numbers: list[Any] = []
    while parts and isinstance(parts[-1], gs.Constant):
        numbers = [*parts.pop().values.reshape(-1), *numbers]
    return tuple(parts), tuple(int(n) for n in numbers)


def _sizes(reshape: gs.Node, tail: Sequence[int], rank: int) -> list[Any]:
    """Sizes of the reshaped axes as far as they are numbers, else None; [] where the rank is another one."""
    shape = shapes.of(reshape.outputs[0]) or (None,) * rank
    if len(shape) != rank or len(tail) > rank:
        return []
    named = [n if isinstance(n, (int, np.integer)) else None for n in shape]
    return [*named[: rank - len(tail)], *(t if t > 0 else n for t, n in zip(tail, named[rank - len(tail) :]))]


def _axes(sizes: Sequence[Any], outputs: int) -> int:
    """How many of the last axes make up the outputs, a head's own among them; 0 where none do, or it is one head."""
    product = 1
    for count, size in enumerate(reversed(sizes), 1):
        product *= size or 0
        if product == outputs and count > 1 and size > 1:
            return count
        if not 0 < product < outputs:
            return 0
    return 0
