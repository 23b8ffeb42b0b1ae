"""SmoothQuant (arXiv 2211.10438): how much of the range of activations goes into the weights of the products that read
them, chosen tensor by tensor.

A channel with peak X in the activations and W in the weights is divided by s = X^α / W^(1-α), which the layer before
takes up (see `equalise`). Every α, no smoothing and the equaliser's own factors are tried on rows of the feeds, with
both sides in 8 bits, and what errs least in the products stays. The range comes from one half of the rows and the error
from the other: a channel that was seen small and is made large clips where it is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import Model
from ...runtime import ranges
from ...runtime.feeds import Feeds
from ...runtime.ranges import Range
from ...runtime.taps import Tap
from ..bands import bands
from ..base import Context
from . import calibrate
from .calibrate import Seen

FEEDS, ROWS = 16, 32  # looked at, and rows taken of each: the error of a product needs no more
ALPHAS = np.linspace(0.2, 0.9, 8)
SPREAD = 64.0  # factors stay within this of their geometric mean
PAYS = 0.9  # the error must fall to this part: less is the noise of few rows
BINS = 512


def groups(model: Model, of: Mapping[str, np.ndarray], barred: np.ndarray) -> list[tuple[np.ndarray, list[gs.Node]]]:
    """[(channels, the products that read them)] of channels that nothing but matrix products reads.

    of: {tensor: the class of each of its channels}, of tensors that layers read; barred: classes without a factor.
    """
    readers: dict[bytes, list[gs.Node]] = {}
    known: dict[bytes, np.ndarray] = {}
    for node in model.graph.nodes:
        at = of.get(node.inputs[0].name) if node.inputs else None
        if at is not None and node.op in ("Conv", "MatMul", "Gemm"):
            known[at.tobytes()] = at
            readers.setdefault(at.tobytes(), []).append(node)
    uses = np.zeros(len(barred), int)
    for at in known.values():
        np.add.at(uses, at, 1)
    return [
        (at, readers[key])
        for key, at in known.items()
        if (uses[at] == 1).all() and not barred[at].any() and all(n.op != "Conv" for n in readers[key])
    ]


def choose(
    model: Model,
    found: Sequence[tuple[np.ndarray, list[gs.Node]]],
    seen: Mapping[str, Range],
    factor: np.ndarray,
    feeds: Feeds,
    ctx: Context,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(channels, their factors) for every group: what errs least in 8 bits.

    seen: extremes by channel of the tensors read; factor: of every class, as the equaliser has it.
    """
    taken = rows(model, [nodes[0].inputs[0].name for _, nodes in found], feeds, ctx)
    for at, nodes in found:
        name = nodes[0].inputs[0].name
        top, x = peak(seen[name]), taken.get(name)
        if top is None or x is None or len(top) != len(at) or x.shape[1] != len(at):
            continue
        weights = [matrix(n) for n in nodes]
        yield at, best(x, weights, top, [factor[at]], ctx.target.activation, ctx.target.symmetric)


def best(
    x: np.ndarray,
    weights: Sequence[np.ndarray],
    peak: np.ndarray,
    given: Sequence[np.ndarray] = (),
    kind: str = "u8",
    symmetric: bool = False,
    pays: float = PAYS,
) -> np.ndarray:
    """The factors, [channels], with which the products x @ w err least in 8 bits.

    x: [rows, channels], at least two rows; weights: each [channels, outputs]; peak: of each channel over all feeds;
    given: further candidates; pays: what the error must fall to, else the factors are 1.
    """
    ones = np.ones(len(peak))
    least, chosen = pays * error(x, weights, ones, kind, symmetric), ones
    for tried in (*given, *candidates(peak, weights)):
        found = error(x, weights, tried, kind, symmetric)
        if found < least:
            least, chosen = found, tried
    return chosen


def candidates(peak: np.ndarray, weights: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """1 / s for every α; channels that are zero on one side keep the middle."""
    other = np.max([np.maximum(w.max(axis=1), -w.min(axis=1)) for w in weights], axis=0).astype(np.float64)
    live = (peak > 0) & (other > 0)
    if not live.any():
        return
    for alpha in ALPHAS:
        log = np.zeros(len(peak))
        log[live] = (1 - alpha) * np.log(other[live]) - alpha * np.log(peak[live])
        log[live] -= log[live].mean()
        yield np.exp(np.clip(log, -np.log(SPREAD), np.log(SPREAD)))


def error(
    x: np.ndarray, weights: Iterable[np.ndarray], factor: np.ndarray, kind: str = "u8", symmetric: bool = False
) -> float:
    """Sum over the products of noise over signal, x and weights being rounded to 8 bits after the factors."""
    scaled = x * factor.astype(np.float32)
    low, high = calibrate.choose("mse", [_histogram(scaled[::2])], 100.0)
    x, rounded = x[1::2], calibrate.to_scale(low, high, kind, symmetric).fake(scaled[1::2])
    total = 0.0
    for w in weights:
        noise = signal = 0.0
        for part in bands(w.T.shape):
            v = w[:, part] / factor[:, None].astype(np.float32)
            step = np.maximum(np.abs(v).max(axis=0), 1e-30) / 127
            want = x @ w[:, part]
            made = rounded @ (np.rint(v / step) * step)
            noise, signal = noise + float(((made - want) ** 2).sum()), signal + float((want**2).sum())
        total += noise / max(signal, 1e-30)
    return total


def _histogram(x: np.ndarray) -> Seen:
    counts, edges = np.histogram(x, BINS)
    return Seen(float(x.min()), float(x.max()), (edges[1:] + edges[:-1]) / 2, counts.astype(np.float64))


def matrix(node: gs.Node) -> np.ndarray:
    """The weight of a product, [channels, outputs]."""
    values: np.ndarray = node.inputs[1].values
    return values.T if node.attrs.get("transB", 0) else values


def peak(seen: Range) -> np.ndarray | None:
    """The largest magnitude of each channel."""
    if seen.channel_min is None or seen.channel_max is None:
        return None
    return np.maximum(np.abs(seen.channel_min), np.abs(seen.channel_max)).astype(np.float64)


def rows(model: Model, names: Sequence[str], feeds: Feeds, ctx: Context) -> dict[str, np.ndarray]:
    """{tensor: [rows, channels]} evenly taken from a few feeds, in waves under the budget for statistics; without those
    that had no rows."""
    looked, taken = feeds.spread(FEEDS), {}
    for wave in ranges.plan(model, names, looked, ctx.memory_mb):
        tap = Tap(model, wave, threads=ctx.workers)
        parts: dict[str, list[np.ndarray]] = {n: [] for n in wave}
        for feed in looked:
            for name, value in tap.run(feed).items():
                flat = value.reshape(-1, value.shape[-1])
                parts[name].append(flat[:: max(1, len(flat) // ROWS)][:ROWS].astype(np.float32))
        joined = {n: np.concatenate(p) for n, p in parts.items()}
        taken.update({n: x for n, x in joined.items() if len(x)})
    return taken
