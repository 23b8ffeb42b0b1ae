"""`simplify`: fold, clean and fuse until nothing changes. The lossless base of every other pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import onnx

from ..ir import Model, from_proto, order, shapes, to_proto
from ..ir.errors import OptionError
from . import opset as versions
from .base import Context, Pass, PassResult, Skip
from .clean import Clean
from .fold import Fold, fills
from .fuse import Fuse, finish

ROUNDS = 8


@dataclass(frozen=True)
class Simplify(Pass):
    """Fold constants, remove what does nothing and fuse operators, again and again until nothing changes.

    fuse: also fuse operators (float results differ by rounding); without it values stay the same.
    compact: also fuse where ONNX Runtime is slower at the operator than at its spelling (Swish, RNN, some Mish).
    contrib: also fuse into operators of ONNX Runtime's own, where it is faster at them; no other runtime loads those.
    growth: how much the weights may grow in total when constants are folded, as a fraction.
    opset: raise the model's operator set to this version first, so that newer operators can be fused; 0 leaves it.
    """

    name: ClassVar[str] = "simplify"
    raises_opset: ClassVar[bool] = True
    fuse: bool = True
    compact: bool = False
    contrib: bool = False
    growth: float = 0.005
    opset: int = 0

    def __post_init__(self) -> None:
        newest = onnx.defs.onnx_opset_version()
        if not 0 <= self.opset <= newest:
            raise OptionError(f"simplify: opset={self.opset} is none that this build knows (1 to {newest})")
        Fold(self.growth)  # refuses what is no share

    def run(self, model: Model, ctx: Context | None = None) -> PassResult:
        """Edit `model` in place."""
        did: dict[str, int | float | str] = {}
        skipped: dict[str, object] = {}
        inlined = inline_functions(model)
        if inlined:
            did["functions inlined"] = inlined
        before, why = model.opset, self._raise(model, ctx)
        if model.opset != before:
            did["opset"] = f"{before} → {model.opset}"
        fold = Fold(self.growth)
        allowance = [fold.allowance(model)]
        opened = fills.open_fills(model)
        for _ in range(ROUNDS):
            shapes.refresh(model)
            changed = False
            for step in self._steps(model, ctx, fold, allowance):
                result = step()
                order.sort(model)
                changed |= result.changed
                _count(did, result)
                skipped.update({s.node: s for s in result.skipped})
            if not changed:
                break
        if self.fuse:
            last = finish(model, ctx, self.contrib)
            order.sort(model)
            _count(did, last)
            skipped.update({s.node: s for s in last.skipped})
        if opened is not None:
            fills.close_fills(model, opened, self.growth)
        alive = {n.name for n in model.nodes()} | {model.graph.name}
        refusals = tuple(s for name, s in skipped.items() if name in alive)
        if why:
            refusals = (Skip(model.graph.name, why), *refusals)  # type: ignore[assignment]
        return PassResult(bool(did), did, refusals)  # type: ignore[arg-type]

    def _steps(
        self, model: Model, ctx: Context | None, fold: Fold, allowance: list[int]
    ) -> Iterator[Callable[[], PassResult]]:
        yield lambda: Clean().run(model, ctx)
        yield lambda: fold.within(model, allowance)
        if self.fuse:
            yield lambda: Fuse(self.compact).once(model, ctx)

    def _raise(self, model: Model, ctx: Context | None) -> str:
        """Raise the opset as far as asked; returns why it could not be done, "" otherwise. Never lowers it."""
        if 0 < self.opset < model.opset and ctx:
            ctx.note(f"simplify: opset={self.opset} has no effect: the model has {model.opset}, and none is lowered")
        if not 0 < model.opset < self.opset:
            return ""
        new, why = versions.raised(model, ctx.fit if ctx else None, self.opset)
        if new is not None:
            _take(model, new)
        return why


def _count(did: dict[str, int | float | str], result: PassResult) -> None:
    for key, value in result.did.items():
        did[key] = int(did.get(key, 0)) + int(value)


def inline_functions(model: Model) -> int:
    """Put the bodies of the model's own functions where they are called; returns how many functions there were.

    By way of onnx's inliner and a proto, and so only for models that have functions.
    """
    if not model.header.functions:
        return 0
    import onnx.inliner

    count = len(model.header.functions)
    inlined = from_proto(onnx.inliner.inline_local_functions(_with_defaults(to_proto(model))))
    inlined.header.external, inlined.header.data_files = model.header.external, model.header.data_files
    _take(model, inlined)
    return count


def _with_defaults(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Write the defaults of functions' attributes into the calls that leave them out: the inliner drops them."""
    functions = {(f.domain, f.name, f.overload): f for f in proto.functions}
    queue = [proto.graph.node, *(f.node for f in proto.functions)]
    while queue:
        for node in queue.pop():
            queue.extend(g.node for a in node.attribute for g in (a.g, *a.graphs))
            function = functions.get((node.domain, node.op_type, node.overload))
            given = {a.name for a in node.attribute}
            if function is not None:
                node.attribute.extend(a for a in function.attribute_proto if a.name not in given)
    return proto


def _take(model: Model, other: Model) -> None:
    """Make `model` hold what `other` holds."""
    model.graph, model.header = other.graph, other.header
    model.__dict__.pop("_namer", None)
