"""SmoothQuant where no layer before can take the factors: a product of the tensor with a constant a channel.

A tensor that others read as well (the residual behind a LayerNormalization) or that a Gelu makes keeps its outliers;
beside them, everything else rounds to few integers. A Mul before the matrix products brings its channels to like
ranges and costs a sweep in float, so it is used only where the error of the products falls to half. Layers that stay
float in the end read the tensor as it was.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import Model, edit, ops, order
from ...runtime import ranges
from ...runtime.feeds import Feeds
from ..bands import mapped
from ..base import Context
from . import equalise, smooth
from .rounding import Rounded

LOUD = 10**-3.5  # noise over signal of a product beyond which a sweep in float is worth thinking of
PAYS = 0.5  # what that must fall to


@dataclass(frozen=True)
class Division:
    """A Mul before matrix products.

    node: its name; tensor: what it reads; factor: [channels]; weights: {divided weight: its name before}.
    """

    node: str
    tensor: str
    factor: np.ndarray
    weights: Mapping[str, str]


def divide(
    model: Model, able: Collection[str], factors: Mapping[str, np.ndarray], feeds: Feeds, ctx: Context
) -> tuple[Division, ...]:
    """Put a Mul before products of tensors with outliers, in place.

    able: nodes that compute in integers, whose products are read as they are; factors: those that were applied.
    """
    readers = _readers(model, able, factors)
    if not readers:
        return ()
    rows, found = smooth.rows(model, list(readers), feeds, ctx), []
    peaks = _peaks(model, list(readers), feeds, ctx)
    for name, nodes in readers.items():
        x, peak = rows.get(name), peaks.get(name)
        if x is None or peak is None or x.shape[1] != len(peak):
            continue
        weights, target = [smooth.matrix(n) for n in nodes], ctx.target
        plain = smooth.error(x, weights, np.ones(len(peak)), target.activation, target.symmetric)
        if plain < LOUD * len(weights):
            continue
        factor = smooth.best(x, weights, peak, [], target.activation, target.symmetric, PAYS)
        if (factor != 1).any():
            found.append(_scale(model, name, nodes, factor))
    if found:
        order.sort(model)
    return tuple(found)


def restore(model: Model, divided: Iterable[Division], chosen: Collection[str]) -> int:
    """Undo the Muls that no node of `chosen` reads; returns how many."""
    nodes, undone = {n.name: n for n in model.graph.nodes}, 0
    for division in divided:
        mul = nodes[division.node]
        if any(r.name in chosen for r in mul.outputs[0].outputs):
            continue
        for reader in list(mul.outputs[0].outputs):
            edit.set_input(reader, 0, mul.inputs[0])
            _weigh(model, reader, division.factor, division.weights[reader.inputs[1].name])
        undone += 1
    if undone:
        edit.sweep(model)
    return undone


def known(
    divided: Iterable[Division], rounded: Mapping[str, Rounded], loud: Mapping[str, float]
) -> tuple[dict[str, Rounded], dict[str, float]]:
    """(rounded, loud) with what is known of divided weights under the names that they have in float layers: the same
    integers, and the factors as a gain behind them."""
    integers, noise = dict(rounded), dict(loud)
    for division in divided:
        for name, before in division.weights.items():
            if name in rounded:
                gain = _beside(division.factor, rounded[name].packed.axis).astype(np.float32)
                integers[before] = replace(rounded[name], packed=replace(rounded[name].packed, gain=gain))
            if name in loud:
                noise[before] = loud[name]
    return integers, noise


def _readers(model: Model, able: Collection[str], factors: Mapping[str, np.ndarray]) -> dict[str, list[gs.Node]]:
    """{tensor: the products that read it} of tensors that floats make and that have no factors yet."""
    found: dict[str, list[gs.Node]] = {}
    for node in model.graph.nodes:
        if node.name not in able or node.op == "Conv" or equalise.layer(node) is None:
            continue
        tensor = node.inputs[0]
        source = tensor
        while source.inputs and source.inputs[0].op == "Reshape":
            source = source.inputs[0].inputs[0]
        integers = bool(source.inputs) and source.inputs[0].name in able
        factor = factors.get(tensor.name)
        if not integers and (factor is None or not (factor != 1).any()):
            found.setdefault(tensor.name, []).append(node)
    return found


def _peaks(model: Model, names: list[str], feeds: Feeds, ctx: Context) -> dict[str, np.ndarray]:
    tensors = model.tensors()
    axes = {n: len(tensors[n].shape) - 1 for n in names if tensors[n].shape}
    seen = ranges.collect(
        model,
        list(axes),
        feeds.spread(equalise.FEEDS),
        bins=None,
        axes=axes,
        memory_mb=ctx.memory_mb // 2,
        threads=ctx.workers,
        progress=ctx.on_progress,
    )
    return {n: peak for n, r in seen.items() if (peak := smooth.peak(r)) is not None}


def _scale(model: Model, name: str, nodes: list[gs.Node], factor: np.ndarray) -> Division:
    """The Mul before these products, and their weights divided."""
    x, values = nodes[0].inputs[0], factor.astype(np.float32)
    out = edit.variable(model, f"{name}_even", np.float32, x.shape)
    mul = edit.node(model, "Mul", [x, edit.constant(model, f"{name}_factors", values)], None, [out], f"{name}_Even")
    edit.add(model.graph, mul)
    weights = {}
    for node in nodes:
        before = node.inputs[1].name
        edit.set_input(node, 0, out)
        _weigh(model, node, 1 / values, edit.fresh(model, before))
        weights[node.inputs[1].name] = before
    return Division(mul.name, name, values, weights)


def _weigh(model: Model, node: gs.Node, factor: np.ndarray, name: str) -> None:
    """Multiply the columns of a product's weight, which is then called `name`."""
    held, weight = node.inputs[1], ops.facts(node).weight(node)
    assert weight is not None
    wide = _beside(factor.astype(np.float64), weight.out_axis)
    edit.set_input(node, 1, gs.Constant(name, mapped(lambda v, f: v * f, held.values, wide)))


def _beside(factor: np.ndarray, out_axis: int | None) -> np.ndarray:
    """A factor a column in a shape that multiplies a weight of two axes."""
    return factor[:, None] if out_axis in (1, -1) else factor[None]
