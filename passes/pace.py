"""Whether a change pays: time in turns against the model before it, and size.

Every timing goes through the run's `Timings`, so that a run can be repeated to the byte. A model counts as slower
only when two measurements say so, beyond the noise of one; on a target that is not this machine, time has no say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ir import cost, shapes
from ..ir.errors import SlimError
from ..runtime import latency
from .base import Context

if TYPE_CHECKING:
    from ..ir import Model
    from ..ir.cost import Cost
    from ..runtime.latency import Latency

NOISE = 0.05
"""Medians of pairs on a shared machine repeat to a few percent."""
GROWTH = 0.01
"""Growth of a file that a new name or node explains; `simplify` may add a few hundred bytes."""
SMALL = 1024


@dataclass
class Pace:
    """Latency and size of the models of one run, on one feed.

    pair, session: make (or have) ONNX Runtime's sessions of two models, or of one; not asked where another runtime is
        timed.
    """

    ctx: Context
    feed: Mapping[str, np.ndarray]
    pair: Callable[[Any, Any], tuple[Any, Any]] | None = None
    session: Callable[[Any], Any] | None = None

    def compare(self, before: Any, after: Any) -> Latency:
        """Time both in turns; models so large that two at once would break the bound on memory one after the other."""
        threads, timings = self.ctx.threads, self.ctx.timings
        own = timings.engine == "onnxruntime"
        if not latency.fit_together([before, after], self.ctx.memory_mb):
            make = self.session if own else None
            return latency.apart(before, after, self.feed, make=make, threads=threads, timings=timings)
        both = self.pair(before, after) if own and self.pair else (before, after)
        return latency.compare(*both, self.feed, threads=threads, timings=timings)

    def judge(self, before: Any, after: Model) -> tuple[Latency, str]:
        """The timing, and what speaks against the change ("" when it pays or costs nothing)."""
        timing = self.compare(before, after)
        if not self.ctx.target.native:
            return timing, ""
        if timing.speedup < 1 - NOISE:
            timing = self._again(before, after, timing)
            if timing.speedup < 1 - NOISE:
                return (
                    timing,
                    f"it runs at {timing.speedup:.2f}x the speed ({timing.before_ms:.3g} -> {timing.after_ms:.3g} ms)",
                )
        return timing, self._grown(before, after, timing)

    def prefers(self, a: Model, b: Model) -> bool:
        """Whether b is the better result: faster, or as fast and smaller (elsewhere than on the target, smaller)."""
        speedup = self.compare(a, b).speedup if self.ctx.target.native else 1.0
        return speedup > 1 + NOISE or (speedup >= 1 - NOISE and _bytes(b) < (1 - GROWTH) * _bytes(a))

    def cost(self, model: Model) -> Cost:
        """Cost of a model, for one sample, with sizes that are open taken from the feed."""
        return cost.of(model, sizes(model, self.feed))

    def _again(self, before: Any, after: Any, first: Latency) -> Latency:
        """A second measurement, in the other order, so that it is not the recorded first; the better of the two."""
        other = self.compare(after, before)
        turned = replace(other, before_ms=other.after_ms, after_ms=other.before_ms, speedup=1 / other.speedup)
        return max(first, turned, key=lambda t: t.speedup)

    def _grown(self, before: Any, after: Model, timing: Latency) -> str:
        old, new = _bytes(before), _bytes(after)
        if new <= old * (1 + GROWTH) + SMALL or timing.speedup > 1 + NOISE:
            return ""
        return f"it grows from {old:,} to {new:,} bytes and is not faster ({timing.speedup:.2f}x)"


def sizes(model: Model, feed: Mapping[str, np.ndarray]) -> Mapping[str, tuple[int, ...]] | None:
    """Shapes that the feed gives to the tensors of a model with open sizes; None where only the batch is open.

    The batch of the feed is cut to one sample where the model leaves it open and runs so, so that costs are those of
    one.
    """
    if not _open_sizes(model):
        return None
    from ..runtime import probe

    batch = _batched(model)
    try:
        return probe.shapes(model, {k: v[:1] if k in batch else v for k, v in feed.items()})
    except SlimError:  # the first axis is no batch (time, nodes of a graph): the model needs all of it
        return probe.shapes(model, feed)


def samples(model: Model, shapes_of: Mapping[str, Sequence[int]]) -> int:
    """Samples in a feed of these shapes: the first size of an input that leaves it open; 1 when none does."""
    return max([1, *(int(shapes_of[name][0]) for name in _batched(model) if shapes_of.get(name))])


def _batched(model: Model) -> set[str]:
    return {t.name for t in model.inputs if t.shape and not isinstance(t.shape[0], int)}


def _bytes(model: Any) -> int:
    """Size of a model, or of a model's file."""
    from ..ir import Model
    from .report import file_bytes

    return cost.of(model).bytes if isinstance(model, Model) else file_bytes(model)


def _open_sizes(model: Model) -> bool:
    """Whether shape inference leaves more than the batch open anywhere in the main graph.

    An inner tensor's first size is the batch where an input's first size has its name; Reshape([-1, D]) makes others.
    """
    batch = {t.shape[0] for t in model.inputs if t.shape}
    made = (t for node in model.graph.nodes for t in node.outputs if t.name)
    found = (shapes.of(t) for t in (*model.inputs, *made))
    return any(
        s is None or any(not isinstance(d, int) and (k > 0 or d not in batch) for k, d in enumerate(s)) for s in found
    )
