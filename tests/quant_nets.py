"""Small networks, contexts and numpy references that the tests of the pass `quant` share."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnxslim_opt.passes.base import Context
from onnxslim_opt.passes.target import Target
from onnxslim_opt.runtime import Timings, resolve

from onnxslim_opt import ir

SATURATES = Target.detect().saturates  # this machine, without VNNI


class Net:
    """Builds a float graph node by node; tensors are their names."""

    def __init__(self, seed: int = 0):
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def const(self, array: Any, name: str | None = None) -> str:
        name = name or f"const{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def add(self, op: str, *inputs: str, out: str | None = None, **attrs: Any) -> str:
        out = out or f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [out], name=f"{out}_node", **attrs))
        return out

    def conv(self, x: str, cin: int, cout: int, k: int = 3, group: int = 1, out: str | None = None) -> str:
        w = self.rng.standard_normal((cout, cin // group, k, k)) / np.sqrt(cin // group * k * k)
        b = self.rng.standard_normal(cout) * 0.1
        inputs = [x, self.const(w.astype(np.float32)), self.const(b.astype(np.float32))]
        return self.add("Conv", *inputs, out=out, kernel_shape=[k, k], pads=[k // 2] * 4, group=group)

    def gemm(self, x: str, cin: int, cout: int, out: str | None = None) -> str:
        w = (self.rng.standard_normal((cout, cin)) / np.sqrt(cin)).astype(np.float32)
        b = self.rng.standard_normal(cout).astype(np.float32)
        return self.add("Gemm", x, self.const(w), self.const(b), out=out, transB=1)

    def model(self, inputs: dict[str, list[Any]], outputs: list[str], opset: int = 17) -> ir.Model:
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
            self.constants,
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        model = ir.from_proto(proto)
        ir.order.sort(model)
        ir.shapes.refresh(model)
        return model


def cnn(channels: int = 32, size: int = 12, opset: int = 17, seed: int = 0) -> ir.Model:
    """Conv-Relu, Conv-Relu, a residual Add-Relu, MaxPool, GlobalAveragePool, Gemm: input x [1, 3, size, size]."""
    net = Net(seed)
    a = net.add("Relu", net.conv("x", 3, channels, out="conv_a"), out="relu_a")
    b = net.add("Relu", net.conv(a, channels, channels, out="conv_b"), out="relu_b")
    c = net.conv(b, channels, channels, out="conv_c")
    s = net.add("Relu", net.add("Add", c, a, out="sum"), out="relu_s")
    p = net.add("MaxPool", s, out="pool", kernel_shape=[2, 2], strides=[2, 2])
    d = net.add("Relu", net.conv(p, channels, channels, 1, out="conv_d"), out="relu_d")
    g = net.add("Flatten", net.add("GlobalAveragePool", d, out="gap"), out="flat")
    net.gemm(g, channels, 10, out="logits")
    return net.model({"x": [1, 3, size, size]}, ["logits"], opset)


def attention() -> tuple[ir.Model, list[dict[str, np.ndarray]]]:
    """Projections, a product of two activations, a residual Add and a Gemm: input x [2, 6, 32]."""
    net = Net()

    def weight(rows: int, columns: int) -> str:
        return net.const((net.rng.standard_normal((rows, columns)) / np.sqrt(rows)).astype(np.float32))

    q, k = (net.add("MatMul", "x", weight(32, 32), out=n) for n in "qk")
    s = net.add("Softmax", net.add("MatMul", q, net.add("Transpose", k, perm=[0, 2, 1]), out="s"), axis=-1)
    h = net.add("Add", net.add("MatMul", net.add("MatMul", s, k), weight(32, 32), out="o"), "x", out="h")
    net.add("MatMul", net.add("Relu", net.add("MatMul", h, weight(32, 64), out="up"), out="r"), weight(64, 32), out="y")
    rng = np.random.default_rng(1)
    feeds = [{"x": rng.standard_normal((2, 6, 32)).astype(np.float32)} for _ in range(16)]
    return net.model({"x": [2, 6, 32]}, ["y"]), feeds


def images(n: int = 16, size: int = 12, seed: int = 1) -> list[dict[str, np.ndarray]]:
    """Smooth random images for `cnn`."""
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((n, 1, 3, size // 4, size // 4)).astype(np.float32)
    fine = rng.standard_normal((n, 1, 3, size, size)).astype(np.float32) * 0.2
    return [{"x": c} for c in np.repeat(np.repeat(coarse, 4, 3), 4, 4) + fine]


def context(
    model: ir.Model, feeds: Any, target: str | Target = "ort-cpu", source: str = "data", **more: Any
) -> Context:
    """A context with the feeds split into fit and check; `notes` collects what the pass says."""
    fit, check = resolve(feeds, model).split()
    where = target if isinstance(target, Target) else Target.named(target)
    return Context(where, fit, check, source, model.copy(), more.pop("timings", Timings()), **more)


def session(model: Any, optimized: Path | None = None, optimize: bool = True) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = model if isinstance(model, bytes) else ir.to_bytes(model)
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def kernels(model: Any, tmp_path: Path) -> Counter[str]:
    """Operators of the graph that ONNX Runtime really runs."""
    session(model, tmp_path / "optimized.onnx")
    return Counter(n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node)


def sqnr(a: ir.Model, b: Any, feeds: Any) -> float:
    """dB of b's outputs beside a's; where the kernels of this machine saturate, a file for other machines is computed
    as it is written, in floats."""
    literal = SATURATES and isinstance(b, ir.Model) and any(n.op == "DequantizeLinear" for n in b.nodes())
    one, two = session(a), session(b, optimize=not literal)
    signal = noise = 0.0
    for feed in feeds:
        for x, y in zip(one.run(None, feed), two.run(None, feed)):
            wide = x.astype(np.float64)
            signal, noise = signal + (wide**2).sum(), noise + ((wide - y) ** 2).sum()
    return float(10 * np.log10(signal / noise)) if noise else float("inf")
