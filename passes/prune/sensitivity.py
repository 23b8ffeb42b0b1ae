"""What a layer's error does to the outputs: measured, so that losses of different layers can be compared.

The second-order loss of a consumer tells how far its own output moves. A quarter of its units is taken away in a trial
(with the best refit of the rest, but of nothing else), and the error of the model's outputs is divided by that loss.
The ratio hardly depends on how much is taken, and errors of several layers add up, so that one trial a layer is enough.

A trial refits nothing behind the layer, while the real refit corrects much of what early layers do. So the truth lies
between the measured error and the layer's own: their geometric mean is what losses are counted in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import Model, cost
from ...ir.flow import Product
from ...runtime.feeds import Feeds
from ..bands import bands
from ..base import Context
from .grouping import Groups
from .layers import Layer
from .score import Curvature
from .trial import Change, Trials

Array = np.ndarray
Pair = tuple[Product, Mapping[int, float]]  # two activations that contract, and the losses of its units
SHARE, STEPS = 0.25, 4  # of a consumer's units that a trial takes away, in so many steps
FEWEST, MOST = 2, 4  # feeds of a trial
WORK = 1e12  # MACs to spend on all trials, beyond the fewest feeds
LEAST = 0.01  # of the median: a layer that nothing seems to hang on may matter on other data
POWER = 0.5  # of the measured ratio: 1 counts in output errors, 0 in errors of each layer's own output
SATURATED = 0.5  # output error from which a trial says little: a smaller share is tried


def measured(
    model: Model,
    groups: Groups,
    layers: Sequence[Layer],
    curves: Sequence[Curvature],
    pairs: Sequence[Pair],
    feeds: Feeds,
    ctx: Context,
) -> list[float]:
    """Error of the outputs by loss, of every curve and then of every pair.

    pairs: contractions that no regression stands for, with the losses of the units that they contract.
    """
    names = {c.node for c in curves}
    count = len(curves) + len(pairs)
    few = spare(model, count, feeds)
    nodes = {n.name: n for n in model.graph.nodes}
    masked = [(p.node, p.operands[0], p.axes[0], _positions(nodes[p.node], p)) for p, _ in pairs]
    trials = Trials(model, [x for x in layers if x.node in names], masked, few, ctx.workers)
    work = [
        *(lambda c=c: _of_consumer(trials, c) for c in curves),
        *(lambda p=p: _of_pair(trials, groups, *p) for p in pairs),
    ]
    found = [one() for one in ctx.progress(work, "sensitivity", count)]
    felt = [f for f in found if f > 0]
    least = LEAST * float(np.median(felt)) if felt else 1.0
    return [max(f, least) for f in found]


def weigh(
    curves: Sequence[Curvature], pairs: Sequence[Pair], factors: Sequence[float], power: float = POWER
) -> dict[int, float]:
    """Weight losses by measured factors to a power: those of `curves` in place; returns those of `pairs` by unit."""
    for curve, factor in zip(curves, factors):
        curve.scale /= factor**power
    extra: dict[int, float] = {}
    for (_, losses), factor in zip(pairs, factors[len(curves) :]):
        for unit, loss in losses.items():
            extra[unit] = extra.get(unit, 0.0) + loss * factor**power
    return extra


def _of_consumer(trials: Trials, curve: Curvature) -> float:
    share = SHARE
    while True:
        loss, change = taken(curve, share)
        error = trials.error({curve.node: change})
        if error < SATURATED or share < SHARE / 4:
            return error / max(loss, 1e-12) if loss > 0 else 0.0
        share /= 4


def taken(curve: Curvature, share: float) -> tuple[float, Change]:
    """The relative loss, and the weights, after this share of a consumer's units went, the cheapest first."""
    left, loss = curve.copy(), 0.0
    count = max(1, int(share * len(left.columns)))
    for step in range(STEPS):
        due = count * (step + 1) // STEPS - count * step // STEPS
        losses = left.losses(list(left.columns))
        chosen = sorted(losses, key=lambda u: (losses[u], u))[:due]
        loss += sum(losses[u] for u in chosen)
        left.remove(chosen)
    return loss, change(curve, left)


def change(before: Curvature, after: Curvature) -> Change:
    """The weights of a down-dated consumer, and the bias that keeps its output's mean."""
    groups, outputs, width = before.weight.shape
    shift = [
        np.einsum("gtk,gk->gt", before.fitted_rows(part) - after.fitted_rows(part), before.mean)
        for part in bands((outputs, groups, width))
    ]
    return Change(after.fitted, np.concatenate(shift, axis=1).reshape(-1))


def spare(model: Model, trials: int, feeds: Feeds) -> Feeds:
    """As many feeds as so many trials may take."""
    spent = max(float(cost.of(model).macs), 1.0) * max(trials, 1)
    return feeds.spread(int(min(max(WORK // spent, FEWEST), MOST)))


def _of_pair(trials: Trials, groups: Groups, product: Product, losses: Mapping[int, float]) -> float:
    cells = groups.flow.atoms.resolve(product.inner)
    if cells is None or not losses:
        return 0.0
    chosen = sorted(losses, key=lambda u: (losses[u], u))[: max(1, int(SHARE * len(losses)))]
    mask: Array = np.logical_not(np.isin(cells, chosen).any(axis=1))
    loss = sum(losses[u] for u in chosen)
    mask = np.tile(mask, trials.given[trials.masks[product.node]].size // len(mask))  # the groups of a convolution
    return trials.error({}, {product.node: mask}) / max(loss, 1e-12) if loss > 0 else 0.0


def _positions(node: gs.Node, product: Product) -> int:
    """Positions of the contracted axis of the data input."""
    size = node.inputs[product.operands[0]].shape[product.axes[0]]
    return int(size) if isinstance(size, (int, np.integer)) else len(product.inner if product.inner is not None else ())
