#!/usr/bin/env python3
"""Prune many architectures by half and compare what is left with other tools' figures; prove each by its masked twin.

    python benchmarks/prune_architectures.py EXPORTS_DIR [--out FILE.md] [--norms pin|allow] [NAME ...]

EXPORTS_DIR holds NAME.onnx files with random weights. For each: parameters and MACs before and after
`prune:ratio=0.5:scope=local:round_to=1` on the command line, the share of the parameters that can go at all, seconds
for propagation and groups, and whether the pruned model equals its twin (random units, ratios 0.1, 0.5, 0.9 and all but
one position of every axis) and passes the checker. Peers' figures are those of Torch-Pruning 1.6.1 at ratio 0.5.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from onnxslim_opt.passes.prune import groups  # noqa: E402
from prune_twin import check  # noqa: E402

from onnxslim_opt import ir  # noqa: E402

RATIOS = (0.1, 0.5, 0.9, 1.0)
PEER: dict[str, tuple[float | None, float | None]] = {  # name: parameters in millions, MACs in billions that are left
    "resnet18": (3.06, 0.49), "resnet50": (6.92, 1.07), "mobilenet_v2": (1.22, 0.09),
    "mobilenet_v3_large": (1.72, None), "efficientnet_b0": (1.70, None), "vgg16_bn": (35.62, None),
    "convnext_tiny": (7.44, None), "swin_t": (None, None), "densenet121": (2.27, None), "googlenet": (8.30, None),
    "regnet_y_400mf": (1.21, None), "resnext50_32x4d": (6.79, None), "shufflenet_v2_x1_0": (None, None),
    "vit_b_16": (58.24, None), "c2f_stack": (None, None),
}  # fmt: skip


@dataclass
class Row:
    """One line of the table."""

    name: str
    params: tuple[float, float]
    macs: tuple[float, float]
    free: float
    units: int
    seconds: float
    worst: str
    pins: dict[str, int]

    def text(self) -> str:
        peer = PEER.get(self.name, (None, None))
        p, m = ("–" if x is None else f"{x:.2f}" for x in peer)
        params, macs = (f"{a:.2f} → {b:.3f}" for a, b in (self.params, self.macs))
        free = f"{100 * self.free:.1f} %"
        return "| " + " | ".join(
            (self.name, params, p, macs, m, free, str(self.units), f"{self.seconds:.2f}", self.worst)
        ) + " |"  # fmt: skip


HEAD = """| model | params M | peer | MACs G | peer | can go | units | groups s | twin |
|---|---|---|---|---|---|---|---|---|"""


def command(*args: str) -> None:
    """Run the command line quietly; its own message is shown where it fails."""
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "onnxslim_opt", *args], env=env, capture_output=True, text=True)
    if done.returncode not in (0, 3):
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit {done.returncode}")


def prepared(path: Path) -> ir.Model:
    """A simplified model whose zero heads and tiny layer scales are made random, or nothing would be seen."""
    model = ir.load(path)
    rng = np.random.default_rng(5)
    for tensor in model.constants().values():
        shape = tuple(tensor.shape)
        if tensor.dtype == np.float32 and np.prod(shape) > 1 and np.abs(tensor.values).max() < 1e-3:
            scale = shape[-1] ** -0.5 if len(shape) == 2 else 1.0
            values = rng.uniform(0.5, 1.5, shape) * rng.choice([-scale, scale], shape)
            tensor.values = values.astype(np.float32)
    ir.shapes.refresh(model)
    return model


def feeds_of(model: ir.Model, batch: int = 1) -> dict[str, np.ndarray]:
    """Random inputs; unknown first dimensions are `batch`."""
    rng, feeds = np.random.default_rng(1), {}
    for tensor in model.inputs:
        shape = [d if isinstance(d, int) else batch if k == 0 else 64 for k, d in enumerate(tensor.shape)]
        if np.issubdtype(tensor.dtype, np.integer):
            feeds[tensor.name] = rng.integers(0, 30, shape).astype(tensor.dtype)
        else:
            feeds[tensor.name] = rng.standard_normal(shape).astype(tensor.dtype)
    return feeds


def proved(model: ir.Model, feeds: dict[str, np.ndarray], found: Any) -> str:
    """`ok`, or what went wrong at which ratio. Full shape inference of the checker included."""
    failed = []
    for seed, ratio in enumerate(RATIOS):
        try:
            _, small, _ = check(model, feeds, ratio, seed, found)
            onnx.checker.check_model(ir.to_proto(small), full_check=True)
        except Exception as error:
            failed.append(f"{ratio}: {type(error).__name__} {str(error).splitlines()[0][:60]}")
    return "; ".join(failed) or "ok"


def free_share(model: ir.Model, found: Any) -> float:
    """Parameters that are gone when everything that may go is, all but one position of every axis."""
    ledger = found.ledger
    ledger.reset()
    full = ledger.amount(ledger.params)
    for unit in found.units:
        ledger.remove(int(unit))
    return (full - ledger.amount(ledger.params)) / max(ir.cost.of(model).params, 1)


def measure(path: Path, norms: str, folder: Path) -> Row:
    """Simplify, look, prove, prune."""
    plain, small, report = folder / "plain.onnx", folder / "small.onnx", folder / "report.json"
    command("opt", str(path), "-o", str(plain), "-p", "simplify", "-q")
    model = prepared(plain)
    feeds = feeds_of(model)
    start = time.perf_counter()
    found = groups(model, feeds, norms=norms)
    seconds = time.perf_counter() - start
    pins: dict[str, int] = {}
    for row in found.describe():
        if row.pinned:
            pins[row.pinned] = pins.get(row.pinned, 0) + row.channels
    free, worst = free_share(model, found), proved(model, feeds, found)
    spec = f"prune:ratio=0.5:scope=local:round_to=1:norms={norms}"
    ir.save(model, plain)
    command("opt", str(plain), "-o", str(small), "-p", spec, "--report", str(report), "-q")
    told = json.loads(report.read_text())
    sizes = [(told["input"][k], told["output"][k]) for k in ("params", "macs")]
    (p0, p1), (m0, m1) = sizes
    return Row(path.stem, (p0 / 1e6, p1 / 1e6), (m0 / 1e9, m1 / 1e9), free, len(found.units), seconds, worst, pins)


def main() -> None:
    """One table row a model, as each is done."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("exports", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--norms", default="pin", choices=("pin", "allow"))
    args = parser.parse_intermixed_args()
    paths = sorted(args.exports.glob("*.onnx"))
    lines, pins = [HEAD], []
    print(HEAD, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for path in [p for p in paths if not args.names or p.stem in args.names]:
            try:
                row = measure(path, args.norms, Path(folder))
                lines.append(row.text())
                pins += [f"- {row.name}: {n} × {why}" for why, n in row.pins.items()]
            except Exception as error:
                lines.append(f"| {path.stem} | {type(error).__name__}: {str(error)[:80]} |" + " |" * 7)
            print(lines[-1], flush=True)
    if args.out:
        args.out.write_text("\n".join([*lines, "", "Pinned:", "", *pins, ""]))


if __name__ == "__main__":
    main()
