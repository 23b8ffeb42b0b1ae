"""Folders of images as feeds. Pillow is imported only when an image is decoded (extra `images`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ir.errors import DataError, MissingExtra, OptionError
from .feeds import Indexed
from .functions import load_function
from .specs import InputSpec, kind_of, required

if TYPE_CHECKING:
    from .sources import DataOptions

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
CHANNELS = (1, 3)
BITS_PER_SAMPLE = 258  # a tag of TIFF 6.0, section 4


@dataclass
class Pictures(Indexed):
    """Feeds that are made of image files."""


@dataclass(frozen=True)
class Recipe:
    """From a file to an input: decode, resize and crop, scale, normalise, lay out."""

    height: int
    width: int
    channels: int
    layout: str
    scale: float
    mean: np.ndarray | None
    std: np.ndarray | None
    integer: bool

    def __call__(self, path: Path) -> np.ndarray:
        """A batch of one: [1, C, H, W] or [1, H, W, C]."""
        pixels = _decode(path, self.height, self.width, "L" if self.channels == 1 else "RGB")
        x = pixels.astype(np.float32) * np.float32(self.scale)
        if self.mean is not None:
            x = x - self.mean
        if self.std is not None:
            x = x / self.std
        if self.integer:
            x = np.rint(x).astype(np.int64)
        return (x.transpose(2, 0, 1) if self.layout == "nchw" else x)[None]


def _decode(path: Path, height: int, width: int, mode: str) -> np.ndarray:
    """The image file as [height, width, channels] uint8. Raises DataError."""
    opened = _pillow().open
    try:
        with opened(path) as file:
            return _fitted(_plain(file, path).convert(mode), height, width)
    except DataError:
        raise
    except Exception as error:  # a damaged file makes Pillow raise nearly anything
        why = str(error).rstrip(".") or type(error).__name__
        raise DataError(f"{path} cannot be decoded as an image: {why}; mend it or take it out of the data") from error


def _plain(image: Any, path: Path) -> Any:
    """An image as Pillow can convert it: gray values of more than 8 bits, which it would clip, are brought to 8."""
    if image.mode.partition(";")[0] not in ("I", "F"):
        return image
    white = _white(image)
    if white is None:
        raise DataError(
            f"{path} has {'floats' if image.mode == 'F' else 'whole numbers'} of an unknown range for pixels; "
            "say what they mean with --preprocess FILE.py:FUNC, or give arrays"
        )
    values = np.asarray(image).astype(np.uint32)
    return _pillow().fromarray(((values * 255 + white // 2) // white).astype(np.uint8))


def _white(image: Any) -> int | None:
    """The largest value of gray pixels of more than 8 bits; None where the file does not tell.

    Pillow 10 opens 16-bit PNGs in mode I, later ones in I;16. All bring a PGM to 16 bits, but no TIFF of 12 bits.
    """
    if image.mode.startswith("I;16"):
        bits = image.tag_v2.get(BITS_PER_SAMPLE, (16,))[0] if image.format == "TIFF" else 16
        return int((1 << bits) - 1)
    return 65535 if image.mode == "I" and image.format in ("PNG", "PPM") else None


def _fitted(image: Any, height: int, width: int) -> np.ndarray:
    """[height, width, channels]: the shorter side is fitted, the middle is cut out, nothing is distorted."""
    factor = max(width / image.width, height / image.height)
    size = (max(width, round(image.width * factor)), max(height, round(image.height * factor)))
    image = image.resize(size, _pillow().Resampling.BILINEAR)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    pixels = np.asarray(image.crop((left, top, left + width, top + height)))
    return pixels.reshape(height, width, -1)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtra("reading images needs Pillow: pip install 'onnxslim-opt[images]'") from None
    return Image


def source(paths: Sequence[Path], specs: Mapping[str, InputSpec], options: DataOptions, notes: list[str]) -> Pictures:
    """One feed an image (or as many images as the model's fixed batch)."""
    spec = _target(specs)
    if options.preprocess:
        return _batched(paths, spec, _user(options.preprocess, spec), notes)
    make = recipe(spec, options, notes)
    return _batched(paths, spec, lambda path: {spec.name: make(path)}, notes)


def _target(specs: Mapping[str, InputSpec]) -> InputSpec:
    needed = required(specs)
    pictures = [s for s in needed if s.rank == 4 or s.rank is None]
    if len(pictures) == 1:
        return pictures[0]
    if len(needed) == 1:
        return needed[0]
    told = "; ".join(map(str, needed)) or "none"
    raise DataError(f"cannot tell which input takes the images ({told}); give --data FILE.py:FUNC")


def _batched(
    paths: Sequence[Path], spec: InputSpec, make: Callable[[Path], dict[str, Any]], notes: list[str]
) -> Pictures:
    size = spec.batch or 1
    count = len(paths) // size
    if not count:
        raise DataError(f"{len(paths)} images do not fill a batch; the model's batch is fixed at {size}")
    if len(paths) % size:
        notes.append(f"the last {len(paths) % size} images do not fill a batch of {size} and are left out")

    def load(i: int) -> dict[str, Any]:
        parts = [make(p) for p in paths[i * size : (i + 1) * size]]
        return parts[0] if size == 1 else {n: np.concatenate([p[n] for p in parts]) for n in parts[0]}

    return Pictures(count, load)


def _user(preprocess: Any, spec: InputSpec) -> Callable[[Path], dict[str, Any]]:
    function = load_function(preprocess) if isinstance(preprocess, str) else preprocess

    def make(path: Path) -> dict[str, Any]:
        try:
            result = function(path)
        except Exception as error:
            raise DataError(f"preprocess raised {type(error).__name__} on {path}: {error}") from error
        if isinstance(result, Mapping):
            return dict(result)
        array = np.asarray(result)
        return {spec.name: array[None] if spec.rank is not None and array.ndim == spec.rank - 1 else array}

    return make


def recipe(spec: InputSpec, options: DataOptions, notes: list[str]) -> Recipe:
    """The steps for one input. Raises OptionError when the size can neither be read off the model nor is given."""
    if spec.rank not in (4, None):
        raise DataError(f"the model's input is no image ({spec}); give --preprocess FILE.py:FUNC")
    layout = options.image_layout or _layout(spec)
    height, width = _size(spec, layout, options)
    channels = (spec.shape[1 if layout == "nchw" else 3] if spec.shape else 3) or 3
    if not isinstance(channels, int):
        channels = 3
    if channels not in CHANNELS:
        raise DataError(
            f"input '{spec.name}' has {channels} channels; images have 1 or 3, give --preprocess FILE.py:FUNC"
        )
    integer = spec.dtype is not None and kind_of(spec.dtype) == "i"
    mean, std = _per_channel(options.image_mean, channels, "mean"), _per_channel(options.image_std, channels, "std")
    scale = options.image_scale
    if scale is None:
        raw = integer or any(v is not None and float(np.max(v)) > 2 for v in (mean, std))
        scale = 1.0 if raw else 1 / 255
    if not integer and mean is None and std is None:
        notes.append(f"images: pixels times {scale:.6g}, no mean and no std given (--image-mean, --image-std)")
    return Recipe(height, width, channels, layout, scale, mean, std, integer)


def _layout(spec: InputSpec) -> str:
    if spec.shape is None or spec.shape[1] in CHANNELS or spec.shape[3] not in CHANNELS:
        return "nchw"
    return "nhwc"


def _size(spec: InputSpec, layout: str, options: DataOptions) -> tuple[int, int]:
    if options.image_size is not None:
        size = options.image_size
        height, width = (size, size) if isinstance(size, int) else size
        if min(height, width) < 1:
            raise OptionError(f"image size must be positive, not {height}x{width}")
        return height, width
    dims = (spec.shape[2:4] if layout == "nchw" else spec.shape[1:3]) if spec.shape else (None, None)
    if not all(isinstance(d, int) for d in dims):
        raise OptionError(f"the model does not fix its image size ({spec}); give --image-size")
    return int(dims[0] or 0), int(dims[1] or 0)


def _per_channel(values: Sequence[float] | None, channels: int, what: str) -> np.ndarray | None:
    if values is None:
        return None
    array = np.asarray(values, np.float32).reshape(-1)
    if len(array) not in (1, channels):
        raise OptionError(f"image {what} has {len(array)} values; the model takes {channels} channels")
    if not np.isfinite(array).all():
        raise OptionError(f"image {what} must be finite numbers")
    if what == "std" and not (array > 0).all():
        raise OptionError("image std must be positive")
    return array


__all__ = ["SUFFIXES", "Pictures", "Recipe", "recipe", "source"]
