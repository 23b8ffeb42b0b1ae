"""Shape inference of the onnx package, kept from what ends the process.

Its functions are compiled, and some of them trust the model: they read the type of an input without asking whether
there is one, or count with an axis that no tensor has. Such a node is hidden for the time of the inference, under a
domain that nobody knows; its outputs stay unknown, as those of any unknown operator. What is listed here was found by
running the inference of every operator that onnx defines, at every version, on inputs and attributes of every kind.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto

HIDDEN = "onnxslim.hidden"
# Operators that read the type of their first input unasked.
_TRUSTING = frozenset(["EyeLike", "RegexFullMatch", "DictVectorizer", "LabelEncoder", "TreeEnsemble"])
# Attributes that are counted with unasked: axes beyond any rank, and numbers of axes below zero.
_RANK = 64
_COUNTED = {"axis": (-_RANK, _RANK), "batch_dims": (0, _RANK)}
# The propagation of values writes down every entry of a vector, also where no more than its length is known. A length
# beyond this, declared or a constant that operators make one of, would keep it busy for hours.
_LONG = 1 << 20
_SIZED = frozenset(["ConstantOfShape", "Expand", "Pad", "Range", "Reshape", "Resize", "Tile", "Upsample"])


def infer(proto: onnx.ModelProto) -> onnx.ModelProto | None:
    """The model with the shapes and types that onnx infers; None when it gives up altogether. Edits `proto`."""
    trusting: list[tuple[onnx.NodeProto, str]] = []
    proto.opset_import.append(onnx.helper.make_opsetid(HIDDEN, 1))  # inference gives up where a domain is not listed
    for node in _nodes(proto.graph):
        if _counts_wrong(node):
            node.domain = HIDDEN
        elif node.op_type in _TRUSTING:
            trusting.append((node, node.domain))
    hidden = trusting and _hide(trusting, _typed(proto.graph))
    found = _run(proto)
    if found is None or not hidden:
        return found
    typed = _typed(found.graph)
    shown = [(node, domain) for node, domain in hidden if node.input[:1] and node.input[0] in typed]
    for node, domain in shown:  # what makes their input is now known to give it a type
        node.domain = domain
    return (_run(proto) or found) if shown else found


def infer_node(
    node: onnx.NodeProto,
    types: dict[str, onnx.TypeProto],
    data: dict[str, onnx.TensorProto],
    opsets: dict[str, int],
) -> dict[str, onnx.TypeProto]:
    """What onnx infers of the outputs of one node alone; nothing where it cannot.

    types: of every input. data: of the inputs whose values are known.
    """
    if node.op_type in _TRUSTING or _counts_wrong(node):
        return {}
    try:
        schema = onnx.defs.get_schema(node.op_type, opsets.get(node.domain, 1), node.domain)
        imports = [onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()]
        return onnx.shape_inference.infer_node_outputs(schema, node, types, data, opset_imports=imports)
    except Exception:  # as in `_run`; a node that does not fit its inputs is for ONNX Runtime to judge
        return {}


def _hide(nodes: list[tuple[onnx.NodeProto, str]], typed: set[str]) -> list[tuple[onnx.NodeProto, str]]:
    """Hide those whose first input has no known type; returns them."""
    found = [(node, domain) for node, domain in nodes if not (node.input[:1] and node.input[0] in typed)]
    for node, _ in found:
        node.domain = HIDDEN
    return found


def _run(proto: onnx.ModelProto) -> onnx.ModelProto | None:
    for data_prop in (False,) if _is_vast(proto) else (True, False):
        try:
            return onnx.shape_inference.infer_shapes(proto, data_prop=data_prop)
        except Exception:  # a node that cannot be inferred must not lose the shapes of the others
            continue
    return None


def _is_vast(proto: onnx.ModelProto) -> bool:
    """Whether some vector may be longer than its values can be propagated."""
    sizes: set[str] = set()
    for graph in _graphs(proto.graph):
        for info in (*graph.input, *graph.value_info, *graph.output):
            if any(d.dim_value > _LONG for d in info.type.tensor_type.shape.dim):
                return True
        sizes.update(name for node in graph.node if node.op_type in _SIZED for name in node.input)
    held = (t for graph in _graphs(proto.graph) for t in graph.initializer if t.name in sizes)
    return any(_is_long(t) for t in held)


def _is_long(tensor: onnx.TensorProto) -> bool:
    if tensor.data_type not in (TensorProto.INT64, TensorProto.INT32) or math.prod(tensor.dims) > 2 * _RANK:
        return False
    try:
        return bool(np.any(np.abs(onnx.numpy_helper.to_array(tensor).astype(np.float64)) > _LONG))
    except ValueError:  # damaged: for the inference to refuse
        return False


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    queue = [graph]
    while queue:
        graph = queue.pop()
        yield graph
        queue.extend(a.g for n in graph.node for a in n.attribute if a.type == AttributeProto.GRAPH)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for inner in _graphs(graph):
        yield from inner.node


def _counts_wrong(node: onnx.NodeProto) -> bool:
    for attribute in node.attribute:
        low, high = _COUNTED.get(attribute.name, (0, 0))
        if low != high and attribute.type == AttributeProto.INT and not low <= attribute.i < high:
            return True
    return False


def _typed(graph: onnx.GraphProto) -> set[str]:
    """Names in the main graph that surely are tensors with an element type."""
    known = {t.name for t in graph.initializer if t.data_type}
    known |= {v.name for v in (*graph.input, *graph.value_info, *graph.output) if v.type.tensor_type.elem_type}
    return known
