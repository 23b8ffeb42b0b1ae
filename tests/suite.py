"""ONNX's own backend node cases, and how to run them: shared by the tests of loading and of simplification."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx.backend.test.case.node import collect_testcases


def cases() -> list[Any]:
    """All node cases of the installed onnx package."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [c for c in collect_testcases(None) if c.model is not None]


def session(data: bytes, optimize: bool = False) -> ort.InferenceSession:
    """A quiet session, without ONNX Runtime's own rewriting unless asked."""
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def model(case: Any) -> onnx.ModelProto:
    """A case's model; types that ONNX Runtime's Python door cannot carry become float behind a Cast."""
    proto = onnx.ModelProto()
    proto.CopyFrom(case.model)
    graph = proto.graph
    before, after = [], []
    for info in graph.input:
        if _exotic(info):
            before.append(_cast(f"{info.name}__float", info.name, info.type.tensor_type.elem_type))
            info.name, info.type.tensor_type.elem_type = f"{info.name}__float", onnx.TensorProto.FLOAT
    for info in graph.output:
        if _exotic(info):
            after.append(_cast(info.name, f"{info.name}__float", onnx.TensorProto.FLOAT))
            info.name, info.type.tensor_type.elem_type = f"{info.name}__float", onnx.TensorProto.FLOAT
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    return proto


def _exotic(info: onnx.ValueInfoProto) -> bool:
    kind = info.type.tensor_type.elem_type
    return kind > onnx.TensorProto.COMPLEX128 and onnx.helper.tensor_dtype_to_np_dtype(kind) is not None


def _cast(source: str, target: str, to: int) -> onnx.NodeProto:
    return onnx.helper.make_node("Cast", [source], [target], to=to)


def feeds(case: Any, names: list[str]) -> dict[str, Any]:
    """The inputs of a case's first data set, as ONNX Runtime takes them."""
    return {n: _plain(v) for n, v in zip(names, case.data_sets[0][0])}


def _plain(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        value = onnx.numpy_helper.to_array(value)
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, (np.ndarray, np.generic)):
        value = np.asarray(value)
        return value.astype(np.float32) if "ml_dtypes" in value.dtype.type.__module__ else value
    return value


def same(a: Any, b: Any) -> bool:
    """Identical values, types and shapes; NaN equals NaN."""
    if isinstance(a, (list, tuple)):
        return isinstance(b, (list, tuple)) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if a is None or b is None:
        return a is b
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return a.tobytes() == b.tobytes() if a.dtype != object else bool((a == b).all())


def interface(s: ort.InferenceSession) -> list[list[tuple[str, Any, str]]]:
    """Names, shapes and types that a caller sees."""
    groups = (s.get_inputs(), s.get_outputs(), s.get_overridable_initializers())
    return [[(i.name, i.shape, i.type) for i in group] for group in groups]
