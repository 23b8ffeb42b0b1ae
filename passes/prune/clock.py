"""What layers cost on this machine at fewer channels: every shape of layer timed once over a grid of channel counts.

Kernels are timed by ONNX Runtime's profiler inside little models that hold a layer at all counts side by side, with
random weights that depend on shapes alone: so every layer of one shape, and a later run with the same `--timings`,
finds the same figures. Conversions of layout around a layer do not count, as in a whole model, where they are rare.
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
from ...runtime import profiling

RUNS = 8
OPSET, IR_VERSION = 13, 8  # Conv, MatMul and Gemm have not changed since
MOST = {1: 12, 2: 7, 3: 4}  # counts along each axis that are timed, by how many axes there are
ROOM = 24_000_000  # elements of weights and outputs in one little model; wider layers are timed at fewer counts

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
        return float(found) / max(float(self.us.flat[-1]), 1e-9)


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
        for most in range(MOST[len(shape.full)], 1, -1):
            levels = tuple(ladder(n, self.steps(n), most) for n in shape.full)
            if sum(_elements(shape, p) for p in itertools.product(*levels)) <= ROOM:
                return Table(levels, self._measure(shape, levels))
        levels = tuple((0, n) for n in shape.full)
        return Table(levels, np.array([float(all(p)) for p in itertools.product(*levels)]).reshape([2] * len(levels)))

    def _measure(self, shape: Shape, levels: Levels) -> np.ndarray:
        points = list(itertools.product(*levels))
        model, feed = side_by_side(shape, points)
        found = profiling.kernels(model, feed, threads=self.threads, timings=self.timings, runs=RUNS)
        us = np.array([found.get(f"layer_{k}", np.nan) for k in range(len(points))])
        us = np.where(np.isnan(us), np.nanmax(us, initial=1.0), us)  # a kernel that was renamed is never cheap
        return us.reshape([len(level) for level in levels])


def ladder(full: int, step: int, most: int) -> tuple[int, ...]:
    """Ascending multiples of a step up to a count, and the count itself; about `most` of them, evenly."""
    counts = list(range(step, full, step))
    if len(counts) > most - 1:
        counts = counts[(len(counts) - 1) % -(-len(counts) // (most - 1)) :: -(-len(counts) // (most - 1))]
    return (*counts, full)


def side_by_side(shape: Shape, points: Sequence[Sequence[int]]) -> tuple[Model, dict[str, np.ndarray]]:
    """A model of the layer at all of these counts, and random inputs."""
    rng = np.random.default_rng(0)
    dtype = np.dtype(shape.dtype)
    graph = gs.Graph([], [], [], name="layers", opset=OPSET)
    model = Model(graph, Header(ir_version=IR_VERSION, opsets={"": OPSET}))
    inputs: dict[tuple[int, ...], gs.Variable] = {}
    feed: dict[str, np.ndarray] = {}
    for k, point in enumerate(points):
        size, weight, attrs = _built(shape, point)
        if size not in inputs:
            inputs[size] = edit.variable(model, "x", dtype, list(size))
            graph.inputs.append(inputs[size])
            feed[inputs[size].name] = rng.standard_normal(size).astype(dtype)
        values = rng.standard_normal(weight) / np.sqrt(np.prod(weight[1:]))
        y = edit.variable(model, "y", dtype, None)
        operands = [inputs[size], edit.constant(model, "w", values.astype(dtype))]
        edit.add(graph, edit.node(model, shape.op, operands, attrs, [y], name=f"layer_{k}"))
        graph.outputs.append(y)
    return model, feed


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
