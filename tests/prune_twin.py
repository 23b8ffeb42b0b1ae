"""The twin of a pruned model: the *original*, with 0/1 masks multiplied onto the data inputs of its contractions.

It shares no slicing code with the pass: it needs only which positions of which tensor are gone. A pruned model must
compute what its twin computes, and the twin must differ from the original, or the comparison says nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper
from onnxslim_opt.passes.prune import Groups, groups
from onnxslim_opt.passes.prune.cut import cut

from onnxslim_opt import ir

CONTRACTIONS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum")


def build(nodes: list[Any], inputs: dict[str, list[Any]], weights: dict[str, np.ndarray], opset: int = 17) -> ir.Model:
    """A model from nodes, input shapes (float32) and constants; the last node's first output is the output."""
    out = nodes[-1].output[0]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(out, onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ascontiguousarray(v), n) for n, v in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    model = ir.from_proto(proto)
    ir.shapes.refresh(model)
    return model


def some_units(found: Groups, ratio: float, seed: int) -> np.ndarray:
    """A random share of what may go, as much of it as leaves every axis a position."""
    rng = np.random.default_rng(seed)
    found.ledger.reset()
    wanted = max(1, round(ratio * len(found.units)))
    for unit in rng.permutation(found.units):
        if len(found.ledger.gone) < wanted:
            found.ledger.remove(int(unit))
    return np.array(found.ledger.gone, np.int64)


def twin(model: ir.Model, found: Groups, gone: np.ndarray) -> onnx.ModelProto:
    """The original with masked contractions."""
    proto, dead = ir.to_proto(model), set(gone.tolist())
    nodes, masks = [], []
    for node in proto.graph.node:
        for i in range(min(len(node.input), 2) if node.op_type in CONTRACTIONS else 0):
            labels = found.flow.labels.get(node.input[i], ())
            for axis, cells in enumerate(labels):
                resolved = found.flow.atoms.resolve(cells)
                if resolved is None:
                    continue
                mask = np.array([not dead & set(row.tolist()) for row in resolved], np.float32)
                shape = [1] * len(labels)
                shape[axis] = -1
                name = f"twin_{len(masks)}"
                masks.append(numpy_helper.from_array(mask.reshape(shape), name))
                nodes.append(helper.make_node("Mul", [node.input[i], name], [f"{name}_out"], name=f"{name}_mul"))
                node.input[i] = f"{name}_out"
        nodes.append(node)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    proto.graph.initializer.extend(masks)
    return proto


def run(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs in order."""
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, feeds)


def distance(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    """Largest difference relative to the range of the output; NaN where there is a NaN."""
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        assert x.shape == y.shape
        error = np.abs(x.astype(np.float64) - y).max(initial=0.0) / max(float(np.abs(x).max(initial=0.0)), 1e-9)
        worst = error if np.isnan(error) else max(worst, error)
    return worst


def check(
    model: ir.Model, feeds: dict[str, np.ndarray], ratio: float = 0.5, seed: int = 0, found: Groups | None = None
) -> tuple[Groups, ir.Model, np.ndarray]:
    """Prune random units; the result must be valid, equal its twin, and the twin must differ from the original."""
    found = groups(model, feeds) if found is None else found
    assert len(found.units), [r.pinned for r in found.describe()]
    gone = some_units(found, ratio, seed)
    small = model.copy()
    cut(small, found.flow, gone)
    ir.order.sort(small)
    ir.verify.check(small)
    original, masked = run(ir.to_proto(model), feeds), run(twin(model, found, gone), feeds)
    assert distance(masked, original) > 1e-6, "the twin equals the original: nothing was tested"
    assert distance(masked, run(ir.to_proto(small), feeds)) < 1e-4
    assert ir.cost.of(small).params < ir.cost.of(model).params
    return found, small, gone
