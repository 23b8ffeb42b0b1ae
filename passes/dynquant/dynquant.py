"""The pass `dynquant`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ...ir import Model, order, shapes
from ...runtime import Session, latency, probe
from .. import opset
from ..base import Context, LossyPass, PassResult, Skip
from ..options import Excluding, option
from ..quant import rounding, sensitivity, storage
from ..quant.rounding import Rounded
from ..transaction import adopt
from . import switches
from .clock import Clock, greatest, pack
from .emit import Emitter
from .layers import CONTRIB, Layer, find

OPSET = 11  # of DynamicQuantizeLinear
PAYS = 1.04  # as for static regions: the spread of the pairwise timing is 1 to 2 %
SECONDS = 2.0
LOOKED_AT = 4  # feeds that the floor is held on


@dataclass(frozen=True)
class Choice:
    """names: layers that become dynamic. why: the reason that none does. left: {layer that stays float: why}."""

    names: frozenset[str]
    why: str = ""
    left: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Plan:
    """base: the float model with room for the operators. sets: {what: layers that may become dynamic together}.

    loud: {weight: relative noise at the outputs when it is stored in 8 bits}.
    noise: {layer: relative noise at the outputs when it alone is dynamic}, measured when first asked for.
    """

    base: Model
    sets: dict[str, tuple[str, ...]]
    rounded: Mapping[str, Rounded]
    skips: tuple[Skip, ...]
    why: str = ""
    loud: Mapping[str, float] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    table: list[dict[str, Any]] = field(default_factory=list)
    noise: dict[str, float] | None = None
    chosen: dict[float, Choice] = field(default_factory=dict)


@dataclass(frozen=True)
class DynQuant(Excluding, LossyPass):
    """Dynamic INT8: activations quantized as they come, where that is faster; other weights stored in 8 bits.

    No calibration: each run finds the range of each activation itself, which suits matrix products (transformers,
    recurrent networks). Standard operators unless `contrib=true` allows ONNX Runtime's integer LSTM.
    """

    name: ClassVar[str] = "dynquant"
    raises_opset: ClassVar[bool] = True
    default_sqnr: ClassVar[float | None] = None  # kept when it pays; `floor` holds its own noise

    compute: str = option(
        "auto", "integer products: where they pay, wherever possible, or nowhere", choices=("auto", "all", "none")
    )
    contrib: bool = option(False, "allow operators that only ONNX Runtime has (DynamicQuantizeLSTM)")
    floor: float = option(25.0, "dB of output SQNR that is held by leaving the most sensitive layers float")
    store: bool = option(True, "store weights of float layers in 8 bits")
    rounding: str = option(
        "second_order", "of weights: for the inputs they meet, or to nearest", choices=("second_order", "nearest")
    )
    exclude: str = option("", "regular expression of node names that stay as they are")

    @property
    def explicit(self) -> bool:
        """`compute=all` asks for everything."""
        return self.compute == "all"

    def plan(self, model: Model, ctx: Context) -> Plan:
        """Find the layers, round their weights, and time each kind of layer alone."""
        base, why = (model.copy(), "") if model.opset >= OPSET else opset.raised(model, ctx.fit, OPSET)
        if base is None:
            return self._plan(model.copy(), ctx, (), why)
        order.sort(base)
        shapes.refresh(base)
        contrib = self.contrib and ctx.target.runtime == "onnxruntime"
        layers, skips = find(base, contrib, lambda n: self.excluded(n, ctx))
        plan = self._plan(base, ctx, tuple(skips))
        if self.compute == "none":
            plan.why = "compute=none: everything computes in float"
        elif not layers:
            plan.why = "no layer of this model can multiply integers with dynamic ranges"
        else:
            plan.sets = self._worthwhile(plan, layers, ctx)
        return plan

    def apply(self, model: Model, plan: Plan, strength: float, ctx: Context) -> PassResult:
        """Dynamic products for all but the loudest 1 - strength of the layers; storage for the rest."""
        before, share = model.opset, round(1.0 - strength, 6)
        if share not in plan.chosen:
            plan.chosen[share] = self._choose(plan, model, ctx, share)
        choice = plan.chosen[share]
        names, why = choice.names, choice.why
        did: dict[str, Any] = {}
        if names:
            adopt(model, plan.base.copy())
            did = _rewrite(model, plan, names, self.contrib, greatest(ctx.target))
            if model.opset != before:
                did["opset"] = f"{before} → {model.opset}"
        reasons = {**plan.reasons, **choice.left}
        left = [Skip(n, f"stays float: {reason}") for n, reason in reasons.items() if n not in names]
        skips = (*([Skip("", why)] if why else []), *plan.skips, *left)
        if self.store:
            counts, more = storage.store(
                model,
                names,
                lambda n: self.excluded(n, ctx),
                1.0 if names else strength,
                plan.loud,
                plan.rounded,
                self.floor,
            )
            did, skips = did | counts, (*skips, *more)
        return PassResult(bool(did), did, skips, {"candidates": plan.table})

    def _plan(self, base: Model, ctx: Context, skips: tuple[Skip, ...], why: str = "") -> Plan:
        """A plan with weights rounded for their inputs, and how loud each is when it is stored."""
        exact = self.rounding == "nearest" or ctx.source == "random" or ctx.target.saturates
        rounded = {} if exact else rounding.refine(base, ctx.fit, ctx)
        loud = sensitivity.measure_weights(base, rounded, ctx.fit, ctx) if self.store else {}
        return Plan(base, {}, rounded, skips, why, loud)

    def _worthwhile(self, plan: Plan, layers: Mapping[str, Layer], ctx: Context) -> dict[str, tuple[str, ...]]:
        """Sets of layers worth trying together: those that are faster alone, and all but the convolutions (what reads
        one tensor shares its quantization, which no layer alone shows). On another machine nothing is timed."""
        if self.compute == "all":
            return {"everything": tuple(layers)}
        products = tuple(n for n, layer in layers.items() if layer.node.op != "Conv")
        if not ctx.target.native:
            return {"products": products}
        clock, alone = Clock(ctx.threads, ctx.timings, probe.shapes(plan.base, ctx.fit.first())), []
        for name, layer in ctx.progress(list(layers.items()), "timing layers", len(layers)):
            gain = clock.gain(layer)
            if gain is None:
                plan.reasons[name] = "the size of its input is not known, so it cannot be timed"
            elif gain[0] < PAYS * gain[1]:
                plan.reasons[name] = f"alone it takes {gain[1]:.3g} ms in integers, {gain[0]:.3g} ms in float"
            else:
                alone.append(name)
        return {"layers that are faster alone": tuple(alone), "all products": products}

    def _choose(self, plan: Plan, model: Model, ctx: Context, share: float) -> Choice:
        """The layers that become dynamic, and why none does."""
        asked = {what: self._without(plan, names, share, ctx) for what, names in plan.sets.items()}
        held = {what: self._held(plan, names, ctx) for what, names in asked.items()}
        sets = {what: names for what, names in held.items() if names}
        if not sets:
            return Choice(frozenset(), self._why_none(plan, asked, share))
        best = next(iter(sets))
        if self.compute != "all" and ctx.target.native:
            speedup, best = self._fastest(plan, model, sets, ctx, share)
            if speedup < PAYS:
                return Choice(frozenset(), f"dynamic integers are not faster than float here ({speedup:.2f}×)")
        return Choice(sets[best], "", self._left(plan, best, asked[best], sets[best], share))

    def _why_none(self, plan: Plan, asked: Mapping[str, frozenset[str]], share: float) -> str:
        if any(asked.values()):
            return f"no layer can be quantized with {self.floor:g} dB left at the outputs"
        if any(plan.sets.values()):
            return f"strength {1.0 - share:g} leaves no layer"
        return plan.why or "no layer is faster with dynamic integers here"

    def _fastest(
        self, plan: Plan, model: Model, sets: Mapping[str, frozenset[str]], ctx: Context, share: float
    ) -> tuple[float, str]:
        """The set that is fastest in pairs with the float model, and how much."""
        models = [model, *(build(plan, names, self.contrib, greatest(ctx.target)) for names in sets.values())]
        rows = latency.bench(models, ctx.fit, threads=ctx.threads, timings=ctx.timings, seconds=SECONDS * len(models))
        timed = [(row.speedup, what) for row, what in zip(rows[1:], sets)]
        for speedup, what in timed:
            plan.table.append({"share": share, "what": what, "layers": len(sets[what]), "speedup": round(speedup, 4)})
        return max(timed, key=lambda t: t[0])

    def _left(self, plan: Plan, best: str, asked: frozenset[str], held: frozenset[str], share: float) -> dict[str, str]:
        """Why layers that could be dynamic stay float: not in the fastest set, too loud, or beyond the strength."""
        found = {}
        for name in dict.fromkeys(n for names in plan.sets.values() for n in names if n not in held):
            level = f"alone it leaves {sensitivity.decibels(plan.noise[name]):.1f} dB" if plan.noise else ""
            if name not in plan.sets[best]:
                found[name] = plan.reasons.get(name, f"{best} are faster without it")
            elif name in asked:
                found[name] = f"to hold {self.floor:g} dB the loudest are left out: {level} at the outputs"
            else:
                found[name] = f"strength {1.0 - share:g} leaves out the loudest: {level} at the outputs"
        return found

    def _without(self, plan: Plan, names: Collection[str], share: float, ctx: Context) -> frozenset[str]:
        """The layers less the loudest `share` of them."""
        if not share or not names:
            return frozenset(names)
        noise = {n: v for n, v in _noise(plan, self, ctx).items() if n in names}
        return frozenset(names) - sensitivity.loudest(noise, -math.inf, share)

    def _held(self, plan: Plan, names: frozenset[str], ctx: Context) -> frozenset[str]:
        """Without the loudest layers, until a few fit feeds keep the floor."""
        aim = self.floor
        for _ in range(4):
            if not names:
                break
            level = quality(plan, names, self.contrib, ctx)
            if level >= self.floor:
                return names
            noise = {n: v for n, v in _noise(plan, self, ctx).items() if n in names}
            aim += max(0.0, self.floor - level) + 1.0
            fewer = names - sensitivity.loudest(noise, aim)
            names = fewer if fewer != names else names - {max(noise, key=lambda n: (noise[n], n))}
        return frozenset()


def build(plan: Plan, names: Collection[str], contrib: bool, top: int) -> Model:
    """A new model with these layers dynamic."""
    model = plan.base.copy()
    _rewrite(model, plan, names, contrib, top)
    order.sort(model)
    return model


def quality(plan: Plan, names: Collection[str], contrib: bool, ctx: Context) -> float:
    """dB of output SQNR with these layers dynamic, on a few fit feeds."""
    feeds = list(ctx.fit.spread(LOOKED_AT))
    pair = (plan.base, build(plan, names, contrib, greatest(ctx.target)))
    plain, other = (Session(m, threads=ctx.workers) for m in pair)
    noise = sensitivity.noise_of([plain.run(f) for f in feeds], [other.run(f) for f in feeds])
    return sensitivity.decibels(noise)


def _noise(plan: Plan, p: DynQuant, ctx: Context) -> dict[str, float]:
    """How loud each layer is alone, loudest first; measured once, and only when something must stay float."""
    if plan.noise is None:
        names = {n for names in plan.sets.values() for n in names}
        model = plan.base.copy()
        layers, _ = find(model, p.contrib, lambda n: n.name not in names)
        turned = switches.add(model, {n: layers[n] for n in sorted(layers)})
        _rewrite(model, plan, names, p.contrib, greatest(ctx.target))
        found = sensitivity.flip(model, turned, ctx.fit, ctx)
        plan.noise = dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))
    return plan.noise


def _rewrite(model: Model, plan: Plan, names: Collection[str], contrib: bool, top: int) -> dict[str, Any]:
    """Rewrite layers in place; counts by operator."""
    layers, _ = find(model, contrib, lambda n: n.name not in names)
    integers, shifts = {}, {}
    for layer in layers.values():
        for k in layer.weights:
            key = layer.key(k)
            known = plan.rounded.get(key[0])
            integers[key] = pack(layer, k, top) if known is None else known.packed
            if known is not None and known.shift is not None:
                shifts[key] = known.shift
    emitter, counts = Emitter(model, integers, shifts), Counter(layer.node.op for layer in layers.values())
    for layer in layers.values():
        emitter.rewrite(layer)
    return {f"{op} in dynamic int8": n for op, n in sorted(counts.items())}


__all__ = ["CONTRIB", "DynQuant"]
