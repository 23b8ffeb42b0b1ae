"""`fold`: everything that no input can change is computed once and stored, unless storing it would grow the file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import Model, edit, order, shapes
from ...ir.errors import OptionError
from ...ir.exporting import weight_bytes
from ...ir.model import packed_nbytes
from ..base import Context, Pass, PassResult, Skip
from . import candidates, control, execute, fills, targets, unroll

# Bytes that a node takes in a file besides its weights (names, operator, attributes): saved when it is folded.
NODE_BYTES = 48
# Growth that is always allowed, so that tiny models fold too (bytes).
FLOOR = 1 << 14
# Growth that an option may allow.
MOST = 10**6
ROUNDS = 8


@dataclass(frozen=True)
class Fold(Pass):
    """Fold constants, shape arithmetic with partly known sizes, If with a constant condition, and loops that are short.

    growth: how much the weights of the file may grow in total, as a fraction; a constant whose stored form is larger
        than what it replaces is folded only within it.
    """

    name: ClassVar[str] = "fold"
    growth: float = 0.005

    def __post_init__(self) -> None:
        if not 0 <= self.growth <= MOST:
            raise OptionError(f"growth={self.growth} is no share of the weights (0 to {MOST})")

    def run(self, model: Model, ctx: Context | None = None) -> PassResult:
        """Edit `model` in place."""
        return self.within(model, [self.allowance(model)])

    def allowance(self, model: Model) -> int:
        """Bytes that the weights may grow by."""
        return FLOOR + int(self.growth * weight_bytes(model))

    def within(self, model: Model, allowance: list[int]) -> PassResult:
        """Edit `model` in place; `allowance` holds the bytes that are left, and what is used is taken off it."""
        before = sum(1 for _ in model.nodes())
        did: dict[str, int | float | str] = {}
        barred: dict[str, str] = {}
        tried: dict[str, Any] = {}
        loops: dict[str, str] = {}
        for _ in range(ROUNDS):
            inlined = control.inline_ifs(model)
            unrolled = unroll.unroll_loops(model, loops)
            if unrolled:
                order.sort(model)
                shapes.refresh(model)
            known, rewritten, moved = targets.fold_known(model, tried)
            folded = fold_constants(model, barred, allowance)
            _count(did, {"branches inlined": inlined + moved, "loops unrolled": unrolled, "targets fixed": rewritten})
            control.plain_ranges(model)
            if not (inlined or unrolled or moved or folded or known or rewritten):
                break
        edit.sweep(model)
        left = {n.name for n in model.nodes()}
        _count(did, {"nodes folded": max(before - len(left), 0)})
        skipped = tuple(Skip(name, why) for name, why in {**loops, **barred}.items() if name in left)
        return PassResult(bool(did), did, skipped)


def _count(did: dict[str, int | float | str], more: dict[str, int]) -> None:
    for key, value in more.items():
        if value:
            did[key] = int(did.get(key, 0)) + value


def fold_constants(model: Model, barred: dict[str, str], allowance: list[int]) -> int:
    """Compute the constant part in one batch and put constants in its place; returns how many nodes that freed.

    barred: nodes left alone, with reasons; added to. allowance: bytes that the file may still grow.
    """
    total = 0
    for _ in range(ROUNDS):
        nodes = candidates.find(model, barred)
        while nodes and _bar_unaffordable(model, nodes, barred, allowance[0]):
            nodes = candidates.find(model, barred)
        if not nodes:
            break
        known = len(barred)
        wanted = candidates.frontier(nodes, edit.output_ids(model))
        values = execute.run(model, nodes, wanted, barred)
        total += _settle(model, nodes, values, barred, allowance)
        if len(barred) == known:
            break
    return total


def _bar_unaffordable(model: Model, nodes: list[gs.Node], barred: dict[str, str], allowance: int) -> bool:
    """Bar what shape inference already says would grow the file too much, so that it is never computed."""
    outputs, before = edit.output_ids(model), len(barred)
    for group in candidates.components(nodes, outputs):
        if candidates.of_fills(group):
            continue  # of one value, perhaps: how they are stored shows when they are computed
        ends = candidates.frontier(group, outputs)
        sizes = {id(t): candidates.size_of(t) for t in ends}
        saved = candidates.removable(group, outputs) + NODE_BYTES * len(group)
        if sum(sizes.values()) - saved > max(allowance, 0):
            _bar_largest(sum(sizes.values()) - saved, ends, sizes, barred, max(allowance, 0))
    return len(barred) > before


def _settle(
    model: Model,
    nodes: list[gs.Node],
    values: dict[int, Any],
    barred: dict[str, str],
    allowance: list[int],
) -> int:
    """Commit the groups of nodes that pay, those first that cost least a node; bar what makes the others too large."""
    outputs = edit.output_ids(model)
    priced = []
    for group in candidates.components(nodes, outputs):
        ends = candidates.frontier(group, outputs)
        missing = [t for t in ends if values.get(id(t)) is None]
        for tensor in missing:
            barred.setdefault(tensor.inputs[0].name, "the result is not a tensor, or could not be computed")
        if not missing:
            if candidates.of_fills(group):
                values.update({id(t): fills.compact(values[id(t)]) for t in ends})
            saved = candidates.removable(group, outputs) + NODE_BYTES * len(group)
            sizes = {id(t): _bytes(values[id(t)]) for t in ends}
            priced.append((sum(sizes.values()) - saved, group, ends, sizes))
    done: list[gs.Node] = []
    for growth, group, ends, sizes in sorted(priced, key=lambda p: max(p[0], 0) / len(p[1])):
        if growth <= max(allowance[0], 0):
            allowance[0] -= max(growth, 0)
            _commit(group, ends, values)
            done += group
        else:
            _bar_largest(growth, ends, sizes, barred, max(allowance[0], 0))
    _remove(model, done)
    return len(done)


def _bar_largest(growth: int, ends: list[Any], sizes: dict[int, int], barred: dict[str, str], limit: int) -> None:
    for tensor in sorted(ends, key=lambda t: -sizes[id(t)]):
        if growth <= limit:
            return
        growth -= sizes[id(tensor)]
        barred[tensor.inputs[0].name] = f"the file would grow by {sizes[id(tensor)]} bytes"


def _bytes(array: np.ndarray) -> int:
    if fills.is_fill(array):
        return array.itemsize
    if array.dtype == np.object_:
        return sum(len(str(v)) for v in array.reshape(-1))
    return packed_nbytes(array.dtype, array.shape)


def _commit(group: list[gs.Node], ends: list[Any], values: dict[int, Any]) -> None:
    edit.unlink(*group)
    for tensor in ends:
        tensor.to_constant(values[id(tensor)])
        tensor.__dict__.setdefault("_export_dtype", None)


def _remove(model: Model, done: list[gs.Node]) -> None:
    gone = {id(n) for n in done}
    for graph in list(model.graphs()):
        if any(id(n) in gone for n in graph.nodes):
            graph.nodes = [n for n in graph.nodes if id(n) not in gone]
