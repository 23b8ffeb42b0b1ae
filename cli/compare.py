"""`onnxslim compare`: where two models differ, tensor by tensor, first divergence first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import data_options, finite, read_data_options, threads_option, verbose_option


@click.command(short_help="Where two models differ, tensor by tensor.")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@data_options
@threads_option
@click.option(
    "--min-sqnr",
    type=float,
    callback=finite,
    default=60.0,
    show_default=True,
    metavar="DB",
    help="Below this a tensor counts as different.",
)
@click.option("--rows", type=click.IntRange(1), default=20, show_default=True, help="Tensors to show.")
@click.option("--outputs-only", is_flag=True, help="Compare graph outputs alone.")
@verbose_option
def compare(
    a: Path,
    b: Path,
    min_sqnr: float,
    rows: int,
    outputs_only: bool,
    threads: int,
    verbose: bool,
    **values: Any,
) -> None:
    """Run A and B on the same feeds and compare every tensor that both have, in the order of A.

    The first line is the first tensor that differs: where the difference begins. Outputs stand at the end. Where
    channels of a tensor only have other scales, as `quant` gives them, a column says what is left without these.
    """
    from ..passes import diverge
    from . import show
    from .feeding import feeds_for

    feeds = feeds_for(a, read_data_options({**values, "samples": values.get("samples") or 8}))
    found = diverge.compare(a, b, feeds, threads=threads, inner=not outputs_only)
    inner = [d for d in found.inner if d.diff.sqnr_db < min_sqnr]
    if not outputs_only:
        pruned = sum(d.diff.trouble == "other shape" for d in inner)
        shapes = f", {pruned} of them have another shape" if pruned else ""
        title = f"{len(found.inner)} inner tensors in both, {len(inner)} differ (SQNR below {min_sqnr:g} dB){shapes}"
        shown = inner if verbose else inner[:rows]
        show.put(title, HEAD, [_row(d) for d in shown], numeric=(2, 3, 4, 5))
        if len(inner) > len(shown):
            click.echo(f"... and {len(inner) - len(shown)} more (-v shows all)")
        click.echo()
    show.put(
        f"outputs, on {len(feeds)} feeds ({feeds.source})", HEAD, [_row(d) for d in found.outputs], numeric=(2, 3, 4, 5)
    )
    if found.missing:
        click.echo(f"outputs of A that B lacks: {', '.join(found.missing)}")


HEAD = ("tensor", "made by", "SQNR", "channels rescaled", "cosine", "largest difference")


def _row(found: Any) -> tuple[str, ...]:
    from ..passes import words

    d = found.diff
    if d.trouble:
        return found.name, found.op, d.trouble, "", "", ""
    scaled = "" if d.rescaled_db is None else words.db({"sqnr_db": d.rescaled_db})
    return found.name, found.op, words.db(d.to_json()), scaled, words.number(d.cosine), words.number(d.max_abs)
