"""Shapes that become known while sizes are followed, one node at a time and in order.

The inference of a whole model knows no more than its constants say. Where sizes are computed from shapes (an exporter's
habit), each Reshape to such a size hides the shape of everything after it until the size is known, and the next one
hides it again: one inference for each layer of the network. Here the nodes whose inputs have just become better known
are inferred alone, right after what is known of their inputs, so that one walk is enough for the whole chain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TypeProto, helper

from ...ir.exporting import Exporter, bare, tensor_proto
from ...ir.importing import np_dtype, tensor_shape
from ...ir.infer import infer_node
from ...ir.model import Model, subgraphs
from ...ir.shapes import filled, is_lacking

if TYPE_CHECKING:
    from .partial import Follower

# Constants up to this many elements are shown to the inference: targets, axes, pads, scales.
_SMALL = 1024


class Refiner:
    """Infers single nodes of a model again. tried: what they were tried with before, by name; shared between walks."""

    def __init__(self, model: Model, tried: dict[str, Any]):
        self.writer = Exporter(model, False, bare)
        self.opsets = {"": 1, **model.header.opsets}
        self.tried = tried
        self.better: set[int] = set()  # ids of tensors that are better known than the last inference had them

    def refine(self, f: Follower, node: gs.Node) -> None:
        """Give the outputs of a node the shapes that follow from what is known of its inputs by now."""
        shapes = [f.view.shape(t) for t in node.outputs]
        if not any(t.name and is_lacking(s) for t, s in zip(node.outputs, shapes)):
            return
        given = [t for t in node.inputs if t.name]
        if None not in shapes and not any(id(t) in self.better for t in given):
            return
        before = [(f.view.shape(t), t.values.tolist() if _small(t) else None) for t in given]
        if self.tried.get(node.name) == before or any(t.dtype is None for t in given) or subgraphs(node):
            return
        self.tried[node.name] = before
        types = {t.name: _type(t, shape) for t, (shape, _) in zip(given, before)}
        data = {t.name: tensor_proto(t) for t in given if _small(t)}
        found = infer_node(self.writer.node(node), types, data, self.opsets)
        for tensor, shape in zip(node.outputs, shapes):
            if tensor.name and tensor.name in found and found[tensor.name].HasField("tensor_type"):
                self._take(f, tensor, shape, found[tensor.name].tensor_type)

    def _take(self, f: Follower, tensor: Any, shape: list[Any] | None, found: TypeProto.Tensor) -> None:
        if tensor.dtype is None and found.elem_type:
            tensor.dtype = np_dtype(found.elem_type)
        better = filled(shape, tensor_shape(found))
        if better == shape:
            return
        self.better.add(id(tensor))
        if f.view.is_output(tensor):
            tensor.inferred = better
        if tensor.shape is None or not f.view.is_output(tensor):
            tensor.shape = better


def _type(tensor: Any, shape: list[Any] | None) -> TypeProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
    return helper.make_tensor_type_proto(kind, shape)


def _small(tensor: Any) -> bool:
    return isinstance(tensor, gs.Constant) and int(np.prod(tensor.shape, dtype=np.int64)) <= _SMALL
