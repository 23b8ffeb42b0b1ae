"""What every node costs when the model runs as a whole, from ONNX Runtime's profiler.

ONNX Runtime fuses and renames nodes when it loads a model, but builds the names of what it makes from those of nodes
and tensors that went in. So all of these are first given names that hold the node's number.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..ir import Model
from .loading import digest
from .session import Session
from .timings import Timings

RUNS = 30
_TOKEN = re.compile(r"@(\d+)@")
_KERNEL = "_kernel_time"


def kernels(
    model: Model, feed: Mapping[str, Any], *, threads: int = 1, timings: Timings | None = None, runs: int = RUNS
) -> dict[str, float]:
    """{node of the main graph: microseconds of the kernel that makes its output}, as the optimized graph runs.

    A fused kernel counts under the last of its nodes, the others are absent; conversions of layout, and what ONNX
    Runtime puts in by itself, are left out. The least of `runs` runs: disturbances only ever add. timings: recorded
    there under the content of the model, the threads and the shapes of the feed.
    """
    marked, names = _marked(model)
    found = _measured(marked, feed, threads, timings, runs)
    return {names[int(k)]: v for k, v in found.items()}


def _marked(model: Model) -> tuple[Model, list[str]]:
    """A copy in which nodes and the tensors they make are called by number, and the nodes' own names."""
    copy = model.copy()
    names = [str(n.name) for n in copy.graph.nodes]
    for k, node in enumerate(copy.graph.nodes):
        node.name = f"@{k}@"
        for j, tensor in enumerate(t for t in node.outputs if t.name):
            tensor.name = f"@{k}@{j}"
    return copy, names


def _measured(
    model: Model, feed: Mapping[str, Any], threads: int, timings: Timings | None, runs: int
) -> dict[str, float]:
    def run() -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            session = Session(model, threads=threads, profile=str(Path(folder) / "kernels"))
            for _ in range(runs):
                session.run(feed)
            return _least(session.end_profiling())

    if timings is None:
        return run()
    shapes = {n: [int(d) for d in v.shape] for n, v in feed.items() if hasattr(v, "shape")}
    return dict(timings.measure(Timings.key("kernels", digest(model), threads, shapes), run))


def _least(file: str) -> dict[str, float]:
    """{number of a node: least microseconds} from a profile."""
    least: dict[str, float] = {}
    for event in json.loads(Path(file).read_text()):
        name = str(event.get("name", ""))
        found = _TOKEN.match(name)
        if event.get("cat") == "Node" and name.endswith(_KERNEL) and found:
            key = found.group(1)
            least[key] = min(least.get(key, float("inf")), float(event["dur"]))
    return least
