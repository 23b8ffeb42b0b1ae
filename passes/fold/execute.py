"""Run the constant part of a model in one session of ONNX Runtime, and find the culprits when that fails.

Large constants are fed as inputs, which ONNX Runtime reads in place; nothing is serialised but the nodes.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper

from ...ir import Model
from ...ir.exporting import Exporter, tensor_proto
from ...ir.order import reads
from ..rewrite import within
from . import endless
from .candidates import size_of

# Constants up to this many elements are put into the proto: some kernels want them at load.
_INLINE = 1024


def run(model: Model, nodes: list[gs.Node], wanted: list[Any], failed: dict[str, str]) -> dict[int, np.ndarray]:
    """Values of the wanted tensors, by `id`; what cannot be computed is left out and its node named in `failed`."""
    known: dict[int, Any] = {}
    _bisect(model, nodes, {id(t): t for t in wanted}, known, failed)
    return {id(t): known[id(t)] for t in wanted if id(t) in known}


def _bisect(
    model: Model, nodes: list[gs.Node], wanted: dict[int, Any], known: dict[int, Any], failed: dict[str, str]
) -> None:
    nodes = _computable(nodes, known)
    makes = {id(t): t for n in nodes for t in n.outputs if t.name}
    outs = [t for key, t in makes.items() if key in wanted]
    if not outs:
        return
    try:
        known.update(_session(model, nodes, outs, known))
    except Exception as error:  # any failure of a kernel: the node is left to the runtime that will run the model
        if len(nodes) == 1:
            failed[nodes[0].name] = f"could not be computed: {_line(error)}"
            return
        half = len(nodes) // 2
        first, second = nodes[:half], nodes[half:]
        needed = dict(wanted)
        needed.update({id(t): t for n in second for t in reads(n)})
        _bisect(model, first, needed, known, failed)
        _bisect(model, second, wanted, known, failed)


def _computable(nodes: list[gs.Node], known: dict[int, Any]) -> list[gs.Node]:
    """Nodes whose inputs are constants, known values, or made by nodes before them that stay."""
    made: set[int] = set(known)
    kept = []
    for node in nodes:
        own = {id(t) for n in within(node) for t in n.outputs}
        missing = (t for t in reads(node) if t.inputs and id(t) not in made and id(t) not in own)
        if any(not isinstance(t, gs.Constant) for t in missing):
            continue
        kept.append(node)
        made.update(id(t) for t in node.outputs)
    return kept


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__


def _session(model: Model, nodes: list[gs.Node], outs: list[Any], known: dict[int, Any]) -> dict[int, Any]:
    import onnxruntime as ort

    proto, feeds, unfinished = _proto(model, nodes, outs, known)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    fed = {k: ort.OrtValue.ortvalue_from_numpy(v) for k, v in feeds.items()}
    values = session.run_with_ort_values([*(t.name for t in outs), *unfinished], fed)
    if any(v.numpy().any() for v in values[len(outs) :]):
        raise RuntimeError("it takes more trips than are tried")
    return {id(t): _array(v) for t, v in zip(outs, values)}


def _array(value: Any) -> Any:
    """An array of its own memory; None for what is no tensor."""
    if not value.is_tensor():
        return None
    kind = value.element_type()
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind))
    if dtype.isbuiltin == 1:
        return np.array(value.numpy())
    shape = tuple(value.shape())
    if str(dtype) in ("int4", "uint4", "int2", "uint2", "float4_e2m1fn"):
        raw = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
        return onnx.numpy_helper.to_array(onnx.TensorProto(data_type=kind, dims=shape, raw_data=raw))
    raw = ctypes.string_at(value.data_ptr(), int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
    return np.frombuffer(raw, dtype).reshape(shape)


def _proto(
    model: Model, nodes: list[gs.Node], outs: list[Any], known: dict[int, Any]
) -> tuple[onnx.ModelProto, dict[str, np.ndarray], list[str]]:
    """The model that computes the nodes, the large constants that it is fed, and the outputs that say that a loop would
    have gone on."""
    header = model.header
    graph = onnx.GraphProto(name="constant")
    writer = Exporter(model, False, tensor_proto)
    writer.homes = {}
    made = {id(t) for n in nodes for t in n.outputs}
    feeds: dict[str, np.ndarray] = {}
    for tensor in {id(t): t for n in nodes for t in reads(n)}.values():
        if id(tensor) in made or not (isinstance(tensor, gs.Constant) or id(tensor) in known):
            continue
        source = tensor if isinstance(tensor, gs.Constant) else gs.Constant(tensor.name, known[id(tensor)])
        _give(graph, source, feeds)
    unfinished = []
    for node in nodes:
        graph.node.append(writer.node(node))
        trips = endless.allowed(node, size_of)
        if trips is not None:
            constants, more = endless.cut_short(graph.node[-1], trips)
            graph.initializer.extend(constants)
            unfinished.append(more)
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in (*(t.name for t in outs), *unfinished))
    proto = onnx.ModelProto(ir_version=max(header.ir_version, 4), graph=graph)
    for domain, version in header.opsets.items():
        proto.opset_import.append(helper.make_opsetid(domain, version))
    return proto, feeds, unfinished


def _give(graph: onnx.GraphProto, source: gs.Constant, feeds: dict[str, np.ndarray]) -> None:
    dtype = np.dtype(source.dtype)
    if dtype.isbuiltin != 1 or dtype.kind == "O" or np.prod(source.shape, dtype=np.int64) <= _INLINE:
        graph.initializer.append(tensor_proto(source))
        return
    feeds[source.name] = np.ascontiguousarray(source.values)
    kind = helper.np_dtype_to_tensor_dtype(dtype)
    graph.input.append(helper.make_tensor_value_info(source.name, kind, list(source.shape)))
