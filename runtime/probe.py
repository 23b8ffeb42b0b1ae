"""What inference cannot tell: shapes and values, by running the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ..ir.errors import ModelError
from ..ir.model import Model
from .session import Session
from .taps import Tap, cut, outer_tensors


def shapes(model: Model, feed: Mapping[str, Any], names: Iterable[str] | None = None) -> dict[str, tuple[int, ...]]:
    """{tensor name: shape} of the main graph's tensors on one feed, by a single run.

    A Shape node behind every tensor brings out its shape and not its values, and runs as soon as it can, so that no
    memory is needed for more than is alive at once (dnsmos: 160 MB, where Shape nodes in their own time took 380).
    names: which tensors; all variables when None. Sequences, maps and omitted outputs are left out.
    """
    tensors = outer_tensors(model)
    wanted = [n for n in (tensors if names is None else names) if isinstance(tensors.get(n), gs.Variable)]
    found = {n: tuple(np.shape(feed[n])) for n in wanted if n in feed and not isinstance(feed[n], list)}
    inner = [n for n in wanted if n not in feed and tensors[n].inputs]
    try:
        found.update(_run(model, feed, inner))
    except ModelError:  # likely a sequence among them: let ONNX Runtime say which are tensors
        kinds = Session(cut(model, inner), optimize=False).kinds
        plain = [n for n in inner if kinds[n].startswith("tensor(")]
        if len(plain) == len(inner):
            raise
        found.update(_run(model, feed, plain))
    return {n: found[n] for n in wanted if n in found}


def _run(model: Model, feed: Mapping[str, Any], names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    if not names:
        return {}
    probe = model.copy()
    tensors = outer_tensors(probe)
    taken = set(probe.tensors())
    outputs = []
    for k, name in enumerate(names):
        label = f"shape_probe_{k}"
        while label in taken:
            label += "_"
        out = gs.Variable(label, np.int64)
        probe.graph.nodes.append(gs.Node("Shape", label, {}, [tensors[name]], [out]))
        outputs.append(out)
    probe.graph.outputs = outputs
    probe.header.opsets.setdefault("", 17)
    result = Session(probe, optimize=False, arena=False, shapes_first=True).run(feed)
    return {name: tuple(int(d) for d in result[out.name]) for name, out in zip(names, outputs)}


def values(model: Model, names: Sequence[str], feed: Mapping[str, Any], *, threads: int = 1) -> dict[str, Any]:
    """{tensor name: value} of tensors of the main graph on one feed, nodes run as they stand in the file."""
    return Tap(model, names, threads=threads, optimize=False).run(feed)


def sizes(model: Model, feed: Mapping[str, Any], names: Iterable[str] | None = None) -> dict[str, int]:
    """{tensor name: bytes} of the main graph's tensors on one feed."""
    tensors = outer_tensors(model)
    found = shapes(model, feed, names)
    return {n: int(np.prod(s, dtype=np.int64)) * _itemsize(tensors[n].dtype) for n, s in found.items()}


def _itemsize(dtype: Any) -> int:
    return 8 if dtype is None else max(1, np.dtype(dtype).itemsize)  # the widest common type, when in doubt


__all__ = ["shapes", "sizes", "values"]
