"""The pass `quant`: static INT8 by quantize/dequantize pairs where that is faster, 8-bit storage everywhere else."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_graphsurgeon as gs

from ...ir import Model
from ..base import Context, LossyPass, PassResult, Skip
from ..options import Excluding, option
from ..target import Target
from . import calibrate, choosing, clips, equalise, insert, outliers, planning, prepare, reasons, storage
from .overrides import Overrides
from .planning import Choice, Plan
from .statistics import Settings

COMPUTED, STORED = 1.5, 6.0
"""dB above a limit on SQNR that integer kernels and stored weights aim at: together they meet it, elsewhere too."""


@dataclass(frozen=True)
class Quant(Excluding, LossyPass):
    """Static INT8: calibrated, fused as the target fuses, only where it is faster; other weights stored in 8 bits.

    Activations are calibrated on the data, weights are symmetric per channel, biases int32. Tensors that hurt the
    outputs most stay float. Without real data only the storage of weights is changed.
    """

    name: ClassVar[str] = "quant"
    raises_opset: ClassVar[bool] = True
    default_sqnr: ClassVar[float | None] = None  # kept when it pays; `floor` holds its own noise

    calibrate: str = option(
        "auto",
        "how ranges of activations are chosen; auto: mse, the loudest by the error of the outputs",
        choices=("auto", *calibrate.METHODS),
    )
    percentile: float = option(99.99, "for calibrate=percentile: per cent of values kept", min=50.0, max=100.0)
    weights: str = option("per_channel", "scales of weights", choices=("per_channel", "per_tensor"))
    exclude: str = option("", "regular expression of node names that stay as they are")
    layers: str = option("", "single layers, REGEX=HOW;…: float, int8 (however loud), or a method of calibration")
    compute: str = option(
        "auto", "integer kernels: where they pay, wherever possible, or nowhere", choices=("auto", "all", "none")
    )
    types: str = option(
        "auto", "activations × weights; auto: what the target is fast with", choices=("auto", "u8s8", "s8s8")
    )
    store: bool = option(True, "store weights of float layers in 8 bits")
    floor: float = option(25.0, "dB of output SQNR that is held by leaving the most sensitive tensors float")
    rounding: str = option(
        "second_order", "of weights: for the inputs they meet, or to nearest", choices=("second_order", "nearest")
    )

    equalise: bool = option(True, "bring the channels of a tensor to like ranges by exact factors in the weights")

    def __post_init__(self) -> None:
        super().__post_init__()
        Overrides.parse(self.layers)

    @property
    def explicit(self) -> bool:
        """`compute=all` asks for everything."""
        return self.compute == "all"

    def plan(self, model: Model, ctx: Context) -> Plan:
        """Place, calibrate on the fit feeds, measure sensitivities. Raises OptionError for `layers` not there."""
        overrides = self._overrides(model, ctx)
        if self.compute == "none":
            return planning.stored_only(
                model, ctx, self._settings(ctx.target), "compute=none: everything computes in float"
            )
        if ctx.source == "random" and self.compute != "all":
            why = "no real data: random feeds say nothing of activations, so weights are only stored in 8 bits"
            ctx.note(f"quant: {why}")
            return planning.stored_only(model, ctx, self._settings(ctx.target), why)
        return planning.make(model, ctx, self._settings(ctx.target), lambda n: self.excluded(n, ctx), overrides)

    def apply(self, model: Model, plan: Plan, strength: float, ctx: Context) -> PassResult:
        """Integer kernels for all but the loudest 1 - strength of tensors, where that pays; else storage."""
        if plan.base is None:
            return self._stored(model, plan, strength, ctx, plan.why)
        choice = choosing.choose(plan, model, ctx, self.compute, self._level(ctx, COMPUTED), round(1.0 - strength, 6))
        if not choice.nodes:
            why = _no_gain(choice)
            ctx.note(f"quant: {why}; only weights are stored in fewer bits" if self.store else f"quant: {why}")
            return self._stored(model, plan, strength, ctx, why)
        return self._computed(model, plan, choice, strength, ctx)

    def _overrides(self, model: Model, ctx: Context) -> Overrides:
        """What the user said about single layers; tells of patterns whose nodes earlier passes replaced."""
        overrides = Overrides.parse(self.layers)
        if overrides.rules:
            prepared = model.copy()  # names of what it makes stand in the report, so they may be given as well
            prepare.prepare(prepared, lambda n: self.excluded(n, ctx))
            names = [{n.name for n in m.nodes()} for m in (model, prepared, ctx.original)]
            for pattern in overrides.check(names[0] | names[1], names[2]):
                ctx.note(f"quant: layers: {pattern} matches no node any more: earlier passes replaced it")
        return overrides

    def _level(self, ctx: Context, above: float) -> float:
        """dB of output SQNR to hold: the floor, or so much above a limit on SQNR that comes to more."""
        return max(self.floor, ctx.own_db + above)

    def _settings(self, target: Target) -> Settings:
        kind = target.activation if self.types == "auto" else self.types[:2]
        return Settings(
            "mse" if self.calibrate == "auto" else self.calibrate,
            self.percentile,
            self.weights == "per_channel",
            kind,
            target.symmetric,
            target.saturates and kind == "u8",
            self.rounding,
            target.integer_biases,
            self.equalise,
            self.calibrate == "auto",
        )

    def excluded(self, node: gs.Node, ctx: Context) -> bool:
        """Whether the user asked to leave a node alone, or said that it is to be float."""
        said = Overrides.parse(self.layers).of(node.name) if self.layers else ""
        return said == "float" or super().excluded(node, ctx)

    def _stored(self, model: Model, plan: Plan, strength: float, ctx: Context, why: str) -> PassResult:
        """Only the storage of weights."""
        did: dict[str, int] = {}
        skips: tuple[Skip, ...] = ()
        if plan.base is not None:
            prepare.prepare(model, lambda n: self.excluded(n, ctx))
            prepare.finish(model, ctx.target)
        if self.store:
            equalise.apply(model, plan.factors)  # the integers in the plan are those of scaled weights
            rounded, loud = outliers.known(plan.divided, plan.rounded, plan.loud)
            undone = clips.undone(model, plan.factors)
            equalise.apply(model, undone)
            rounded = clips.known(model, undone, rounded)
            level = self._level(ctx, COMPUTED)
            did, skips = storage.store(model, (), lambda n: self.excluded(n, ctx), strength, loud, rounded, level)
        reason = (Skip("", why),) if why else ()
        return PassResult(bool(did), did, (*reason, *skips, *plan.skips), {"candidates": plan.table})

    def _computed(self, model: Model, plan: Plan, choice: Choice, strength: float, ctx: Context) -> PassResult:
        """Integer kernels at the chosen nodes, storage for the rest, with less noise in both at less strength."""
        assert plan.base is not None and plan.stats is not None
        fresh, before = choosing.start(plan, choice.nodes), model.opset
        model.graph, model.header = fresh.graph, fresh.header
        model.__dict__.pop("_namer", None)
        recipe = choosing.recipe(plan, choice.nodes)
        did: dict[str, Any] = dict(insert.insert(model, recipe))
        prepare.finish(model, ctx.target)
        skips = (*reasons.left_float(plan, choice, strength, self._level(ctx, COMPUTED)), *plan.skips)
        if self.store:
            rounded, loud = outliers.known(plan.divided, plan.rounded, plan.loud)
            rounded = clips.known(model, choosing.undone(plan, choice.nodes), rounded)
            counts, more = storage.store(
                model,
                choice.nodes,
                lambda n: self.excluded(n, ctx),
                loud=loud,
                rounded=rounded,
                floor_db=self._level(ctx, STORED) - 20 * math.log10(strength),  # as `choose` leaves amplitudes of noise
            )
            did, skips = did | counts, (*skips, *more)
        if model.opset != before:
            did["opset"] = f"{before} → {model.opset}"
        reduced = plan.stats.reduced & set(recipe.weights)
        if reduced:
            did["layers with 7-bit weights"] = len(reduced)
        details = {
            "candidates": plan.table,
            "float": sorted(choice.banned),
            "exclude": exclusion([s.node for s in skips if s.node] + list(plan.tail)),
            "placement": [str(d) for d in recipe.placement.decisions.values()],
        }
        return PassResult(True, did, skips, details)


def exclusion(names: Sequence[str]) -> str:
    """A regular expression that matches these nodes and no others: what another tool's exclusion list wants."""
    return f"^({'|'.join(re.escape(n) for n in dict.fromkeys(names))})$" if names else ""


def _no_gain(choice: Choice) -> str:
    if choice.speedup is None:
        return choice.label
    return f"{choice.label} (best candidate {choice.speedup:.2f}×)"
