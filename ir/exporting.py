"""From a `Model` to a `ModelProto`: the inverse of `importing`, with nothing lost and nothing decoded in vain."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from .errors import ModelError
from .importing import UnsetText, np_dtype, tensor_shape
from .model import INLINE_LIMIT, Model, nbytes
from .values import ExternalValues, ProtoValues


@lru_cache(maxsize=4096)
def _attribute_type(op: str, domain: str, opset: int, name: str) -> int | None:
    """The type that the operator's schema gives an attribute; None for unknown operators."""
    try:
        schema = onnx.defs.get_schema(op, opset, domain)
    except onnx.defs.SchemaError:
        return None
    if name not in schema.attributes:
        return None
    kind: Any = schema.attributes[name].type
    return int(kind.value)


def tensor_proto(tensor: gs.Constant) -> TensorProto:
    """A constant as a proto; undecoded values pass through."""
    values = tensor._values
    proto = TensorProto()
    if isinstance(values, ProtoValues):
        proto.CopyFrom(values.tensor)
        if values.raw is not None:
            proto.raw_data = bytes(values.raw)
    elif isinstance(values, ExternalValues):
        proto.data_type = values.tensor.data_type
        proto.dims.extend(values.shape)
        proto.raw_data = values.raw()[: values.packed_nbytes].tobytes()
    else:
        proto.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values).reshape(np.shape(values))))
    proto.name = tensor.name
    return proto


def bare(tensor: gs.Constant) -> TensorProto:
    """A constant's name, type and shape without its data."""
    data_type = helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
    return TensorProto(name=tensor.name, data_type=data_type, dims=tensor.shape)


def value_info(tensor: Any, protos: dict[str, onnx.ValueInfoProto]) -> onnx.ValueInfoProto:
    """The declared type of a tensor; the file's own proto where it still says the truth."""
    kept = protos.get(tensor.name)
    if kept is not None and (tensor.dtype is None or _says(kept, tensor)):
        return kept
    info = onnx.ValueInfoProto(name=tensor.name)
    if tensor.dtype is None:
        return info
    tensor_type = info.type.tensor_type
    tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
    if tensor.shape is not None:
        tensor_type.shape.SetInParent()
        for size in tensor.shape:
            dim = tensor_type.shape.dim.add()
            if isinstance(size, str):
                dim.dim_param = size
            elif size is not None:
                dim.dim_value = int(size)
    return info


def _says(info: onnx.ValueInfoProto, tensor: Any) -> bool:
    if not info.type.HasField("tensor_type"):
        return False
    shape = tensor_shape(info.type.tensor_type)
    same = (shape is None) == (tensor.shape is None) and list(shape or ()) == list(tensor.shape or ())
    return same and np_dtype(info.type.tensor_type.elem_type) == tensor.dtype


Store = Callable[[gs.Constant], TensorProto]


class Exporter:
    def __init__(self, model: Model, shapes: bool, store: Store):
        self.model, self.shapes, self.store = model, shapes, store
        self.header = model.header
        self.homes = _constant_homes(model)
        self.ir_version = 4 if self._outgrown() else self.header.ir_version

    def _outgrown(self) -> bool:
        """Whether IR 3 has no place for a new constant: Constant nodes hold nothing but floats before opset 9."""
        if self.header.ir_version >= 4 or self.model.opset >= 9:
            return False
        new = (c for held in self.homes.values() for c in held if c.name not in self.header.input_order)
        return any(np.dtype(c.dtype).kind != "f" for c in new)

    def graph(self, proto: onnx.GraphProto, graph: gs.Graph, main: bool) -> None:
        """Fill `proto` in place: a message that is copied into another takes its weights' memory twice."""
        proto.name, proto.doc_string = graph.name or "graph", graph.doc_string or ""
        constants = self.homes.get(id(graph), [])
        self.inputs(proto, graph, constants, main)
        for tensor in graph.outputs:
            declared = self.header.protos.get(tensor.name) if isinstance(tensor, gs.Constant) else None
            proto.output.append(declared or value_info(tensor, self.header.protos))
        for constant in constants:
            self.constant(proto, constant, main)
        for node in graph.nodes:
            proto.node.append(self.node(node))
        self.inner(proto, graph, main)

    def inputs(self, proto: onnx.GraphProto, graph: gs.Graph, constants: list[Any], main: bool) -> None:
        by_name = {t.name: t for t in graph.inputs}
        if main and self.ir_version < 4:
            by_name.update({c.name: c for c in constants if c.name in self.header.input_order})
        first = [n for n in self.header.input_order if n in by_name] if main else []
        listed = dict.fromkeys([*first, *by_name])
        proto.input.extend(value_info(by_name[n], self.header.protos) for n in listed)
        if main:
            for name, values in self.header.defaults.items():
                if name in by_name:
                    proto.initializer.append(self.store(gs.Constant(name, values)))

    def constant(self, proto: onnx.GraphProto, constant: gs.Constant, main: bool) -> None:
        """An initializer; below IR 4, where those must be inputs, a Constant node unless it was one."""
        if self.ir_version < 4 and not (main and constant.name in self.header.input_order):
            node = proto.node.add(op_type="Constant", output=[constant.name], name=f"{constant.name}__const")
            node.attribute.append(helper.make_attribute("value", self.store(constant)))
        else:
            proto.initializer.append(self.store(constant))

    def inner(self, proto: onnx.GraphProto, graph: gs.Graph, main: bool) -> None:
        ends = {t.name for t in (*graph.inputs, *graph.outputs)}
        for node in graph.nodes:
            for tensor in node.outputs:
                if not tensor.name or tensor.name in ends:
                    continue
                if tensor.dtype is None and tensor.name in self.header.protos:
                    proto.value_info.append(self.header.protos[tensor.name])
                elif self.shapes and tensor.dtype is not None:
                    proto.value_info.append(value_info(tensor, {}))
        if main:
            names = {t.name for t in self.model.tensors().values()}
            proto.quantization_annotation.extend(
                q for q in self.header.quantization_annotation if q.tensor_name in names
            )
            proto.metadata_props.extend(self.header.graph_metadata)

    def node(self, node: gs.Node) -> onnx.NodeProto:
        proto = onnx.NodeProto(op_type=node.op, name=node.name, domain=node.domain or "")
        proto.input.extend(t.name for t in node.inputs)
        proto.output.extend(t.name for t in node.outputs)
        for key, value in node.attrs.items():
            proto.attribute.append(self.attribute(node, key, value))
        extra = getattr(node, "extra", None)
        if extra is not None:
            proto.MergeFrom(extra)
        return proto

    def attribute(self, node: gs.Node, key: str, value: Any) -> AttributeProto:
        if isinstance(value, AttributeProto):
            return value
        if isinstance(value, gs.Graph):
            proto = AttributeProto(name=key, type=AttributeProto.GRAPH)
            self.graph(proto.g, value, main=False)
            return proto
        if isinstance(value, gs.Constant):
            return helper.make_attribute(key, tensor_proto(value))
        domain = node.domain or ""
        kind = _attribute_type(node.op, domain, self.header.opsets.get(domain, 1), key)
        try:
            return _plain_attribute(key, value, kind)
        except (TypeError, ValueError) as error:
            raise ModelError(f"attribute '{key}' of node '{node.name}' cannot be written: {error}") from error


def _plain_attribute(key: str, value: Any, kind: int | None) -> AttributeProto:
    if isinstance(value, UnsetText):
        return AttributeProto(name=key, type=AttributeProto.STRING)
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if kind in (AttributeProto.FLOAT, AttributeProto.FLOATS) and not isinstance(value, (str, bytes)):
        value = [float(v) for v in value] if kind == AttributeProto.FLOATS else float(value)
    if isinstance(value, (list, tuple)) and not value:
        proto = AttributeProto(name=key)
        proto.type = kind or AttributeProto.INTS  # type: ignore[assignment]
        return proto
    return helper.make_attribute(key, value)


def _constant_homes(model: Model) -> dict[int, list[gs.Constant]]:
    """Graph id -> constants it should hold: the one graph that uses a constant, or the outermost when several do."""
    users: dict[int, dict[int, None]] = {}
    tensors: dict[int, gs.Constant] = {}
    for graph in model.graphs():
        for tensor in (*(t for n in graph.nodes for t in n.inputs), *graph.outputs):
            if isinstance(tensor, gs.Constant):
                users.setdefault(id(tensor), {})[id(graph)] = None
                tensors[id(tensor)] = tensor
    homes: dict[int, list[gs.Constant]] = {}
    for key, graphs in users.items():
        home = next(iter(graphs)) if len(graphs) == 1 else id(model.graph)
        homes.setdefault(home, []).append(tensors[key])
    return homes


def to_proto(
    model: Model,
    extra_outputs: Iterable[str] = (),
    shapes: bool | None = None,
    store: Store = tensor_proto,
) -> onnx.ModelProto:
    """The model as one proto.

    extra_outputs: names of inner tensors of the main graph to add as graph outputs (for looking inside).
    shapes: write the shapes of inner tensors; as the file had it when None.
    store: makes the proto of an initializer (weights inline by default).
    """
    header = model.header
    exporter = Exporter(model, header.listed_shapes if shapes is None else shapes, store)
    proto = onnx.ModelProto(
        ir_version=exporter.ir_version,
        producer_name=header.producer_name,
        producer_version=header.producer_version,
        domain=header.domain,
        model_version=header.model_version,
        doc_string=header.doc_string,
    )
    for domain, version in _domains(model).items():
        proto.opset_import.append(helper.make_opsetid(domain, version))
    exporter.graph(proto.graph, model.graph, main=True)
    for key, value in header.metadata.items():
        proto.metadata_props.add(key=key, value=value)
    proto.functions.extend(header.functions)
    proto.training_info.extend(header.training_info)
    if header.configuration:
        proto.configuration.extend(header.configuration)
    _add_outputs(proto, model, extra_outputs)
    return proto


def _add_outputs(proto: onnx.ModelProto, model: Model, names: Iterable[str]) -> None:
    have = {o.name for o in proto.graph.output}
    tensors = model.tensors() if names else {}
    for name in names:
        if name not in have:
            tensor = tensors.get(name)
            proto.graph.output.append(
                value_info(tensor, model.header.protos) if tensor is not None else onnx.ValueInfoProto(name=name)
            )
            have.add(name)


def _domains(model: Model) -> dict[str, int]:
    """The opset imports, with version 1 of any domain that a pass has brought in."""
    domains = dict(model.header.opsets)
    for node in model.nodes():
        if node.domain:
            domains.setdefault(node.domain, 1)
    return domains


def weight_bytes(model: Model) -> int:
    """Bytes of all constants, attributes included, without loading them."""
    total = sum(nbytes(t) for t in model.constants().values())
    total += sum(nbytes(gs.Constant(n, v)) for n, v in model.header.defaults.items())
    return total + sum(nbytes(v) for n in model.nodes() for v in n.attrs.values() if isinstance(v, gs.Constant))


def to_bytes(model: Model, extra_outputs: Iterable[str] = ()) -> bytes:
    """The serialised model; the same model gives the same bytes. ModelError above protobuf's 2 GiB."""
    if weight_bytes(model) > INLINE_LIMIT:
        raise ModelError("the model is larger than 2 GiB and cannot be held in one message; save it to a file")
    return to_proto(model, extra_outputs).SerializeToString(deterministic=True)
