"""What a ReLU cuts off need not be right: last factors fitted to what comes behind the activation.

Zhang et al., "Accelerating very deep convolutional networks for classification and detection", 1505.06798, section 3.2:
min Σ‖r(y) − r(z)‖² + λ‖z − ŷ‖² over the relaxed outputs z (each entry in closed form) and, in turns, over the last
factor and the bias that give ŷ (a regression of z on what the last factor reads), while λ grows to 1. A fit is kept
only where it lowers the error behind the activation on rows of other feeds.

The same rows of the check feeds say what every split loses of the layer's output on inputs that nothing was fitted to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs
from scipy import linalg

from ...ir import Model, edit
from ...runtime import moments
from ...runtime.feeds import Feeds
from ..base import Context
from . import fit, siblings
from .basis import Basis
from .layer import Layer
from .norm import Array, ridge

if TYPE_CHECKING:
    from .planning import Found, Split

ROWS = 4096  # to fit on and to judge by, over all feeds
FEEDS = 64  # at most, to take them from
HELD_OUT = 4  # every so many rows judge, the last ones: those of other feeds
# λ: loose at first, at last as tied to the chain's output as to the target (the paper: 0.01, then 1)
WEIGHTS = (0.03,) * 6 + (0.3,) * 3 + (1.0,) * 3
GAIN = 0.99  # of the error behind the activation on held-out rows, below which the fit is kept


def refine(
    model: Model, found: Mapping[str, Found], wanted: Mapping[str, Iterable[int]], behind: bool, ctx: Context
) -> dict[str, Found]:
    """Splits with last factors that know of the ReLU behind them, and with their errors on the check feeds.

    wanted: indices of the splits to look at, by node name. behind: whether to fit to what comes behind activations.
    """
    again = siblings.reader(model)
    layers = {name: again(found[name].names, found[name].size) for name in wanted}
    layers = {name: layer for name, layer in layers.items() if layer.groups == 1 and layer.op != "ConvTranspose"}
    out = dict(found)
    rectified = {n: layer for n, layer in layers.items() if behind and ceiling(model, layer) is not None}
    for name, x in _rows(model, rectified, ctx.fit, "behind the activation", ctx):
        layer, top = layers[name], ceiling(model, layers[name])
        splits = list(out[name].splits)
        for index in wanted[name]:
            splits[index] = rectify(layer, splits[index], x, np.inf if top is None else top)
        out[name] = replace(out[name], splits=tuple(splits))
    for name, x in _rows(model, layers, ctx.check, "errors", ctx):
        splits = list(out[name].splits)
        for index in wanted[name]:
            splits[index] = replace(splits[index], unseen=lost(layers[name], splits[index], x))
        out[name] = replace(out[name], splits=tuple(splits))
    return out


def _rows(
    model: Model, layers: Mapping[str, Layer], feeds: Feeds, label: str, ctx: Context
) -> Iterable[tuple[str, Array]]:
    """(node name, rows (n, D) of its unfolded input)."""
    if not layers or ctx.source == "random":
        return
    some = feeds.spread(FEEDS)
    found = moments.stream(
        model,
        list(layers),
        some,
        memory_mb=ctx.memory_mb // 2,
        seed=ctx.seed,
        max_rows_per_feed=-(-ROWS // len(some)),
        keep_rows=True,
        threads=ctx.workers,
    )
    for name, moment in ctx.progress(found, label, len(layers)):
        if moment.X is not None:
            yield name, moment.X


def ceiling(model: Model, layer: Layer) -> float | None:
    """Where the activation right behind the layer stops to rise: inf for Relu, Clip's maximum; None for no such one."""
    node = layer.node if layer.slot is None else layer.slot
    output = node.outputs[0]
    if layer.members or not layer.adjustable or len(output.outputs) != 1 or edit.is_output(model, output):
        return None
    reader: gs.Node = output.outputs[0]
    if reader.op == "Relu":
        return float(np.inf)
    if reader.op != "Clip":
        return None
    low, high = (_bound(reader, k, name) for k, name in ((1, "min"), (2, "max")))
    return high if low == 0 and high is not None and high > 0 else None


def _bound(clip: gs.Node, index: int, name: str) -> float | None:
    value = edit.const(clip, index)
    if value is None:
        return float(clip.attrs[name]) if name in clip.attrs else None
    return float(np.asarray(value).reshape(-1)[0])


def rectify(layer: Layer, split: Split, x: Array, top: float) -> Split:
    """The split with its last factor and bias fitted to min(max(y, 0), top) on the rows x (n, D), where that helps."""
    spec = split.form.spec(layer)
    factors = [np.asarray(f, np.float64) for f in split.factors]
    own = np.zeros(layer.outputs) if layer.bias is None else np.asarray(layer.bias, np.float64)
    y = x @ layer.flat.T.astype(np.float32, copy=False) + own
    read_by = x @ Basis.of(spec, factors, layer.weight.shape).dense.T.astype(np.float32)
    h = np.concatenate([read_by, np.ones((len(x), 1), np.float32)], 1).astype(np.float64)
    moved = np.zeros(layer.outputs) if split.shift is None else split.shift
    start = np.concatenate([fit.first(spec, factors), (own + moved)[:, None]], 1)
    fitted, judged = slice(0, len(x) - len(x) // HELD_OUT), slice(len(x) - len(x) // HELD_OUT, None)
    solved = alternate(h[fitted], np.clip(y[fitted], 0, top), start, top)
    before, after = (_behind(h[judged], y[judged], a, top) for a in (start, solved))
    if not after < GAIN * before:
        return split
    found = fit.with_first(spec, factors, solved[:, :-1])
    return replace(
        split,
        factors=tuple(np.asarray(f, layer.dtype) for f in found),
        shift=solved[:, -1] - own,
        behind=(before, after),
    )


def alternate(h: Array, target: Array, start: Array, top: float = np.inf) -> Array:
    """A (O, q) with min(max(A h, 0), top) near the target (n, O), from `start`; h (n, q) ends in ones."""
    gram = h.T @ h / len(h)
    scale = np.sqrt(np.maximum(np.diag(gram), 1e-300))
    damped = gram / np.outer(scale, scale) + ridge(h.shape[1], len(h)) * np.eye(len(gram))
    factor = linalg.cho_factor(damped, check_finite=False)
    found = start
    for weight in WEIGHTS:
        z = relaxed(h @ found.T, target, weight, top)
        pull = (z - h @ found.T).T @ h / len(h)
        found = found + (linalg.cho_solve(factor, (pull / scale).T, check_finite=False).T / scale)
    return found


def relaxed(estimate: Array, target: Array, weight: float, top: float = np.inf) -> Array:
    """z that minimises (target − clip(z, 0, top))² + weight·(z − estimate)², entry by entry."""
    best, least = np.minimum(estimate, 0.0), np.full(estimate.shape, np.inf)
    pieces = [best, np.clip((weight * estimate + target) / (1 + weight), 0.0, top)]
    if np.isfinite(top):
        pieces.append(np.maximum(estimate, top))
    for z in pieces:
        cost = (target - np.clip(z, 0.0, top)) ** 2 + weight * (z - estimate) ** 2
        best, least = np.where(cost < least, z, best), np.minimum(cost, least)
    return best


def _behind(h: Array, y: Array, matrix: Array, top: float) -> float:
    """Relative error behind the activation."""
    target = np.clip(y, 0, top)
    energy = float(((target - target.mean(0)) ** 2).sum())
    return float(((np.clip(h @ matrix.T, 0, top) - target) ** 2).sum()) / energy if energy > 0 else 0.0


def lost(layer: Layer, split: Split, x: Array) -> float:
    """Relative output MSE of a split on rows x (n, D): over the output's variance, or its energy without a bias."""
    short = fit.Lost(split.form.spec(layer), split.factors, layer.weight)
    missing = np.concatenate([x @ rows.T.astype(np.float32) for _, rows in short], axis=1)
    y = x @ layer.flat.T.astype(np.float32, copy=False)
    if split.shift is not None:
        missing, y = missing - split.shift, y - y.mean(0)
    energy = float((y.astype(np.float64) ** 2).sum())
    return float((missing.astype(np.float64) ** 2).sum()) / energy if energy > 0 else 0.0
