"""Errors corrected and not piled up: last factors solved again on what the compressed model really feeds them.

Splits are fitted on the inputs of the model as it was. Behind other splits a layer sees other inputs; its last factor
W' (and bias) is then the minimiser of E‖y − W'z − b‖², y the layer's output in the model before the pass and z the
last factor's unfolded input in the model after it (asymmetric refit, He et al. 1707.06168).

Only layers of which none is behind another are solved together. This is not a matter of thrift: layers that feed each
other and are solved at once each correct the same error, and the corrections pile up (squeezenet1_1 at a quarter of
full rank: 3 dB without refit, -74 dB with all layers at once, 8 dB level by level).

A smaller error of a layer is still no promise of a smaller error of the model. The fit is to what comes before the
activation: with inputs that earlier splits made noisy, least squares shrinks towards the mean, and a ReLU then cuts
off the rare peaks that carry the signal (dnsmos at half of full rank: 3 dB better before the second ReLU and 2 dB worse
behind it, 12 dB worse four layers on). So a part of the fit feeds is kept out, and a level's refit stays only if it
lowers the error of the model's outputs there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from scipy import linalg

from ...ir import Model, edit, order
from ...runtime.pairs import Pair, PairMoment, collect_pairs
from ..base import Context
from .layer import Layer
from .norm import Array, ridge
from .sensitivity import change, outputs

BUDGET = 2e12  # MACs of all runs of one refit: a minute or two on one core
FEWEST = 8
JUDGES = 16  # feeds, not solved on, by whose outputs a refit is judged
PRIOR = 1e-2  # relative weight of the factor as it is: few samples move it little


@dataclass(frozen=True)
class Done:
    """A split layer: its name before the pass, its normal form, and the chain's last node."""

    name: str
    layer: Layer
    last: gs.Node


def refit(before: Model, model: Model, done: Sequence[Done], macs: int, ctx: Context) -> dict[str, float]:
    """Solve the last factors of split layers again, in topological order.

    macs: of one run of the model, to bound the work. Returns the relative output error of each layer, by name, on
    the inputs that it really gets.
    """
    done = [d for d in done if d.layer.op != "ConvTranspose" and d.layer.groups == 1 and _alone(d.layer)]
    if ctx.source == "random" or len(done) < 2:
        return {}
    solving, judging = ctx.fit.split()
    if solving.shared:
        ctx.note("lowrank: too few feeds to refit on some and judge by others; last factors stay as they were")
        return {}
    order.sort(model)
    levels = by_level(model, done)
    feeds = solving.spread(feeds_for(macs, len(levels), len(solving)))
    unseen = list(judging.spread(JUDGES))
    wanted = outputs(before, unseen, ctx.workers)
    best = first = change(wanted, outputs(model, unseen, ctx.workers))
    errors: dict[str, float] = {}
    back = 0
    for part in ctx.progress(levels, "refit", len(levels)):
        kept = [(node, list(node.inputs)) for d in part for node in _touched(d)]
        pairs = [Pair(d.name, d.last.name, "y") for d in part]
        found = collect_pairs(
            before, model, pairs, feeds, memory_mb=ctx.memory_mb // 2, seed=ctx.seed, threads=ctx.workers
        )
        solved = {d.name: _solve(model, d, found[d.last.name]) for d in part}
        now = change(wanted, outputs(model, unseen, ctx.workers))
        if now < best:
            best = now
            errors.update(solved)
            continue
        back += len(part)
        for node, inputs in kept:
            _restore(node, inputs)
    if back:
        ctx.note(
            f"lowrank: the refit of {back} of {len(done)} layers was taken back; output error on unseen feeds "
            f"was {first:.2g}, now {best:.2g}"
        )
    return errors


def _alone(layer: Layer) -> bool:
    """Whether its output is the product and a constant: one that adds something else is no regression on its input."""
    return layer.adjustable or layer.op == "MatMul"


def _touched(d: Done) -> list[gs.Node]:
    """The nodes whose constants a refit replaces."""
    add = d.layer.op == "MatMul" and d.layer.adjustable
    return [d.last, d.last.outputs[0].outputs[0]] if add else [d.last]


def _restore(node: gs.Node, inputs: Sequence[Any]) -> None:
    for k in range(max(len(inputs), len(node.inputs))):
        edit.set_input(node, k, inputs[k] if k < len(inputs) else None)


def by_level(model: Model, done: Sequence[Done]) -> list[list[Done]]:
    """Split layers by how many others are in front of them on the longest way; none in a level is behind another."""
    wanted = {id(d.last): d for d in done}
    depth: dict[int, int] = {}
    levels: dict[int, list[Done]] = {}
    for node in model.graph.nodes:
        level = max((depth.get(id(t), 0) for t in order.reads(node)), default=0)
        if id(node) in wanted:
            levels.setdefault(level, []).append(wanted[id(node)])
            level += 1
        depth.update((id(t), level) for t in node.outputs)
    return [levels[k] for k in sorted(levels)]


def feeds_for(macs: int, levels: int, available: int) -> int:
    """How many feeds to run through both models for every level, within `BUDGET` MACs."""
    affordable = BUDGET // max(1, 2 * macs * levels)
    return int(min(available, max(FEWEST, affordable)))


def _solve(model: Model, d: Done, moment: PairMoment) -> float:
    """Replace weight and bias of the last factor; returns E‖y − ŷ‖² / E‖y − E y‖²."""
    old = _flat(d.last)
    centre = d.layer.adjustable
    H, G = moment.H, moment.G
    energy = moment.energy - float(moment.mean_target @ moment.mean_target)
    if centre:
        H, G = H - np.outer(moment.mean, moment.mean), G - np.outer(moment.mean_target, moment.mean)
    scale = np.sqrt(np.maximum(np.diag(H), 1e-12 * max(np.trace(H), 1e-300)))
    level = max(PRIOR, ridge(len(H), moment.samples))
    damped = H / np.outer(scale, scale) + level * np.eye(len(H))
    step = linalg.solve(damped, ((G - old @ H) / scale).T, assume_a="pos").T / scale
    new = old + step
    _store(model, d.last, new)
    if centre:
        _shift(model, d, moment.mean_target - new @ moment.mean)
    spread = energy if centre else moment.energy
    lost = spread - 2 * np.einsum("ij,ij->", new, G) + np.einsum("ij,ij->", new @ H, new)
    return float(max(0.0, lost / energy)) if energy > 0 else 0.0


def _flat(node: gs.Node) -> Array:
    """A last factor's weight as (O, K) in float64."""
    weight = np.asarray(node.inputs[1].values, np.float64)
    if node.op == "Conv":
        return weight.reshape(len(weight), -1)
    return weight if node.op == "Gemm" and node.attrs.get("transB", 0) else weight.T


def _store(model: Model, node: gs.Node, flat: Array) -> None:
    old = node.inputs[1].values
    if node.op == "Conv":
        shaped = flat.reshape(old.shape)
    else:
        shaped = flat if node.op == "Gemm" and node.attrs.get("transB", 0) else flat.T
    edit.set_input(node, 1, edit.constant(model, node.inputs[1].name, np.ascontiguousarray(shaped.astype(old.dtype))))


def _shift(model: Model, d: Done, bias: Array) -> None:
    """The bias that makes the mean right. A MatMul's target has none: what is missing goes to the Add behind it."""
    dtype: Any = d.layer.dtype
    if d.layer.op != "MatMul":
        edit.set_input(d.last, 2, edit.constant(model, f"{d.name}_bias", bias.astype(dtype)))
        return
    add = d.last.outputs[0].outputs[0]
    index = next(i for i, t in enumerate(add.inputs) if isinstance(t, gs.Constant))
    shape = add.inputs[index].values.shape
    given = np.zeros(len(bias)) if d.layer.bias is None else d.layer.bias
    edit.set_input(add, index, edit.constant(model, f"{d.name}_bias", (given + bias).astype(dtype).reshape(shape)))
