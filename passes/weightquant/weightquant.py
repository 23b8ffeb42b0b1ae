"""The pass `weightquant`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import Model, order, shapes
from ...runtime import Session, latency, moments
from .. import opset
from ..base import Context, LossyPass, PassResult, Skip
from ..dynquant.layers import product_reason
from ..options import Excluding, option
from ..quant import rounding, sensitivity, storage
from ..quant.rounding import Rounded
from ..transaction import adopt
from . import blocks, emit
from .blocks import Blocks, Grid
from .emit import Layer

OPSET, IR_VERSION = 21, 10  # of 4-bit types and blocks in DequantizeLinear
PAYS = 1.04  # as for integer regions: the spread of the pairwise timing is 1 to 2 %
SECONDS = 2.0
FEEDS, LOOKED_AT = 32, 4
QUARTERS = 4  # steps in which layers go to 8 bits until the floor holds


@dataclass
class Plan:
    """base: the float model at an opset that has the types. found: {layer: its blocks}, the least hurt first."""

    base: Model
    found: dict[str, Blocks]
    rounded: Mapping[str, Rounded]
    skips: tuple[Skip, ...] = ()
    why: str = ""
    table: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class WeightQuant(Excluding, LossyPass):
    """Weights of matrix products in 4 or 8 bits with a scale a block; activations float; other weights in 8 bits.

    For models whose time goes into reading weights (one token at a time) or whose file is too large. By default the
    form is chosen by measured time: DequantizeLinear with blocks where the runtime computes on it faster than in
    float, else operators that are folded when the model is loaded.
    """

    name: ClassVar[str] = "weightquant"
    raises_opset: ClassVar[bool] = True
    default_sqnr: ClassVar[float | None] = None  # the file shrinks in any case; `floor` holds the noise

    bits: int = option(4, "of a weight", choices=(4, 8))
    block: int = option(32, "weights that share a scale, along the contraction", min=16, max=4096)
    symmetric: bool = option(True, "no zero points")
    method: str = option(
        "gptq",
        "rounding: second order on the inputs met, to nearest, or activation-aware scaling",
        choices=("gptq", "nearest", "awq"),
    )
    form: str = option(
        "auto",
        "what the file holds; nbits is ONNX Runtime's own operator",
        choices=("auto", "folded", "dequantize", "nbits"),
    )
    floor: float = option(15.0, "dB of output SQNR that is held by giving the most sensitive layers 8 bits")
    store: bool = option(True, "store all other weights in 8 bits")
    exclude: str = option("", "regular expression of node names that stay as they are")

    def plan(self, model: Model, ctx: Context) -> Plan:
        """Raise the opset, and round every layer for the inputs it meets."""
        base, why = model.copy(), ""
        if model.opset < OPSET and (self.bits == 4 or self.form == "dequantize"):
            raised, why = opset.raised(model, ctx.fit, OPSET)
            base = base if raised is None else raised
        if why:
            return Plan(base, {}, self._rounded(base, ctx), (), why)
        if self.bits == 4:
            base.header.ir_version = max(base.header.ir_version, IR_VERSION)
        order.sort(base)
        shapes.refresh(base)
        layers, skips = self._layers(base, ctx)
        if ctx.source == "random" and self.method != "nearest":
            ctx.note(f"weightquant: no real data, so weights are rounded to nearest and not by {self.method}")
        found = self._round(base, layers, ctx)
        return Plan(
            base, found, self._rounded(base, ctx), tuple(skips), "" if found else "no matrix product to quantize"
        )

    def apply(self, model: Model, plan: Plan, strength: float, ctx: Context) -> PassResult:
        """Blocks for the `strength` of the layers that are hurt least; 8 bits for the rest and all other weights."""
        before, meant = model.opset, list(plan.found)[: round(strength * len(plan.found))]
        names = self._held(plan, meant, ctx)
        did: dict[str, Any] = {}
        skips = (*([Skip("", plan.why)] if plan.why else []), *plan.skips)
        if names:
            form = self._form(plan, model, names, ctx)
            adopt(model, build(plan, names, form))
            did = {f"weights in {self.bits}-bit blocks": len(names), "form": form}
            if model.opset != before:
                did["opset"] = f"{before} → {model.opset}"
        if self.store:
            counts, more = storage.store(model, names, lambda n: self.excluded(n, ctx), rounded=plan.rounded)
            did, skips = did | counts, (*skips, *more)
        weak = f"strength {strength:g} leaves out the layers that are hurt most"
        loud = f"with {self.bits}-bit blocks here too the outputs would fall below {self.floor:g} dB"
        whys = {n: loud if n in meant else weak for n in plan.found if n not in names}
        return PassResult(bool(did), did, (*skips, *self._instead(model, whys)), {"candidates": plan.table})

    def _instead(self, model: Model, whys: Mapping[str, str]) -> list[Skip]:
        """What became of the layers without blocks, and why they have none."""
        stored = "8 bits" if self.bits == 4 else "8 bits with a scale a channel"
        nodes = {n.name: n for n in model.graph.nodes if n.name in whys}
        float_ = {n for n, node in nodes.items() if isinstance(node.inputs[1], gs.Constant)}  # nothing restores it
        return [Skip(n, f"{'stays float' if n in float_ else f'{stored} instead'}: {why}") for n, why in whys.items()]

    def _rounded(self, model: Model, ctx: Context) -> Mapping[str, Rounded]:
        if not self.store or self.method == "nearest" or ctx.source == "random":
            return {}
        return rounding.refine(model, ctx.fit, ctx)

    def _layers(self, model: Model, ctx: Context) -> tuple[dict[str, Layer], list[Skip]]:
        layers, skips = {}, []
        for node in model.graph.nodes:
            if node.op not in ("MatMul", "Gemm"):
                continue
            reason = product_reason(node)
            if not reason and self.excluded(node, ctx):
                reason = "excluded by the user"
            if not reason:
                shape = node.inputs[1].shape
                rows, columns = shape if node.attrs.get("transB", 0) else reversed(shape)
                if not self._block(columns):
                    what = "power of two" if self.form == "nbits" else "divisor"
                    reason = f"its {columns} inputs have no {what} between 16 and {self.block} to make blocks of"
            if reason:
                skips.append(Skip(str(node.name), reason))
            else:
                layers[str(node.name)] = Layer(node, int(rows), int(columns))
        return layers, skips

    def _round(self, model: Model, layers: Mapping[str, Layer], ctx: Context) -> dict[str, Blocks]:
        """{layer: blocks}, by falling quality at the layer's own output."""
        found: list[tuple[float, str, Blocks]] = []
        known: dict[tuple[str, bool], Blocks] = {}  # a shared weight is rounded once, for the first that reads it
        if self.method != "nearest" and ctx.source != "random":
            stream = moments.stream(
                model,
                list(layers),
                ctx.fit.spread(FEEDS),
                memory_mb=ctx.memory_mb // 2,
                seed=ctx.seed,
                threads=ctx.workers,
                progress=ctx.on_progress,
                skip_unseen=True,
            )
            for name, moment in stream:
                matrix, second = layers[name].matrix().astype(np.float64), moment.second
                method, key = blocks.gptq if self.method == "gptq" else blocks.awq, layers[name].key
                made = known[key] if key in known else method(matrix, self._grid(layers[name]), second)
                known[key] = made
                found.append((blocks.error(matrix, made, second), name, made))
        seen = {name for _, name, _ in found}
        for name in [n for n in layers if n not in seen]:
            matrix, key = layers[name].matrix().astype(np.float64), layers[name].key
            made = known[key] if key in known else blocks.nearest(matrix, self._grid(layers[name]))
            known[key] = made
            found.append((float(((made.real() - matrix) ** 2).sum() / max((matrix**2).sum(), 1e-30)), name, made))
        return {name: made for _, name, made in sorted(found, key=lambda f: f[:2])}

    def _grid(self, layer: Layer) -> Grid:
        return Grid(self.bits, self._block(layer.columns), self.symmetric)

    def _block(self, columns: int) -> int:
        """Weights that share a scale; 0 when no block fits."""
        return blocks.block_of(columns, self.block, powers=self.form == "nbits")

    def _held(self, plan: Plan, names: list[str], ctx: Context) -> list[str]:
        """The layers, less quarters of the most hurt until a few fit feeds keep the floor."""
        feeds = list(ctx.fit.spread(LOOKED_AT))
        plain = [Session(plan.base, threads=ctx.workers).run(f) for f in feeds] if names else []
        for step in range(QUARTERS):
            kept = names[: round(len(names) * (1 - step / QUARTERS))]
            session = Session(build(plan, kept, "folded"), threads=ctx.workers) if kept else None
            if session is None:
                break
            noise = sensitivity.noise_of(plain, [session.run(f) for f in feeds])
            if sensitivity.decibels(noise) >= self.floor:
                return kept
        return []

    def _form(self, plan: Plan, model: Model, names: list[str], ctx: Context) -> str:
        """The form asked for, or the fastest that this target runs."""
        if self.form != "auto":
            return self.form
        if ctx.target.runtime != "onnxruntime" and plan.base.opset >= OPSET:
            return "dequantize"  # other runtimes multiply with such weights themselves
        if not ctx.target.native or plan.base.opset < OPSET:
            return "folded"
        pair = [model, build(plan, names, "dequantize")]
        timed = latency.bench(pair, ctx.fit, threads=ctx.threads, timings=ctx.timings, seconds=2 * SECONDS)[1]
        plan.table.append({"form": "dequantize", "layers": len(names), "speedup": round(timed.speedup, 4)})
        return "dequantize" if timed.speedup >= PAYS else "folded"


def build(plan: Plan, names: list[str], form: str) -> Model:
    """A new model with these layers in blocks."""
    model = plan.base.copy()
    nodes = {n.name: n for n in model.graph.nodes if n.name in set(names)}
    pool = emit.Pool(model)
    for name in names:
        made, node = plan.found[name], nodes[name]
        emit.FORMS[form](pool, Layer(node, *made.values.shape), made)
    order.sort(model)
    return model


__all__ = ["WeightQuant"]
