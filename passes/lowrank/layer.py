"""A layer as the splits see it: a weight (outputs, inputs, *kernel), its geometry, and where its bias lives.

`read` turns a Conv, ConvTranspose, MatMul or Gemm into this normal form, or says why it may not be split. A `Stage` is
one layer of the chain that replaces it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import Model, edit, ops
from .norm import Array

SERVED = ("Conv", "ConvTranspose", "MatMul", "Gemm")
CONVOLUTIONS = ("Conv", "ConvTranspose")
SMALLEST = 16  # below so many inputs or outputs a second layer costs more than it saves


@dataclass(frozen=True)
class Stage:
    """One layer of a chain.

    weight: (O, C / group, *kernel) for convolutions, (O, C) for matmuls. axes: spatial axes whose stride, pads and
    dilation this stage carries; along the others its kernel is 1.
    """

    weight: Array
    axes: tuple[int, ...] = ()
    group: int = 1


@dataclass(frozen=True)
class Geometry:
    """Strides and dilations by spatial axis, pads (begin, end) by spatial axis, and `auto_pad`.

    transposed: of a ConvTranspose, with `extra` its output padding by spatial axis.
    """

    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[tuple[int, int], ...] = ()
    auto_pad: str = "NOTSET"
    transposed: bool = False
    extra: tuple[int, ...] = ()

    def output(self, size: Sequence[int], kernel: Sequence[int], axes: Sequence[int]) -> tuple[int, ...]:
        """Spatial sizes behind a stage that carries `axes`."""
        return tuple(self._along(i, n, k) if i in axes else n for i, (n, k) in enumerate(zip(size, kernel)))

    def _along(self, axis: int, size: int, kernel: int) -> int:
        stride = self.strides[axis]
        if self.transposed:
            return (
                (size - 1) * stride + self.dilations[axis] * (kernel - 1) + 1 + self.extra[axis] - sum(self.pads[axis])
            )
        if self.auto_pad.startswith("SAME"):
            return -(-size // stride)
        pads = (0, 0) if self.auto_pad == "VALID" else self.pads[axis]
        return (size + sum(pads) - self.dilations[axis] * (kernel - 1) - 1) // stride + 1


@dataclass(frozen=True)
class Layer:
    """A layer that may be split.

    weight: (O, C, *kernel), the model's own array where that is possible, so that it costs no memory; `alpha` of a Gemm
    is multiplied in; of the first group where there are several:
    `stack` (G, O, C, *kernel) then holds them all, and sizes are those of one group. bias: (G·O,) or None. adjustable:
    the mean of the error can be folded into a bias (`slot` says which Add holds it for a MatMul). size: of the input.
    members: layers that read one tensor and are taken together (`siblings`), weight and bias then those of all, each
    member's rows divided by its `scale` (O,). view: how its output is read as heads (`views.View`), or why it is not;
    None where nobody asked.
    """

    node: gs.Node
    op: str
    weight: Array
    bias: Array | None
    adjustable: bool
    size: tuple[int, ...]
    dtype: Any
    geometry: Geometry = Geometry()
    slot: gs.Node | None = None
    stack: Array | None = None
    members: tuple[Layer, ...] = ()
    scale: Any = 1.0
    view: Any = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the nodes that it stands for."""
        return tuple(m.node.name for m in self.members) or (self.node.name,)

    @property
    def groups(self) -> int:
        """How many layers stand side by side."""
        return 1 if self.stack is None else len(self.stack)

    @property
    def parts(self) -> list[Layer]:
        """Its groups as layers of their own; itself where there is one."""
        return [self] if self.stack is None else [replace(self, weight=w, stack=None) for w in self.stack]

    @property
    def params(self) -> int:
        """Elements of the weight, all groups."""
        return self.groups * self.weight.size

    @property
    def outputs(self) -> int:
        return int(self.weight.shape[0])

    @property
    def inputs(self) -> int:
        return int(self.weight.shape[1])

    @property
    def kernel(self) -> tuple[int, ...]:
        return tuple(int(k) for k in self.weight.shape[2:])

    @property
    def rank(self) -> int:
        """Number of spatial axes; 0 for matmuls."""
        return self.weight.ndim - 2

    @property
    def axes(self) -> tuple[int, ...]:
        return tuple(range(self.rank))

    @property
    def ones(self) -> tuple[int, ...]:
        return (1,) * self.rank

    @property
    def taps(self) -> int:
        return math.prod(self.kernel)

    @property
    def width(self) -> int:
        """Columns of the unfolded input."""
        return self.inputs * self.taps

    @property
    def unfolded(self) -> tuple[int, ...]:
        """Shape of one unfolded input: (C, *kernel)."""
        return (self.inputs, *self.kernel)

    @cached_property
    def flat(self) -> Array:
        return self.weight.reshape(self.outputs, -1)

    def macs_of(self, stages: Sequence[Stage]) -> int:
        """Multiply-accumulates of a chain at this layer's input size."""
        if self.op not in CONVOLUTIONS:
            return math.prod(self.size) // self.inputs * sum(s.weight.size for s in stages)
        total, size = 0, self.size[2:]
        for stage in stages:
            before, size = size, self.geometry.output(size, stage.weight.shape[2:], stage.axes)
            total += self.size[0] * math.prod(before if self.geometry.transposed else size) * stage.weight.size
        return total

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the layer as it is."""
        return self.macs_of([self.whole])

    @property
    def whole(self) -> Stage:
        """The layer as a chain of one."""
        if self.stack is None:
            return Stage(self.weight, self.axes)
        return Stage(self.stack.reshape(-1, *self.weight.shape[1:]), self.axes, self.groups)


def candidates(model: Model) -> list[gs.Node]:
    """Nodes of the main graph that have a weight by their facts, in order."""
    return [n for n in model.graph.nodes if ops.facts(n).weight(n) is not None]


def refusal(node: gs.Node) -> str | None:
    """Why a weighted node cannot be split, from the graph alone; None when it can."""
    place = ops.facts(node).weight(node)
    if node.op not in SERVED or place is None:
        return f"{node.op} is not served"
    tensor = edit.get(node, place.index)
    if not isinstance(tensor, gs.Constant):
        return "the weight is not a constant"
    if len(tensor.outputs) > 1:
        return "the weight is shared by several nodes"
    if np.dtype(tensor.dtype) not in (np.dtype(np.float32), np.dtype(np.float64)):
        return f"the weight is {np.dtype(tensor.dtype).name}, not float32"
    if place.groups > 1 and 1 in (_inputs(tensor, place), _outputs(tensor, place)):
        return "depthwise"
    if node.op == "ConvTranspose" and (
        _text(node.attrs.get("auto_pad", "NOTSET")) != "NOTSET" or "output_shape" in node.attrs
    ):
        return "ConvTranspose with auto_pad or output_shape"
    if node.op == "MatMul" and len(tensor.shape) != 2:
        return "the weight is a stack of matrices"
    if node.op == "Gemm" and node.attrs.get("transA", 0):
        return "Gemm with transA"
    if min(_inputs(tensor, place), _outputs(tensor, place)) < SMALLEST:
        return f"fewer than {SMALLEST} inputs or outputs" + (" a group" if place.groups > 1 else "")
    return None


def _inputs(tensor: gs.Constant, place: ops.Weight) -> int:
    """Inputs of one group."""
    return int(tensor.shape[place.in_axis]) // (place.groups if place.transposed else 1)


def _outputs(tensor: gs.Constant, place: ops.Weight) -> int:
    """Outputs of one group."""
    return int(tensor.shape[place.out_axis]) // (1 if place.transposed else place.groups)


def read(node: gs.Node, size: Sequence[int], results: Collection[int] = ()) -> Layer:
    """The normal form of a node that `refusal` has passed; `size` is the shape of its input; results: `id` of the
    model's outputs, which no Add behind them may put right."""
    size = tuple(int(d) for d in size)
    if node.op in CONVOLUTIONS:
        return _conv(node, size)
    return _gemm(node, size) if node.op == "Gemm" else _matmul(node, size, id(node.outputs[0]) in results)


def _conv(node: gs.Node, size: tuple[int, ...]) -> Layer:
    weight = edit.const(node, 1)
    assert weight is not None  # refusal() has seen it
    rank, groups, transposed = weight.ndim - 2, int(node.attrs.get("group", 1)), node.op == "ConvTranspose"
    pads = [int(p) for p in node.attrs.get("pads") or [0] * (2 * rank)]
    geometry = Geometry(
        tuple(int(s) for s in node.attrs.get("strides") or [1] * rank),
        tuple(int(d) for d in node.attrs.get("dilations") or [1] * rank),
        tuple(zip(pads[:rank], pads[rank:])),
        _text(node.attrs.get("auto_pad", "NOTSET")),
        transposed,
        tuple(int(e) for e in node.attrs.get("output_padding") or [0] * rank),
    )
    bias = edit.const(node, 2)
    # a transposed convolution's mean output depends on the position: no one constant takes its error over
    adjustable = not transposed and (edit.get(node, 2) is None or bias is not None)
    stack = weight.reshape(groups, -1, *weight.shape[1:])
    stack = np.swapaxes(stack, 1, 2) if transposed else stack
    grouped = stack if groups > 1 else None
    return Layer(node, node.op, stack[0], bias, adjustable, size, weight.dtype, geometry, stack=grouped)


def _gemm(node: gs.Node, size: tuple[int, ...]) -> Layer:
    weight, bias = edit.const(node, 1), edit.const(node, 2)
    assert weight is not None  # refusal() has seen it
    matrix = weight if node.attrs.get("transB", 0) else weight.T
    alpha = float(node.attrs.get("alpha", 1.0))
    matrix = matrix if alpha == 1 else matrix.astype(np.float64) * alpha
    if bias is not None:
        row = _row(bias, len(matrix))
        taken = None if row is None else row * bias.dtype.type(node.attrs.get("beta", 1.0))
        return Layer(node, "Gemm", matrix, taken, taken is not None, size, weight.dtype)
    return Layer(node, "Gemm", matrix, None, edit.get(node, 2) is None, size, weight.dtype)


def _row(bias: Array, outputs: int) -> Array | None:
    """A Gemm's C as one value a column, or None when it differs between rows."""
    one_row = bias.ndim < 2 or bias.shape[0] == 1
    if not one_row or bias.size not in (1, outputs):
        return None
    return np.array(np.broadcast_to(bias.reshape(-1), (outputs,)))


def _matmul(node: gs.Node, size: tuple[int, ...], shown: bool) -> Layer:
    weight = edit.const(node, 1)
    assert weight is not None  # refusal() has seen it
    slot, bias = (None, None) if shown else _bias_add(node, weight.shape[1])
    return Layer(node, "MatMul", weight.T, bias, slot is not None, size, weight.dtype, slot=slot)


def _bias_add(node: gs.Node, outputs: int) -> tuple[gs.Node | None, Array | None]:
    """The Add right behind a MatMul that adds one constant a column, and that constant."""
    readers = node.outputs[0].outputs
    if len(readers) != 1 or readers[0].op != "Add":
        return None, None
    values = [t.values for t in readers[0].inputs if isinstance(t, gs.Constant)]
    if len(values) != 1 or values[0].size != outputs or values[0].shape[-1:] != (outputs,):
        return None, None
    return readers[0], values[0].reshape(-1)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
