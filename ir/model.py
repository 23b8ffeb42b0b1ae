"""The model: a graphsurgeon graph, and a header for what graphsurgeon has no room for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

DEFAULT_DOMAINS = ("", "ai.onnx")
INLINE_LIMIT = 2**31 - 2**20  # protobuf refuses messages of 2 GiB; leave room for the graph


@dataclass
class Header:
    """What belongs to a model besides its graph.

    opsets: domain -> version, in the file's order; the default domain is "".
    protos: value-info protos by tensor name: of graph inputs and outputs (denotations, documentation), and of every
        sequence, optional, map or sparse tensor, whose types numpy cannot say.
    defaults: values of inputs that are also initializers (IR version 4 and later).
    only_defaults: whether every initializer of the file is also an input: an exporter's habit, not an intention.
    input_order: names in the file's input list, initializers that were inputs (IR version 3) included.
    listed_shapes: whether the file carried shapes of inner tensors, so that saving adds none where there were none.
    external, data_files: whether weights came from files beside the model, and from which (absolute paths).
    """

    ir_version: int = 8
    opsets: dict[str, int] = field(default_factory=lambda: {"": 17})
    producer_name: str = ""
    producer_version: str = ""
    domain: str = ""
    model_version: int = 0
    doc_string: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    functions: tuple[onnx.FunctionProto, ...] = ()
    training_info: tuple[Any, ...] = ()
    quantization_annotation: tuple[Any, ...] = ()
    graph_metadata: tuple[Any, ...] = ()
    configuration: tuple[Any, ...] = ()
    protos: dict[str, onnx.ValueInfoProto] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    only_defaults: bool = False
    input_order: tuple[str, ...] = ()
    listed_shapes: bool = False
    external: bool = False
    data_files: tuple[str, ...] = ()

    @property
    def non_tensors(self) -> dict[str, onnx.ValueInfoProto]:
        """Of the protos those of what is no tensor: nothing else tells its type."""
        return {n: p for n, p in self.protos.items() if not p.type.HasField("tensor_type")}


@dataclass
class Model:
    """A loaded model. Constant arrays are shared between copies and are never written in place."""

    graph: gs.Graph
    header: Header

    @property
    def opset(self) -> int:
        """Version of the default operator set (0 when the model imports none)."""
        return next((v for d, v in self.header.opsets.items() if d in DEFAULT_DOMAINS), 0)

    @property
    def inputs(self) -> list[gs.Variable]:
        """Graph inputs, in order; those with a default (see `Header.defaults`) included."""
        return self.graph.inputs

    @property
    def outputs(self) -> list[Any]:
        """Graph outputs, in order."""
        return self.graph.outputs

    def graphs(self) -> Iterator[gs.Graph]:
        """Every graph, outer before inner, without recursion."""
        queue = [self.graph]
        while queue:
            graph = queue.pop(0)
            yield graph
            queue.extend(v for node in graph.nodes for v in node.attrs.values() if isinstance(v, gs.Graph))

    def nodes(self) -> Iterator[gs.Node]:
        """Every node of every level."""
        for graph in self.graphs():
            yield from graph.nodes

    def tensors(self) -> dict[str, Any]:
        """Every named tensor of every level, by its unique name, in order of first appearance."""
        found: dict[str, Any] = {}
        for graph in self.graphs():
            for tensor in graph.inputs:
                found.setdefault(tensor.name, tensor)
            for node in graph.nodes:
                for tensor in (*node.inputs, *node.outputs):
                    if tensor.name:
                        found.setdefault(tensor.name, tensor)
            for tensor in graph.outputs:
                found.setdefault(tensor.name, tensor)
        return found

    def constants(self) -> dict[str, gs.Constant]:
        """Every constant tensor of every level, by name."""
        return {n: t for n, t in self.tensors().items() if isinstance(t, gs.Constant)}

    def freeze_defaults(self) -> int:
        """Turn inputs that have a default value into constants; returns how many."""
        frozen = [t for t in self.graph.inputs if t.name in self.header.defaults]
        for tensor in frozen:
            tensor.to_constant(self.header.defaults[tensor.name])
        ids = {id(t) for t in frozen}
        self.graph.inputs = [t for t in self.graph.inputs if id(t) not in ids]
        self.header.defaults = {}
        names = {t.name for t in frozen}
        self.header.input_order = tuple(n for n in self.header.input_order if n not in names)
        return len(frozen)

    def copy(self) -> Model:
        """A snapshot: nodes, tensors and attributes are new, constant arrays are shared."""
        return Model(_copy_graph(self.graph, {}), _copy_header(self.header))


def subgraphs(node: gs.Node) -> list[gs.Graph]:
    """The graphs in a node's attributes (branches of an If, the body of a Loop or Scan)."""
    return [value for value in node.attrs.values() if isinstance(value, gs.Graph)]


def _copy_header(header: Header) -> Header:
    return replace(
        header,
        opsets=dict(header.opsets),
        metadata=dict(header.metadata),
        protos=dict(header.protos),
        defaults=dict(header.defaults),
    )


def _copy_tensor(tensor: Any, known: dict[int, Any]) -> Any:
    if not tensor.name:
        return gs.Variable.empty()
    if id(tensor) not in known:
        if isinstance(tensor, gs.Constant):
            new: Any = gs.Constant(tensor.name, tensor._values)
        else:
            shape = None if tensor.shape is None else list(tensor.shape)
            new = gs.Variable(tensor.name, tensor.dtype, shape)
        known[id(tensor)] = new
    return known[id(tensor)]


def _copy_value(value: Any, known: dict[int, Any]) -> Any:
    if isinstance(value, gs.Graph):
        return _copy_graph(value, known)
    if isinstance(value, gs.Constant):
        return gs.Constant(value.name, value._values)
    return list(value) if isinstance(value, list) else value


def _copy_graph(graph: gs.Graph, known: dict[int, Any]) -> gs.Graph:
    new = gs.Graph(name=graph.name, doc_string=graph.doc_string, opset=graph.opset)
    new.inputs = [_copy_tensor(t, known) for t in graph.inputs]
    for node in graph.nodes:
        outputs = [_copy_tensor(t, known) for t in node.outputs]
        attrs = {k: _copy_value(v, known) for k, v in node.attrs.items()}
        inputs = [_copy_tensor(t, known) for t in node.inputs]
        copy = gs.Node(node.op, node.name, attrs, inputs, outputs, domain=node.domain)
        if hasattr(node, "extra"):
            copy.extra = node.extra
        new.nodes.append(copy)
    new.outputs = [_copy_tensor(t, known) for t in graph.outputs]
    return new


def nbytes(tensor: gs.Constant) -> int:
    """Bytes that a constant takes in a file, without loading it."""
    values = tensor._values
    return int(getattr(values, "packed_nbytes", None) or packed_nbytes(values.dtype, values.shape))


def packed_nbytes(dtype: Any, shape: Any) -> int:
    """Bytes of `shape` elements of `dtype`, two 4-bit values a byte."""
    count = int(np.prod(shape, dtype=np.int64)) if len(shape) else 1
    name = str(dtype)
    if name in ("int4", "uint4", "float4_e2m1fn"):
        return (count + 1) // 2
    if name in ("int2", "uint2"):
        return (count + 3) // 4
    return count * np.dtype(dtype).itemsize
