"""What `-p lowrank` promises, measured: budgets, nothing slower, accuracy against MACs, data or none.

    python benchmarks/lowrank.py budgets|slower|curves|picture|aware --out DIR [NAME | NAME:KEY ...]

budgets: ImageNet architectures under `params=` and `speedup=`, and what they then take, in turns (vgg16:cp is one).
slower: the plain pass on every model: it must never return one that is slower than its input.
curves: metric (or agreement) and SQNR against MACs, beside plain decompositions of the same size, and beside prune.
picture: those curves as an SVG file, from the rows that were written (needs matplotlib).
aware: layer by layer, the output error on unseen feeds of data-aware factors over that of plain ones at the same rank.

Models are those of `../shared`; architectures are looked for in `--exports`. Appends rows to DIR/WHAT.jsonl and prints
them as a table; results are recorded in `benchmarks/results`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from run import SHARED, Task, latency, module, runner, session, sqnr, tasks

IMAGES = SHARED / "data" / "imagenet1k_256"
ARCHITECTURES = (
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "mnasnet1_0",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "regnet_x_400mf",
    "resnet18",
    "shufflenet_v2_x1_0",
    "squeezenet1_0",
)
AWARE = ("squeezenet1_1", "cifar10_resnet20", "yolox_nano", "kwt1", "dnsmos_sig_bak_ovr", "ppocrv3_det")
CURVES = ("cifar10_resnet20", "squeezenet1_1", "kwt1", "vit_pgd_2_3_16")
CUTS = (0.1, 0.25, 0.4)
AGREED = 200  # feeds, the last ones, on which the largest output is compared


@dataclass(frozen=True)
class Budget:
    """A large model and what is asked of it.

    cut: how many times fewer parameters its layers (not `exclude`) keep. samples: images to fit on; 0 for none: weights
    are random, so that only time is of interest.
    """

    name: str
    label: str
    cut: float | None = None
    speedup: float | None = None
    forms: str = ""
    exclude: str = ""
    samples: int = 0

    @property
    def key(self) -> str:
        """What tells budgets of one model apart: the forms, and whether parameters and time are asked together."""
        return (self.forms or "mixed") + ("-both" if self.cut and self.speedup else "")

    def spec(self, model: Path) -> str:
        """The pass as the command line takes it."""
        parts = ["lowrank"]
        if self.cut is not None:
            whole, own = parameters(model, self.exclude)
            parts.append(f"params={(1 - 1 / self.cut) * own / whole:.5f}")
        parts += [f"speedup={self.speedup}"] if self.speedup else []
        parts += [f"forms={self.forms}"] if self.forms else []
        return ":".join(parts)


BUDGETS = (
    Budget("alexnet", "5.0x fewer parameters", 5.0),
    Budget("vgg16", "convolutions 2.75x, mixed", 2.75, exclude="classifier"),
    Budget("vgg16", "convolutions 2.75x, tucker2", 2.75, forms="tucker2", exclude="classifier"),
    Budget("vgg16", "convolutions 2.75x, cp", 2.75, forms="cp", exclude="classifier"),
    Budget("vgg16", "convolutions 2.75x and 2.05x, mixed", 2.75, 2.05, exclude="classifier"),
    Budget("resnet50", "speedup=1.3, 128 feeds", speedup=1.3, samples=128),
    Budget("vit_b_16", "speedup=1.3", speedup=1.3),
)


def parameters(path: Path, exclude: str = "") -> tuple[int, int]:
    """(all weights, weights of nodes whose name does not contain `exclude`) of a file."""
    graph = onnx.load(str(path)).graph
    sizes = {t.name: int(np.prod(t.dims)) for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    left = {i for n in graph.node if exclude and exclude in n.name for i in n.input}
    return sum(sizes.values()), sum(s for name, s in sizes.items() if name not in left)


def command(model: Path, out: Path, passes: str, data: list[str], extra: list[str]) -> dict[str, Any]:
    """Run the command line in a process of its own: seconds, peak memory, exit code, its report."""
    report = out.with_suffix(".json")
    line = [sys.executable, "-m", "onnxslim_opt", "opt", str(model), "-o", str(out), "-p", passes, "-q"]
    start = time.time()
    child = subprocess.Popen([*line, *data, "--report", str(report), *extra], stdout=subprocess.DEVNULL)
    row = {"exit": child.wait(), "seconds": round(time.time() - start)}
    told = json.loads(report.read_text()) if report.exists() else {}
    steps = [s for s in told.get("steps", []) if s["pass"] == "lowrank"]
    row["pass_seconds"] = round(sum(s["seconds"] for s in steps))
    row["split"] = sum(int(s["did"].get("layers split", 0)) for s in steps if s["kept"])
    if told:
        row["peak_mb"] = round(told["peak_mb"])  # the system's count of a child begins with the parent's peak
        row["macs"] = round(told["output"]["macs"] / max(1, told["input"]["macs"]), 3)
    return row


def budgets(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Parameters cut and time gained on large models with random weights."""
    for budget in BUDGETS:
        model = args.exports / f"{budget.name}.onnx"
        known = {budget.name, f"{budget.name}:{budget.key}"}
        if (args.names and not known & set(args.names)) or not model.exists():
            continue
        out = args.out / f"{budget.name}-{budget.key}.onnx"
        data = ["--data", str(IMAGES), "--samples", str(budget.samples)] if budget.samples else []
        extra = ["--timings", str(args.out / "timings.json")] + (
            ["--exclude", budget.exclude] if budget.exclude else []
        )
        row = {"model": budget.name, "budget": budget.label}
        row |= command(model, out, budget.spec(model), data, extra)
        before, after = parameters(model, budget.exclude)[1], parameters(out, budget.exclude)[1]
        ratio, ms, now = latency(runner(session(model)), runner(session(out)), image(model))
        row["params"] = f"{before / after:.2f}x fewer"
        yield row | {"speedup": round(ratio, 2), "ms": [round(ms, 1), round(now, 1)]}


def image(model: Path) -> dict[str, Any]:
    """A random feed of one image for an architecture."""
    first = session(model).get_inputs()[0]
    return {first.name: np.random.default_rng(0).standard_normal(first.shape).astype(np.float32)}


def slower(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The plain pass on every model, and the time of what comes back beside what went in."""
    known = {t.name: (t.model, ["--data", f"{t.tasks}:{t.data}", "--samples", "32"], t) for t in tasks()}
    for name in ARCHITECTURES:
        known[name] = (args.exports / f"{name}.onnx", ["--data", str(IMAGES), "--samples", "8"], None)
    for name, (model, data, task) in known.items():
        if (args.names and name not in args.names) or not model.exists():
            continue
        out = args.out / f"{name}-plain.onnx"
        plain = args.out / f"{name}-simplified.onnx"
        command(model, plain, "simplify", data, [])
        row = {"model": name} | command(model, out, "lowrank", data, [])
        feed = image(model) if task is None else next(iter(getattr(module(task.tasks), task.data)()))
        ratio, ms, now = latency(runner(session(plain)), runner(session(out)), feed, 4.0)
        yield row | {"speedup": round(ratio, 2), "ms": [round(ms, 2), round(now, 2)]}


def curves(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Metric or agreement against MACs: data-aware, plain SVD and plain Tucker, prune, and prune with lowrank."""
    wanted = args.names or CURVES
    for task in (t for t in tasks() if t.name in wanted):
        yield {"model": task.name, "how": "as it is", "macs": 1.0} | quality(task, task.model)
        for cut in CUTS:
            half = 1 - (1 - cut) ** 0.5
            for how, passes, data in (
                ("lowrank", f"lowrank:macs={cut}:min_gain=-1", True),
                ("plain SVD", f"lowrank:macs={cut}:min_gain=-1:forms=svd+channel", False),
                ("plain Tucker", f"lowrank:macs={cut}:min_gain=-1:forms=svd+tucker2", False),
                ("prune", f"prune:macs={cut}", True),
                ("prune + lowrank", f"prune:macs={half:.4f},lowrank:macs={half:.4f}:min_gain=-1", True),
            ):
                out = args.out / f"{task.name}-{how.replace(' ', '')}-{cut}.onnx"
                source = ["--data", f"{task.tasks}:{task.data}" if data else "random"]
                told = command(task.model, out, passes, source, ["--target", "tensorrt"])  # so that no clock has a say
                row = {"model": task.name, "cut": cut, "how": how, "macs": told.get("macs"), "seconds": told["seconds"]}
                yield row | (quality(task, out) if out.exists() else {"exit": told["exit"]})


def quality(task: Task, path: Path) -> dict[str, Any]:
    """Metric where there are labels, agreement of the largest output where not, and SQNR on the last 24 feeds."""
    known, ours, theirs = module(task.tasks), runner(session(path, 2)), runner(session(task.model, 2))
    feeds = list(getattr(known, task.data)())[::-1][:AGREED]
    found: dict[str, Any] = {"sqnr_db": round(sqnr(theirs, ours, feeds[:24]), 1)}
    if task.metric:
        return found | {"metric": round(getattr(known, task.metric)(ours), 4)}
    same = [np.argmax(next(iter(ours(f).values()))) == np.argmax(next(iter(theirs(f).values()))) for f in feeds]
    return found | {"agreement": round(float(np.mean(same)), 3)}


def aware(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Per layer and form at a quarter of the full rank: error with data over error without, on unseen feeds."""
    for task in (t for t in tasks() if t.name in (args.names or AWARE)):
        found = list(layers(task))
        ratios = np.array([ratio for _, _, ratio in found])
        yield {
            "model": task.name,
            "layers and forms": len(found),
            "no worse": f"{np.mean(ratios <= 1 + 1e-9):.1%}",
            "median gain": round(float(1 / np.median(ratios)), 2),
            "worst": max(found, key=lambda row: row[2]),
            **{f: round(float(1 / np.median([r for _, g, r in found if g == f])), 2) for f in {g for _, g, _ in found}},
        }


def layers(task: Task) -> Iterator[tuple[str, str, float]]:
    """(layer, form, error with data / error without) at a quarter of the full rank, on the check feeds' moments."""
    from onnxslim_opt.passes.base import Context
    from onnxslim_opt.passes.lowrank import groups, layer, statistics
    from onnxslim_opt.passes.lowrank.lowrank import DEFAULT_FORMS, FORMS
    from onnxslim_opt.passes.lowrank.norm import Norm
    from onnxslim_opt.passes.lowrank.search import Trial
    from onnxslim_opt.passes.target import Target
    from onnxslim_opt.runtime import Timings, probe, resolve
    from onnxslim_opt.runtime.sources import DataOptions

    from onnxslim_opt import ir

    model = ir.load(task.model)
    fit, check = resolve(f"{task.tasks}:{task.data}", model, DataOptions(samples=64)).split()
    sizes = probe.shapes(model, fit.first())
    nodes = [n for n in layer.candidates(model) if layer.refusal(n) is None]
    ready = [layer.read(n, sizes[n.inputs[0].name]) for n in nodes]
    fitted = statistics.norms(model, ready, Context(Target.detect(), fit, check, "data", model, Timings()))
    unseen = statistics.norms(model, ready, Context(Target.detect(), check, fit, "data", model, Timings()))
    for (row, own), (_, others) in zip(fitted, unseen):
        for name in DEFAULT_FORMS:
            form = FORMS[name]
            if form.refuse(row) is not None:
                continue
            trial, lost = Trial(form, form.scaled(row, 0.25), 0.0, 0, 0), {}
            for kind, norms in (("aware", own), ("plain", [Norm.identity(row.width)] * row.groups)):
                factors = groups.factors(row, norms, trial)
                lost[kind] = left(row, groups.missing(row, form, factors), others, norms)
            yield row.node.name, name, lost["aware"] / max(lost["plain"], 1e-12)


def left(row: Any, lost: Any, unseen: Any, fitted: Any) -> float:
    """Output error on unseen moments: what is missing of the weights, less the mean that the bias took over."""
    total = error = 0.0
    for part, delta, norm, own in zip(row.parts, lost, unseen, fitted):
        total += norm.energy(part.flat)
        error += delta.energy(norm)
        if norm.mean is not None:
            error += float(((delta @ (norm.mean - (0.0 if own.mean is None else own.mean))) ** 2).sum())
    return error / total if total > 0 else 0.0


def picture(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """DIR/lowrank.svg: metric, or agreement, against MACs."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "lowrank"})
    from matplotlib import pyplot as plt

    rows = [json.loads(line) for line in (args.out / "curves.jsonl").read_text().splitlines()]
    models = list(dict.fromkeys(r["model"] for r in rows))
    colours = {how: f"C{k}" for k, how in enumerate(dict.fromkeys(r["how"] for r in rows))}
    figure, axes = plt.subplots(1, len(models), figsize=(3.6 * len(models), 3.4), squeeze=False)
    for axis, model in zip(axes[0], models):
        own = [r for r in rows if r["model"] == model and r.get("macs") is not None]
        for how in dict.fromkeys(r["how"] for r in own if r["how"] != "as it is"):
            points = sorted((r["macs"], _score(r)) for r in own if r["how"] in ("as it is", how))
            axis.plot(*zip(*points), marker="o", markersize=3, linewidth=1.2, label=how, color=colours[how])
        axis.set(title=model, xlabel="MACs left", ylabel="top-1" if "metric" in own[0] else "agreement")
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(args.out / "lowrank.svg", metadata={"Date": None})
    yield {"picture": str(args.out / "lowrank.svg")}


def _score(row: dict[str, Any]) -> float:
    return float(row.get("metric", row.get("agreement", 0.0)))


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    keys = list(dict.fromkeys(k for row in rows for k in row))
    cells = [[str(row.get(k, "")) for k in keys] for row in rows]
    lines = ["| " + " | ".join(line) + " |" for line in [keys, *cells]]
    return "\n".join([lines[0], "|" + "---|" * len(keys), *lines[1:]])


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("what", choices=("budgets", "slower", "curves", "picture", "aware"))
    parser.add_argument("names", nargs="*")
    parser.add_argument("--out", type=Path, default=Path("bench-lowrank"))
    parser.add_argument("--exports", type=Path, default=Path("exports"))
    args = parser.parse_intermixed_args()
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for row in globals()[args.what](args):
        rows.append(row)
        with (args.out / f"{args.what}.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), file=sys.stderr, flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
