"""Small models and toy passes that the tests of the pipeline, the solver and the command line share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxslim_opt.ir import edit
from onnxslim_opt.passes.base import Context, LossyPass, Pass, PassResult, Skip

from onnxslim_opt import ir

WIDTH, CLASSES = 16, 5


def network(layers: int = 2, seed: int = 0, batch: Any = "N") -> onnx.ModelProto:
    """A small MLP classifier: MatMul, Add, Relu a layer; input `x` [N, 16], output `logits` [N, 5]."""
    rng = np.random.default_rng(seed)
    nodes, weights, now = [], [], "x"
    for k in range(layers):
        wide = CLASSES if k == layers - 1 else WIDTH
        w = (rng.standard_normal((WIDTH, wide)) / 4).astype(np.float32)
        b = rng.standard_normal(wide).astype(np.float32)
        weights += [numpy_helper.from_array(w, f"w{k}"), numpy_helper.from_array(b, f"b{k}")]
        last = "logits" if k == layers - 1 else f"h{k}"
        nodes.append(helper.make_node("MatMul", [now, f"w{k}"], [f"m{k}"], name=f"matmul{k}"))
        nodes.append(
            helper.make_node("Add", [f"m{k}", f"b{k}"], [last if k == layers - 1 else f"a{k}"], name=f"add{k}")
        )
        if k < layers - 1:
            nodes.append(helper.make_node("Relu", [f"a{k}"], [last], name=f"relu{k}"))
        now = last
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, WIDTH])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, CLASSES])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def write(path: Path, **options: Any) -> Path:
    """A small model file."""
    onnx.save(network(**options), path)
    return path


def model(**options: Any) -> ir.Model:
    """A small model."""
    return ir.from_proto(network(**options))


def feeds(n: int = 16, rows: int = 8, seed: int = 1) -> list[dict[str, np.ndarray]]:
    """Feeds for `network`."""
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((rows, WIDTH)).astype(np.float32)} for _ in range(n)]


def data() -> Iterator[dict[str, np.ndarray]]:
    """The same, as a `--data` function."""
    yield from feeds()


@dataclass(frozen=True)
class Nothing(Pass):
    """Leave everything as it is."""

    name: ClassVar[str] = "nothing"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        return PassResult(False, skipped=(Skip("add0", "there is nothing to do"),))


@dataclass(frozen=True)
class Rename(Pass):
    """An exact pass: new names for the nodes."""

    name: ClassVar[str] = "rename"
    prefix: str = "new_"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        for node in model.graph.nodes:
            node.name = self.prefix + node.name
        return PassResult(True, {"nodes renamed": len(model.graph.nodes)})


@dataclass(frozen=True)
class Raises(Pass):
    """A pass with a bug."""

    name: ClassVar[str] = "raises"
    how: str = "late"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        if self.how == "late":
            model.graph.nodes.clear()
        raise ValueError("something is off")


@dataclass(frozen=True)
class Breaks(Pass):
    """A pass that leaves an invalid model: a node reads what nobody makes."""

    name: ClassVar[str] = "breaks"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        del model.graph.nodes[0]
        return PassResult(True)


@dataclass(frozen=True)
class Lies(Pass):
    """Says that it is exact and is not: doubles a bias."""

    name: ClassVar[str] = "lies"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        scale(model, "b", 2.0)
        return PassResult(True, {"biases doubled": 1})


@dataclass(frozen=True)
class Noise(LossyPass):
    """Weights with seeded noise of relative size `strength * amount`; nodes named `slow*` are added when told."""

    name: ClassVar[str] = "noise"
    amount: float = 0.5
    asked: bool = False
    slow: int = 0

    @property
    def explicit(self) -> bool:
        return self.asked

    def plan(self, model: ir.Model, ctx: Context) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(ctx.seed)
        return {n: rng.standard_normal(c.shape) for n, c in sorted(model.constants().items()) if n.startswith("w")}

    def apply(self, model: ir.Model, plan: Any, strength: float, ctx: Context) -> PassResult:
        for name, tensor in sorted(model.constants().items()):
            if name in plan:
                size = np.sqrt((tensor.values.astype(float) ** 2).mean())
                noise = plan[name] * size * self.amount * strength
                tensor.values = (tensor.values + noise).astype(np.float32)
        for _ in range(round(self.slow * strength)):
            slow_down(model)
        return PassResult(True, {"weights disturbed": len(plan)}, details={"strength": strength})


@dataclass(frozen=True)
class Pays(Noise):
    """Noise whose default is judged by speed alone."""

    name: ClassVar[str] = "pays"
    default_sqnr: ClassVar[float | None] = None


def scale(model: ir.Model, prefix: str, factor: float) -> None:
    """Multiply the constants whose names begin so."""
    for name, tensor in model.constants().items():
        if name.startswith(prefix):
            tensor.values = (tensor.values * factor).astype(np.float32)


def slow_down(model: ir.Model) -> None:
    """One more node (an Identity before the last output's producer input)."""
    node = model.graph.nodes[-1]
    old = node.inputs[0]
    new = edit.variable(model, "idle", np.float32, old.shape)
    edit.set_input(node, 0, new)
    edit.add(model.graph, edit.node(model, "Identity", [old], outputs=[new], name=edit.fresh(model, "slow")))
