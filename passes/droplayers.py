"""Whole residual blocks taken out: those that the outputs miss least, their part taken over by the layer before.

A block is an Add one of whose summands is made from the other; without it the other summand is the sum. Influence is
the error of the outputs in a trial without the block, where the layer before it is fitted to take its part over,
measured again as blocks go (lazy greedy).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ..ir import Model, edit, order, shapes
from ..ir.edit import output_ids
from ..ir.errors import OptionError
from ..ir.order import reads
from .base import Context, LossyPass, PassResult, Skip
from .prune import plan as planning
from .prune.layers import layers, matrix
from .prune.left import Left
from .prune.neighbours import Neighbours, goals
from .prune.refit import refit
from .prune.sensitivity import spare
from .prune.trial import Trials

DEFAULT = 0.5  # share of the blocks at strength 1 when nobody says


@dataclass(frozen=True)
class Block:
    """A residual sum: its node, which input is the branch, and the names of the other summand and of the sum."""

    node: str
    branch: int
    skip: str
    sum: str


@dataclass
class Plan:
    """Blocks in the order in which they may go; why there are none; and blocks that stay, with the reasons."""

    blocks: list[Block]
    why: str = ""
    kept: tuple[Skip, ...] = ()


@dataclass(frozen=True)
class DropLayers(LossyPass):
    """Take out whole residual blocks, those first that the outputs miss least, and refit what stays.

    The last layer before a dropped block is fitted to what came out of the block. Blocks that change shape stay.
    """

    name: ClassVar[str] = "droplayers"

    ratio: float | None = field(
        default=None, metadata={"help": "share of the residual blocks to drop, e.g. 0.25", "min": 0, "max": 1}
    )
    count: int | None = field(default=None, metadata={"help": "number of residual blocks to drop", "min": 1})
    refit: bool = field(default=True, metadata={"help": "fit what stays to the original's outputs (needs data)"})

    def __post_init__(self) -> None:
        if self.ratio is not None and self.count is not None:
            raise OptionError("droplayers: give one of ratio and count, not both")

    @property
    def explicit(self) -> bool:
        """Whether ratio or count says how much."""
        return self.ratio is not None or self.count is not None

    def plan(self, model: Model, ctx: Context) -> Plan:
        """Blocks in the order in which they may go."""
        every = blocks(model)
        stay = held(model, every, ctx.excluded)
        found = [b for b in every if b.node not in stay]
        kept = tuple(Skip(node, f"{names} would go with it and is excluded") for node, names in stay.items())
        if ctx.source == "random":
            ctx.note("droplayers: no real data was given (--data): which blocks matter cannot be told")
        most = self._most(len(found))
        if not found or not most or (ctx.source == "random" and not self.explicit):
            return Plan([], self._why_none(len(found), most), kept)
        if self.count is not None and self.count > most:
            ctx.note(f"droplayers: only {_counted(most)} may go (asked for {self.count})")
        return Plan(ranked(model, found, most, ctx), "", kept)

    def _most(self, total: int) -> int:
        if self.count is not None:
            return min(self.count, total)
        return round(self._share * total)

    @property
    def _share(self) -> float:
        return DEFAULT if self.ratio is None else self.ratio

    def _why_none(self, found: int, most: int) -> str:
        if not found:
            return "no residual block may go"
        if not most:
            return f"{self._share:g} of the {_counted(found)} that may go comes to none"
        return "no real data was given (--data): blocks go only where ratio or count says how many"

    def apply(self, model: Model, plan: Plan, strength: float, ctx: Context) -> PassResult:
        """Drop the first blocks of the plan, then refit."""
        gone = plan.blocks[: round(strength * len(plan.blocks))]
        if not gone:
            why = plan.why or f"strength {strength:g} of {_counted(len(plan.blocks))} comes to none"
            return PassResult(False, {"blocks dropped": 0}, (Skip("*", why), *plan.kept))
        original = model.copy()
        nodes = {n.name: n for n in model.graph.nodes}
        for block in gone:
            node = nodes[block.node]
            edit.replace(model, node.outputs[0], node.inputs[1 - block.branch])
        edit.sweep(model)
        order.sort(model)
        shapes.refresh(model)
        fitted = self._refit(original, model, gone, ctx) if self.refit and ctx.source != "random" else 0
        return PassResult(True, {"blocks dropped": len(gone), "layers refitted": fitted}, plan.kept)

    def _refit(self, original: Model, model: Model, gone: Sequence[Block], ctx: Context) -> int:
        feeds, found = planning.fitting_feeds(ctx), layers(model, keep=ctx.excluded)
        takes = takers(original, gone)
        aims = goals(original, found, takes, feeds, ctx)
        nodes = {n.name: n for n in model.graph.nodes}
        kept = {x.node: Left.whole(int(np.prod(matrix(nodes[x.node]).shape[:2]))) for x in found}
        return refit(model, found, feeds, aims, kept, ctx)


def _counted(blocks: int) -> str:
    return f"{blocks} residual block{'' if blocks == 1 else 's'}"


def takers(original: Model, gone: Sequence[Block]) -> dict[str, str]:
    """Tensor -> the sum of the dropped block behind it; a ReLU between does not matter, since it would come again."""
    found = {b.skip: b.sum for b in gone}
    for node in original.graph.nodes:
        if node.op == "Relu" and node.outputs[0].name in found:
            found[node.inputs[0].name] = found[node.outputs[0].name]
    return found


def blocks(model: Model) -> list[Block]:
    """Every residual sum that can be left out, in the order of the graph."""
    outputs = output_ids(model)
    behind: dict[str, frozenset[str]] = {}
    wanted = {t.name for n in model.graph.nodes if n.op == "Add" for t in n.inputs}
    found = []
    for node in model.graph.nodes:
        above: frozenset[str] = frozenset().union(*(behind.get(t.name, frozenset()) for t in reads(node)))
        above |= {t.name for t in reads(node) if t.name in wanted}
        behind.update((t.name, above) for t in node.outputs)
        if node.op == "Add" and node.domain in (None, "", "ai.onnx") and id(node.outputs[0]) not in outputs:
            found += _block(node, behind)
    return found


def held(model: Model, found: Sequence[Block], keep: Callable[[gs.Node], bool]) -> dict[str, str]:
    """Sums of the blocks that hold nodes to keep, themselves or in the branch, with the names of these: they would go
    with the block."""
    above: dict[str, frozenset[str]] = {}
    for node in model.graph.nodes:
        mine = frozenset({node.name} if keep(node) else ()).union(*(above.get(t.name, ()) for t in reads(node)))
        above.update((t.name, mine) for t in node.outputs)
    inside = {b.node: above[b.sum] - above.get(b.skip, frozenset()) for b in found}
    return {node: ", ".join(sorted(names)) for node, names in inside.items() if names}


def _block(node: gs.Node, behind: Mapping[str, frozenset[str]]) -> list[Block]:
    for branch in (0, 1):
        other, mine = node.inputs[1 - branch], node.inputs[branch]
        alike = other.shape is not None and list(other.shape) == list(node.outputs[0].shape or ())
        if isinstance(other, gs.Variable) and alike and other.name in behind.get(mine.name, ()):
            return [Block(node.name, branch, other.name, node.outputs[0].name)]
    return []


def ranked(model: Model, found: Sequence[Block], most: int, ctx: Context) -> list[Block]:
    """The blocks whose loss adds least to the error of what already went, one by one."""
    feeds = spare(model, 2 * len(found), planning.fitting_feeds(ctx))
    nodes = {n.name: n for n in model.graph.nodes}
    beside = (
        Neighbours(model, takers(model, found), planning.fitting_feeds(ctx), ctx) if ctx.source != "random" else None
    )
    masked = [(b.node, b.branch, len(nodes[b.node].outputs[0].shape) - 1, 1) for b in found]
    trials = Trials(model, beside.layers if beside else [], masked, feeds, ctx.workers)
    gone: dict[str, Any] = {}

    def error(k: int) -> float:
        takes = takers(model, [*chosen, found[k]])
        changes = beside.changes(takes) if beside else {}
        return trials.error(changes, {**gone, found[k].node: np.zeros(1)})

    chosen: list[Block] = []
    queue = [(error(k), k, 0) for k in ctx.progress(range(len(found)), "blocks", len(found))]
    heapq.heapify(queue)
    while queue and len(chosen) < most:
        _, k, known = heapq.heappop(queue)
        if known < len(gone):  # measured before others went: again, and back among the others
            heapq.heappush(queue, (error(k), k, len(gone)))
            continue
        gone[found[k].node] = np.zeros(1)
        chosen.append(found[k])
    return chosen
