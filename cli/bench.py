"""`onnxslim bench`: time models against each other, in turns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import data_options, finite, read_data_options, threads_option, verbose_option


@click.command(short_help="Time models in turns.")
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@data_options
@threads_option
@click.option(
    "--seconds",
    type=click.FloatRange(0.1),
    callback=finite,
    default=4.0,
    show_default=True,
    help="Time for all together.",
)
@verbose_option
def bench(models: tuple[Path, ...], threads: int, seconds: float, verbose: bool, **values: Any) -> None:
    """Time MODELS in turns (A B A B ...) on one feed: medians, and the median ratio to the first."""
    from ..passes import words
    from ..runtime import latency
    from . import show
    from .feeding import feeds_for

    feed = feeds_for(models[0], read_data_options(values)).first()
    rows = latency.bench([str(m) for m in models], feed, threads=threads, seconds=seconds)
    shown = [
        (str(path), words.milliseconds(row.ms), f"{row.speedup:.2f}x", row.runs) for path, row in zip(models, rows)
    ]
    title = f"{threads or 'all'} thread{'' if threads == 1 else 's'}, one feed: {shapes(feed)}"
    show.put(title, ("model", "median", "speed", "runs"), shown, numeric=(1, 2, 3))


def shapes(feed: Any) -> str:
    """Names and shapes of a feed."""
    return ", ".join(f"{name}{list(getattr(value, 'shape', ()))}" for name, value in feed.items())
