"""Options that several commands share, and how their texts are read."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def shape(text: str) -> tuple[str, tuple[int, ...]]:
    """`NAME:1,3,224,224` as (name, shape); the last colon counts, for names that have some."""
    name, colon, dims = text.rpartition(":")
    try:
        sizes = tuple(int(d) for d in dims.split(",") if d.strip())
    except ValueError:
        sizes = ()
    if not colon or not name or any(s < 1 for s in sizes) or (dims.strip() and not sizes):
        raise click.BadParameter(f"{text!r} is not NAME:1,3,224,224", param_hint="'--input-shape'")
    return name, sizes


def numbers(text: str | None, option: str, like: str) -> tuple[float, ...] | None:
    """`0.485,0.456,0.406` as floats; option, like: what a message names, and its example."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of numbers like {like}", param_hint=f"'{option}'") from None


def image_size(text: str | None) -> Any:
    """`224` or `480x640` (height x width)."""
    if text is None:
        return None
    parts = text.lower().replace(",", "x").split("x")
    if len(parts) > 2 or not all(p.strip().isdigit() and int(p) > 0 for p in parts):
        raise click.BadParameter(f"{text!r} is not a size like 224 or 480x640", param_hint="'--image-size'")
    return int(parts[0]) if len(parts) == 1 else (int(parts[0]), int(parts[1]))


def finite(ctx: click.Context, parameter: click.Parameter, value: float) -> float:
    """The callback of a number that has to be one: click reads "nan" and "inf" as numbers, and NaN is in any range."""
    if not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a finite number.")
    return value


HELP = {
    "data": "Inputs: .npz, .npy, a folder of them, of images or of .pb files, FILE.py:FUNC, or random.",
    "samples": "Feeds to use at most.",
    "input_shape": "Sizes of a dynamic input, for random feeds. May be repeated.",
    "size": "Of image folders: size that images are brought to (else the model's).",
    "mean": "Of image folders: mean that is subtracted from pixels.",
    "std": "Of image folders: deviation that pixels are divided by.",
    "layout": "Of image folders: axis order (else the model's).",
    "scale": "Of image folders: factor on pixels before mean and deviation; 1/255 unless told.",
    "preprocess": "Of folders of images or of any files: turns a file's path into an array or a dict of arrays.",
}


def data_options(command: F) -> F:
    """Where feeds come from."""
    options = (
        click.option("--data", metavar="SRC", help=HELP["data"]),
        click.option("--samples", type=click.IntRange(1), metavar="N", help=HELP["samples"]),
        click.option("--input-shape", multiple=True, metavar="NAME:1,3,224,224", help=HELP["input_shape"]),
        click.option("--image-size", metavar="N|HxW", help=HELP["size"]),
        click.option("--image-mean", metavar="R,G,B", help=HELP["mean"]),
        click.option("--image-std", metavar="R,G,B", help=HELP["std"]),
        click.option("--image-layout", type=click.Choice(["nchw", "nhwc"]), help=HELP["layout"]),
        click.option("--image-scale", type=float, metavar="X", help=HELP["scale"]),
        click.option("--preprocess", metavar="FILE.py:FUNC", help=HELP["preprocess"]),
    )
    for option in reversed(options):
        command = option(command)
    return command


def read_data_options(values: dict[str, Any]) -> dict[str, Any]:
    """The parsed form of `data_options` in a command's keyword arguments."""
    read = dict(values)
    if read.get("data") == "":
        raise click.BadParameter("'' names no data", param_hint="'--data'")
    if "input_shape" in read:
        read["input_shape"] = dict(shape(text) for text in read["input_shape"])
    for key, like in (("image_mean", "0.485,0.456,0.406"), ("image_std", "0.229,0.224,0.225")):
        if key in read:
            read[key] = numbers(read[key], f"--{key.replace('_', '-')}", like)
    if "image_size" in read:
        read["image_size"] = image_size(read["image_size"])
    return read


def threads_option(command: F) -> F:
    """Threads of timed sessions."""
    text, whole = "Threads of ONNX Runtime; 0: one a core.", click.IntRange(0)
    return click.option(
        "--threads", type=whole, default=1, show_default=True, callback=_threads, metavar="N", help=text
    )(command)


def _threads(ctx: click.Context, param: click.Parameter, value: int) -> int:
    from ..runtime.session import check_threads

    check_threads("threads", value)
    return value


def verbose_option(command: F) -> F:
    """-v."""
    text = "More: nothing is cut short, every refusal, and tracebacks of errors."
    return click.option("-v", "--verbose", is_flag=True, help=text)(command)


def voice_options(command: F) -> F:
    """-q and -v."""
    command = verbose_option(command)
    return click.option("-q", "--quiet", is_flag=True, help="Nothing but errors, and why the exit code is 3.")(command)
