"""How much each quantized tensor hurts the outputs: measured, one at a time, on one session with switches.

Every group of tensors gets a quantize/dequantize pair behind a `Where` that an extra boolean input turns on. Only the
groups with the worst noise of their own are measured; the rest, which is far below them, is estimated from the ratio
of noise at the outputs to noise at the tensor that was seen at the measured ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import Model, cost, edit, order
from ...runtime import Session
from ...runtime.feeds import Feeds
from ..base import Context
from . import storage
from .calibrate import Scale, expected_noise
from .placement import Placement
from .rounding import Rounded
from .statistics import Statistics

MASK = 1e4  # values beyond it are no features but "nowhere", as in the masks of attention
MEASURED = 48  # groups that are run; the others have less noise of their own
FEEDS = 4  # for tensors; weights are looked at on one, as their error is the same for every input
Changed = Callable[[], dict[str, np.ndarray]]


def measure(model: Model, placement: Placement, stats: Statistics, feeds: Feeds, ctx: Context) -> dict[str, float]:
    """{group: relative noise power at the outputs when it alone is quantized}, largest first."""
    scales, groups = stats.scales(placement), placement.groups()
    local = {g: _local(members, scales, stats) for g, members in groups.items()}
    suspects = sorted(groups, key=lambda g: (-local[g], g))[:MEASURED]
    order_of = {g: k for k, g in enumerate(groups)}
    suspects.sort(key=lambda g: order_of[g])
    found = _switched(model, {g: groups[g] for g in suspects}, scales, feeds, ctx)
    ratios = [found[g] / local[g] for g in suspects if 0 < local[g] < np.inf]
    typical = float(np.median(ratios)) if ratios else 0.0
    noise = {g: found.get(g, typical * local[g]) for g in groups}
    return dict(sorted(noise.items(), key=lambda item: (-item[1], item[0])))


def _local(members: Sequence[str], scales: Mapping[str, Scale], stats: Statistics) -> float:
    """Noise of a group's worst tensor relative to its signal, from histograms; infinite where that is a mask's: beside
    it all rounding is small, even of everything else to zero."""
    worst = 0.0
    for name in members:
        if max(-stats.seen[name].low, stats.seen[name].high) > MASK:
            return np.inf
        signal, noise = expected_noise(stats.seen[name], scales[name])
        worst = max(worst, noise / signal if signal > 0 else 0.0)
    return worst


def _switched(
    model: Model, groups: Mapping[str, Sequence[str]], scales: Mapping[str, Scale], feeds: Feeds, ctx: Context
) -> dict[str, float]:
    copy = model.copy()
    switches = {g: _switch(copy, members, scales) for g, members in groups.items()}
    return flip(copy, switches, feeds, ctx)


def flip(copy: Model, switches: Mapping[str, str], feeds: Feeds, ctx: Context) -> dict[str, float]:
    """{key: noise at the outputs with its switch alone on}."""
    order.sort(copy)
    session = Session(copy, threads=ctx.workers)
    off: dict[str, Any] = {name: np.zeros((), np.bool_) for name in switches.values()}
    chosen = list(feeds.spread(FEEDS))
    plain = [session.run({**feed, **off}) for feed in chosen]
    found = {}
    for key in ctx.progress(list(switches), "sensitivity", len(switches)):
        on = {**off, switches[key]: np.ones((), np.bool_)}
        found[key] = noise_of(plain, [session.run({**feed, **on}) for feed in chosen])
    return found


def _switch(model: Model, members: Sequence[str], scales: Mapping[str, Scale]) -> str:
    """Put a switched quantize/dequantize pair behind each tensor; returns the name of the switch's input."""
    switch = edit.variable(model, f"{members[0]}_switch", np.bool_, [])
    model.graph.inputs.append(switch)
    for name in members:
        real = edit.constant(model, f"{name}_scale", np.float32(scales[name].scale))
        zero = edit.constant(model, f"{name}_zero", np.asarray(scales[name].zero, scales[name].dtype))
        switched(model, name, switch, real, zero)
    return str(switch.name)


def switched(model: Model, name: str, switch: gs.Variable, real: gs.Tensor, zero: gs.Tensor) -> None:
    """Make everyone read a tensor quantized and dequantized while the boolean `switch` is true."""
    x = model.tensors()[name]
    q = edit.node(model, "QuantizeLinear", [x, real, zero])
    dq = edit.node(model, "DequantizeLinear", [q.outputs[0], real, zero])
    out = edit.variable(model, f"{name}_chosen", np.float32, x.shape)
    where = edit.node(model, "Where", [switch, dq.outputs[0], x], outputs=[out])
    edit.add(model.graph, q, dq, where)
    edit.replace(model, x, out)
    edit.set_input(q, 0, x)
    edit.set_input(where, 2, x)


def measure_weights(model: Model, rounded: Mapping[str, Rounded], feeds: Feeds, ctx: Context) -> dict[str, float]:
    """{weight's name: relative noise power at the outputs when it alone is rounded to 8 bits}, loudest first.

    Weights of every level that may be stored in 8 bits; those beyond `_affordable` count with the median. The
    measured weights are inputs of one session, fed as they are or rounded: it holds no copy of them.
    """
    if model.opset < storage.OPSET:
        return {}
    copy = model.copy()
    weights = storage.weights(copy, rounded)
    measured = sorted(weights, key=lambda n: (-storage.noise(weights[n]), n))[: _affordable(model)]
    plain, changed = {}, {}
    for name in measured:
        own, changed[name] = _opened(copy, weights[name])
        plain.update(own)
    found = _fed(copy, plain, changed, feeds, ctx) if measured else {}
    typical = float(np.median(list(found.values()))) if found else 0.0
    noise = {n: found.get(n, typical) for n in weights}
    return dict(sorted(noise.items(), key=lambda item: (-item[1], item[0])))


def _fed(
    copy: Model, plain: Mapping[str, np.ndarray], changed: Mapping[str, Changed], feeds: Feeds, ctx: Context
) -> dict[str, float]:
    """{key: noise at the outputs with its arrays in the place of the plain ones}, on one feed."""
    order.sort(copy)
    session = Session(copy, threads=ctx.workers)
    feed = {**next(iter(feeds.spread(1))), **plain}
    reference, found = session.run(feed), {}
    for key in ctx.progress(list(changed), "sensitivity of weights", len(changed)):
        found[key] = noise_of([reference], [session.run({**feed, **changed[key]()})])
    return found


def _opened(model: Model, stored: storage.Stored) -> tuple[dict[str, np.ndarray], Changed]:
    """Make a weight, and the bias that takes up its error, inputs of the graph; returns what they are and, when
    called, what they become."""
    held, own = stored.held, {}
    weight = edit.variable(model, f"{held.name}_in", np.float32, list(held.shape))
    model.graph.inputs.append(weight)
    edit.replace(model, held, weight)
    own[weight.name] = held.values
    if stored.shift is None:
        return own, lambda: {weight.name: storage.restored(stored.packed)}
    shift, known = stored.shift, edit.const(stored.reader, 2)
    was = np.zeros(shift.shape) if known is None else np.broadcast_to(known.reshape(-1), shift.shape)
    bias = edit.variable(model, f"{stored.reader.name}_bias_in", np.float32, list(shift.shape))
    model.graph.inputs.append(bias)
    edit.set_input(stored.reader, 2, bias)
    own[bias.name] = np.asarray(was, np.float32)
    become = np.asarray(was + shift, np.float32)
    return own, lambda: {weight.name: storage.restored(stored.packed), bias.name: become}


def _affordable(model: Model) -> int:
    """How many weights to measure one at a time: about a minute's work, and never fewer than 16."""
    return max(16, int(2e11 / (max(cost.of(model).macs, 10**7))))


def noise_of(plain: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> float:
    """Noise over signal, each output's sums over the feeds first, then the mean over float outputs."""
    sums: dict[str, list[float]] = {}
    for a, b in zip(plain, other):
        for name, x in a.items():
            if isinstance(x, np.ndarray) and x.dtype.kind == "f":
                signal, noise = _powers(x, b[name])
                total = sums.setdefault(name, [0.0, 0.0])
                total[0] += signal
                total[1] += noise
    ratios = [n / s if s > 0 else float(n > 0) for s, n in sums.values()]
    return float(np.mean(ratios)) if ratios else 0.0


def decibels(noise: float) -> float:
    """SQNR of such noise; 300 dB and no more of none."""
    return -10 * math.log10(max(noise, 1e-30))


def _powers(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Sums of squares of an output and of its error, over what is finite in it (masked logits are not). Another shape,
    or values that are no longer finite, are noise as loud as the signal."""
    wide, finite, alike = x.astype(np.float64), np.isfinite(x), x.shape == y.shape
    if not finite.all():
        wide, y = wide[finite], y[finite] if alike else y
    signal = float((wide**2).sum())
    noise = float(((y - wide) ** 2).sum()) if alike else np.inf
    return signal, noise if np.isfinite(noise) else max(signal, 1e-30)


def loudest(noise: Mapping[str, float], floor_db: float, share: float = 0.0) -> set[str]:
    """What to leave alone: the loudest, until the sum of the rest is `floor_db` below the signal; then `share`
    (0 to 1) of what is left, loudest first."""
    ranked = sorted(noise, key=lambda g: (-noise[g], g))
    total, k = sum(noise.values()), 0
    while k < len(ranked) and total > 10 ** (-floor_db / 10):
        total -= noise[ranked[k]]
        k += 1
    k += round(share * (len(ranked) - k))
    return set(ranked[:k])
