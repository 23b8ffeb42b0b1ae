"""Shapes and types of inner tensors, inferred by onnx on a shell of the model: the graph without its large weights.

What inference cannot tell (operators of other domains, data-dependent sizes) stays None; `runtime.probe` finds it by
running the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto

from .exporting import bare, tensor_proto, to_proto
from .importing import np_dtype, tensor_shape
from .infer import infer
from .model import Model

# Inference reads the values of shapes, axes, pads and scales: small, or integer. Nothing larger needs its data.
_SMALL = 1024
_SMALL_INTEGER = 65536
# How onnx names the sizes that it cannot tell.
_INVENTED = "unk__"


def of(tensor: Any) -> tuple[Any, ...] | None:
    """Shape of a tensor: ints, symbols (str) and None for unknown sizes; None for unknown rank."""
    return None if tensor is None or tensor.shape is None else tuple(tensor.shape)


def is_static(shape: tuple[Any, ...] | None) -> bool:
    """Whether every size is a number."""
    return shape is not None and all(isinstance(d, (int, np.integer)) for d in shape)


def is_lacking(shape: Sequence[Any] | None) -> bool:
    """Whether the rank, or a size that the model does not name, is unknown."""
    return shape is None or any(d is None or str(d).startswith(_INVENTED) for d in shape)


def filled(shape: Sequence[Any] | None, found: Sequence[Any] | None) -> list[Any] | None:
    """A shape with what it lacks taken from another that was found for the same tensor."""
    if shape is None or found is None or len(shape) != len(found):
        return list(found) if shape is None and found is not None else None if shape is None else list(shape)
    return [new if is_lacking([old]) and new is not None else old for old, new in zip(shape, found)]


def _shell(tensor: gs.Constant) -> TensorProto:
    count = int(np.prod(tensor.shape, dtype=np.int64))
    integer = np.dtype(tensor.dtype).kind in "iu"
    if count <= _SMALL or (integer and count <= _SMALL_INTEGER):
        return tensor_proto(tensor)
    return bare(tensor)


def shell(model: Model) -> onnx.ModelProto:
    """The model's proto with the data of large weights left out (their types and shapes stay)."""
    return to_proto(model, shapes=False, store=_shell)


def _collect(graph: onnx.GraphProto, found: dict[str, onnx.TypeProto]) -> None:
    queue = [graph]
    while queue:
        current = queue.pop()
        for info in (*current.value_info, *current.output):
            found[info.name] = info.type
        for node in current.node:
            queue.extend(a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH)


def refresh(model: Model) -> None:
    """Forget the shapes of inner tensors and infer them again.

    Inputs, and the declared types of graph outputs, stay as they are; symbolic sizes keep their names. What is
    declared of an output is a claim that no runtime enforces, so nothing is inferred from it: what follows from the
    inputs alone is kept beside it, as `tensor.inferred`.
    """
    fixed = {id(t) for graph in model.graphs() for t in graph.inputs} | {id(t) for t in model.graph.outputs}
    inner = {name: t for name, t in model.tensors().items() if isinstance(t, gs.Variable) and id(t) not in fixed}
    bodies = [t for graph in list(model.graphs())[1:] for t in graph.outputs if isinstance(t, gs.Variable)]
    declared = [(t, t.shape) for t in bodies if id(t) not in fixed and t.shape is not None]
    for tensor in inner.values():
        tensor.shape = None
    _infer(model, inner)
    for tensor, shape in declared:
        tensor.shape = _merged(tensor.shape, shape)
    _type_bodies(model)


def _merged(found: list[Any] | None, declared: list[Any]) -> list[Any]:
    """What a body declares for its output where inference cannot tell: a Loop of no turns goes by that alone."""
    if found is None:
        return declared
    if len(found) != len(declared):
        return found
    return [d if f is None or str(f).startswith(_INVENTED) else f for f, d in zip(found, declared)]


def _infer(model: Model, inner: dict[str, gs.Variable]) -> None:
    for tensor in model.graph.outputs:
        tensor.inferred = None
    bare_outputs = shell(model)
    for info in bare_outputs.graph.output:
        info.type.tensor_type.ClearField("shape")
    proto = infer(bare_outputs)
    if proto is None:
        return
    types: dict[str, onnx.TypeProto] = {}
    _collect(proto.graph, types)
    for name, tensor in [*inner.items(), *((t.name, t) for t in model.graph.outputs)]:
        if name in types and types[name].HasField("tensor_type") and isinstance(tensor, gs.Variable):
            _fill(tensor, types[name].tensor_type)
    for tensor in model.graph.outputs:
        if tensor.name in types and types[tensor.name].HasField("tensor_type"):
            tensor.inferred = tensor_shape(types[tensor.name].tensor_type)


def _type_bodies(model: Model) -> None:
    """Give untyped inputs of loop bodies the type of what is passed in, which no iteration may change."""
    for node in model.nodes():
        if node.domain or node.op not in ("Loop", "Scan") or model.opset < 9:
            continue
        counters = 2 if node.op == "Loop" else 0  # a Loop hands in its counter and condition first
        for inner, outer in zip(node.attrs["body"].inputs[counters:], node.inputs[counters:]):
            if inner.dtype is None and inner.name not in model.header.protos:
                inner.dtype = outer.dtype


def _fill(tensor: gs.Variable, tensor_type: Any) -> None:
    if tensor_type.elem_type:
        tensor.dtype = np_dtype(tensor_type.elem_type)
    if tensor.shape is None:
        tensor.shape = tensor_shape(tensor_type)
