"""Recurrent networks spelled out step by step, in the ways that exporters and frameworks write them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

GATES = {"LSTM": "ifgo", "GRU": "rzn", "RNN": "h"}
INPUTS, UNITS = 3, 4


@dataclass
class Unrolled:
    """A model of `count` steps over x [N, count, 3], or [count, N, 3] with axis 0.

    style: how gates are computed: "split" or "slice" from one sum, "gates" one by one, "concat" by one product of input
    and state side by side. order: of the gates' columns. slices: "gather", "slice" or "split". state: "input", "zeros"
    or "filled" (by ConstantOfShape). results: "stack" (along axis 1, or 0 with axis 0), "last", "each", "flat".
    """

    cell: str = "LSTM"
    count: int = 3
    style: str = "split"
    order: str = ""
    slices: str = "gather"
    axis: int = 1
    backward: bool = False
    state: str = "input"
    results: str = "stack"
    bias: bool = True
    layers: int = 1
    batch: Any = "N"
    opset: int = 17
    nodes: list[Any] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.order = self.order or GATES[self.cell]
        self.rng = np.random.default_rng(0)

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attrs: Any) -> Any:
        """Name of the output of a new node, or names of its outputs."""
        names = [f"{kind.lower()}{len(self.nodes)}_{k}" for k in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=f"n{len(self.nodes)}", **attrs))
        return names[0] if outputs == 1 else names

    def const(self, name: str, value: Any, dtype: Any = np.int64) -> str:
        """Name of a constant."""
        self.weights[name] = np.asarray(value, dtype)
        return name

    def random(self, name: str, *shape: int) -> str:
        """Name of a weight, made once."""
        if name not in self.weights:
            self.const(name, self.rng.standard_normal(shape) * 0.5, np.float32)
        return name

    def axes(self, op: str, tensor: str, axis: int) -> str:
        """Squeeze or Unsqueeze."""
        if self.opset < 13:
            return str(self.op(op, tensor, axes=[axis]))
        return str(self.op(op, tensor, self.const(f"axis{axis}", [axis])))

    def slice(self, tensor: str, at: int) -> str:
        """The x of one step."""
        if self.slices == "gather":
            return str(self.op("Gather", tensor, self.const(f"at{at}", at), axis=self.axis))
        if self.slices == "slice":
            bounds = [self.const(f"{n}{v}", [v]) for n, v in (("at_", at), ("at_", at + 1), ("axis", self.axis))]
            return self.axes("Squeeze", str(self.op("Slice", tensor, *bounds)), self.axis)
        if not any(n.op_type == "Split" and n.input[0] == tensor for n in self.nodes):
            self.parts = self.op("Split", tensor, outputs=self.count, axis=self.axis)
        return self.axes("Squeeze", self.parts[at], self.axis)

    def product(self, tensor: str, weight: str, rows: int, columns: int, bias: bool) -> str:
        """x · W, and a bias."""
        out = str(self.op("MatMul", tensor, self.random(weight, rows, columns)))
        return str(self.op("Add", out, self.random(f"{weight}_b", columns))) if bias and self.bias else out

    def parted(self, tensor: str) -> dict[str, str]:
        """The columns of each gate."""
        count = len(self.order)
        if count == 1:
            return {self.order: tensor}
        if self.style == "slice":
            names = []
            for k in range(count):
                ends = [self.const(f"to{v}", [v]) for v in (k * UNITS, k * UNITS + UNITS, 1)]
                names.append(self.op("Slice", tensor, *ends))
            return dict(zip(self.order, names))
        if self.opset < 13:
            names = self.op("Split", tensor, outputs=count, axis=1, split=[UNITS] * count)
        else:
            names = self.op("Split", tensor, self.const("sizes", [UNITS] * count), outputs=count, axis=1)
        return dict(zip(self.order, names))

    def halves(self, layer: int, x: str, h: str, inputs: int) -> tuple[dict[str, str], dict[str, str]]:
        """For each gate the part of the input and that of the state."""
        count = len(self.order)
        if self.style == "gates":
            a = {g: self.product(x, f"w{layer}{g}", inputs, UNITS, True) for g in self.order}
            return a, {g: self.product(h, f"r{layer}{g}", UNITS, UNITS, True) for g in self.order}
        a = self.parted(self.product(x, f"w{layer}", inputs, count * UNITS, True))
        return a, self.parted(self.product(h, f"r{layer}", UNITS, count * UNITS, True))

    def sums(self, layer: int, x: str, h: str, inputs: int) -> dict[str, str]:
        """What goes into the activation of each gate."""
        count = len(self.order)
        if self.style == "concat":
            both = str(self.op("Concat", x, h, axis=1))
            return self.parted(self.product(both, f"w{layer}", inputs + UNITS, count * UNITS, True))
        if self.style == "gates":
            a, b = self.halves(layer, x, h, inputs)
            return {g: self.op("Add", a[g], b[g]) for g in self.order}
        a = self.product(x, f"w{layer}", inputs, count * UNITS, True)
        return self.parted(str(self.op("Add", a, self.product(h, f"r{layer}", UNITS, count * UNITS, True))))

    def step(self, layer: int, x: str, h: str, c: str, inputs: int) -> tuple[str, str]:
        """One step: the new states."""
        if self.cell == "RNN":
            return self.op("Tanh", self.sums(layer, x, h, inputs)["h"]), c
        if self.cell == "GRU":
            a, b = self.halves(layer, x, h, inputs)
            r, z = (self.op("Sigmoid", self.op("Add", a[g], b[g])) for g in "rz")
            n = self.op("Tanh", self.op("Add", a["n"], self.op("Mul", r, b["n"])))
            return self.op("Add", n, self.op("Mul", z, self.op("Sub", h, n))), c
        gates = self.sums(layer, x, h, inputs)
        i, f, o = (self.op("Sigmoid", gates[g]) for g in "ifo")
        new = self.op("Mul", i, self.op("Tanh", gates["g"]))
        c = str(self.op("Add", self.op("Mul", f, c), new))
        return self.op("Mul", o, self.op("Tanh", c)), c

    def first(self, name: str, inputs: list[Any]) -> str:
        """A first state."""
        if self.state == "input":
            inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [self.batch, UNITS]))
            return name
        if self.state == "zeros":
            return self.const("zeros", np.zeros((self.batch, UNITS)), np.float32)
        size = self.op("Shape", "x", start=1 - self.axis, end=2 - self.axis)
        return str(self.op("ConstantOfShape", self.op("Concat", size, self.const("units", [UNITS]), axis=0)))

    def build(self) -> onnx.ModelProto:
        """The model."""
        shape = [self.batch, self.count, INPUTS] if self.axis == 1 else [self.count, self.batch, INPUTS]
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
        times = range(self.count)[:: -1 if self.backward else 1]
        row = {t: self.slice("x", t) for t in times}
        ends: list[str] = []
        for layer in range(self.layers):
            h, c = (self.first(f"{n}{layer}", inputs) for n in "hc")
            for t in times:
                h, c = self.step(layer, row[t], h, c, UNITS if layer else INPUTS)
                row[t] = h
            ends = [h, c] if self.cell == "LSTM" else [h]
        outs = [*self.joined([row[t] for t in range(self.count)]), *(ends if self.results == "last" else ())]
        values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, self.shape()) for n in dict.fromkeys(outs)]
        held = [numpy_helper.from_array(v, n) for n, v in self.weights.items()]
        graph = helper.make_graph(self.nodes, "g", inputs, values, held)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)

    def shape(self) -> list[Any]:
        """The shape of every output."""
        if self.results == "stack":
            return [self.batch, self.count, UNITS] if self.axis == 1 else [self.count, self.batch, UNITS]
        return [self.batch, self.count * UNITS if self.results == "flat" else UNITS]

    def joined(self, states: list[str]) -> list[str]:
        """What the model puts out of the states, in the order of time."""
        if self.results == "stack":
            parts = [self.axes("Unsqueeze", h, self.axis) for h in states]
            return [self.op("Concat", *parts, axis=self.axis)]
        if self.results == "flat":
            return [self.op("Concat", *states, axis=1)]
        return states if self.results == "each" else []
