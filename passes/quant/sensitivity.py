"""How much each quantized tensor hurts the outputs: measured, one at a time, on one session with switches.

Every group of tensors gets a quantize/dequantize pair behind a `Where` that an extra boolean input turns on. Only the
groups with the worst noise of their own are measured; the rest, which is far below them, is estimated from the ratio
of noise at the outputs to noise at the tensor that was seen at the measured ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

MEASURED = 48  # groups that are run; the others have less noise of their own
FEEDS = 2  # for tensors; weights are looked at on one, as their error is the same for every input


def measure(model: Model, placement: Placement, stats: Statistics, feeds: Feeds, ctx: Context) -> dict[str, float]:
    """{group: relative noise power at the outputs when it alone is quantized}, largest first."""
    scales, groups = stats.scales(placement), placement.groups()
    local = {g: _local(members, scales, stats) for g, members in groups.items()}
    suspects = sorted(groups, key=lambda g: (-local[g], g))[:MEASURED]
    order_of = {g: k for k, g in enumerate(groups)}
    suspects.sort(key=lambda g: order_of[g])
    found = _switched(model, {g: groups[g] for g in suspects}, scales, feeds, ctx)
    ratios = [found[g] / local[g] for g in suspects if local[g] > 0]
    typical = float(np.median(ratios)) if ratios else 0.0
    noise = {g: found.get(g, typical * local[g]) for g in groups}
    return dict(sorted(noise.items(), key=lambda item: (-item[1], item[0])))


def _local(members: Sequence[str], scales: Mapping[str, Scale], stats: Statistics) -> float:
    """Noise of a group's worst tensor relative to its signal, from histograms."""
    worst = 0.0
    for name in members:
        signal, noise = expected_noise(stats.seen[name], scales[name])
        worst = max(worst, noise / signal if signal > 0 else 0.0)
    return worst


def _switched(
    model: Model, groups: Mapping[str, Sequence[str]], scales: Mapping[str, Scale], feeds: Feeds, ctx: Context
) -> dict[str, float]:
    copy = model.copy()
    switches = {g: _switch(copy, members, scales) for g, members in groups.items()}
    return _flip(copy, switches, feeds, ctx)


def _flip(
    copy: Model, switches: Mapping[str, str], feeds: Feeds, ctx: Context, count: int = FEEDS, kind: type = np.bool_
) -> dict[str, float]:
    """{key: noise at the outputs with its switch alone on}. kind: the switches' type."""
    order.sort(copy)
    session = Session(copy, threads=ctx.workers)
    off: dict[str, Any] = {name: np.zeros((), kind) for name in switches.values()}
    chosen = list(feeds.spread(count))
    plain = [session.run({**feed, **off}) for feed in chosen]
    found = {}
    for key in ctx.progress(list(switches), "sensitivity", len(switches)):
        on = {**off, switches[key]: np.ones((), kind)}
        found[key] = noise_of(plain, [session.run({**feed, **on}) for feed in chosen])
    return found


def _switch(model: Model, members: Sequence[str], scales: Mapping[str, Scale]) -> str:
    """Put a switched quantize/dequantize pair behind each tensor; returns the name of the switch's input."""
    tensors = model.tensors()
    switch = edit.variable(model, f"{members[0]}_switch", np.bool_, [])
    model.graph.inputs.append(switch)
    for name in members:
        x, scale = tensors[name], scales[name]
        real = edit.constant(model, f"{name}_scale", np.float32(scale.scale))
        zero = edit.constant(model, f"{name}_zero", np.asarray(scale.zero, scale.dtype))
        q = edit.node(model, "QuantizeLinear", [x, real, zero])
        dq = edit.node(model, "DequantizeLinear", [q.outputs[0], real, zero])
        out = edit.variable(model, f"{name}_chosen", np.float32, x.shape)
        where = edit.node(model, "Where", [switch, dq.outputs[0], x], outputs=[out])
        edit.add(model.graph, q, dq, where)
        edit.replace(model, x, out)
        edit.set_input(q, 0, x)
        edit.set_input(where, 2, x)
    return str(switch.name)


def measure_weights(model: Model, rounded: Mapping[str, Rounded], feeds: Feeds, ctx: Context) -> dict[str, float]:
    """{weight's name: relative noise power at the outputs when it alone is rounded to 8 bits}, loudest first.

    Weights of the main graph that may be stored in 8 bits; those beyond `_affordable` count with the median. A switch
    is a factor on what rounding changes, so that every opset that stores weights will do (Where came with opset 9).
    """
    if model.opset < storage.OPSET:
        return {}
    copy = model.copy()
    weights = storage.weights(copy, rounded)
    measured = sorted(weights, key=lambda n: (-storage.noise(weights[n]), n))[: _affordable(model)]
    switches = {}
    for name in measured:
        stored = weights[name]
        switch = edit.variable(copy, f"{name}_switch", np.float32, [])
        copy.graph.inputs.append(switch)
        edit.replace(copy, stored.held, _moved(copy, stored.held, storage.restored(stored.packed), switch))
        _switch_bias(copy, stored, switch)
        switches[name] = str(switch.name)
    found = _flip(copy, switches, feeds, ctx, 1, np.float32) if switches else {}
    typical = float(np.median(list(found.values()))) if found else 0.0
    noise = {n: found.get(n, typical) for n in weights}
    return dict(sorted(noise.items(), key=lambda item: (-item[1], item[0])))


def _moved(model: Model, held: gs.Constant, new: np.ndarray, switch: gs.Variable) -> gs.Variable:
    """held + switch · (new − held), of a copy of `held` whose readers can then be given this instead."""
    plain = edit.constant(model, held.name, held.values)
    change = edit.constant(model, f"{held.name}_change", np.asarray(new - held.values, np.float32))
    some = edit.variable(model, f"{held.name}_some", np.float32, list(held.shape))
    out = edit.variable(model, f"{held.name}_chosen", np.float32, list(held.shape))
    times = edit.node(model, "Mul", [change, switch], outputs=[some])
    edit.add(model.graph, times, edit.node(model, "Add", [plain, some], outputs=[out]))
    return out


def _switch_bias(model: Model, stored: storage.Stored, switch: gs.Variable) -> None:
    """Let the switch of a weight also turn on what its layer's bias takes up."""
    if stored.shift is None:
        return
    bias = edit.const(stored.reader, 2)
    plain = np.zeros(stored.shift.shape) if bias is None else np.broadcast_to(bias.reshape(-1), stored.shift.shape)
    held = edit.constant(model, f"{stored.reader.name}_bias", np.asarray(plain, np.float32))
    edit.set_input(stored.reader, 2, _moved(model, held, plain + stored.shift, switch))


def _affordable(model: Model) -> int:
    """How many weights to measure one at a time: about a minute's work, and never fewer than 16."""
    return max(16, int(2e11 / (max(cost.of(model).macs, 10**7))))


def noise_of(plain: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> float:
    """Noise over signal, each output's sums over the feeds first, then the mean over float outputs."""
    sums: dict[str, list[float]] = {}
    for a, b in zip(plain, other):
        for name, x in a.items():
            if isinstance(x, np.ndarray) and x.dtype.kind == "f":
                wide = x.astype(np.float64)
                total = sums.setdefault(name, [0.0, 0.0])
                total[0] += float((wide**2).sum())
                total[1] += float(((b[name] - wide) ** 2).sum())
    ratios = [n / s if s > 0 else float(n > 0) for s, n in sums.values()]
    return float(np.mean(ratios)) if ratios else 0.0


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
