"""From a `ModelProto` to a `Model`.

graphsurgeon's own importer raises on optional and map types, drops attributes it does not know, and forgets
metadata; this one keeps all of it, renames what is not unique, and never recurses over the node list. Weights are
not decoded here: a constant holds its proto, or its place in an external file, until somebody asks for the values.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto, helper
from onnx_graphsurgeon.ir.tensor import LazyValues

from . import order
from .errors import ModelError
from .external import M, embedded
from .model import DEFAULT_DOMAINS, INLINE_LIMIT, Header, Model
from .values import ExternalValues, ProtoValues, lazy_values, np_dtype
from .wellformed import check_node

_SCALARS = {AttributeProto.FLOAT: "f", AttributeProto.INT: "i"}
_LISTS = {AttributeProto.FLOATS: "floats", AttributeProto.INTS: "ints"}
_CONSTANT_FORMS = {
    "value": None,
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
    "value_string": object,
    "value_strings": object,
}


def tensor_shape(tensor_type: Any) -> list[Any] | None:
    """Sizes that a tensor type declares: int, symbol or None each; None for unknown rank."""
    if not tensor_type.HasField("shape"):
        return None
    return [
        d.dim_param if d.HasField("dim_param") and d.dim_param else d.dim_value if d.HasField("dim_value") else None
        for d in tensor_type.shape.dim
    ]


class UnsetText(str):
    """The value of a text attribute that has none: no text, but written back as it was, since onnx tells them apart."""


class _Names:
    """Names already taken, and new ones for those that clash."""

    def __init__(self) -> None:
        self.taken: set[str] = set()
        self.next: dict[str, int] = {}

    def claim(self, name: str) -> str:
        """`name`, or `name__k` when it is taken."""
        new = name
        while not new or new in self.taken:
            k = self.next.get(name, 0) + 1
            self.next[name] = k
            new = f"{name}__{k}"
        self.taken.add(new)
        return new


class _Importer:
    def __init__(self, proto: onnx.ModelProto, base: Path | None, raw: dict[str, bytes]):
        self.proto, self.base, self.raw = proto, base, raw
        self.ir_version = proto.ir_version
        self.header = _header(proto)
        self.tensors, self.node_names = _Names(), _Names()
        self.values: list[LazyValues] = []
        self.room = INLINE_LIMIT
        self.header.functions = tuple(map(self.embed, proto.functions))
        self.header.training_info = tuple(map(self.embed, proto.training_info))

    def lazy(self, tensor: onnx.TensorProto) -> LazyValues:
        """The undecoded values of a tensor, remembered for the files that hold them."""
        values = lazy_values(tensor, self.base)
        self.values.append(values)
        return values

    def embed(self, message: M) -> M:
        """A message that is kept as it is, with its external data."""
        found, taken = embedded(message, self.base, self.room)
        self.room -= sum(v.packed_nbytes for v in taken)
        self.values.extend(taken)
        return found

    def variable(self, info: onnx.ValueInfoProto, name: str) -> gs.Variable:
        tensor_type = info.type.tensor_type
        if info.type.HasField("tensor_type"):
            return gs.Variable(name, np_dtype(tensor_type.elem_type), tensor_shape(tensor_type))
        if info.type.WhichOneof("value"):
            self.header.protos[name] = info
        return gs.Variable(name)

    def graph(self, proto: onnx.GraphProto, outer: dict[str, Any], main: bool) -> gs.Graph:
        """One graph; `outer` maps the names in scope to tensors."""
        scope = dict(outer)
        initializers = self.initializers(proto, scope)
        inputs = self.inputs(proto, scope, initializers, main)
        self.declare(proto, scope, outer, initializers)
        graph = gs.Graph(name=proto.name, doc_string=proto.doc_string, opset=self.header.opsets.get("", 0) or 1)
        graph.inputs = inputs
        kept = {o.name for o in proto.output}
        graph.nodes = [self.node(node, scope) for node in proto.node if not self.normalised(node, scope, kept)]
        for info in proto.output:
            if info.name not in scope:
                raise ModelError(f"graph output '{info.name}' is produced by no node")
            self.type_output(info, scope[info.name], main)
        graph.outputs = [scope[o.name] for o in proto.output]
        return graph

    def initializers(self, proto: onnx.GraphProto, scope: dict[str, Any]) -> dict[str, Any]:
        """Constants of the graph, by original name, entered into the scope."""
        found: dict[str, Any] = {}
        for tensor in proto.initializer:
            if tensor.name in found:
                raise ModelError(f"initializer '{tensor.name}' is defined twice")
            raw = self.raw.get(tensor.name) if proto is self.proto.graph else None
            values = self.lazy(tensor) if raw is None else ProtoValues(tensor, raw)
            found[tensor.name] = gs.Constant(self.tensors.claim(tensor.name), values)
        for sparse in proto.sparse_initializer:
            found[sparse.values.name] = gs.Constant(self.tensors.claim(sparse.values.name), self.dense(sparse))
        scope.update(found)
        return found

    def dense(self, sparse: onnx.SparseTensorProto) -> np.ndarray:
        """A sparse initializer as a dense array (ONNX Runtime does the same at load)."""
        values, indices = self.lazy(sparse.values).load(), self.lazy(sparse.indices).load()
        try:
            dense = np.zeros(tuple(sparse.dims), values.dtype)
        except MemoryError:
            told = f"sparse initializer '{sparse.values.name}' of shape {list(sparse.dims)}"
            raise ModelError(f"{told} does not fit into memory when it is made dense") from None
        if indices.ndim == 1:
            dense.reshape(-1)[indices] = values
        else:
            dense[tuple(indices.T)] = values
        return dense

    def inputs(self, proto: Any, scope: dict[str, Any], initializers: dict[str, Any], main: bool) -> list[Any]:
        listed = []
        for info in proto.input:
            if main:
                self.header.protos[info.name] = info
            if info.name in initializers:
                if not (main and self.ir_version >= 4):
                    continue
                constant = initializers[info.name]
                self.header.defaults[info.name] = constant._values
                variable = self.variable(info, info.name)
            else:
                variable = self.variable(info, self.tensors.claim(info.name))
            scope[info.name] = variable
            listed.append(variable)
        return listed

    def declare(self, proto: Any, scope: dict[str, Any], outer: dict[str, Any], initializers: dict[str, Any]) -> None:
        """Enter every node output into the scope, so that nodes may be read in any order."""
        types = {v.name: v for v in proto.value_info}
        self.header.listed_shapes |= bool(types)
        own = {i.name for i in proto.input} | set(initializers)
        for node in proto.node:
            for name in filter(None, node.output):
                if name in own:
                    raise ModelError(f"tensor '{name}' is produced twice (again by node '{node.name}', {node.op_type})")
                own.add(name)
                new = self.tensors.claim(name)
                scope[name] = self.variable(types[name], new) if name in types else gs.Variable(new)

    def type_output(self, info: onnx.ValueInfoProto, tensor: Any, main: bool) -> None:
        if main or (info.type.WhichOneof("value") not in (None, "tensor_type")):
            self.header.protos.setdefault(tensor.name, info)
        if isinstance(tensor, gs.Variable) and info.type.HasField("tensor_type"):
            shape = tensor_shape(info.type.tensor_type)
            if tensor.dtype is None:
                tensor.dtype = np_dtype(info.type.tensor_type.elem_type)
            if shape is not None:
                tensor.shape = shape

    def normalised(self, node: onnx.NodeProto, scope: dict[str, Any], kept: set[str]) -> bool:
        """Turn a Constant node into a constant tensor, unless it makes a graph output or is sparse."""
        if node.op_type != "Constant" or node.domain not in DEFAULT_DOMAINS or len(node.attribute) != 1:
            return False
        attribute = node.attribute[0]
        if attribute.name not in _CONSTANT_FORMS or attribute.ref_attr_name or node.output[0] in kept:
            return False
        tensor = scope[node.output[0]]
        if attribute.name == "value":
            tensor.to_constant(self.lazy(attribute.t))
        else:
            tensor.to_constant(np.array(helper.get_attribute_value(attribute), _CONSTANT_FORMS[attribute.name]))
        tensor.__dict__.setdefault("_export_dtype", None)
        return True

    def node(self, proto: onnx.NodeProto, scope: dict[str, Any]) -> gs.Node:
        name = self.node_names.claim(proto.name or f"{proto.op_type}_{len(self.node_names.taken)}")
        imported = self.header.opsets.get("" if proto.domain in DEFAULT_DOMAINS else proto.domain)
        check_node(proto, name, imported or (0 if self.ir_version >= 3 else 1))
        inputs = []
        for k in proto.input:
            if k and k not in scope:
                raise ModelError(f"node '{name}' ({proto.op_type}) reads '{k}', which nothing produces")
            inputs.append(scope[k] if k else gs.Variable.empty())
        outputs = [scope[k] if k else gs.Variable.empty() for k in proto.output]
        attrs = {a.name: self.attribute(a, scope) for a in proto.attribute}
        domain = None if proto.domain in DEFAULT_DOMAINS else proto.domain
        node = gs.Node(proto.op_type, name, attrs, inputs, outputs, domain=domain)
        if proto.doc_string or proto.metadata_props or getattr(proto, "overload", ""):
            node.extra = onnx.NodeProto(doc_string=proto.doc_string, overload=proto.overload)
            node.extra.metadata_props.extend(proto.metadata_props)
        return node

    def attribute(self, proto: AttributeProto, scope: dict[str, Any]) -> Any:
        if proto.ref_attr_name:
            return proto
        if proto.type in _SCALARS:
            return getattr(proto, _SCALARS[proto.type])
        if proto.type in _LISTS:
            return list(getattr(proto, _LISTS[proto.type]))
        if proto.type == AttributeProto.STRING:
            return _text(proto.s) if proto.HasField("s") else UnsetText()
        if proto.type == AttributeProto.STRINGS:
            return [_text(s) for s in proto.strings]
        if proto.type == AttributeProto.TENSOR:
            return gs.Constant(proto.t.name, self.lazy(proto.t))
        if proto.type == AttributeProto.GRAPH:
            return self.graph(proto.g, scope, main=False)
        if proto.type == AttributeProto.GRAPHS:
            raise ModelError(f"attribute '{proto.name}' is a list of graphs, which is not supported")
        return self.embed(proto)


def _text(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _header(proto: onnx.ModelProto) -> Header:
    graph = proto.graph
    return Header(
        ir_version=proto.ir_version,
        opsets={("" if o.domain in DEFAULT_DOMAINS else o.domain): o.version for o in proto.opset_import},
        producer_name=proto.producer_name,
        producer_version=proto.producer_version,
        domain=proto.domain,
        model_version=proto.model_version,
        doc_string=proto.doc_string,
        metadata={p.key: p.value for p in proto.metadata_props},
        quantization_annotation=tuple(graph.quantization_annotation),
        graph_metadata=tuple(getattr(graph, "metadata_props", ())),
        configuration=tuple(getattr(proto, "configuration", ())),
        input_order=tuple(i.name for i in graph.input),
    )


def from_proto(
    proto: onnx.ModelProto,
    base_dir: str | os.PathLike[str] | None = None,
    raw: dict[str, bytes] | None = None,
) -> Model:
    """Import a `ModelProto`.

    base_dir: the folder that external data is relative to. The proto's tensors are referred to, not copied: do not
    edit it afterwards. raw: bytes of initializers that were taken out (`take_weights`). Raises ModelError for a
    graph that cannot be right (cycle, undefined tensor, double names, an operator set newer than the installed onnx
    package knows).
    """
    _check_versions(proto)
    importer = _Importer(proto, Path(base_dir) if base_dir is not None else None, raw or {})
    reserved = [*proto.graph.input, *proto.graph.output]
    graph = importer.graph(proto.graph, {}, main=True)
    importer.header.only_defaults = 0 < len(importer.header.defaults) == len(proto.graph.initializer)
    files = dict.fromkeys(n for v in importer.values if isinstance(v, ExternalValues) for n in (v.named, str(v.path)))
    importer.header.external, importer.header.data_files = bool(files), tuple(files)
    model = Model(graph, importer.header)
    _check_reserved(model, reserved)
    order.sort(model)
    return model


def _check_reserved(model: Model, reserved: list[Any]) -> None:
    names = [t.name for t in model.graph.outputs]
    if len(set(names)) != len(names):
        raise ModelError("the graph lists the same output twice")
    listed = {v.name for v in reserved}
    for tensor in [*model.graph.inputs, *model.graph.outputs]:
        if tensor.name not in listed:
            raise ModelError(f"the name '{tensor.name}' of a graph input or output is defined twice")


def _check_versions(proto: onnx.ModelProto) -> None:
    known = onnx.defs.onnx_opset_version()
    versions = {o.domain: o.version for o in proto.opset_import}
    version = next((v for d, v in versions.items() if d in DEFAULT_DOMAINS), None)
    if not proto.HasField("graph"):
        raise ModelError("the file holds no ONNX graph")
    if version is not None and not 1 <= version <= known:
        raise ModelError(
            f"the model declares opset {version}; this build knows 1 to {known} (update the onnx package?)"
        )
    if not proto.opset_import and proto.ir_version >= 3:
        raise ModelError("the model imports no operator set (opset_import is empty)")
