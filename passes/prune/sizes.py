"""Concrete shapes of every tensor: declared, or else inferred or measured at one size of the dynamic inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import Model, shapes
from ...ir.errors import SlimError
from ...runtime.session import Session

Sizes = dict[str, tuple[int, ...]]
BATCH = 3  # batch size to look at dynamic models with: above 1, and no usual number of heads or groups


def concrete(model: Model, feed: Mapping[str, Any] | None = None) -> Sizes:
    """Shape of every tensor of the main graph that can be told.

    feed: one real feed; it gives the sizes of dynamic inputs. A dynamic first axis is looked at with `BATCH` samples
    where the model accepts that, so that a batch of one hides nothing.
    """
    found = _known(model)
    wanted = [t.name for n in model.graph.nodes for t in n.outputs if t.name and t.name not in found]
    if not wanted:
        return found
    for batch in (BATCH, None):
        given = _input_shapes(model, feed, batch)
        sizes = _inferred(model, given)
        missing = [n for n in wanted if n not in sizes]
        if not missing:
            return sizes
        try:
            return {**sizes, **_measured(model, given, feed, missing)}
        except SlimError:
            continue
    return sizes


def _known(model: Model) -> Sizes:
    every = [t for n in model.graph.nodes for t in (*n.inputs, *n.outputs)] + list(model.graph.inputs)
    return {
        t.name: tuple(int(d) for d in t.shape)
        for t in every
        if t.name and not isinstance(t, gs.Constant) and shapes.is_static(shapes.of(t))
    }


def _input_shapes(model: Model, feed: Mapping[str, Any] | None, batch: int | None) -> Sizes:
    given: Sizes = {}
    for tensor in model.graph.inputs:
        real = np.shape(feed[tensor.name]) if feed and tensor.name in feed else None
        shape = tensor.shape if tensor.shape is not None else (real or ())
        dims = []
        for axis, size in enumerate(shape):
            if isinstance(size, (int, np.integer)) and tensor.shape is not None:
                dims.append(int(size))
            elif axis == 0 and batch:
                dims.append(batch)
            else:
                dims.append(int(real[axis]) if real is not None else 64)
        given[tensor.name] = tuple(dims)
    return given


def _inferred(model: Model, given: Sizes) -> Sizes:
    copy = model.copy()
    for tensor in copy.graph.inputs:
        tensor.shape = list(given[tensor.name])
    for tensor in copy.graph.outputs:
        if isinstance(tensor, gs.Variable):
            tensor.shape = None
    shapes.refresh(copy)
    return _known(copy)


def _measured(model: Model, given: Sizes, feed: Mapping[str, Any] | None, names: list[str]) -> Sizes:
    """Shapes by running; feeds are tiled (or made of ones) to the given shapes."""
    feeds = {}
    for tensor in model.graph.inputs:
        shape = given[tensor.name]
        if feed and tensor.name in feed:
            array = np.asarray(feed[tensor.name])
            feeds[tensor.name] = np.resize(array, shape).astype(array.dtype) if array.shape != shape else array
        else:
            feeds[tensor.name] = np.ones(shape, tensor.dtype)
    out = Session(model, outputs=names, optimize=False).run(feeds)
    return {n: tuple(np.shape(v)) for n, v in out.items() if isinstance(v, np.ndarray)}
