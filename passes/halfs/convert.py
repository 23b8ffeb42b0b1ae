"""From float to half arithmetic: chosen nodes of the main graph change type, with one Cast wherever types meet.

A tensor has the type that its maker gives it. A reader of the other type gets it through a Cast, which all readers of
that type share; a constant is converted, and kept in float as well where a float node reads it too. Inputs and outputs
of the model keep their names, and their types unless asked otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from ...ir import Model, edit
from . import formats
from .formats import Format
from .typing import Ports, is_float


@dataclass
class _Types:
    """The state of a conversion: which variables are half, and the other form of every tensor that has one."""

    model: Model
    half: Format
    made: set[int] = field(default_factory=set)
    other: dict[tuple[int, bool], gs.Tensor] = field(default_factory=dict)
    casts: int = 0
    clamped: int = 0

    def wanted(self, tensor: gs.Tensor, as_half: bool) -> gs.Tensor:
        """The tensor in the type that a reader wants."""
        if (id(tensor) in self.made) == as_half or not (is_float(tensor) or id(tensor) in self.made):
            return tensor
        key = (id(tensor), as_half)
        if key not in self.other:
            self.other[key] = self._constant(tensor) if isinstance(tensor, gs.Constant) else self._cast(tensor, as_half)
        return self.other[key]

    def _constant(self, tensor: gs.Constant) -> gs.Constant:
        self.clamped += formats.overflows(tensor.values, self.half)
        new = edit.constant(self.model, f"{tensor.name}_{self.half.name}", formats.clamped(tensor.values, self.half))
        self.made.add(id(new))
        return new

    def _cast(self, tensor: gs.Variable, as_half: bool) -> gs.Variable:
        name = self.half.name if as_half else "float"
        out = edit.variable(self.model, f"{tensor.name}_{name}", self.dtype(as_half), tensor.shape)
        to = int(self.half.onnx_type if as_half else TensorProto.FLOAT)
        edit.add(self.model.graph, edit.node(self.model, "Cast", [tensor], {"to": to}, [out], f"{tensor.name}_Cast"))
        self.casts += 1
        if as_half:
            self.made.add(id(out))
        return out

    def dtype(self, as_half: bool) -> np.dtype:
        return np.dtype(self.half.dtype if as_half else np.float32)


def convert(model: Model, chosen: Mapping[str, Ports], half: Format, keep_io: bool) -> dict[str, int]:
    """Give the chosen nodes of the main graph half types, in place; returns counts.

    chosen: {node name: its ports}. keep_io: float inputs and outputs of the model stay float; else those that chosen
    nodes read or make become half.
    """
    types = _Types(model, half)
    outer, nodes = list(model.graph.nodes), list(model.nodes())  # as they are: casts come on top
    if not keep_io:
        read = {id(n.inputs[k]) for n in outer if n.name in chosen for k in chosen[n.name].inputs}
        for tensor in model.inputs:
            if id(tensor) in read and is_float(tensor) and tensor.name not in model.header.defaults:
                _retype(model, tensor, types)
    for node in outer:
        for k in chosen[node.name].outputs if node.name in chosen else ():
            _retype(model, node.outputs[k], types)
    done = 0
    for node in nodes:
        halves = chosen[node.name].inputs if node.name in chosen else ()
        for k, tensor in enumerate(list(node.inputs)):
            if tensor.name:
                edit.set_input(node, k, types.wanted(tensor, k in halves))
        done += bool(halves)
    _outputs(model, types, keep_io)
    counts = {f"nodes in {half.name}": done, "casts": types.casts, "weights clamped": types.clamped}
    return {k: v for k, v in counts.items() if v}


def _retype(model: Model, tensor: gs.Variable, types: _Types) -> None:
    tensor.dtype = types.half.dtype
    types.made.add(id(tensor))


def _outputs(model: Model, types: _Types, keep_io: bool) -> None:
    """Graph outputs of every level in the types they are to have; those of the main graph keep their names."""
    for graph in model.graphs():
        main = graph is model.graph
        for k, tensor in enumerate(list(graph.outputs)):
            if id(tensor) not in types.made or (main and not keep_io):
                continue
            if not main:
                graph.outputs[k] = types.wanted(tensor, False)
                continue
            name = tensor.name
            tensor.name = edit.fresh(model, f"{name}_{types.half.name}")
            out = gs.Variable(name, np.dtype(np.float32), None if tensor.shape is None else list(tensor.shape))
            attrs = {"to": int(TensorProto.FLOAT)}
            edit.add(graph, edit.node(model, "Cast", [tensor], attrs, [out], f"{name}_Cast"))
            types.casts += 1
            graph.outputs[k] = out
    if not keep_io:
        for tensor in (*model.inputs, *model.outputs):
            if id(tensor) in types.made:
                model.header.protos.pop(tensor.name, None)
