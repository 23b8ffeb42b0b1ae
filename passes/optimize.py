"""The whole job: a model and settings in, the optimised model and its report out.

`prepare` reads and checks everything that the user handed in, so that mistakes surface before any work; `execute` runs
the passes. `optimize` is both, and the Python door to what `onnxslim opt` does.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import ir
from ..ir.errors import OptionError, OutputError
from ..ir.spill import spill
from ..runtime.feeds import Feeds, resolve
from ..runtime.functions import is_function, load_function
from ..runtime.latency import Timings
from ..runtime.loading import is_large
from ..runtime.numerics import UNSEEN, Numerics, Reference
from ..runtime.sources import DataOptions, notes_on
from . import report as reports
from .base import Context, LossyPass, Pass
from .budget import COLLAPSE_DB, Limits
from .gammas import gammas
from .judge import NOWHERE, Judge, Metric
from .pace import Pace
from .pipeline import Observer, Pipeline, arrange
from .recipe import Settings, pattern
from .report import Report
from .run import Run
from .target import Target
from .transaction import Stopwatch, peak_mb

if TYPE_CHECKING:
    from ..ir import Model

Progress = Callable[[Iterable[Any], str, "int | None"], Iterable[Any]]
CHECKS = 64
"""Check feeds at most: the reference keeps the original's outputs on all of them."""


@dataclass
class Result:
    """The optimised model and the report of the run."""

    model: Model
    report: Report

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model, atomically, and enter the file in the report. Raises OutputError."""
        ir.save(self.model, path)
        self.report.output = reports.describe_file(Path(path), self._cost())

    def _cost(self) -> ir.cost.Cost:
        names = ("nodes", "params", "macs", "bytes")
        return ir.cost.Cost(**{n: self.report.output[n] for n in names})


@dataclass
class Job:
    """A run that is ready to go: everything was read and checked, nothing was changed yet."""

    model: Model
    source: Any
    path: Path | None
    settings: Settings
    passes: list[tuple[Pass, bool]]
    ctx: Context
    feeds: Feeds
    judge: Judge
    command: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def optimize(
    model: Model | str | os.PathLike[str],
    passes: str | Sequence[Pass | str] = "simplify",
    *,
    data: Any = None,
    metric: str | Metric | None = None,
    max_drop: float | str | None = None,
    min_sqnr: float | None = None,
    target: str | Target | None = None,
    exclude: str | None = None,
    samples: int | None = None,
    input_shape: Mapping[str, Sequence[int]] | None = None,
    image_size: int | tuple[int, int] | None = None,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    image_layout: str | None = None,
    image_scale: float | None = None,
    preprocess: str | Callable[..., Any] | None = None,
    seed: int = 0,
    jobs: int = 1,
    threads: int = 1,
    memory_mb: int = 512,
    timings: str | os.PathLike[str] | Timings | None = None,
    observers: Sequence[Observer] = (),
    strict: bool = False,
) -> Result:
    """Make a model smaller and faster, and prove it.

    model: a path, or a Model (which is not edited). passes: the text of `-p`, or a list of passes and such texts; it is
    arranged as `pipeline.arrange` says. data: anything that `--data` takes, or any re-iterable of {name: array}.
    metric: `FUNC(run) -> float`, higher is better. max_drop, min_sqnr: limits; what breaks them is weakened or
    rolled back. strict: raise PassError when a pass fails instead of going on without it.

    Raises a BadInput when something handed in is unusable, before any work. A result that misses the limits, or
    lacks a pass that failed, is returned all the same: `result.report.verdict` tells.
    """
    settings = Settings(
        passes, data, metric, max_drop, min_sqnr, target, exclude, samples, input_shape or {}, image_size, image_mean,
        image_std, image_layout, image_scale, preprocess, seed, jobs, threads, memory_mb, timings,
    )  # fmt: skip
    return execute(prepare(model, settings), observers, strict=strict)


def prepare(model: Model | str | os.PathLike[str], settings: Settings) -> Job:
    """Read and check the model, the passes, the data and the metric. Raises a BadInput for whatever is unusable."""
    settings = settings.checked()
    passes = arrange(_flat(settings.parsed()))
    command = settings.command()
    target = _target(settings.target)
    metric = _metric(settings.metric)
    timings = _timings(settings.timings)
    timings.engine = target.engine
    path = Path(model) if isinstance(model, str | os.PathLike) else None
    loaded = ir.load(path) if path is not None else model.copy()  # type: ignore[union-attr]
    source = path if path is not None else loaded.copy()
    notes = _freeze(loaded)
    if is_large(loaded):
        spill(loaded)
    ir.shapes.refresh(loaded)
    options = data_options(settings)
    feeds = resolve(settings.data, loaded, options)
    for _ in feeds:  # every feed is validated now rather than in the middle of the run
        pass
    fit, check = _split(feeds, passes)
    notes += [
        *feeds.notes,
        *notes_on(settings.data, options),
        *_data_notes(feeds, passes, settings),
        *_exclude_notes(loaded, passes, settings),
    ]
    ctx = Context(
        target, fit, check, feeds.source, loaded, timings, settings.seed, settings.memory_mb, settings.threads,
        settings.jobs, pattern(settings.exclude) if settings.exclude else None, gammas=gammas(loaded),
    )  # fmt: skip
    limits = Limits(settings.max_drop, settings.min_sqnr)  # type: ignore[arg-type]
    reference = Reference(source, check, threads=settings.threads, memory_mb=settings.memory_mb // 8)
    judge = Judge(reference, limits, metric, settings.threads)
    judge.baseline(source)
    return Job(loaded, source, path, settings, passes, ctx, feeds, judge, command, notes)


def execute(
    job: Job, observers: Sequence[Observer] = (), *, progress: Progress | None = None, strict: bool = False
) -> Result:
    """Run a prepared job. Whatever happens to a pass, a model comes back; see `Report.verdict`."""
    watch = Stopwatch()
    ctx = replace(job.ctx, on_progress=progress) if progress else job.ctx
    pace = Pace(ctx, job.feeds.first(), job.judge.pair, job.judge.session)
    run = Run(job.model, ctx, job.judge, pace, tuple(observers), strict)
    before = pace.cost(job.model)
    for text in job.notes:
        run.note(text)
    run.go(job.passes)
    latency, broken = run.settle(job.source)
    numerics = run.numerics or job.judge.numerics(run.model)
    metric = job.judge.score(run.model)
    job.judge.release()
    report = Report(
        command=job.command,
        input=reports.describe_file(job.path, before, None if job.path else _bytes(job.source)),
        output=reports.describe_file(None, pace.cost(run.model)),
        steps=[reports.describe_step(s) for s in run.steps],
        numerics=numerics.to_json(),
        latency=latency.to_json(),
        notes=run.notes,
        tool=reports.describe_tool(ctx.target),
    )
    _judge(report, run, broken, metric)
    _warn_of_damage(run, numerics.min_sqnr)
    _warn_of_the_unseen(run, numerics)
    _save_timings(ctx.timings, run)
    report.seconds, report.peak_mb = watch.seconds(), peak_mb()
    return Result(run.model, report)


def _judge(report: Report, run: Run, broken: Sequence[str], metric: float | None) -> None:
    """Metric, verdict and reasons."""
    if metric is not None:
        report.metric = {"before": run.judge.metric_before, "after": metric}
        if math.isnan(metric):
            broken = [*broken, run.judge.failed]
        elif not broken:  # the run never saw this value where all was rolled back
            missed = run.judge.missed(metric, not any(s.kept for s in run.steps))
            broken = [missed] if missed else []
    failed = [s.error for s in run.steps if s.error]
    changed = [f"{s.p.name}: {s.reason}" for s in run.steps if s.reason and not s.error]
    report.reasons = list(dict.fromkeys([*broken, *failed, *changed, *_held_back(run)]))
    report.verdict = reports.MISSED if broken else reports.FAILED if failed else reports.OK


def _save_timings(timings: Timings, run: Run) -> None:
    """A result that took minutes is not thrown away because its timings cannot be written."""
    try:
        timings.save()
    except OutputError as error:
        run.note(f"{error}: the next run will time everything again")


def _warn_of_damage(run: Run, sqnr_db: float) -> None:
    """An amount that nothing weakened may ruin a model: say so loudly, since no limit did."""
    if run.judge.limits.given or run.ctx.source == "random" or not sqnr_db < COLLAPSE_DB:
        return
    run.note(
        f"the outputs are far from the original's (SQNR {sqnr_db:.1f} dB): no limit held the amounts back. "
        "Give --max-drop or --min-sqnr to have them weakened until the accuracy holds."
    )


def _warn_of_the_unseen(run: Run, numerics: Numerics) -> None:
    """Outputs that are empty, or NaN, on every check feed prove nothing: say so, since equal they are."""
    if numerics.blind:
        run.note(f"{UNSEEN}: {NOWHERE}, so what changes cost is unknown. Give --data with inputs where they are not.")
    elif numerics.unseen:
        names = ", ".join(map(repr, numerics.unseen))
        run.note(f"{UNSEEN} of {names}: empty or not finite in the original on all check feeds")


def _held_back(run: Run) -> list[str]:
    """What lossy passes said about themselves in a run without real data."""
    if run.ctx.source != "random":
        return []
    return [note for s in run.steps if isinstance(s.p, LossyPass) for note in s.notes]


def _split(feeds: Feeds, passes: Sequence[tuple[Pass, bool]]) -> tuple[Feeds, Feeds]:
    """Feeds to fit on and to check on; exact passes fit nothing and random feeds mean nothing, so all check them."""
    if feeds.source == "random" or not any(isinstance(p, LossyPass) for p, _ in passes):
        return feeds, feeds.spread(CHECKS)
    fit, check = feeds.split()
    if fit.shared:
        feeds.note(f"too few feeds to split ({len(feeds)}): fitted and checked on the same, so expect worse on others")
    return fit, check.spread(CHECKS)


def _flat(passes: Sequence[Pass]) -> list[Pass]:
    """Pipelines of the user taken apart, so that each of their passes is measured."""
    flat: list[Pass] = []
    for p in passes:
        flat.extend(_flat(p.passes) * max(1, p.repeat) if isinstance(p, Pipeline) else [p])
    return flat


def _target(value: Any) -> Target:
    if isinstance(value, Target):
        return value
    return Target.named(str(value)) if value is not None else Target.detect()


def _metric(value: Any) -> Metric | None:
    if isinstance(value, str):
        if not is_function(value):
            raise OptionError(f"metric {value!r} does not name a function; write FILE.py:FUNC")
        value = load_function(value)
    if value is not None and not callable(value):
        raise OptionError(f"the metric is a {type(value).__name__}; expected a function of `run`")
    return value


def _timings(value: Any) -> Timings:
    return value if isinstance(value, Timings) else Timings(value)


def data_options(settings: Settings) -> DataOptions:
    """How feeds are read, as `runtime.sources` takes it."""
    shapes = {k: tuple(v) for k, v in settings.input_shape.items()}
    names = ("samples", "image_size", "image_layout", "image_scale", "preprocess", "seed")
    given = {n: getattr(settings, n) for n in names}
    mean, std = (None if v is None else tuple(v) for v in (settings.image_mean, settings.image_std))
    if isinstance(given["image_size"], list):
        given["image_size"] = tuple(given["image_size"])
    cache_mb = max(1, settings.memory_mb // 8)
    return DataOptions(**given, image_mean=mean, image_std=std, input_shapes=shapes, cache_mb=cache_mb)


def _freeze(model: Model) -> list[str]:
    """Inputs that only an exporter's habit lists become constants: when every initializer is an input."""
    if not model.header.only_defaults:
        return []
    count = model.freeze_defaults()
    return [f"all {count} initializers were listed as inputs; they are weights now and no longer inputs"]


def _data_notes(feeds: Feeds, passes: Sequence[tuple[Pass, bool]], settings: Settings) -> list[str]:
    lossy = [p.name for p, _ in passes if isinstance(p, LossyPass)]
    if feeds.source != "random" or not lossy:
        return []
    return [
        f"NO REAL DATA: {', '.join(lossy)} saw only {len(feeds)} random feeds, so accuracy on real inputs is unknown. "
        "Give --data with a few dozen typical inputs."
    ]


def _exclude_notes(model: Model, passes: Sequence[tuple[Pass, bool]], settings: Settings) -> list[str]:
    """A pattern that matches nothing is a slip of the user's that would otherwise show in the result alone."""
    names = [node.name for node in model.nodes()]
    asked = [settings.exclude, *(getattr(p, "exclude", None) for p, _ in passes)]
    texts = sorted({text for text in asked if text})
    lost = [text for text in texts if not any(pattern(text).search(name) for name in names)]
    like = ", ".join(repr(name) for name in names[:3])
    return [
        f"exclude {text!r} matches no node of the model as it came in; its nodes have names like {like}"
        for text in lost
    ]


def _bytes(model: Any) -> bytes | None:
    from ..ir.exporting import weight_bytes
    from ..ir.model import INLINE_LIMIT

    return ir.to_bytes(model) if weight_bytes(model) <= INLINE_LIMIT else None
