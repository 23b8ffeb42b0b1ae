"""Metric against MACs: `prune` beside L1 magnitudes without a refit. Labels are seen by the metric only.

    python benchmarks/prune_curves.py --out DIR [--macs 0.1,0.2,0.3,0.5] [--round-to N] [NAME ...]
    python benchmarks/prune_curves.py --out DIR --picture

Models and tasks are those of `run.py` that have labels. Every model's points go to DIR/NAME.json as they are measured,
and DIR/curves.md is made from all of these; with --picture nothing is measured, and DIR/curves.svg is drawn from them
(matplotlib, the `bench` extra).
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort
from onnxslim_opt.passes.base import Context
from onnxslim_opt.passes.prune import Prune
from onnxslim_opt.passes.simplify import Simplify
from onnxslim_opt.passes.target import Target
from onnxslim_opt.runtime import feeds
from onnxslim_opt.runtime.latency import Timings
from run import Task, module, runner, tasks

from onnxslim_opt import ir

WAYS: dict[str, dict[str, Any]] = {"prune": {}, "l1, no refit": {"criterion": "l1", "refit": False}}
ACROSS = 3  # panels in a row


@dataclass(frozen=True)
class Point:
    """One pruned model: what was asked for, what went (shares), and its metric."""

    model: str
    way: str
    asked: float
    macs: float
    params: float
    metric: float
    seconds: float


def judged(model: ir.Model, metric: Any) -> float:
    """The metric, by ONNX Runtime alone."""
    session = ort.InferenceSession(ir.to_bytes(model), providers=["CPUExecutionProvider"])
    return float(metric(runner(session)))


def simplified(task: Task, data: Any) -> tuple[ir.Model, Context]:
    """The model that is pruned, and what the passes may know."""
    model = ir.load(task.model)
    model.freeze_defaults()
    found = feeds.resolve(list(data()), model)
    fit, check = found.split()
    ctx = Context(Target.detect(), fit, check, found.source, model, Timings())
    Simplify().run(model, ctx)
    tidy(model)
    return model, ctx


def tidy(model: ir.Model) -> None:
    """As the pipeline does after every pass."""
    ir.order.sort(model)
    ir.shapes.refresh(model)
    ir.verify.check(model)


def points(task: Task, amounts: list[float], round_to: int | None, path: Path) -> None:
    """Every amount in every way, the model itself first; written as they come."""
    known = module(task.tasks)
    data, metric = getattr(known, task.data), getattr(known, str(task.metric))
    model, ctx = simplified(task, data)
    before = ir.cost.of(model)
    found = [Point(task.name, "original", 0, 0, 0, judged(model, metric), 0)]
    for way, options in WAYS.items():
        for asked in amounts:
            start, small = time.perf_counter(), model.copy()
            result = Prune(macs=asked, round_to=round_to, **options).run(small, ctx)
            tidy(small)
            seconds, after = time.perf_counter() - start, ir.cost.of(small)
            shares = 1 - after.macs / before.macs, 1 - after.params / before.params
            found.append(Point(task.name, way, asked, *shares, judged(small, metric), seconds))
            print(found[-1], dict(result.details), flush=True)
            path.write_text(json.dumps([asdict(p) for p in found], indent=1))


def table(found: list[Point]) -> str:
    """One row a model and way."""
    asked = sorted({p.asked for p in found})
    head = ["model", "way", *(f"−{a:.0%}" if a else "original" for a in asked)]
    rows = [head, ["---"] * len(head)]
    for model in dict.fromkeys(p.model for p in found):
        base = next(p for p in found if p.model == model and not p.asked)
        for way in WAYS:
            cells = {p.asked: f"{p.metric:.3f} (−{p.macs:.0%})" for p in found if p.model == model and p.way == way}
            rows.append([model, way, *(cells.get(a, f"{base.metric:.3f}") for a in asked)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def picture(found: list[Point], path: Path) -> None:
    """A panel a model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"svg.hashsalt": "curves", "font.size": 8})
    models = list(dict.fromkeys(p.model for p in found))
    rows = -(-len(models) // ACROSS)
    figure, panels = pyplot.subplots(rows, ACROSS, figsize=(9, 2.5 * rows), squeeze=False)
    for panel, model in zip(panels.flat, models):
        base = next(p for p in found if p.model == model and not p.asked)
        for way in WAYS:
            line = [base, *sorted((p for p in found if p.model == model and p.way == way), key=lambda p: p.macs)]
            panel.plot([100 * p.macs for p in line], [p.metric for p in line], marker="o", markersize=3, label=way)
        panel.set(title=model, xlabel="MACs removed, %", ylabel="metric")
        panel.set_ylim(bottom=0)
    for panel in panels.flat[len(models) :]:
        panel.set_visible(False)
    panels[0][0].legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Read the command line and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="models; all that have a metric when none")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--macs", default="0.1,0.2,0.3,0.5", help="shares of the MACs to remove")
    parser.add_argument("--round-to", type=int, help="channel multiple; the target's when not given")
    parser.add_argument("--picture", action="store_true", help="draw what was measured (needs matplotlib)")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    amounts = [float(a) for a in given.macs.split(",")]
    for task in [] if given.picture else tasks():
        if task.metric and (not given.names or task.name in given.names):
            points(task, amounts, given.round_to, given.out / f"{task.name}.json")
    found = [Point(**p) for path in sorted(given.out.glob("*.json")) for p in json.loads(path.read_text())]
    text = f"Measured {datetime.date.today()}; metric (MACs removed).\n\n{table(found)}\n"
    (given.out / "curves.md").write_text(text)
    if given.picture:
        picture(found, given.out / "curves.svg")
    print(table(found))


if __name__ == "__main__":
    main()
