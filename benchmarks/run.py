"""Run the command line on real models and measure its results from outside, with ONNX Runtime alone.

    python benchmarks/run.py --out DIR [-p SPEC ...] [NAME ...]

Models are those that ship with the project, and the public ones in `../shared` where that folder is. For each and
each pipeline: metric before and after (where the task has labels), SQNR on inputs that calibration did not see,
file size, latency in turns on one thread (median of the pairwise ratios), seconds and peak memory of the command.
Writes DIR/results.json and a dated table, DIR/results.md.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
PIPELINES = ("simplify", "prune:ratio=0.25,lowrank,quant", "prune,lowrank,quant")


@dataclass(frozen=True)
class Task:
    """A model with its inputs and, where there are labels, its metric: `FILE.py:FUNC` both."""

    model: Path
    tasks: Path
    data: str
    metric: str | None

    @property
    def name(self) -> str:
        """The model's name."""
        return self.model.stem


def tasks() -> list[Task]:
    """Every model that can be measured here."""
    zoo = ROOT / "model_zoo"
    found = [Task(m, zoo / "tasks.py", "digits_data", "digits_metric") for m in sorted(zoo.glob("*.onnx"))]
    if (SHARED / "tasks.py").exists():
        known = vars(module(SHARED / "tasks.py"))
        for model in sorted((SHARED / "models").glob("*.onnx")):
            metric = f"{model.stem}_metric"
            found.append(Task(model, SHARED / "tasks.py", f"{model.stem}_data", metric if metric in known else None))
    return found


def module(path: Path) -> Any:
    """Import a file by its path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"cannot import {path}")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def session(path: Path, threads: int = 1) -> ort.InferenceSession:
    """A quiet CPU session."""
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, threads
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def runner(s: ort.InferenceSession) -> Any:
    """`run(feeds) -> {name: array}`; a single input may go by another name."""
    inputs, names = [i.name for i in s.get_inputs()], [o.name for o in s.get_outputs()]

    def run(feeds: dict[str, Any]) -> dict[str, Any]:
        if len(inputs) == len(feeds) == 1:
            feeds = {inputs[0]: next(iter(feeds.values()))}
        return dict(zip(names, s.run(None, feeds)))

    return run


def sqnr(before: Any, after: Any, feeds: list[dict[str, Any]]) -> float:
    """Signal to noise over all float outputs, in dB."""
    signal = noise = 0.0
    for feed in feeds:
        ours = after(feed)
        for name, reference in before(feed).items():
            if np.asarray(reference).dtype.kind == "f":
                signal += float(np.square(reference, dtype=np.float64).sum())
                noise += float(np.square(np.float64(reference) - ours[name]).sum())
    return 10 * np.log10(signal / noise) if noise and signal else float("inf")


def latency(before: Any, after: Any, feed: dict[str, Any], seconds: float = 6.0) -> tuple[float, float, float]:
    """Median ratio before / after and both medians in milliseconds, measured in turns."""
    for run in (before, after, before, after):
        run(feed)
    a, b, end = [], [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(a) < 7:
        t0 = time.perf_counter()
        before(feed)
        t1 = time.perf_counter()
        after(feed)
        a.append(t1 - t0)
        b.append(time.perf_counter() - t1)
    return statistics.median(x / y for x, y in zip(a, b)), 1e3 * statistics.median(a), 1e3 * statistics.median(b)


def command(task: Task, passes: str, out: Path, extra: list[str]) -> list[str]:
    """The command line under test."""
    line = [sys.executable, "-m", "onnxslim_opt", "opt", str(task.model), "-o", str(out), "-p", passes, "-q"]
    line += ["--data", f"{task.tasks}:{task.data}", "--report", str(out.with_suffix(".json"))]
    return line + (["--metric", f"{task.tasks}:{task.metric}"] if task.metric else []) + extra


def measure(task: Task, passes: str, folder: Path, extra: list[str]) -> dict[str, Any]:
    """One row: run the command in a process of its own, then judge its output."""
    out = folder / f"{task.name}.{passes.replace(':', '_').replace(',', '+').replace('=', '')}.onnx"
    start = time.time()
    child = subprocess.Popen(
        command(task, passes, out, extra), cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    errors = child.stderr.read() if child.stderr else ""
    row: dict[str, Any] = {"model": task.name, "passes": passes, "exit": child.wait()}
    row["seconds"] = round(time.time() - start, 1)
    if not out.exists():
        return row | {"error": (errors.strip().splitlines() or ["no output"])[-1][:200]}
    known = module(task.tasks)
    before, after = runner(session(task.model)), runner(session(out))
    feeds = list(getattr(known, task.data)())
    if task.metric:
        score = getattr(known, task.metric)
        row["metric"] = [round(score(runner(session(p, 2))), 4) for p in (task.model, out)]
    row["sqnr_db"] = round(sqnr(before, after, feeds[::-1][:16]), 1)
    ratio, ms_before, ms_after = latency(before, after, feeds[0])
    row |= {"speedup": round(ratio, 2), "ms": [round(ms_before, 3), round(ms_after, 3)]}
    row["smaller"] = round(task.model.stat().st_size / out.stat().st_size, 2)
    report = json.loads(out.with_suffix(".json").read_text())
    row["macs"] = round(report["output"]["macs"] / max(1, report["input"]["macs"]), 3)
    row["peak_mb"] = round(report["peak_mb"])  # the system's count of a child begins with the parent's peak
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    keys = ("model", "passes", "exit", "metric", "sqnr_db", "speedup", "ms", "smaller", "macs", "seconds", "peak_mb")

    def cell(value: Any) -> str:
        return " → ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)

    lines = ["| " + " | ".join(keys) + " |", "|" + "---|" * len(keys)]
    lines += ["| " + " | ".join(cell(row.get(k)) for k in keys) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure what was asked for and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("names", nargs="*")
    parser.add_argument("--out", type=Path, default=Path("bench-out"))
    parser.add_argument("-p", "--passes", action="append")
    parser.add_argument("--extra", default="", help="further options of `onnxslim opt`")
    args = parser.parse_intermixed_args()
    folder = args.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for task in tasks():
        if args.names and task.name not in args.names:
            continue
        for passes in args.passes or PIPELINES:
            rows.append(measure(task, passes, folder, args.extra.split()))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    stamp = f"{datetime.date.today()}, onnxruntime {ort.__version__}, {os.cpu_count()} cores"
    (folder / "results.json").write_text(json.dumps(rows, indent=1))
    (folder / "results.md").write_text(f"# {stamp}\n\n{table(rows)}")
    print(table(rows))
    sys.exit(any("error" in row for row in rows))


if __name__ == "__main__":
    main()
