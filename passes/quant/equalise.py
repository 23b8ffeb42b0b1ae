"""Channels brought to like ranges before they are quantized together: one scale for a tensor then fits all of them.

A factor on a channel of a tensor goes into the rows of what makes it and comes out of the columns of what reads it;
Relu, PRelu, pools and Concat let it through, Add asks both sides for the same (cross-layer equalisation, DFQ, arXiv
1906.04721; with LayerNormalization as the maker it is SmoothQuant, arXiv 2211.10438). In float the model computes the
same, but for rounding; behind a Relu6 only its integers do (see `clips`). Channels get labels that flow with the data,
so that residual streams and branches are one case.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ...ir import Model, edit, ops
from ...runtime import ranges
from ...runtime.feeds import Feeds
from ..bands import mapped
from ..base import Context
from . import affine, smooth
from .eligible import bias_by_output
from .placement import bounds_of, clip_is_constant

FEEDS = 16
LARGEST = 64.0  # factor: beyond, weights of rare channels would be all that a reader's scale is made for
STRENGTH = 0.5  # exponent of the ratio of ranges: activations gain and weights lose

_SAME = frozenset({"Relu", "LeakyRelu", "PRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity", "Dropout"})


@dataclass
class Labels:
    """Channels of one tensor: a number for each, and the axis they lie along."""

    at: np.ndarray
    axis: int


@dataclass
class Flow:
    """Labels of tensors by name; `ties` are numbers that must get one factor, `barred` those that get none, `clipped`
    those whose factor must be a power of two and at least 1 (see `clips`)."""

    of: dict[str, Labels] = field(default_factory=dict)
    ties: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    barred: list[np.ndarray] = field(default_factory=list)
    clipped: list[np.ndarray] = field(default_factory=list)
    count: int = 0

    def fresh(self, width: int, axis: int) -> Labels:
        """Labels for the output of a layer."""
        self.count += width
        return Labels(np.arange(self.count - width, self.count), axis)

    def bar(self, tensor: object) -> None:
        """No factor for the channels of a tensor."""
        known = self.of.get(getattr(tensor, "name", ""))
        if known is not None:
            self.barred.append(known.at)


def layer(node: gs.Node) -> ops.Weight | None:
    """The weight of a dense or depthwise layer whose rows and columns may be scaled; None for other nodes."""
    if node.op not in ("Conv", "Gemm", "MatMul") or not isinstance(edit.get(node, 1), gs.Constant):
        return None
    weight, held, bias = ops.facts(node).weight(node), node.inputs[1], edit.get(node, 2)
    if weight is None or weight.index != 1 or len(held.outputs) != 1 or np.dtype(held.dtype) != np.float32:
        return None
    if bias is not None and (not bias_by_output(node) or np.prod(bias.shape) != held.shape[weight.out_axis]):
        return None
    depthwise = weight.groups == held.shape[weight.out_axis] and held.shape[weight.in_axis] == 1
    plain = node.op != "Gemm" or (node.attrs.get("alpha", 1.0) == node.attrs.get("beta", 1.0) == 1.0)
    flat = node.op != "MatMul" or len(held.shape) == 2
    return weight if (weight.groups == 1 or depthwise) and plain and flat and not node.attrs.get("transA", 0) else None


def follow(model: Model, excluded: Callable[[gs.Node], bool]) -> Flow:
    """Labels of every tensor of the main graph; excluded nodes are not touched."""
    flow = Flow()
    for node in model.graph.nodes:
        if excluded(node):
            for tensor in node.inputs:
                flow.bar(tensor)
        else:
            _step(flow, node)
    for tensor in model.outputs:
        flow.bar(tensor)
    inner = {id(n) for n in model.graph.nodes}
    for tensor in model.tensors().values():  # what a subgraph captures stays as it is
        if any(id(r) not in inner for r in tensor.outputs):
            flow.bar(tensor)
    return flow


def _step(flow: Flow, node: gs.Node) -> None:
    weight, out = layer(node), node.outputs[0] if node.outputs else None
    if weight is not None and out is not None:
        rank = 2 if node.op == "Gemm" else len(node.inputs[1].shape) if node.op == "Conv" else _rank(node.inputs[0])
        if rank is not None:
            axis = 1 if node.op == "Conv" else rank - 1
            known = flow.of.get(node.inputs[0].name)
            if known is not None and known.axis != axis:
                flow.bar(node.inputs[0])
            flow.of[out.name] = flow.fresh(int(node.inputs[1].shape[weight.out_axis]), axis)
            return
    if _norm(node):
        flow.bar(node.inputs[0])
        rank = _rank(node.inputs[0])
        if rank is not None:
            flow.of[node.outputs[0].name] = flow.fresh(int(node.inputs[1].shape[0]), rank - 1)
        return
    if affine.step(flow, node):
        return
    x = flow.of.get(node.inputs[0].name) if node.inputs else None
    if node.op in _SAME and x is not None and len([t for t in node.outputs if t.name]) == 1:
        flow.of[node.outputs[0].name] = x
        for tensor in node.inputs[1:]:  # a slope that is computed
            flow.bar(tensor)
    elif not _joined(flow, node):
        for tensor in node.inputs:
            flow.bar(tensor)


def _joined(flow: Flow, node: gs.Node) -> bool:
    rule = {"Concat": _concat, "Add": _add, "Clip": _clip}.get(node.op)
    return rule is not None and rule(flow, node)


def _norm(node: gs.Node) -> bool:
    last = node.op == "LayerNormalization" and node.attrs.get("axis", -1) == -1
    return last and all(isinstance(t, gs.Constant) and len(t.shape) == 1 for t in node.inputs[1:])


def _concat(flow: Flow, node: gs.Node) -> bool:
    parts = [flow.of.get(t.name) for t in node.inputs]
    known = [p for p in parts if p is not None]
    if len(known) != len(parts) or {p.axis for p in known} != {node.attrs.get("axis")}:
        return False
    flow.of[node.outputs[0].name] = Labels(np.concatenate([p.at for p in known]), known[0].axis)
    return True


def _add(flow: Flow, node: gs.Node) -> bool:
    a, b = (flow.of.get(t.name) for t in node.inputs)
    if a is None or b is None or a.axis != b.axis or len(a.at) != len(b.at):
        return False
    if _rank(node.inputs[0]) != _rank(node.inputs[1]):
        return False
    flow.ties.append((a.at, b.at))
    flow.of[node.outputs[0].name] = a
    return True


def _clip(flow: Flow, node: gs.Node) -> bool:
    """A Clip at 0 is a Relu; one that also has an upper end lets factors through where one layer makes it and one
    reads it, so that the two can take them back."""
    known, (low, high) = flow.of.get(node.inputs[0].name), bounds_of(node)
    if known is None or low != 0 or high <= 0 or not clip_is_constant(node):
        return False
    if high < np.inf:
        maker, readers = edit.producer(node.inputs[0]), node.outputs[0].outputs
        if maker is None or layer(maker) is None or len(node.inputs[0].outputs) != 1:
            return False
        if len(readers) != 1 or layer(readers[0]) is None:
            return False
        flow.clipped.append(known.at)
    flow.of[node.outputs[0].name] = known
    return True


def _rank(tensor: object) -> int | None:
    shape = getattr(tensor, "shape", None)
    return None if shape is None else len(shape)


def factors(
    model: Model, feeds: Feeds, ctx: Context, excluded: Callable[[gs.Node], bool] = lambda node: False
) -> dict[str, np.ndarray]:
    """{tensor that a layer makes or reads: factor of each of its channels}; empty when nothing may be scaled.

    A channel whose range is a share r of its tensor's gets r to the power of -`STRENGTH`, where it is clipped above the
    nearest power of two; for what else only matrix products read, the strength is chosen by their error (`smooth`).
    """
    flow = follow(model, excluded)
    read = {n.inputs[0].name for n in model.graph.nodes if layer(n) is not None and n.inputs[0].name in flow.of}
    if not read:
        return {}
    seen = ranges.collect(
        model,
        sorted(read),
        feeds.spread(FEEDS),
        bins=None,
        axes={n: flow.of[n].axis for n in read},
        memory_mb=ctx.memory_mb // 2,
        threads=ctx.workers,
        progress=ctx.on_progress,
    )
    classes, share = _classes(flow), np.zeros(flow.count)
    for name, found in seen.items():
        if found.channel_min is not None and found.channel_max is not None:
            peak = np.maximum(np.abs(found.channel_min), np.abs(found.channel_max)).astype(np.float64)
            if peak.max() > 0 and len(peak) == len(flow.of[name].at):
                np.maximum.at(share, classes[flow.of[name].at], peak / peak.max())
    factor = np.where(share > 0, np.maximum(share, 1e-9) ** -STRENGTH, 1.0)
    factor = np.minimum(factor, LARGEST)
    barred, clipped = _marked(flow.barred, classes), _marked(flow.clipped, classes)
    factor[clipped] = 2 ** np.rint(np.log2(factor[clipped]))
    products = smooth.groups(model, {n: classes[flow.of[n].at] for n in read}, barred | clipped)
    for at, best in smooth.choose(model, products, seen, factor, feeds, ctx):
        factor[at] = best
    factor[barred] = 1.0
    return {name: factor[classes[labels.at]] for name, labels in flow.of.items()}


def _marked(found: list[np.ndarray], classes: np.ndarray) -> np.ndarray:
    """Whether each class has one of these labels."""
    marked = np.zeros(len(classes), np.bool_)
    for at in found:
        marked[classes[at]] = True
    return marked


def _classes(flow: Flow) -> np.ndarray:
    """The class of each label: labels that are tied have one."""
    if not flow.ties:
        return np.arange(flow.count)
    a, b = (np.concatenate([t[k] for t in flow.ties]) for k in (0, 1))
    graph = coo_array((np.ones(len(a), np.int8), (a, b)), (flow.count, flow.count))
    return np.asarray(connected_components(graph, directed=False)[1])


def apply(model: Model, found: Mapping[str, np.ndarray]) -> int:
    """Scale rows and columns of every layer; returns how many layers changed."""
    changed = 0
    for node in model.graph.nodes:
        weight = layer(node)
        if not node.inputs or not node.outputs:
            continue
        # a product may have its constant first
        data = next((t for t in node.inputs if isinstance(t, gs.Variable)), node.inputs[0])
        rows, columns = found.get(node.outputs[0].name), found.get(data.name)
        if columns is not None and (columns == 1).all():  # of any length: barred channels may lie along another axis
            columns = None
        if weight is None and not _norm(node):
            changed += affine.scale(model, node, rows, columns)
        elif _norm(node):
            changed += _scale_norm(model, node, rows)
        elif weight is not None and any(f is not None and (f != 1).any() for f in (rows, columns)):
            _scale_layer(model, node, weight, rows, columns)
            changed += 1
    return changed


def _scale_layer(
    model: Model, node: gs.Node, weight: ops.Weight, rows: np.ndarray | None, columns: np.ndarray | None
) -> None:
    held = node.inputs[1]
    rank, one = len(held.shape), np.ones(1)
    over = one if rows is None else _along(rows, weight.out_axis, rank)
    under = one if columns is None else _along(columns, weight.in_axis if weight.groups == 1 else weight.out_axis, rank)
    # `layer` saw that nobody else reads it
    held.values = mapped(lambda v, a, b: v.astype(np.float64) * a / b, held.values, over, under)
    bias = edit.const(node, 2)
    if rows is not None and bias is not None:
        scaled = (bias.astype(np.float64) * rows.reshape(bias.shape)).astype(np.float32)
        edit.set_input(node, 2, edit.constant(model, node.inputs[2].name, scaled))


def _scale_norm(model: Model, node: gs.Node, rows: np.ndarray | None) -> int:
    if rows is None or not (rows != 1).any():
        return 0
    for k in range(1, len(node.inputs)):
        values = node.inputs[k].values * rows.astype(np.float32)
        edit.set_input(node, k, edit.constant(model, node.inputs[k].name, values))
    return 1


def _along(values: np.ndarray, axis: int, rank: int) -> np.ndarray:
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)
