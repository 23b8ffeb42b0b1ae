"""Two models tensor by tensor: where they part, for `onnxslim compare`.

Memory: the common tensors of a wave in both models on one feed (at most half of `memory_mb`), and a few sums each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import onnx_graphsurgeon as gs

from ..ir.model import Model
from . import probe
from .feeds import Feeds
from .numerics import Diff, OutputDiff
from .taps import Tap, outer_tensors, waves


def common(a: Model, b: Model) -> list[str]:
    """Tensors that nodes of both models make, in a's topological order."""
    theirs = {n for n, t in outer_tensors(b).items() if isinstance(t, gs.Variable) and t.inputs}
    return [n for n, t in outer_tensors(a).items() if n in theirs and isinstance(t, gs.Variable) and t.inputs]


def compare_tensors(
    a: Model,
    b: Model,
    feeds: Feeds | Iterable[Mapping[str, Any]],
    names: Sequence[str] | None = None,
    *,
    memory_mb: int = 512,
    threads: int = 1,
) -> list[OutputDiff]:
    """How far each common tensor of b is from a's, over all feeds, in a's order.

    names: which tensors; all common ones when None. Every model runs as it stands, without ONNX Runtime's fusions,
    so that a difference is where it seems to be.
    """
    known = common(a, b)
    wanted = known if names is None else [n for n in known if n in set(names)]
    if not wanted:
        return []
    sizes = probe.sizes(a, next(iter(feeds)), wanted)
    found = {n: Diff(n) for n in wanted}
    for wave in waves(wanted, sizes, max(1, memory_mb << 20) // 4):
        left = Tap(a, wave, threads=threads, optimize=False)
        right = Tap(b, wave, threads=threads, optimize=False)
        for feed in feeds:
            ours, others = left.run(feed), right.run(feed)
            for name in wave:
                found[name].add(ours[name], others[name])
    return [found[n].result() for n in wanted]


__all__ = ["common", "compare_tensors"]
