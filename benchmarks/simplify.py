"""Compare `simplify` with other simplifiers, each in a Python environment of its own, judged by ONNX Runtime alone.

    python benchmarks/simplify.py suite  --out DIR [--peer NAME=PYTHON ...] DATA
    python benchmarks/simplify.py models --out DIR [--peer NAME=PYTHON ...] FILE.onnx ...
    python benchmarks/simplify.py latency --out DIR [--seconds S]

`suite` takes DATA, the folder onnx/backend/test/data of the onnx 1.22.0 wheel (later wheels leave the node cases out),
and runs every case that ONNX Runtime reproduces as shipped (A), with all inputs but the first frozen to constants (B)
and with every input frozen (C). `models` takes whole models; `latency` then times what `models` has left in DIR.
Peers: onnxsim, onnxslim, onnxscript, onnxoptimizer, and onnxslim-opt-contrib, which is ours with ONNX Runtime's own
operators. Results are written to DIR as JSON lines and as a Markdown table.
Every model is simplified and judged in a worker process, so that a crash is a result and not the end.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
SHARED = HERE.parents[2] / "shared"
OURS = "onnxslim-opt"
CONTRIB = "onnxslim-opt-contrib"
VARIANTS = {"A": "as shipped", "B": "all inputs but the first frozen", "C": "every input frozen"}
FOLDERS = ("node", "simple", "pytorch-converted", "pytorch-operator")


class Worker:
    """A process that answers one JSON line for each; started again when it dies or takes too long."""

    def __init__(self, python: str, *role: str):
        self.line = [python, str(HERE), "worker", *role]
        self.process: subprocess.Popen[str] | None = None

    def ask(self, patience: float, **question: Any) -> dict[str, Any]:
        """The answer, or {"outcome": "crash" | "timeout"}."""
        if self.process is None:
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            self.process = subprocess.Popen(self.line, text=True, **pipes)
        process, late = self.process, threading.Event()
        assert process.stdin is not None and process.stdout is not None

        def stop() -> None:
            late.set()
            process.kill()

        alarm = threading.Timer(patience, stop)
        alarm.start()
        try:
            process.stdin.write(json.dumps(question) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            alarm.cancel()
        if answer:
            return json.loads(answer)  # type: ignore[no-any-return]
        self.close()
        return {"outcome": "timeout" if late.is_set() else "crash"}

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def case_files(data: Path) -> list[Path]:
    """The models of the backend suite."""
    return [p for folder in FOLDERS for p in sorted((data / folder).glob("*/model.onnx"))]


def run_suite(args: argparse.Namespace) -> None:
    """Every case, variant and tool."""
    peers = tools(args)
    judge = Worker(sys.executable, "judge")
    workers = {name: Worker(python, "simplify", name) for name, python in peers.items()}
    rows = []
    for variant in args.variants:
        for path in case_files(args.files[0]):
            folder = args.out / variant / f"{path.parents[1].name}-{path.parent.name}"
            folder.mkdir(parents=True, exist_ok=True)
            base = judge.ask(60, task="prepare", source=str(path), variant=variant, folder=str(folder))
            if base.get("outcome") != "ok":
                continue
            for name, worker in workers.items():
                row = {"variant": variant, "case": folder.name, "tool": name, "before": base["nodes"]}
                rows.append(row | one(worker, judge, name, folder, 30))
        for name in peers:
            found = Counter(r["outcome"] for r in rows if r["tool"] == name and r["variant"] == variant)
            print(variant, name, dict(found), file=sys.stderr, flush=True)
    write(args.out, rows, suite_table(rows, list(peers)))


def run_models(args: argparse.Namespace) -> None:
    """Every whole model and tool."""
    peers = tools(args)
    judge = Worker(sys.executable, "judge")
    workers = {name: Worker(python, "simplify", name) for name, python in peers.items()}
    known = args.out / "results.jsonl"
    rows = [json.loads(line) for line in known.open()] if known.exists() else []
    rows = [r for r in rows if not ({r["model"]} & {label(f) for f in args.files} and r["tool"] in peers)]
    for path in args.files:
        folder = args.out / label(path)
        folder.mkdir(parents=True, exist_ok=True)
        base = judge.ask(600, task="reference", source=str(path.resolve()), folder=str(folder))
        if base.get("outcome") != "ok":
            print(label(path), base, file=sys.stderr, flush=True)
            continue
        for name, worker in workers.items():
            row = {"model": label(path), "tool": name, "before": base["nodes"], "bytes": base["bytes"]}
            rows.append(row | {"noise": base["noise"]} | one(worker, judge, name, folder, 600))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    write(args.out, rows, models_table(rows))


def label(path: Path) -> str:
    """A model's name, its folder in front (exporters give several models the same name)."""
    return f"{path.resolve().parent.name}-{path.stem}"


def tools(args: argparse.Namespace) -> dict[str, str]:
    """Tool name -> its Python, ours first."""
    given = dict(p.partition("=")[::2] for p in args.peer or [])
    return given if args.peers_only else {OURS: sys.executable, **given}


def one(worker: Worker, judge: Worker, name: str, folder: Path, seconds: float) -> dict[str, Any]:
    """Simplify the prepared model of a folder with one tool, and judge the result."""
    target = folder / f"{name}.onnx"
    made = worker.ask(seconds, source=str(folder / "original.onnx"), target=str(target))
    if made.get("outcome") != "ok":
        return made
    return made | judge.ask(seconds, task="judge", folder=str(folder), target=str(target))


def write(out: Path, rows: list[dict[str, Any]], text: str) -> None:
    """Results as lines of JSON, and the table."""
    (out / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (out / "results.md").write_text(text)
    print(text)


def suite_table(rows: list[dict[str, Any]], names: list[str]) -> str:
    """Outcomes a tool, and node counts against ours over the cases that both get right."""
    lines = [
        "| variant | tool | ok | not ok | common | before | ours | theirs | fewer | more | ms, median |",
        "|---" * 11 + "|",
    ]
    for variant in dict.fromkeys(r["variant"] for r in rows):
        by = {n: {r["case"]: r for r in rows if r["tool"] == n and r["variant"] == variant} for n in names}
        for name in names:
            bad = Counter(r["outcome"] for r in by[name].values() if r["outcome"] != "ok")
            good = [c for c, r in by[name].items() if r["outcome"] == by[OURS][c]["outcome"] == "ok"]
            pairs = [(by[OURS][c]["nodes"], by[name][c]["nodes"]) for c in good]
            cells = [variant, name, len(by[name]) - sum(bad.values()), dict(bad) or "", len(good)]
            cells += [sum(by[name][c]["before"] for c in good), sum(a for a, _ in pairs), sum(b for _, b in pairs)]
            cells += [sum(a < b for a, b in pairs), sum(a > b for a, b in pairs)]
            cells += [f"{1e3 * statistics.median(by[name][c]['seconds'] for c in good):.2f}" if good else ""]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def models_table(rows: list[dict[str, Any]]) -> str:
    """Nodes, growth, error and seconds for each model, a column a tool."""
    names = list(dict.fromkeys(r["tool"] for r in rows))
    lines = ["| model | before | " + " | ".join(f"{n}: nodes, growth, error, s" for n in names) + " |"]
    lines.append("|---" * (len(names) + 2) + "|")
    for model in dict.fromkeys(r["model"] for r in rows):
        mine = {r["tool"]: r for r in rows if r["model"] == model}
        cells = [model, str(next(iter(mine.values()))["before"]), *(cell(mine.get(n)) for n in names)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def cell(row: dict[str, Any] | None) -> str:
    """One tool on one model."""
    if row is None:
        return ""
    seconds = f"{row['seconds']:.2f}" if "seconds" in row else ""
    if row["outcome"] != "ok":
        return f"{row['outcome']} {row.get('error', '')[:40]} {seconds}".replace("|", " ")
    growth = 100 * (row["size"] / row["bytes"] - 1)
    return f"{row['nodes']}, {growth:+.1f} %, {row['difference']:.0e}, {seconds}"


# -- in the worker processes


def simplify(tool: str, proto: Any) -> Any:
    """One tool's own way to simplify a model, with its defaults."""
    if tool == "onnxsim":
        import onnxsim

        return onnxsim.simplify(proto)[0]
    if tool == "onnxslim":
        import onnxslim

        return onnxslim.slim(proto)
    if tool == "onnxscript":
        import onnxscript.optimizer

        return onnxscript.optimizer.optimize(proto)
    if tool == "onnxoptimizer":
        import onnxoptimizer

        return onnxoptimizer.optimize(proto)
    from onnxslim_opt.passes.simplify import Simplify

    from onnxslim_opt import ir

    model = ir.from_proto(proto)
    if model.header.only_defaults:
        model.freeze_defaults()
    Simplify(contrib=tool == CONTRIB).run(model)
    return ir.to_proto(model)


def answer_simplify(tool: str, source: str, target: str) -> dict[str, Any]:
    """Read, simplify, write; the time is the process's CPU time of the middle part."""
    import onnx

    proto = onnx.load(source)
    start = time.process_time()
    made = simplify(tool, proto)
    seconds = time.process_time() - start
    onnx.save(made, target)
    return {"outcome": "ok", "seconds": seconds}


def work(answer: Any) -> None:
    """Answer the questions of the parent process; nothing else may write to its pipe."""
    import logging
    import os
    import warnings

    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            found = answer(**json.loads(line))
        except Exception as error:
            found = {"outcome": "error", "error": f"{type(error).__name__}: {error}"[:200]}
        pipe.write(json.dumps(found) + "\n")
        pipe.flush()


def latency_files(out: Path) -> list[Path]:
    """The folders that `models` has left, with a result of ours."""
    return [p.parent for p in sorted(out.glob(f"*/{OURS}.onnx"))]


def run_latency(args: argparse.Namespace) -> None:
    """CPU time in turns: the original, ours (without and with operators of ONNX Runtime's own), onnxsim's."""
    rows = []
    for folder in latency_files(args.out):
        if args.files and folder.name not in {str(f) for f in args.files}:
            continue
        row = Worker(sys.executable, "judge").ask(300, task="latency", folder=str(folder), seconds=args.seconds)
        rows.append({"model": folder.name} | row)
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    with (args.out / "latency.jsonl").open("a") as file:
        file.writelines(json.dumps(r) + "\n" for r in rows)
    for name in (OURS, CONTRIB, "onnxsim"):
        ratios = [r[name] for r in rows if name in r]
        if ratios:
            print(f"{name}: geomean {statistics.geometric_mean(ratios):.3f} over {len(ratios)} models")


def main() -> None:
    """Read the command line."""
    if sys.argv[1:2] == ["worker"]:
        if sys.argv[2] == "simplify":
            work(lambda source, target: answer_simplify(sys.argv[3], source, target))
        else:
            import simplify_judge

            work(simplify_judge.answer)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("suite", "models", "latency"))
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--out", type=Path, default=Path("bench-out/simplify"))
    parser.add_argument("--peer", action="append", help="NAME=PYTHON, a peer and the interpreter that has it")
    parser.add_argument("--peers-only", action="store_true", help="`models`: keep our earlier results")
    parser.add_argument("--variants", default="".join(VARIANTS), help="`suite`: which variants, as letters")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long a model is timed")
    args = parser.parse_intermixed_args()
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    {"suite": run_suite, "models": run_models, "latency": run_latency}[args.what](args)


if __name__ == "__main__":
    main()
