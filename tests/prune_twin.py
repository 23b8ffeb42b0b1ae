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

CONTRACTIONS = {  # how many inputs, from the first, are data that is contracted
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm", "MatMul", "Attention", "FusedConv", "FusedGemm"), 2),
    **dict.fromkeys(("LSTM", "GRU", "RNN", "DeformConv", "DynamicQuantizeLinear"), 1),
    "Einsum": 9,
}
INTEGERS = {"QLinearConv": 2, "QLinearMatMul": 2, "ConvInteger": 2, "MatMulInteger": 2}  # zero point of input 0


def build(nodes: list[Any], inputs: dict[str, list[Any]], weights: dict[str, np.ndarray], opset: int = 17) -> ir.Model:
    """A model from nodes, input shapes (float32) and constants; the last node's first output is the output."""
    out = nodes[-1].output[0]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(out, onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v, order="C"), n) for n, v in weights.items()],
    )
    opsets = [helper.make_opsetid(d, opset if d == "" else 1) for d in sorted({"", *(n.domain for n in nodes)})]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
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


class Twin:
    """The original, rewritten node by node: `nodes` and `constants` are what it is made of so far."""

    def __init__(self, model: ir.Model, found: Groups, gone: np.ndarray):
        self.proto, self.found, self.dead = ir.to_proto(model), found, set(gone.tolist())
        self.sizes = dict(found.flow.sizes)
        self.values = {t.name: numpy_helper.to_array(t) for t in self.proto.graph.initializer}
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, array: np.ndarray) -> str:
        name = f"twin_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def op(self, kind: str, *inputs: str, out: str = "", **attrs: Any) -> str:
        out = out or f"twin_out_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], name=f"twin_{len(self.nodes)}", **attrs))
        return out

    def masks(self, name: str) -> dict[int, np.ndarray]:
        """0/1 by position, for every axis of a tensor that loses some."""
        result = {}
        for axis, cells in enumerate(self.found.flow.labels.get(name, ())):
            resolved = self.found.flow.atoms.resolve(cells)
            if resolved is not None:
                result[axis] = np.array([not self.dead & set(row.tolist()) for row in resolved], np.float32)
        return result

    def mask(self, name: str) -> np.ndarray | None:
        """The product of a tensor's masks, of its rank."""
        found, rank = self.masks(name), len(self.found.flow.labels.get(name, ()))
        whole = None
        for axis, mask in found.items():
            shaped = mask.reshape([-1 if a == axis else 1 for a in range(rank)])
            whole = shaped if whole is None else whole * shaped
        return whole

    def masked(self, name: str) -> str:
        mask = self.mask(name)
        return name if mask is None else self.op("Mul", name, self.constant(mask.astype(self.dtype(name))))

    def dtype(self, name: str) -> Any:
        found = self.found.flow.model.tensors().get(name)
        return np.float32 if found is None or found.dtype is None else found.dtype

    def build(self) -> onnx.ModelProto:
        for node in self.proto.graph.node:
            for i in range(min(len(node.input), CONTRACTIONS.get(node.op_type, 0))):
                if node.input[i] in self.found.flow.labels:
                    node.input[i] = self.masked(node.input[i])
            if node.op_type in INTEGERS and (mask := self.mask(node.input[0])) is not None:
                zero = node.input[INTEGERS[node.op_type]]
                node.input[0] = self.op("Where", self.constant(mask > 0), node.input[0], zero)
            if node.op_type in ("LSTM", "GRU", "RNN"):
                self.recurrent(node)
            if not self.normalised(node):
                self.nodes.append(node)
        del self.proto.graph.node[:]
        self.proto.graph.node.extend(self.nodes)
        self.proto.graph.initializer.extend(self.constants)
        return self.proto

    def recurrent(self, node: Any) -> None:
        """Units that went are not read by the others: their columns of R are zero."""
        for name in node.output:
            masks = self.masks(name)
            if masks:
                (mask,) = masks.values()
                node.input[2] = self.op("Mul", node.input[2], self.constant(mask))
                return

    def normalised(self, node: Any) -> bool:
        """Write a normalisation that lost channels as one that takes its statistics over those that are left."""
        mask = self.mask(node.input[0]) if node.input else None
        attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if mask is None:
            return False
        rank, x, out = mask.ndim, node.input[0], node.output[0]
        scales = [self.values.get(n) for n in node.input[1:3]]
        epsilon = attrs.get("epsilon", 1e-5)
        if node.op_type in ("LayerNormalization", "RMSNormalization"):
            axes = range(attrs.get("axis", -1) % rank, rank)
            self.standard(x, mask, axes, epsilon, scales, out, centred=node.op_type[0] == "L")
        elif node.op_type == "InstanceNormalization":
            scales = [v.reshape(-1, *[1] * (rank - 2)) for v in scales]
            self.standard(x, mask, range(2, rank), epsilon, scales, out)
        elif node.op_type == "GroupNormalization":
            self.grouped(x, mask, attrs["num_groups"], epsilon, scales, out)
        elif node.op_type == "ReduceMean":
            axes = attrs.get("axes") or (self.values[node.input[1]].tolist() if len(node.input) > 1 else range(rank))
            axes = [a % rank for a in axes]
            if not set(axes) & set(self.masks(x)):
                return False
            self.mean(x, mask, axes, self.sizes[x], out, attrs.get("keepdims", 1))
        elif node.op_type in ("ReduceL2", "ReduceSum", "ReduceSumSquare", "LpNormalization"):
            node.input[0] = self.masked(x)
            return False
        else:
            return False
        return True

    def mean(self, x: str, mask: np.ndarray, axes: Any, sizes: Any, out: str = "", keepdims: int = 1) -> str:
        """Mean over what is left along the axes; 0 where nothing is."""
        full = np.broadcast_to(mask, [sizes[a] if a in axes else n for a, n in enumerate(mask.shape)])
        count = np.maximum(full.sum(tuple(axes), keepdims=True), 1)
        part = self.op("Div", self.op("Mul", x, self.constant(mask)), self.constant(count))
        if self.found.flow.model.opset < 13:
            return self.op("ReduceSum", part, out=out, keepdims=keepdims, axes=list(axes))
        return self.op("ReduceSum", part, self.constant(np.array(list(axes))), out=out, keepdims=keepdims)

    def standard(
        self, x: str, mask: np.ndarray, axes: Any, epsilon: float, scales: list, out: str, centred: bool = True
    ) -> None:
        sizes = self.sizes[x]
        y = self.op("Sub", x, self.mean(x, mask, axes, sizes)) if centred else x
        variance = self.mean(self.op("Mul", y, y), mask, axes, sizes)
        y = self.op("Div", y, self.op("Sqrt", self.op("Add", variance, self.constant(np.float32(epsilon)))))
        y = self.op("Mul", y, self.constant(mask))  # what went may be huge where hardly anything is left
        bias = scales[1] if len(scales) > 1 and scales[1] is not None else np.float32(0)
        self.op("Add", self.op("Mul", y, self.constant(scales[0])), self.constant(bias), out=out)

    def grouped(self, x: str, mask: np.ndarray, groups: int, epsilon: float, scales: list, out: str) -> None:
        n, c, *space = self.sizes[x]
        grid = (groups, c // groups, *space)
        y = self.op("Reshape", x, self.constant(np.array([0, *grid])))
        self.sizes[y] = (n, *grid)
        scales = [np.repeat(v, c // len(v)).reshape(groups, -1, *[1] * len(space)) for v in scales]
        shaped = mask.reshape(1, groups, c // groups, *[1] * len(space))
        self.standard(y, shaped, range(2, 3 + len(space)), epsilon, scales, f"{out}_grid")
        self.op("Reshape", f"{out}_grid", self.constant(np.array([0, c, *space])), out=out)


def twin(model: ir.Model, found: Groups, gone: np.ndarray) -> onnx.ModelProto:
    """The original with masked contractions and norms, and recurrent columns of zeros."""
    return Twin(model, found, gone).build()


def run(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs in order."""
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    if any(n.op_type == "DequantizeLinear" for n in proto.graph.node):  # fused, it rounds what it is multiplied with
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
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
    model: ir.Model,
    feeds: dict[str, np.ndarray],
    ratio: float = 0.5,
    seed: int = 0,
    found: Groups | None = None,
    norms: str = "pin",
) -> tuple[Groups, ir.Model, np.ndarray]:
    """Prune random units; the result must be valid, equal its twin, and the twin must differ from the original."""
    found = groups(model, feeds, norms=norms) if found is None else found
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
