"""`onnxslim sensitivity`: what taking channels away does to the outputs, group by group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import data_options, numbers, read_data_options, threads_option, verbose_option


@click.command(short_help="What taking channels away does to the outputs, group by group.")
@click.argument("model", type=click.Path(path_type=Path))
@data_options
@threads_option
@click.option(
    "--ratios", default="0.125,0.25,0.5", show_default=True, metavar="R,R", help="Shares of a group, in rising order."
)
@click.option("--rows", type=click.IntRange(1), default=30, show_default=True, help="Groups to show.")
@verbose_option
def sensitivity(model: Path, ratios: str, rows: int, threads: int, verbose: bool, **values: Any) -> None:
    """Take a share of one group of MODEL's channels away at a time, refit its readers, and compare the outputs.

    The figures are squared errors relative to the outputs' variance: 0.01 is 20 dB, 1 leaves nothing. Groups are those
    of `inspect --groups`, after `simplify`. Without --data the feeds are random, and so is the answer.
    """
    from ..passes import words
    from ..passes.prune import curves
    from . import show

    shares = _shares(ratios)
    loaded, ctx = _prepared(model, threads, read_data_options(values))
    if ctx.source == "random":
        click.echo("no real data was given (--data): the figures are of random inputs", err=True)
    found = curves.curves(loaded, ctx, shares)
    shown = found if verbose else found[:rows]
    table = [(r.node, r.channels, words.count(r.macs), *_errors(r.errors, len(shares))) for r in shown]
    title = f"{len(found)} groups, the most sensitive first: output error after this share of a group went"
    head = ("group of", "channels", "MACs", *(f"{s:.0%}" for s in shares))
    show.put(title, head, table, numeric=tuple(range(1, len(head))))
    if len(found) > len(shown):
        click.echo(f"... and {len(found) - len(shown)} more (-v shows all)")


def _shares(text: str) -> tuple[float, ...]:
    shares = numbers(text, "--ratios", "0.125,0.25,0.5") or ()
    if not shares or not all(0 < s < 1 for s in shares) or list(shares) != sorted(set(shares)):
        raise click.BadParameter(f"{text!r} is no rising list of shares like 0.125,0.25,0.5", param_hint="'--ratios'")
    return shares


def _errors(errors: tuple[float, ...] | None, count: int) -> tuple[str, ...]:
    return ("not read by a linear layer", *[""] * (count - 1)) if errors is None else tuple(f"{e:.2g}" for e in errors)


def _prepared(path: Path, threads: int, values: dict[str, Any]) -> tuple[Any, Any]:
    """The simplified model, and a context whose feeds are all for fitting."""
    from .. import ir
    from ..passes.base import Context
    from ..passes.simplify import Simplify
    from ..passes.target import Target
    from ..runtime.latency import Timings
    from .feeding import feeds_for

    loaded = ir.load(path)
    loaded.freeze_defaults()
    feeds = feeds_for(path, values)
    ctx = Context(Target.detect(), feeds, feeds, feeds.source, loaded, Timings(), threads=threads)
    Simplify().run(loaded, ctx)
    ir.order.sort(loaded)
    ir.shapes.refresh(loaded)
    return loaded, ctx
