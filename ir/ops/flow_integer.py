"""How labels pass through operators on integers: QLinearConv and its like, with scales and zero points as inputs.

Zero points and scales of one entry say nothing of channels; those of one entry an output channel follow it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import onnx_graphsurgeon as gs

from ..labels import Cells, stack
from .flow_elementwise import align, pool, same
from .flow_linear import Places, conv, matmul

if TYPE_CHECKING:
    from ..flow import Flow

Rule = Callable[[Any, gs.Node], None]


def qlinear_matmul(flow: Flow, node: gs.Node) -> None:
    """QLinearMatMul: scales of the right side by column; those of the left side by row keep the rows."""
    for index in (1, 2):
        tensor = node.inputs[index]
        if flow.rank(tensor) == 1 and flow.size(tensor)[0] > 1:
            flow.pin(node.inputs[0], f"a scale a row at {node.op} '{node.name}'", [flow.rank(node.inputs[0]) - 2])
    matmul(flow, node, Places(0, 3, 8, (4, 5)))


def dynamic_range(flow: Flow, node: gs.Node) -> None:
    """DynamicQuantizeLinear: the range is that of the whole tensor, so it changes with what leaves."""
    x = node.inputs[0]
    if flow.norms != "allow":
        flow.pin(x, f"range of {node.op} '{node.name}' runs over it")
    flow.put(node.outputs[0], flow.of(x))


def binary(flow: Flow, node: gs.Node) -> None:
    """ONNX Runtime's QLinearAdd and QLinearMul: (A, scale, zero), (B, scale, zero), scale, zero."""
    indices = (0, 3)
    shapes = [flow.size(node.inputs[i]) for i in indices]
    flow.put(node.outputs[0], align(flow, node, indices, shapes, flow.rank(node.outputs[0])))


def pooled(flow: Flow, node: gs.Node) -> None:
    """ONNX Runtime's QLinearAveragePool and QLinearGlobalAveragePool; channels last are left alone."""
    if node.attrs.get("channels_last", 0):
        flow.pin_inputs(node, f"channels-last {node.op} '{node.name}'")
    else:
        pool(flow, node)


def concat(flow: Flow, node: gs.Node) -> None:
    """ONNX Runtime's QLinearConcat: scale, zero, then (X, scale, zero) for every part."""
    y = node.outputs[0]
    at, indices = int(node.attrs["axis"]) % flow.rank(y), range(2, len(node.inputs), 3)
    sizes = [list(flow.size(node.inputs[i])) for i in indices]
    parts: list[Cells | None] = []
    for i in indices:
        constant = isinstance(node.inputs[i], gs.Constant)
        parts.append(None if constant else flow.of(node.inputs[i])[at])
    along = [s[at] for s in sizes]
    for size in sizes:
        size[at] = 1  # the others tie as element-wise operands do
    labels = align(flow, node, list(indices), sizes, flow.rank(y))
    labels[at] = stack([flow.atoms.resolve(p) for p in parts], along)
    flow.put(y, labels)


RULES: dict[str, Rule] = {
    "QLinearConv": partial(conv, at=Places(0, 3, 8, (4, 5))),
    "QLinearMatMul": qlinear_matmul,
    "ConvInteger": partial(conv, at=Places(0, 1, 99, (3,))),
    "MatMulInteger": partial(matmul, at=Places(0, 1, 99, (3,))),
    "DynamicQuantizeLinear": dynamic_range,
}
MICROSOFT: dict[str, Rule] = {
    **dict.fromkeys(("QLinearAdd", "QLinearMul"), binary),
    **dict.fromkeys(("QLinearSigmoid", "QLinearLeakyRelu"), same),
    **dict.fromkeys(("QLinearAveragePool", "QLinearGlobalAveragePool"), pooled),
    "QLinearConcat": concat,
}
