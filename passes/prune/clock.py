"""What layers cost on this machine at fewer channels: every shape of layer timed once over a grid of channel counts.

Each point is a little model of nothing but the layer, with random weights that depend on shapes alone: so every layer
of one shape, and a later run with the same `--timings`, finds the same figures. Its kernel is timed by ONNX Runtime's
profiler, so that conversions of layout around it do not count, as in a whole model, where they are rare. A profile
reads the wall clock, and the least of a few runs is undisturbed only where a run is short beside the time slices of a
busy machine: longer kernels are timed by the thread's CPU time (`runtime.latency`), where conversions are little.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import Model, edit
from ...ir.model import Header
from ...runtime import latency, profiling

RUNS = 8
LONG, SECONDS = 2000.0, 0.1  # microseconds from which a kernel is timed by the CPU's clock, and for how long
OPSET, IR_VERSION = 13, 8  # Conv, MatMul and Gemm have not changed since
MOST = {1: 8, 2: 5, 3: 3}  # counts along each axis that are timed, by how many axes there are
ROOM = 24_000_000  # elements of weight and output that a little model may hold

Levels = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Shape:
    """A layer but for its channel counts.

    kind: "plain" (counts: inputs, outputs), "depthwise" (channels) or "grouped" (groups, inputs and outputs a group).
    size: of the input, with the channels as they are. kernel: of the weight. attrs: sorted, without `group`.
    """

    op: str
    kind: str
    full: tuple[int, ...]
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    attrs: tuple[tuple[str, Any], ...]
    dtype: str


@dataclass(frozen=True)
class Table:
    """Microseconds over a grid of channel counts, linear in between."""

    levels: Levels
    us: np.ndarray

    @property
    def full(self) -> float:
        """Microseconds at the full counts."""
        return float(self.us.flat[-1])

    def at(self, counts: Sequence[float]) -> float:
        """The time at these counts, as a share of the time at the full ones."""
        found = self.us
        for level, count in zip(self.levels, counts):
            k = min(max(int(np.searchsorted(level, count)), 1), len(level) - 1) if len(level) > 1 else 0
            if not k:
                found = found[0]
                continue
            part = min(max((count - level[k - 1]) / (level[k] - level[k - 1]), 0.0), 1.0)
            found = found[k - 1] * (1 - part) + found[k] * part
        return float(found) / max(self.full, 1e-9)


@dataclass
class Clock:
    """Tables of layers, measured with `threads` threads through `timings`. steps: what counts are multiples of."""

    threads: int
    timings: Any
    steps: Any
    known: dict[Shape, Table] = field(default_factory=dict)

    def table(self, shape: Shape) -> Table:
        """The table of a layer of this shape; in proportion where even two counts are too much memory."""
        if shape not in self.known:
            self.known[shape] = self._timed(shape)
        return self.known[shape]

    def _timed(self, shape: Shape) -> Table:
        levels: Levels
        if _elements(shape, shape.full) > ROOM:
            levels = tuple((0, n) for n in shape.full)
            return Table(
                levels, np.array([float(all(p)) for p in itertools.product(*levels)]).reshape([2] * len(levels))
            )
        levels = tuple(ladder(n, self.steps(n), MOST[len(shape.full)]) for n in shape.full)
        us = [self._point(shape, point) for point in itertools.product(*levels)]
        return Table(levels, np.array(us).reshape([len(level) for level in levels]))

    def _point(self, shape: Shape, point: Sequence[int]) -> float:
        """Microseconds of the layer at these counts."""
        model, feed = alone(shape, point)
        kernel = profiling.kernels(model, feed, threads=self.threads, timings=self.timings, runs=RUNS)
        us = max(kernel.values(), default=0.0)
        if 0 < us < LONG:
            return us
        timed = latency.bench([model], feed, threads=self.threads, timings=self.timings, seconds=SECONDS, min_runs=5)
        return timed[0].ms * 1e3


def ladder(full: int, step: int, most: int) -> tuple[int, ...]:
    """Ascending multiples of a step up to a count, and the count itself; at most so many of them, evenly."""
    some = {round(full * k / most / step) * step for k in range(1, most)}
    return (*sorted(n for n in some if 0 < n < full), full)


def alone(shape: Shape, point: Sequence[int]) -> tuple[Model, dict[str, np.ndarray]]:
    """A model of the layer at these counts, and a random input."""
    rng = np.random.default_rng(0)
    dtype = np.dtype(shape.dtype)
    size, weight, attrs = _built(shape, point)
    x, y = gs.Variable("x", dtype, list(size)), gs.Variable("y", dtype, None)
    graph = gs.Graph([], [x], [y], name="layer", opset=OPSET)
    model = Model(graph, Header(ir_version=IR_VERSION, opsets={"": OPSET}))
    values = rng.standard_normal(weight) / np.sqrt(np.prod(weight[1:]))
    operands = [x, edit.constant(model, "w", values.astype(dtype))]
    edit.add(graph, edit.node(model, shape.op, operands, attrs, [y], name="layer"))
    return model, {"x": rng.standard_normal(size).astype(dtype)}


def _elements(shape: Shape, point: Sequence[int]) -> int:
    """Of the weight and, at most, the output."""
    size, weight, _ = _built(shape, point)
    outs = weight[0] if shape.op == "Conv" else weight[1]
    return math.prod(weight) + math.prod(size) // max(size[1 if shape.op == "Conv" else -1], 1) * outs


def _built(shape: Shape, point: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]:
    """Sizes of the input and the weight, and the attributes, at some counts."""
    attrs: dict[str, Any] = {k: list(v) if isinstance(v, tuple) else v for k, v in shape.attrs}
    if shape.kind == "depthwise":
        ins, weight, attrs["group"] = point[0], (point[0], 1, *shape.kernel), point[0]
    elif shape.kind == "grouped":
        groups, a, b = point
        ins, weight, attrs["group"] = groups * a, (groups * b, a, *shape.kernel), groups
    elif shape.op == "Conv":
        ins, weight = point[0], (point[1], point[0], *shape.kernel)
    else:
        ins, weight = point[0], (point[0], point[1], *shape.kernel)
        if attrs.get("transB", 0):
            weight = weight[::-1]
    axis = 1 if shape.op == "Conv" else len(shape.size) - 1
    return (*shape.size[:axis], ins, *shape.size[axis + 1 :]), weight, attrs
