"""INT8 beside other tools, in one run: the same calibration feeds, the same unseen inputs, all timed in turns.

    python benchmarks/quant.py --out DIR [--peer nncf=PYTHON] [--steps make,score,time] [NAME ...]

`onnxslim opt -p quant` runs as a process of its own, and so does each peer, in the interpreter that has it (`--peer
TOOL=PYTHON`, TOOL is ort, nncf or aimet; ort needs none, a tool that cannot be imported is left out). Peers get the
model raised to opset 13 where it is older, since per-channel weights fail below. Every result is judged by ONNX Runtime
alone: metric, SQNR on unseen inputs, latency on one thread (fp32 and all results in turns, median of ratios to fp32),
size, peak memory. NAME may be a path: a model without a task gets seeded random feeds, on which only speed and size
mean anything. `--steps` does a part and leaves the rest as DIR has it, so that only `time` needs a machine to itself.
Writes DIR/quant.json and a dated DIR/quant.md of everything that DIR holds.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import version_converter
from run import Task, module, runner, session, sqnr, tasks

CONFIGS = {"ort": ("ort-minmax", "ort-percentile"), "nncf": ("nncf",), "aimet": ("aimet",)}
TRANSFORMERS = ("vit", "kwt", "bert", "swin")
GREEDY = 4e5
"""Input elements above which the percentile calibrator of ONNX Runtime, which keeps all activations, is left out."""
FEEDS, UNSEEN = 128, 24
OPSET = 13
TOOLS = ["onnxslim-opt", *CONFIGS]
STEPS = ["make", "score", "time"]
Rows = dict[str, dict[str, Any]]
KINDS = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32}


def random_feeds(model: Path, count: int) -> Iterator[dict[str, np.ndarray]]:
    """Seeded feeds for a model without a task; open sizes are 1."""
    rng = np.random.default_rng(7)
    inputs = session(model).get_inputs()
    for _ in range(count):
        yield {
            i.name: (
                rng.standard_normal([d if isinstance(d, int) else 1 for d in i.shape])
                if "float" in i.type
                else rng.integers(0, 2, [d if isinstance(d, int) else 1 for d in i.shape])
            ).astype(KINDS[i.type])
            for i in inputs
        }


def feeds_of(task: Task) -> list[dict[str, Any]]:
    """Everything the task offers for calibration, at most `FEEDS` feeds; a single input has the model's own name."""
    if not task.data:
        return list(random_feeds(task.model, 16))
    names = [i.name for i in session(task.model).get_inputs()]
    found = [f for f, _ in zip(getattr(module(task.tasks), task.data)(), range(FEEDS))]
    return [dict(zip(names, f.values())) for f in found] if len(names) == 1 else found


def write_feeds(feeds: list[dict[str, Any]], folder: Path) -> Path:
    """One .npz a feed, for the peers."""
    folder.mkdir(exist_ok=True)
    for k, feed in enumerate(feeds):
        np.savez(folder / f"{k:04d}.npz", **feed)
    return folder


def raised(model: Path, folder: Path) -> Path:
    """The model at opset 13 or later: what peers need for weights per channel."""
    proto = onnx.load(model)
    if max(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")) >= OPSET:
        return model
    out = folder / f"{model.stem}.opset{OPSET}.onnx"
    if not out.exists():
        new = version_converter.convert_version(proto, OPSET)
        new.ir_version = max(new.ir_version, 7)
        onnx.save(new, out)
    return out


def run_ours(task: Task, out: Path, feeds: Path, passes: str, extra: list[str]) -> dict[str, Any]:
    """The command under test, with its peak memory."""
    data = f"{task.tasks}:{task.data}" if task.data else str(feeds)
    line = [sys.executable, "-m", "onnxslim_opt", "opt", str(task.model), "-o", str(out), "-p", passes, "-q", *extra]
    line += ["--data", data, "--report", str(out.with_suffix(".json"))]
    if task.metric:
        line += ["--metric", f"{task.tasks}:{task.metric}"]
    start = time.time()
    child = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=out.parent)
    errors = child.stderr.read() if child.stderr else ""
    failed = child.wait()
    row: dict[str, Any] = {"seconds": round(time.time() - start, 1)}
    if failed:
        return row | {"note": (errors.strip().splitlines() or ["failed"])[-1][:120]}
    report = json.loads(out.with_suffix(".json").read_text())
    return row | {"peak_mb": round(report["peak_mb"])}  # the system's count of a child begins with the parent's peak


def run_peer(python: str, config: str, model: Path, feeds: Path, out: Path) -> dict[str, Any]:
    """One configuration of another tool."""
    line = [python, str(Path(__file__).with_name("peer_quant.py")), config, str(model), str(feeds), str(out)]
    done = subprocess.run(line, capture_output=True, text=True, cwd=out.parent)
    try:
        return dict(json.loads(done.stdout.strip().splitlines()[-1]))
    except (IndexError, ValueError):
        return {"note": (done.stderr.strip().splitlines() or ["failed"])[-1][:120]}


def make(task: Task, folder: Path, args: argparse.Namespace, peers: dict[str, str]) -> dict[str, dict[str, Any]]:
    """{what made it: how that went}; the models lie in `folder`."""
    calibration = write_feeds(feeds_of(task), folder / "feeds")
    rows = held(folder, "make")
    if "onnxslim-opt" in args.tools:
        ours = run_ours(task, folder / "onnxslim-opt.onnx", calibration, args.passes, args.extra.split())
        rows = {"onnxslim-opt": ours} | {k: v for k, v in rows.items() if k != "onnxslim-opt"}
    model = raised(task.model, folder)
    for tool, python in peers.items():
        for config in CONFIGS[tool]:
            if config == "ort-percentile" and sum(v.size for v in feeds_of(task)[0].values()) > GREEDY:
                continue
            name = f"{config}-transformer" if tool == "nncf" and task.name.startswith(TRANSFORMERS) else config
            rows[config] = run_peer(python, name, model, calibration, folder / f"{config}.onnx")
    for file in calibration.glob("*.npz"):
        file.unlink()
    return rows


def in_turns(sessions: list[Any], feed: dict[str, Any], seconds: float) -> list[tuple[float, float]]:
    """(median ratio first / this, median milliseconds) of each, run one after the other in every round.

    The order of a round is drawn anew: what always runs behind the large float model finds the caches cold.
    """
    times: list[list[float]] = [[] for _ in sessions]
    for run in sessions * 3:
        run(feed)
    order, end = np.random.default_rng(0), time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 9:
        for k in order.permutation(len(sessions)):
            start = time.perf_counter()
            sessions[k](feed)
            times[k].append(time.perf_counter() - start)
    first = times[0]
    return [(statistics.median(a / b for a, b in zip(first, t)), 1e3 * statistics.median(t)) for t in times]


def load(task: Task, folder: Path, names: Iterable[str], feed: dict[str, Any]) -> tuple[dict[str, Any], Rows]:
    """({name: what runs it}, {name: why it does not run}), fp32 first."""
    loaded, failed = {"fp32": runner(session(task.model))}, {}
    for name in names:
        try:
            run = runner(session(folder / f"{name}.onnx"))
            run(feed)
            loaded[name] = run
        except Exception as error:  # a file that does not load or run is a result too
            failed[name] = {"note": str(error).strip().splitlines()[0][:120]}
    return loaded, failed


def score(task: Task, folder: Path, names: Iterable[str]) -> Rows:
    """{name: metric, SQNR, size or why it does not run}, by ONNX Runtime alone."""
    feeds = feeds_of(task)
    loaded, rows = load(task, folder, names, feeds[0])
    inputs = unseen(task, feeds)
    for name in loaded:
        path = task.model if name == "fp32" else folder / f"{name}.onnx"
        rows[name] = {"smaller": round(task.model.stat().st_size / path.stat().st_size, 2)}
        if task.metric:
            rows[name]["metric"] = round(getattr(module(task.tasks), task.metric)(runner(session(path, 2))), 4)
        if name != "fp32":
            rows[name]["sqnr_db"] = round(sqnr(loaded["fp32"], loaded[name], inputs), 1)
    return rows


def clock(task: Task, folder: Path, names: Iterable[str], seconds: float) -> Rows:
    """{name: speed beside fp32, milliseconds}, all in turns."""
    feed = feeds_of(task)[0]
    loaded, _ = load(task, folder, names, feed)
    times = in_turns(list(loaded.values()), feed, seconds)
    return {name: {"speedup": round(ratio, 2), "ms": round(ms, 3)} for name, (ratio, ms) in zip(loaded, times)}


def unseen(task: Task, feeds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Inputs of the metric where there is one (calibration never sees them), else the last feeds."""
    if not task.metric:
        return feeds[::-1][:UNSEEN]
    seen: list[dict[str, Any]] = []
    plain = runner(session(task.model, 2))

    def recorded(feed: dict[str, Any]) -> dict[str, Any]:
        if len(seen) < UNSEEN:
            seen.append({k: np.array(v) for k, v in feed.items()})
        return dict(plain(feed))

    getattr(module(task.tasks), task.metric)(recorded)
    return seen


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    keys = ("model", "tool", "metric", "sqnr_db", "speedup", "ms", "smaller", "seconds", "peak_mb", "note")
    lines = ["| " + " | ".join(keys) + " |", "|" + "---|" * len(keys)]
    lines += ["| " + " | ".join(str(row.get(k, "")) for k in keys) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def interpreters(given: list[str]) -> dict[str, str]:
    """{tool: python} of the peers that can be imported."""
    asked = {"ort": sys.executable, **dict(g.split("=", 1) for g in given)}
    unknown = set(asked) - set(CONFIGS)
    if unknown:
        raise SystemExit(f"no configuration for {', '.join(sorted(unknown))}; there are: {', '.join(CONFIGS)}")
    modules = {"ort": "onnxruntime.quantization", "nncf": "nncf", "aimet": "aimet_onnx"}
    found = {}
    for tool, python in asked.items():
        if subprocess.run([python, "-c", f"import {modules[tool]}"], capture_output=True).returncode:
            print(f"{tool}: cannot be imported by {python}, left out", file=sys.stderr)
        else:
            found[tool] = python
    return found


def chosen(names: list[str]) -> list[Task]:
    """The tasks named, all by default; a path is a model without a task."""
    known = {t.name: t for t in tasks()}
    missing = [n for n in names if n not in known and not n.endswith(".onnx")]
    if missing:
        raise SystemExit(f"no task {', '.join(missing)}; there are: {', '.join(known)}")
    return [known[n] if n in known else Task(Path(n).resolve(), Path(), "", None) for n in names or known]


def held(folder: Path, step: str) -> Rows:
    """What an earlier run of a step found."""
    file = folder / f"{step}.json"
    return dict(json.loads(file.read_text())) if file.exists() else {}


def carry_out(task: Task, folder: Path, args: argparse.Namespace, peers: dict[str, str]) -> None:
    """The asked steps of one model, each written to DIR/MODEL/STEP.json."""
    steps: dict[str, Callable[[], Rows]] = {
        "make": lambda: make(task, folder, args, peers),
        "score": lambda: score(task, folder, held(folder, "make")),
        "time": lambda: clock(task, folder, held(folder, "make"), args.seconds),
    }
    for step in STEPS:
        if step in args.steps and (step == "make" or held(folder, "make")):
            (folder / f"{step}.json").write_text(json.dumps(steps[step](), indent=1))


def gathered(folder: Path) -> list[dict[str, Any]]:
    """A row for fp32 and one for every result of one model."""
    found = [held(folder, step) for step in STEPS]
    return [
        {"model": folder.name, "tool": name} | {k: v for step in found for k, v in step.get(name, {}).items()}
        for name in ("fp32", *found[0])
    ]


def main() -> None:
    """Make, score, time, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("names", nargs="*")
    parser.add_argument("--out", type=Path, default=Path("bench-out/quant"))
    parser.add_argument("-p", "--passes", default="quant")
    parser.add_argument("--extra", default="", help="further options of `onnxslim opt`")
    parser.add_argument("--peer", action="append", default=[], help="TOOL=PYTHON")
    parser.add_argument("--steps", type=lambda text: text.split(","), default=STEPS, help="of make, score and time")
    parser.add_argument("--tools", type=lambda text: text.split(","), default=TOOLS, help="to make files with")
    parser.add_argument("--seconds", type=float, default=12.0, help="of timing for each model")
    args = parser.parse_intermixed_args()
    peers = interpreters(args.peer) if "make" in args.steps else {}
    peers = {tool: python for tool, python in peers.items() if tool in args.tools}
    for task in chosen(args.names):
        folder = args.out.resolve() / task.name
        folder.mkdir(parents=True, exist_ok=True)
        carry_out(task, folder, args, peers)
        print(table(gathered(folder)), flush=True)
    rows = [row for file in sorted(args.out.resolve().glob("*/make.json")) for row in gathered(file.parent)]
    stamp = f"{datetime.date.today()}, onnxruntime {ort.__version__}, {os.cpu_count()} cores"
    (args.out / "quant.json").write_text(json.dumps(rows, indent=1))
    (args.out / "quant.md").write_text(f"# {stamp}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
