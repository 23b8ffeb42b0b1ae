"""The plan of a pruning: groups, what the data say of them, and the order in which units go."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import Model
from ...ir.labels import Cells, join, stack
from ...ir.spill import let_go
from ...runtime import moments, unfold
from ...runtime.contraction import contraction
from ...runtime.feeds import Feeds
from ...runtime.relay import relayed
from ..base import Context
from . import fisher, recurrent, stats
from .dead import Fold
from .grouping import Groups
from .layers import Layer, layers, matrix
from .order import Order
from .pacing import Pace
from .refit import RIDGES
from .score import Curvature, columns_of, curvature
from .stats import Target

SCORED = 8192  # rows behind the second moments that scores use
FEEDS = 256  # feeds that statistics and the refit look at, at most


Array = np.ndarray


@dataclass
class Plan:
    """Everything that `apply` needs, for any strength."""

    groups: Groups
    order: Order
    layers: list[Layer] = field(default_factory=list)
    goals: dict[str, Target] = field(default_factory=dict)
    feeds: Feeds | None = None
    held_back: str = ""
    folds: dict[str, Fold] = field(default_factory=dict)
    ridges: Sequence[float] = RIDGES
    contest: list[float] = field(default_factory=list)  # output errors of the ways to weigh losses, if they were tried
    pace: Pace | None = None


def fitting_feeds(ctx: Context) -> Feeds:
    """The feeds to look at."""
    return ctx.fit.spread(FEEDS)


def goals(model: Model, found: Sequence[Layer], feeds: Feeds, ctx: Context) -> dict[str, Target]:
    """The original's outputs at sampled places, three eighths of the memory budget of them, in four waves."""
    nodes = {n.name: n for n in model.graph.nodes}
    widths = {x.node: matrix(nodes[x.node]).shape[2] for x in found}
    heights = {x.node: int(np.prod(matrix(nodes[x.node]).shape[:2])) for x in found}
    heights |= {x.node: heights[x.node] + int(np.prod(matrix(nodes[x.node]).shape[::2])) for x in found if x.states}
    budget = (ctx.memory_mb << 20) * 3 // 8 // max(4 * sum(heights.values()), 1)
    most = stats.rows_per_feed(found, widths, len(feeds), budget)
    named, waves = recurrent.named(model, [x.node for x in found if x.states]), chunks(found, 4)
    walks = relayed(named, [stats.looked_at(wave) for wave in waves], feeds, threads=ctx.workers)
    result: dict[str, Target] = {}
    for wave, walk in zip(waves, walks):
        result.update(stats.targets(named, wave, walk, len(feeds), most, ctx.seed))
    return result


def chunks(found: Sequence[Layer], count: int) -> list[list[Layer]]:
    """Layers in their order, in at most `count` runs of about the same length."""
    each = max(1, -(-len(found) // max(count, 1)))
    return [list(found[k : k + each]) for k in range(0, len(found), each)]


def curvatures(
    model: Model, groups: Groups, found: Sequence[Layer], goal: Mapping[str, Target], feeds: Feeds, ctx: Context
) -> list[Curvature]:
    """Second-order losses of every consumer whose inputs may go."""
    flow, nodes = groups.flow, {n.name: n for n in model.graph.nodes}
    free = np.zeros(flow.atoms.count, bool)
    free[groups.units] = True
    inner = {p.node: flow.atoms.resolve(p.inner) for p in flow.products if p.weight == 1}
    inner |= {x.node: _summed(groups, nodes[x.node]) for x in found if x.op == "Einsum"}
    inner |= {x.node: _read(groups, x, nodes[x.node]) for x in found if x.states}
    wanted = [x for x in found if inner.get(x.node) is not None and free[inner[x.node]].any()]
    by_node = {x.node: x for x in wanted}
    result = []
    stream = moments.stream(
        model,
        [x.node for x in wanted if not x.states],
        feeds,
        memory_mb=ctx.memory_mb // 4,  # the goals hold three eighths of the budget
        seed=ctx.seed,
        threads=ctx.workers,
        max_rows_per_feed=-(-SCORED // len(feeds)),
        geometry=unfold.regression,
        progress=ctx.progress,
    )
    both = ((x.node, recurrent.moment(goal[x.node].read)) for x in wanted if x.states)
    for name, moment in itertools.chain(stream, both):
        layer = by_node[name]
        second = moment.second if moment.H is not None or moment.width <= 2048 else None
        scale = max(goal[layer.node].variance, 1e-12)
        cells = inner[name]
        assert cells is not None
        mean = moment.mean if layer.bias is not None else np.zeros_like(moment.mean)  # nothing takes the mean over
        curve = curvature(name, matrix(nodes[name]), mean, second, moment.X, cells, free, scale)
        curve.rows = _made(groups, layer, free)
        result.append(curve)
    return result


def _made(groups: Groups, layer: Layer, free: Array) -> dict[int, Array]:
    """Outputs of a layer that go with each unit."""
    cells = _joined(groups, layer.y, layer.made)
    return {} if cells is None else columns_of(np.tile(cells, (max(layer.gates, 1), 1)), free, 1)


def _summed(groups: Groups, node: gs.Node) -> Cells | None:
    """Labels of the columns of an Einsum's data."""
    product = contraction(node)
    return None if product is None else _joined(groups, node.inputs[product.x].name, product.columns[0])


def _read(groups: Groups, layer: Layer, node: gs.Node) -> Cells | None:
    """Labels of the inputs of a recurrent layer and of its states, one after the other."""
    parts = [_joined(groups, layer.x, (2,)), _joined(groups, layer.y, layer.made)]
    return stack(parts, [int(node.inputs[k].shape[2]) for k in (1, 2)])


def _joined(groups: Groups, tensor: str, axes: Sequence[int]) -> Cells | None:
    """Labels of the positions of some axes of a tensor together, the last axis running fastest."""
    flow = groups.flow
    labels, sizes = flow.labels.get(tensor, []), flow.sizes.get(tensor, ())
    found: Cells | None = None
    for k, axis in enumerate(axes if labels else ()):
        cells = flow.atoms.resolve(labels[axis])
        if cells is not None:
            before, behind = (int(np.prod([sizes[a] for a in part])) for part in (axes[:k], axes[k + 1 :]))
            found = join(found, np.tile(np.repeat(cells, behind, axis=0), (before, 1)))
    return found


def emphasise(curves: Sequence[Curvature], goal: Mapping[str, Target], found: Mapping[str, fisher.Fisher]) -> None:
    """What errors of single outputs, and at single places, count in losses and in the refit; in place."""
    for curve in curves:
        if curve.node in found:
            variances = goal[curve.node].variances
            curve.emphasis = fisher.emphasis(found[curve.node].channels, variances, len(curve.weight))
    let_go()  # the rows that variances have read
    for node, one in found.items():
        if one.places:
            goal[node].weights = fisher.weights(one.places)


__all__ = ["FEEDS", "Plan", "chunks", "curvatures", "emphasise", "fitting_feeds", "goals", "layers"]
