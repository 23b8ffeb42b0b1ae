"""Every form of `--data`, resolved to `Feeds`: arrays, images, protobuf test data, functions, objects, random."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from ..ir.errors import DataError, OptionError
from ..ir.model import Model
from . import arrays, images, protobufs, synthetic
from .feeds import Feeds, Indexed, Source, Store, Stream, feed_bytes, owned
from .functions import is_function, load_function
from .specs import InputSpec, model_inputs
from .validate import Validator

FORMS = (
    "an .npz or .npy file, a folder of them, a folder of images, a test_data_set_* folder of .pb files, "
    "FILE.py:FUNC, or random"
)

RANDOM = "random"
"""The text that stands for random feeds; a file of that name is `./random`."""

IMAGE = ("image_size", "image_mean", "image_std", "image_layout", "image_scale", "preprocess")
"""Options that say how files of images become arrays."""

FLAGS = {"input_shapes": "--input-shape"}
"""Options of the command line that are spelled otherwise than their fields."""


@dataclass(frozen=True)
class DataOptions:
    """How data is read.

    samples: feeds at most; None uses all up to `feeds.DEFAULT_SAMPLES` (of random data: 8).
    image_size: one number or (height, width); from the model when None.
    image_mean, image_std: per channel, on the scaled pixels: x = (pixel * scale - mean) / std.
    image_layout: "nchw" or "nhwc"; from the model when None.
    image_scale: 1/255 when None, or 1 when mean or std are plainly in units of 0..255, or the model takes integers.
    preprocess: FILE.py:FUNC or a function, called with a path, returning an array or a dict of arrays.
    input_shapes: fixed shapes for random feeds, by input name.
    cache_mb: memory for decoded feeds; beyond it they are read again.
    """

    samples: int | None = None
    image_size: int | tuple[int, int] | None = None
    image_mean: tuple[float, ...] | None = None
    image_std: tuple[float, ...] | None = None
    image_layout: str | None = None
    image_scale: float | None = None
    preprocess: str | Callable[..., Any] | None = None
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    seed: int = 0
    cache_mb: int = 128

    def __post_init__(self) -> None:
        if self.samples is not None and self.samples < 1:
            raise OptionError(f"samples must be at least 1, not {self.samples}")
        if self.image_layout not in (None, "nchw", "nhwc"):
            raise OptionError(f"image layout must be nchw or nhwc, not '{self.image_layout}'")
        if self.image_scale is not None and not _finite(self.image_scale):
            raise OptionError(f"image scale must be a finite number, not {self.image_scale}")


def resolve(spec: Any, model: Model, options: DataOptions | None = None) -> Feeds:
    """Feeds from any source.

    spec: None or "random"; a path or text as `--data` takes it; or in Python: a `Feeds`, a dict of arrays (first axis
    = samples), an array, a re-iterable of dicts, a function without arguments that returns one, or an object with
    `get_next()` (ONNX Runtime's calibration reader), which is drained once.
    model: whose inputs the feeds are checked against, when they are read.

    Raises DataError, or OptionError when a function cannot be loaded.
    """
    options = options or DataOptions()
    specs = model_inputs(model)
    unknown = [n for n in options.input_shapes if n not in specs]
    if unknown:
        raise OptionError(f"--input-shape names '{unknown[0]}'; the model's inputs are {', '.join(specs) or 'none'}")
    if isinstance(spec, Feeds):
        return spec if options.samples is None else spec.spread(options.samples)
    notes: list[str] = []
    if spec is None or (isinstance(spec, str) and spec == RANDOM):
        notes += _without_effect(options, IMAGE, "there is no data")
        source: Source = synthetic.source(model, specs, options)
        return _feeds(source, specs, options, notes, extras=False, kind="random")
    source, extras = _source(spec, specs, options, notes)
    notes += _without_effect(options, ("input_shapes",), "it is for random feeds")
    if not isinstance(source, images.Pictures):
        notes += _without_effect(options, IMAGE, "the data is no folder of images")
    elif options.preprocess:
        notes += _without_effect(options, IMAGE[:-1], "--preprocess makes the arrays")
    return _feeds(source, specs, options, notes, extras)


def notes_on(spec: Any, options: DataOptions) -> list[str]:
    """What to tell of options that `Feeds` which were made before no longer hear; theirs are their own notes."""
    ready = isinstance(spec, Feeds)
    return _without_effect(options, (*IMAGE, "input_shapes"), "the feeds are made already") if ready else []


def _without_effect(options: DataOptions, names: Sequence[str], why: str) -> list[str]:
    """One note on the options that were given for nothing."""
    values = {name: getattr(options, name) for name in names}
    given = [FLAGS.get(n, f"--{n.replace('_', '-')}") for n, v in values.items() if v is not None and not _empty(v)]
    verb = "has" if len(given) == 1 else "have"
    return [f"{', '.join(given)} {verb} no effect: {why}"] if given else []


def _empty(value: Any) -> bool:
    return isinstance(value, Mapping) and not value


def _finite(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _feeds(
    source: Source,
    specs: Mapping[str, InputSpec],
    options: DataOptions,
    notes: list[str],
    extras: bool,
    kind: str = "data",
) -> Feeds:
    def note(text: str) -> None:
        if text not in notes:
            notes.append(text)

    store = Store(source, Validator(specs, note, extras), options.cache_mb << 20)
    return Feeds(store, source=kind, notes=notes, samples=options.samples)


def _source(spec: Any, specs: Mapping[str, InputSpec], options: DataOptions, notes: list[str]) -> tuple[Source, bool]:
    """The source, and whether names that are no inputs are left out rather than refused."""
    if is_function(spec):
        return _function(load_function(spec), spec), False
    if isinstance(spec, (str, os.PathLike)):
        return _path(Path(spec).expanduser(), specs, options, notes)
    if isinstance(spec, np.ndarray):
        return arrays.source({"": spec}, specs, notes, "the array"), True
    if isinstance(spec, Mapping):
        return arrays.source(dict(spec), specs, notes, "the arrays"), False
    return _object(spec, options), False


def _path(path: Path, specs: Mapping[str, InputSpec], options: DataOptions, notes: list[str]) -> tuple[Source, bool]:
    if not path.exists():
        raise DataError(f"data '{path}' does not exist; --data takes {FORMS}")
    if path.is_dir():
        return _folder(path, specs, options, notes), True
    if path.suffix in (".npz", ".npy"):
        return arrays.files([path], specs, notes), True
    if path.suffix == ".py":
        raise DataError(f"data '{path}': name the function that makes the feeds, {path.name}:FUNC")
    if options.preprocess or path.suffix.lower() in images.SUFFIXES:
        return images.source([path], specs, options, notes), False
    raise DataError(f"data '{path}' is none of: {FORMS}")


def _folder(path: Path, specs: Mapping[str, InputSpec], options: DataOptions, notes: list[str]) -> Source:
    files = sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p.relative_to(path)))
    if not files:
        raise DataError(f"data folder '{path}' is empty")
    sets = protobufs.folders(path)
    if sets:
        return protobufs.source(sets, specs)
    if options.preprocess:
        return images.source(files, specs, options, notes)
    packed = [f for f in files if f.suffix in (".npz", ".npy")]
    if packed:
        return arrays.files(packed, specs, notes)
    pictures = [f for f in files if f.suffix.lower() in images.SUFFIXES]
    if pictures:
        return images.source(pictures, specs, options, notes)
    kinds = ", ".join(sorted({f.suffix or f.name for f in files})[:5])
    raise DataError(f"data folder '{path}' has nothing that can be read (it holds {kinds}); --data takes {FORMS}")


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _function(found: Any, label: str) -> Source:
    """A function is called again for every pass over the data; a list is taken as it is."""
    if not callable(found):
        return _sequence(found, label)

    def start() -> Iterable[Any]:
        result = found()
        if hasattr(result, "get_next"):
            return _drain(result)
        if isinstance(result, Mapping) or not isinstance(result, Iterable):
            raise DataError(f"{label} returned a {type(result).__name__}; it should yield dicts of arrays")
        return result

    return Stream(start, label)


def _sequence(items: Any, label: str) -> Source:
    if isinstance(items, (list, tuple)):
        return Indexed(len(items), items.__getitem__)
    if isinstance(items, Iterable) and not isinstance(items, (str, bytes)):
        return Stream(lambda: items, label)
    raise DataError(f"{label} is a {type(items).__name__}; expected dicts of arrays")


def _object(items: Any, options: DataOptions) -> Source:
    label = f"the data ({type(items).__name__})"
    if hasattr(items, "get_next"):
        if hasattr(items, "rewind"):
            return Stream(lambda: _drain(items), label)
        return _once(_drain(items), options, label)
    if isinstance(items, Iterator):
        return _once(items, options, label)
    if callable(items) and not isinstance(items, Iterable):
        return _function(items, label)
    return _sequence(items, label)


def _drain(reader: Any) -> Iterator[Any]:
    """All feeds of a calibration data reader, from its start where it can rewind."""
    if hasattr(reader, "rewind"):
        reader.rewind()
    while (feed := reader.get_next()) is not None:
        yield feed


def _once(items: Iterator[Any], options: DataOptions, label: str) -> Source:
    """A source that can be read a single time is kept in memory, as far as the cache allows."""
    kept: list[Any] = []
    room = options.cache_mb << 20
    most = 10**9 if options.samples is None else options.samples
    stream = Stream(lambda: items, label)
    for _, feed in stream.read(None):
        room -= feed_bytes(feed) if isinstance(feed, dict) else 0
        if room < 0:
            raise DataError(
                f"{label} can be read only once and does not fit in {options.cache_mb} MB; "
                "give a list, a function that starts it anew, or fewer samples"
            )
        kept.append(owned(feed))  # what yields it may fill the same buffer again
        if len(kept) >= most:
            break
    return Indexed(len(kept), kept.__getitem__)


__all__ = ["FORMS", "DataOptions", "notes_on", "resolve"]
