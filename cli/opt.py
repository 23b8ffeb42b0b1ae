"""`onnxslim opt`: the compiler."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from .options import data_options, read_data_options, threads_option, voice_options

RUN_OPTIONS = ("model", "output", "report", "recipe", "dry_run", "quiet", "verbose", "dump")
"""Parameters that are not part of a recipe."""


HELP = {
    "output": "Where the result goes; MODEL with .slim.onnx unless told.",
    "passes": "Passes: name:key=value:key=value,name2 (see `onnxslim passes`).",
    "target": "Where the model will run; this machine (ort-cpu) unless told. One of ort-cpu, ort-cpu-avx2, "
    "ort-cpu-avx512, ort-cpu-vnni, ort-cpu-amx, ort-cpu-arm, tensorrt, openvino.",
    "metric": "FUNC(run) -> float, higher is better; run(feeds) runs the candidate.",
    "max_drop": "Most that the metric may drop, relative to the original: 0.01 or 1%. Without a metric, for the "
    "worst output: share of changed classes where it has them, else relative error.",
    "min_sqnr": "Least SQNR of every output, in dB.",
    "exclude": "Nodes whose name matches are left alone by lossy passes.",
    "report": "Write a report, .json or .html. May be repeated.",
    "recipe": "Options from a .toml file, or from a report (.json): its own run. The command line wins.",
    "seed": "Seed of everything random.",
    "jobs": "Cores to collect statistics on; timings keep to --threads.",
    "memory": "Bound on statistics.",
    "timings": "Keep every timing that decided something and replay them when FILE is there: equal to the byte.",
    "dump": "Write the model after every kept pass into DIR, which is made if need be.",
    "dry_run": "Read and check everything, say what would run, and stop.",
}
FILE = click.Path(path_type=Path)


@click.command(short_help="Make a model smaller and faster.")
@click.argument("model", type=FILE)
@click.option("-o", "--output", type=FILE, metavar="OUT", help=HELP["output"])
@click.option("-p", "--passes", default="simplify", show_default=True, metavar="SPEC", help=HELP["passes"])
@data_options
@click.option("--target", metavar="NAME", help=HELP["target"])
@click.option("--metric", metavar="FILE.py:FUNC", help=HELP["metric"])
@click.option("--max-drop", metavar="X", help=HELP["max_drop"])
@click.option("--min-sqnr", type=float, metavar="DB", help=HELP["min_sqnr"])
@click.option("--exclude", metavar="REGEX", help=HELP["exclude"])
@click.option("--report", multiple=True, type=FILE, metavar="FILE", help=HELP["report"])
@click.option("--recipe", type=FILE, metavar="FILE", help=HELP["recipe"])
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, metavar="N", help=HELP["seed"])
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, metavar="N", help=HELP["jobs"])
@threads_option
@click.option(
    "--memory", "memory_mb", type=click.IntRange(1), default=512, show_default=True, metavar="MB", help=HELP["memory"]
)
@click.option("--timings", type=FILE, metavar="FILE", help=HELP["timings"])
@click.option("--dump", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help=HELP["dump"])
@click.option("--dry-run", is_flag=True, help=HELP["dry_run"])
@voice_options
@click.pass_context
def opt(ctx: click.Context, **values: Any) -> int:
    """Make MODEL smaller and faster, measured beside the original at every step.

    Exit codes: 0 written and within limits; 1 a model, data or value was refused (nothing written), or a report or
    standard output could not be written at the end; 2 the command line cannot be read; 3 written, but the limits are
    not met or a pass failed (the report says which).
    """
    from ..ir.files import check_there

    run = {k: values.pop(k) for k in RUN_OPTIONS}
    check_there(run["model"])
    settings = _settings(ctx, values, run["recipe"])
    output = run["output"] or _default(run["model"])
    _check_places(run, output, settings)
    return _work(run, output, settings)


def _default(model: Path) -> Path:
    from .places import default_output

    return default_output(model)


def _settings(ctx: click.Context, values: dict[str, Any], recipe: Path | None) -> Any:
    """Recipe below, command line on top: an option counts as given when it stands on the command line."""
    from ..passes import recipe as recipes

    read = read_data_options(values)
    given = {k: v for k, v in read.items() if ctx.get_parameter_source(k) is not ParameterSource.DEFAULT}
    defaults = {k: v for k, v in read.items() if k not in given and v not in (None, {}, ())}
    stored = recipes.load(recipe) if recipe else {}
    return recipes.Settings(**{**defaults, **stored, **given}).checked()


def _check_places(run: dict[str, Any], output: Path, settings: Any) -> None:
    from ..ir.errors import OptionError
    from ..ir.files import data_place
    from ..ir.wire import data_files
    from . import places

    weights = data_files(run["model"])
    kept = [run["model"], *weights, *places.read_by(settings), *([run["recipe"]] if run["recipe"] else [])]
    check = partial(places.check, kept=kept, every=settings.preprocess is not None)
    check(output)
    kept.append(output)
    if weights:
        beside = data_place(output, lambda place: any(places.same(place, w) for w in weights))
        check(beside, what="weights file")
        kept.append(beside)
    for path in run["report"]:
        check(path, what="report")
        kept.append(path)
        if path.suffix.lower() not in (".json", ".html", ".htm"):
            raise OptionError(f"report {path}: the name must end in .json or .html, which says what to write")
    if settings.timings is not None:
        check(Path(settings.timings), what="timings file")


def _work(run: dict[str, Any], output: Path, settings: Any) -> int:
    from ..passes import optimize
    from ..passes.pipeline import Dump
    from . import places, show
    from .voice import Voice

    with Voice(run["quiet"], run["verbose"]) as voice:
        job = optimize.prepare(run["model"], settings)
        if run["dry_run"]:
            return _plan(job, output, voice)
        if run["dump"]:
            places.folder(run["dump"])
        observers: list[Any] = [voice, *([Dump(run["dump"])] if run["dump"] else [])]
        result = optimize.execute(job, observers, progress=voice.progress)
        result.save(output)
        _write_reports(result.report, run["report"], output)
    if not run["quiet"]:
        show.report(result.report.to_json(), run["verbose"])
    elif result.report.exit_code:
        for reason in result.report.reasons:
            click.echo(" ".join(reason.split()), err=True)
    return result.report.exit_code


def _write_reports(report: Any, paths: Any, output: Path) -> None:
    from ..ir.errors import OutputError

    for path in paths:
        try:
            report.save(path)
        except OutputError as error:
            raise OutputError(f"{error}; the model itself was written to {output}") from error


def _plan(job: Any, output: Path, voice: Any) -> int:
    """What a run would do."""
    from ..passes import spec
    from . import show

    for text in job.notes:
        voice.say(text)
    rows = [
        (k, spec.show(p), "added" if auto else "", spec.summary(type(p))) for k, (p, auto) in enumerate(job.passes, 1)
    ]
    if not voice.quiet:
        show.put("", ("", "pass", "", "what it does"), rows, wide=3)
        click.echo(f"feeds: {len(job.ctx.fit)} to fit on, {len(job.ctx.check)} to check on (source: {job.ctx.source})")
        click.echo(f"dry run: nothing was changed; the output would be {output}")
    return 0
