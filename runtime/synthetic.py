"""Seeded random feeds, for when nobody gave data: sensible by type, and of shapes that the model runs with.

What the network means is unknown, so values are plain: standard normal floats, whole 0..255 for bytes, indices
within the table they look up. Dynamic dimensions get a batch of 1 and sizes that are tried until the model runs.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from ..ir.errors import DataError, OptionError, SlimError
from ..ir.model import Model
from .feeds import Indexed
from .session import Session
from .specs import InputSpec, fits, kind_of, required

if TYPE_CHECKING:
    from .sources import DataOptions

DEFAULT_COUNT = 8
MOST = 100_000  # all are made and checked before a run; more of what means nothing says no more
IMAGE_SIZES = (224, 64, 256, 32, 320, 512, 640, 28, 128, 299)  # for height and width that the model leaves open
LENGTHS = (16, 64, 128, 1, 8, 32, 256, 512, 2, 1024, 4000, 16000)  # for other dimensions: tokens, frames, samples
RATES = ("sr", "sample_rate", "sampling_rate")  # speech models take one of two rates as a scalar
PASS_ON = ("Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape", "Flatten", "Transpose", "Slice", "Expand", "Concat")

Shapes = dict[str, tuple[int, ...]]


def source(model: Model, specs: Mapping[str, InputSpec], options: DataOptions) -> Indexed:
    """Random feeds for a model, which raise DataError when no shapes are found that it runs with.

    Raises OptionError for more than `MOST`.
    """
    count = options.samples or DEFAULT_COUNT
    if count > MOST:
        raise OptionError(
            f"samples is {count}; of random feeds there are {MOST} at most: ask for fewer, or give --data"
        )
    made: list[tuple[Shapes, dict[str, int]]] = []

    def load(index: int) -> dict[str, Any]:
        if not made:  # shapes are looked for at the first feed, not before anybody asks
            limits = {n: index_limit(model, n) for n in specs}
            made.append((find_shapes(model, specs, options, limits), limits))
        return feed(specs, made[0][0], options.seed, index, made[0][1])

    return Indexed(count, load)


def feed(
    specs: Mapping[str, InputSpec], shapes: Shapes, seed: int, index: int, limits: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """Feed `index`: a function of seed, index and the input's name alone."""
    found = {}
    for name, shape in shapes.items():
        rng = np.random.default_rng([seed, index, zlib.crc32(name.encode())])
        found[name] = values(specs[name], shape, rng, limits.get(name, 0))
    return found


def values(spec: InputSpec, shape: tuple[int, ...], rng: np.random.Generator, limit: int = 0) -> np.ndarray:
    """Random values of one input; `limit` is the size of the table that integers look up (0: unknown)."""
    dtype = np.dtype(spec.dtype)
    kind = kind_of(dtype)
    if kind == "f":
        return rng.standard_normal(shape, np.float32).astype(dtype)
    if kind == "b":
        return rng.integers(0, 2, shape).astype(np.bool_)
    if kind == "c":
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(dtype)
    if kind == "O":
        return np.full(shape, "a", object)
    if "mask" in spec.name.lower():
        return np.ones(shape, np.int64).astype(dtype)
    if spec.name.lower() in RATES and not shape:
        return np.asarray(16000, dtype)
    if limit:
        return rng.integers(0, limit, shape).astype(dtype)
    if dtype == np.uint8:
        return rng.integers(0, 256, shape).astype(dtype)
    return rng.integers(0, 2, shape).astype(dtype)


def find_shapes(
    model: Model, specs: Mapping[str, InputSpec], options: DataOptions, limits: Mapping[str, int]
) -> Shapes:
    """Concrete shapes of all required inputs; tried by running the model where any dimension is open."""
    needed = {s.name: s for s in required(specs)}
    needed |= {n: specs[n] for n in options.input_shapes}
    strange = next((s for s in needed.values() if s.dtype is None), None)
    if strange is not None:
        raise DataError(f"no random feeds can be made for input '{strange.name}' (a sequence or map); give --data")
    for name, shape in options.input_shapes.items():
        if not fits(specs[name], shape):
            raise DataError(f"--input-shape {name}:{','.join(map(str, shape))} does not fit the model's {specs[name]}")
    hints = {n: channels(model, n) for n in needed}
    if all(_closed(s, options) for s in needed.values()):
        return {n: _shape(s, options, hints[n], 1, 1, {}) for n, s in needed.items()}
    return _probe(model, needed, options, hints, limits)


def _closed(spec: InputSpec, options: DataOptions) -> bool:
    return spec.name in options.input_shapes or (spec.shape is not None and all(isinstance(d, int) for d in spec.shape))


def _probe(
    model: Model,
    needed: Mapping[str, InputSpec],
    options: DataOptions,
    hints: Mapping[str, int | None],
    limits: Mapping[str, int],
) -> Shapes:
    session = Session(model)
    reason: SlimError | None = None
    for shapes in _candidates(needed, options, hints):
        try:
            session.run(feed(needed, shapes, options.seed, 0, limits))
            return shapes
        except SlimError as error:
            reason = reason or error
    told = "; ".join(map(str, needed.values()))
    raise DataError(
        f"no sizes were found for the open dimensions of {told} that the model runs with ({reason}); "
        "give --input-shape NAME:1,3,224,224 or --data"
    ) from reason


def _candidates(
    needed: Mapping[str, InputSpec], options: DataOptions, hints: Mapping[str, int | None]
) -> Iterator[Shapes]:
    """Shapes to try, the likeliest first; dimensions of one symbolic name are equal."""
    main = next(iter(needed), "")
    tried: list[Shapes] = []
    for side, length in itertools.zip_longest(IMAGE_SIZES, LENGTHS, fillvalue=LENGTHS[0]):
        for rest in (length, 1):  # states and caches beside the main input often have nothing but a batch open
            symbols: dict[str, int] = {}
            shapes = {
                n: _shape(s, options, hints[n], side, length if n == main else rest, symbols) for n, s in needed.items()
            }
            if shapes not in tried:
                tried.append(shapes)
                yield shapes


def _shape(
    spec: InputSpec, options: DataOptions, channel: int | None, side: int, length: int, symbols: dict[str, int]
) -> tuple[int, ...]:
    if spec.name in options.input_shapes:
        shape = tuple(options.input_shapes[spec.name])
        for d, n in zip(spec.shape or (), shape):
            if isinstance(d, str):
                symbols[d] = n
        return shape
    dims = spec.shape if spec.shape is not None else (None, None, None, None) if channel else (None, None)
    return tuple(
        d if isinstance(d, int) else _size(d, k, len(dims), channel, side, length, symbols) for k, d in enumerate(dims)
    )


def _size(
    dim: str | None, axis: int, rank: int, channel: int | None, side: int, length: int, symbols: dict[str, int]
) -> int:
    """A size for an open dimension."""
    if dim is not None and dim in symbols:
        return symbols[dim]
    lower = (dim or "").lower()
    if (axis == 0 and (rank > 1 or "batch" in lower)) or lower in ("n", "b", "batch", "batch_size"):
        size = 1
    elif axis == 1 and rank >= 3 and channel:
        size = channel
    elif rank == 4 and axis >= 1:
        size = side if axis > 1 else 3
    else:
        size = length
    if dim is not None:
        symbols[dim] = size
    return size


def channels(model: Model, name: str) -> int | None:
    """The channels that a convolution on this input asks for, if one reads it (nearly) directly."""
    for node, slot in _readers(model, name):
        weight = node.inputs[1] if len(node.inputs) > 1 else None
        if node.op == "Conv" and slot == 0 and isinstance(weight, gs.Constant) and len(weight.shape) > 2:
            return int(weight.shape[1]) * int(node.attrs.get("group", 1))
    return None


def index_limit(model: Model, name: str) -> int:
    """Entries of the smallest table that an input indexes (Gather on a constant); 0 when it indexes none."""
    limits = []
    for node, slot in _readers(model, name):
        if node.op == "Gather" and slot == 1 and isinstance(node.inputs[0], gs.Constant):
            limits.append(int(node.inputs[0].shape[node.attrs.get("axis", 0)]))
    return min(limits, default=0)


def _readers(model: Model, name: str) -> Iterator[tuple[gs.Node, int]]:
    """(node, input slot) of what reads an input, through operators that keep its values."""
    start = next((t for t in model.graph.inputs if t.name == name), None)
    queue, seen = [start] if start is not None else [], set()
    while queue:
        tensor = queue.pop(0)
        for node in tensor.outputs:
            for slot, read in enumerate(node.inputs):
                if read is tensor:
                    yield node, slot
                    if node.op in PASS_ON and slot == 0 and id(node) not in seen:
                        seen.add(id(node))
                        queue.extend(node.outputs)


__all__ = ["DEFAULT_COUNT", "channels", "feed", "find_shapes", "index_limit", "source", "values"]
