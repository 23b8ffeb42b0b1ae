"""`onnxslim zoo`: models that come with the project, to try it on."""

from __future__ import annotations

from pathlib import Path

import click


@click.group(short_help="Models that come with the project.")
def zoo() -> None:
    """Models that come with the project: small trained ones, and public ones to fetch."""


@zoo.command("list")
def list_() -> None:
    """What there is."""
    from ..model_zoo import list_models
    from ..passes import words
    from . import show

    rows = [
        (
            m.name,
            words.size(m.size_bytes),
            words.percent(m.accuracy),
            m.task,
            "shipped" if m.source == "shipped" else "to fetch",
        )
        for m in list_models()
    ]
    show.put("", ("model", "size", "accuracy", "task", ""), rows, numeric=(1, 2), wide=3)


@zoo.command()
@click.argument("name")
@click.option(
    "-o",
    "--output",
    "out",
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="File or folder; the current folder unless told.",
)
def build(name: str, out: Path | None) -> None:
    """Put the model NAME at OUT (a file or a folder; the current folder unless told)."""
    from ..model_zoo import build as build_model

    click.echo(build_model(name, out or Path.cwd()))
