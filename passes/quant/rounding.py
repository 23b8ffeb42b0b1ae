"""Weights rounded for the inputs they really meet, and biases that take up what is left.

From the streamed moments of a layer's input: the scale search weighs columns by their variance, rounding passes its
error on (GPTQ, arXiv 2210.17323), and the mean of the error that remains is added to the bias, E[W x] - E[W_q x]
(bias correction, arXiv 1906.04721). With a bias to carry the mean, the moment that rounding sees is the covariance.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import Model, edit, ops
from ...runtime import moments
from ...runtime.feeds import Feeds
from ...runtime.moments import Moment
from ..bands import bands
from ..base import Context
from .eligible import bias_by_output
from .weights import Packed, descend, nearest, ordered_factor, passed_on, rows, search_scale, unrows

WIDEST = 2304  # columns; the inverse of a larger moment takes longer than it is worth
FEEDS = 32
SUMS = 1e-6  # relative error of sums of float32 products


@dataclass(frozen=True)
class Rounded:
    """An integer weight, and what to add to the layer's bias, [output channels] (None: it has no place for it)."""

    packed: Packed
    shift: np.ndarray | None


def refine(model: Model, feeds: Feeds, ctx: Context) -> dict[str, Rounded]:
    """{weight's name: Rounded} for layers of the main graph that met inputs and whose weight no other node reads."""
    layers = {n.name: n for n in model.graph.nodes if _suits(n)}
    found: dict[str, Rounded] = {}
    if not layers:
        return found
    stream = moments.stream(
        model,
        list(layers),
        feeds.spread(FEEDS),
        memory_mb=ctx.memory_mb // 4,
        seed=ctx.seed,
        threads=ctx.workers,
        progress=ctx.on_progress,
        skip_unseen=True,
    )
    for name, moment in stream:
        found[layers[name].inputs[1].name] = _round(layers[name], moment)
    return found


def _suits(node: gs.Node) -> bool:
    if node.op not in ("Conv", "Gemm", "MatMul") or not isinstance(edit.get(node, 1), gs.Constant):
        return False
    held = node.inputs[1]
    a = node.attrs
    plain = node.op != "Gemm" or (not a.get("transA", 0) and a.get("alpha", 1.0) == a.get("beta", 1.0) == 1.0)
    rank = len(held.shape) == 2 if node.op == "MatMul" else len(held.shape) >= 2
    return (
        plain
        and rank
        and np.dtype(held.dtype) == np.float32
        and len(held.outputs) == 1
        and isinstance(node.inputs[0], gs.Variable)
        and (node.op == "MatMul" or bias_by_output(node))
    )


def _round(node: gs.Node, moment: Moment) -> Rounded:
    """Scale search, rounding and the mean of the error of one layer."""
    weight = node.inputs[1].values
    facts = ops.facts(node).weight(node)
    axis = int(facts.out_axis) % weight.ndim if facts is not None else 0
    mean = np.atleast_2d(moment.mean)
    groups, width = mean.shape
    wide = rows(weight, axis).reshape(groups, -1, width)
    keeps_mean = node.op != "MatMul"
    if width <= WIDEST:
        values, steps = _for_inputs(wide, _moment(moment, mean if keeps_mean else np.zeros_like(mean)))
        packed = Packed(unrows(values.reshape(-1, width), weight.shape, axis), steps.reshape(-1), axis)
    else:
        packed = nearest(weight, axis)
        values, steps = rows(packed.values, axis).reshape(wide.shape), packed.scale.reshape(groups, -1)
    if not keeps_mean:
        return Rounded(packed, None)
    shift = [_lost(wide[:, part], values[:, part], steps[:, part], mean) for part in _bands(wide)]
    return Rounded(packed, np.concatenate(shift, axis=1).reshape(-1))


def _for_inputs(wide: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Integers [groups, rows, columns] and scales [groups, rows] for inputs with this second moment."""
    importance = np.maximum(np.einsum("gkk->gk", second), 0.0)
    importance += 1e-6 * importance.mean() + 1e-30
    order, upper = ordered_factor(second)
    values, steps = np.empty(wide.shape, np.int8), np.empty(wide.shape[:2], np.float32)
    for part in _bands(wide):
        some = wide[:, part].astype(np.float64)
        weighed = np.repeat(importance, some.shape[1], axis=0)
        scale = search_scale(some.reshape(-1, some.shape[2]), 127, weighed).reshape(some.shape[:2])
        values[:, part] = descend(some, scale, passed_on(some, scale, order, upper), second)
        steps[:, part] = scale
    return values, steps


def _bands(wide: np.ndarray) -> Iterator[slice]:
    """Rows of every group that are rounded together: each is a problem of its own."""
    return bands(np.moveaxis(wide, 1, 0).shape)


def _lost(wide: np.ndarray, values: np.ndarray, scale: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """The mean of the error of each output, [groups, rows]."""
    error = wide - values * scale[:, :, None].astype(np.float64)
    return np.asarray(np.einsum("grk,gk->gr", error, mean))


def _moment(moment: Moment, mean: np.ndarray) -> np.ndarray:
    """E[xxᵀ] less the square of the mean, [groups, columns, columns]. An input that hardly varies leaves only the
    rounding of the sums, which is no covariance: as much is added to the diagonal."""
    second = moment.second
    second = second[None] if second.ndim == 2 else second
    central = second - mean[:, :, None] * mean[:, None, :]
    floor = SUMS * np.einsum("gkk->gk", second).mean(axis=1)
    return central + floor[:, None, None] * np.eye(central.shape[1])
