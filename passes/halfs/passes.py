"""The passes `fp16` and `bf16`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import onnx_graphsurgeon as gs

from ...ir import Model, edit, ops
from ...runtime import ranges
from ...runtime.ranges import Range
from .. import opset
from ..base import Context, LossyPass, PassResult, Skip
from ..options import Excluding, option
from ..transaction import adopt
from . import convert, formats, storage, typing
from .formats import BF16, FP16, Format

HEADROOM = 2.0  # how far the values seen must stay below the format's limit: other inputs may reach further
SMALLEST_NORMAL = 6.1e-5  # of fp16; below it bits are lost, down to zero at 3e-8
POLES = {"Log": 0, "Reciprocal": 0, "Div": 1}  # input at which an operator is steep around zero
FEEDS = 32


@dataclass(frozen=True)
class Plan:
    """chosen: {node: ports} of nodes that may compute in half, the safest first. base: the model at an opset that
    knows the type, None when it stays as it is."""

    chosen: Mapping[str, typing.Ports] = field(default_factory=dict)
    skips: tuple[Skip, ...] = ()
    base: Model | None = None
    why: str = ""


@dataclass(frozen=True)
class _Halves(Excluding, LossyPass):
    """What both passes share: options of storage, and the choice."""

    default_sqnr: ClassVar[float | None] = None
    half: ClassVar[Format] = FP16

    overflow: str = option("float", "weights beyond the format: leave them, or clamp them", choices=("float", "clamp"))
    exclude: str = option("", "regular expression of node names that stay as they are")

    def stored(
        self, model: Model, plan: Plan, strength: float, ctx: Context
    ) -> tuple[dict[str, Any], tuple[Skip, ...]]:
        """Store what stays float in 16 bits."""
        return storage.store(model, self.half, self.overflow == "clamp", lambda n: self.excluded(n, ctx), strength)


@dataclass(frozen=True)
class Fp16(_Halves):
    """Half precision: half the file; fp16 arithmetic where the target has it, else weights stored in fp16.

    ONNX Runtime has almost no fp16 kernels on x86 CPUs (it would put casts around every node), so there the weights are
    stored in fp16 and converted once at load: half the size at the same speed. On targets with fp16 arithmetic
    the nodes whose values stay within half the range of fp16 on the data compute in it; the others stay float.
    """

    name: ClassVar[str] = "fp16"

    compute: str = option(
        "auto",
        "fp16 arithmetic: where the target has it, wherever possible, or nowhere",
        choices=("auto", "all", "none"),
    )
    keep_io: bool = option(True, "inputs and outputs stay float; false: they become fp16 where nodes compute in it")

    @property
    def explicit(self) -> bool:
        """`compute=all` asks for everything."""
        return self.compute == "all"

    def plan(self, model: Model, ctx: Context) -> Plan:
        """Which nodes may compute in fp16, by their schemas and by ranges on the fit feeds."""
        if self.compute == "none":
            return Plan(why="compute=none: weights are stored in fp16, everything computes in float")
        if self.compute == "auto" and "fp16" not in ctx.target.halves:
            why = f"no fp16 arithmetic on {ctx.target.name}: weights are stored in fp16 and converted once at load"
            ctx.note(f"fp16: {why}; this halves the file and leaves the speed as it is")
            return Plan(why=why)
        if ctx.source == "random":
            ctx.note("fp16: no real data: ranges are those of random feeds, so overflow on real inputs is not excluded")
        return self._ranges(model, ctx)

    def _ranges(self, model: Model, ctx: Context) -> Plan:
        possible, skips = {}, []
        for node in model.graph.nodes:
            found = typing.ports(node, model.opset, self.half)
            reason = (
                "excluded by the user" if self.excluded(node, ctx) else found.reason or self._constants(node, found)
            )
            if reason:
                skips.append(Skip(node.name, f"stays float: {reason}"))
            elif found.inputs:
                possible[node.name] = (node, found)
        seen = self._seen(model, possible, ctx)
        limit = self.half.most / HEADROOM
        ranked = []
        for name, (node, found) in possible.items():
            beside = [node.inputs[k] for k in found.inputs] + [node.outputs[k] for k in found.outputs]
            peak = max((_peak(seen.get(t.name)) for t in beside), default=0.0)
            if peak > limit:
                skips.append(Skip(name, f"stays float: values reach {peak:.3g}, fp16 ends at {self.half.most:g}"))
            elif pole := _near_pole(node, seen):
                skips.append(Skip(name, f"stays float: op {pole} has its pole where fp16 rounds to zero"))
            else:
                ranked.append((peak, name, found))
        return Plan({name: found for _, name, found in sorted(ranked, key=lambda r: r[:2])}, tuple(skips))

    def _constants(self, node: gs.Node, found: typing.Ports) -> str:
        """What speaks against a node's constants in fp16."""
        for k in found.inputs:
            values = edit.const(node, k)
            if values is None:
                continue
            if formats.overflows(values, self.half):
                if self.overflow == "float":
                    return f"constant '{node.inputs[k].name}' has values beyond {self.half.most:g}"
            elif formats.lost(values, self.half) > self.half.noise:
                return f"constant '{node.inputs[k].name}' is too small for fp16"
        return ""

    def _seen(self, model: Model, possible: Mapping[str, Any], ctx: Context) -> dict[str, Range]:
        """Ranges of every variable beside the nodes, over the fit feeds."""
        names = {
            t.name: None
            for node, _ in possible.values()
            for t in (*node.inputs, *node.outputs)
            if isinstance(t, gs.Variable) and typing.is_float(t)
        }
        return ranges.collect(
            model,
            list(names),
            ctx.fit.spread(FEEDS),
            bins=None,
            memory_mb=ctx.memory_mb,
            threads=ctx.workers,
            progress=ctx.on_progress,
        )

    def apply(self, model: Model, plan: Plan, strength: float, ctx: Context) -> PassResult:
        """The safest `strength` of the nodes compute in fp16; other weights are stored in it."""
        did: dict[str, Any] = {}
        skips = (Skip("", plan.why),) if plan.why else ()
        chosen = dict(list(plan.chosen.items())[: round(strength * len(plan.chosen))])
        if chosen:
            did = dict(convert.convert(model, chosen, self.half, self.keep_io))
        counts, more = self.stored(model, plan, 1.0 if chosen else strength, ctx)
        for key, value in counts.items():
            did[key] = did.get(key, 0) + value
        return PassResult(bool(did), did, (*skips, *plan.skips, *more))


def _peak(seen: Range | None) -> float:
    """Greatest absolute finite value."""
    return max(-seen.min, seen.max, 0.0) if seen is not None and seen.count else 0.0


def _near_pole(node: gs.Node, seen: Mapping[str, Range]) -> str:
    """The operator, of this node or a reader, that is steep where fp16 rounds values to zero; or ""."""
    if _is_steep(node, node.inputs, seen):
        return str(node.op)
    queue = [node]
    while queue:
        maker = queue.pop()
        for user in [r for t in maker.outputs for r in t.outputs]:
            if _is_steep(user, maker.outputs, seen):
                return str(user.op)
            if ops.facts(user).kind == "move":
                queue.append(user)
    return ""


def _is_steep(user: gs.Node, at: Sequence[gs.Tensor], seen: Mapping[str, Range]) -> bool:
    """Whether a node has its pole at one of these tensors, and the tensor comes near it."""
    tensor = edit.get(user, POLES[user.op]) if user.op in POLES else None
    found = None if tensor is None or not any(t is tensor for t in at) else seen.get(tensor.name)
    return bool(found and found.count and found.min < SMALLEST_NORMAL and found.max > -SMALLEST_NORMAL)


@dataclass(frozen=True)
class Bf16(_Halves):
    """Weights stored in bfloat16: half the file, the range of float, 8 bits of precision; float arithmetic.

    ONNX Runtime converts them once at load, so that the speed stays as it is. Its CPU kernels cannot compute in bf16,
    so a model that does could not be checked here: use `fp16` for arithmetic in half precision.
    """

    name: ClassVar[str] = "bf16"
    raises_opset: ClassVar[bool] = True
    half: ClassVar[Format] = BF16

    def plan(self, model: Model, ctx: Context) -> Plan:
        """Raise the opset where Cast does not know bfloat16 yet."""
        why = "ONNX Runtime has no bf16 kernels to check arithmetic with: weights are stored in bf16, converted at load"
        ctx.note("bf16: weights are stored in bf16 and converted once at load; this halves the file, not the time")
        if model.opset >= BF16.cast_opset:
            return Plan(why=why)
        base, reason = opset.raised(model, ctx.fit, BF16.cast_opset)
        return Plan(base=base, why=why if base is not None else reason)

    def apply(self, model: Model, plan: Plan, strength: float, ctx: Context) -> PassResult:
        """Store the weights that lose least."""
        before = model.opset
        if plan.base is not None:
            adopt(model, plan.base.copy())
        did, skips = self.stored(model, plan, strength, ctx)
        if did and model.opset != before:
            did["opset"] = f"{before} → {model.opset}"
        return PassResult(bool(did), did, (Skip("", plan.why), *skips))


__all__ = ["Bf16", "Fp16"]
