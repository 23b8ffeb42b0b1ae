"""Concrete shapes of every tensor, at two sizes of the dynamic inputs: declared, or else inferred or measured.

One set of sizes is what labels flow over. The second tells a constant that is hidden in shape arithmetic from a size
that follows the input.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import Model, edit, shapes
from ...ir.errors import SlimError
from ...runtime.session import Session

Sizes = dict[str, tuple[int, ...]]
PRIMES = (3, 5, 7, 11, 13, 17, 19, 23)  # batch sizes to look at dynamic models with: more than 1, and of no structure
UNKNOWN = 64  # a dynamic dimension of which no feed tells the size


def probed(model: Model, feed: Mapping[str, Any] | None = None) -> tuple[Sizes, Sizes]:
    """Shape of every tensor of the main graph that can be told, at two sizes of everything dynamic.

    feed: one real feed; it gives the sizes of dynamic inputs. A dynamic first axis is looked at with a few samples
    where the model accepts that, so that a batch of one hides nothing. The second set is empty where the model runs at
    one size only; without dynamic inputs it is the first.
    """
    first, second = _primes(model)
    symbols, whole = _dynamic(model, feed), False
    sizes: Sizes = {}
    for batch in (first, None):
        given = _given(model, feed, symbols, batch)
        sizes, whole = _shapes(model, given, feed)
        if whole:
            break
    if not symbols or not whole:
        return sizes, {} if symbols else sizes
    for other in _others(symbols, second if batch else None):
        again, whole = _shapes(model, _given(model, feed, other, None), feed)
        if whole:
            return sizes, again
    return sizes, {}


def _primes(model: Model) -> tuple[int, int]:
    """Two batch sizes that no static dimension of the model equals."""
    used = {d for shape in _known(model).values() for d in shape}
    used |= {d for t in model.constants().values() for d in t.shape}
    free = [p for p in PRIMES if p not in used]
    return (*free, *PRIMES)[0], (*free[1:], *PRIMES[1:])[0]


def _dynamic(model: Model, feed: Mapping[str, Any] | None) -> dict[Any, int]:
    """Size of every dynamic dimension, by whether it comes first and its symbol (or else its input and axis)."""
    found: dict[Any, int] = {}
    for tensor in model.graph.inputs:
        real = np.shape(feed[tensor.name]) if feed and tensor.name in feed else None
        for axis, size in enumerate(tensor.shape if tensor.shape is not None else (real or ())):
            if not isinstance(size, (int, np.integer)) or tensor.shape is None:
                found.setdefault(_symbol(tensor, axis), int(real[axis]) if real is not None else UNKNOWN)
    return found


def _symbol(tensor: Any, axis: int) -> Any:
    name = tensor.shape[axis] if tensor.shape is not None else None
    return (axis == 0, name if isinstance(name, str) and name else (tensor.name, axis))


def _given(model: Model, feed: Mapping[str, Any] | None, symbols: Mapping[Any, int], batch: int | None) -> Sizes:
    """Shapes of the inputs at these sizes of the symbols; `batch` for those that are first axes."""
    given: Sizes = {}
    for tensor in model.graph.inputs:
        real = np.shape(feed[tensor.name]) if feed and tensor.name in feed else ()
        dims = tensor.shape if tensor.shape is not None else real
        found = []
        for axis, size in enumerate(dims):
            symbol = _symbol(tensor, axis)
            if symbol in symbols and (tensor.shape is None or not isinstance(size, (int, np.integer))):
                found.append(batch if batch and symbol[0] else symbols[symbol])
            else:
                found.append(int(size))
        given[tensor.name] = tuple(found)
    return given


def _others(symbols: Mapping[Any, int], batch: int | None) -> Iterator[dict[Any, int]]:
    """Other sizes for every symbol, likely ones first."""
    ways = (_prime_below, lambda n: n + 32, lambda n: 2 * n, lambda n: n + 1)
    firsts = (batch, None) if batch else (None,)
    for first in firsts:
        for way in ways if first is None or any(not s[0] for s in symbols) else ways[:1]:
            yield {s: first if first and s[0] else way(n) for s, n in symbols.items()}


def _prime_below(n: int) -> int:
    return next((p for p in range(n - 1, 1, -1) if all(p % d for d in range(2, int(p**0.5) + 1))), n + 1)


def _shapes(model: Model, given: Sizes, feed: Mapping[str, Any] | None) -> tuple[Sizes, bool]:
    """Shapes at these shapes of the inputs, by inference and, for what it cannot tell, one run; whether that is all."""
    known = _known(model)
    wanted = [t.name for n in model.graph.nodes for t in n.outputs if t.name and t.name not in known]
    if not wanted:
        return known, True
    sizes = {**known, **_inferred(model, given)}
    missing = [n for n in wanted if n not in sizes]
    try:
        return {**sizes, **(_measured(model, given, feed, missing) if missing else {})}, True
    except SlimError:
        return sizes, False


def _known(model: Model) -> Sizes:
    every = [t for n in model.graph.nodes for t in (*n.inputs, *n.outputs)] + list(model.graph.inputs)
    return {
        t.name: tuple(int(d) for d in t.shape)
        for t in every
        if t.name and not isinstance(t, gs.Constant) and shapes.is_static(shapes.of(t))
    }


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
    part = model.copy()
    tensors = part.tensors()
    part.graph.outputs[:] = [tensors[n] for n in names]
    edit.sweep(part)  # ONNX Runtime would run the rest, too
    out = Session(part, outputs=names, optimize=False).run(feeds)
    return {n: tuple(np.shape(v)) for n, v in out.items() if isinstance(v, np.ndarray)}
