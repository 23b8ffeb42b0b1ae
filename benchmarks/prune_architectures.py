#!/usr/bin/env python3
"""Prune many architectures by half and compare what is left with other tools' figures; prove each by its masked twin.

    python benchmarks/prune_architectures.py EXPORTS_DIR [--out FILE.md] [--norms pin|allow] [--ratios 0.5] [NAME ...]

EXPORTS_DIR holds NAME.onnx files with random weights. For each: parameters and MACs before and after
`prune:ratio=0.5:scope=local:round_to=1` without data, the share of the parameters that can go at all, CPU seconds for
propagation and groups, and whether the pruned model equals its twin (random units, ratios 0.1, 0.5, 0.9 and all but one
position of every axis; where sizes are dynamic at two of them) and passes the checker. Peers' figures are those of
Torch-Pruning 1.6.1 at ratio 0.5.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from onnxslim_opt.passes.prune import Prune, groups  # noqa: E402
from onnxslim_opt.runtime.feeds import resolve  # noqa: E402
from onnxslim_opt.runtime.latency import Timings  # noqa: E402
from prune_twin import check, distance, run, twin  # noqa: E402
from test_prune_architectures import feeds, loaded  # noqa: E402

from onnxslim_opt import Context, Target, ir  # noqa: E402

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


def proved(model: ir.Model, given: dict[str, np.ndarray], found: Any, ratios: Sequence[float]) -> str:
    """`ok`, or what went wrong at which ratio. Full shape inference of the checker included."""
    failed = []
    for seed, ratio in enumerate(ratios):
        try:
            _, small, gone = check(model, given, ratio, seed, found)
            onnx.checker.check_model(ir.to_proto(small), full_check=True)
            other = feeds(model, batch=3, length=96)
            if any(other[k].shape != v.shape for k, v in given.items()):  # dynamic: at another size, too
                outputs = run(twin(model, found, gone), other), run(ir.to_proto(small), other)
                assert distance(*outputs) < 1e-4
        except Exception as error:
            failed.append(f"{ratio}: {type(error).__name__} {str(error).splitlines()[0][:60]}")
    return "; ".join(failed) or ("ok" if ratios else "–")


def free_share(model: ir.Model, found: Any) -> float:
    """Parameters that are gone when everything that may go is, all but one position of every axis."""
    ledger = found.ledger
    ledger.reset()
    full = ledger.amount(ledger.params)
    for unit in found.units:
        ledger.remove(int(unit))
    return (full - ledger.amount(ledger.params)) / max(ir.cost.of(model).params, 1)


def measure(path: Path, norms: str, ratios: Sequence[float]) -> Row:
    """Simplify, look, prove, prune."""
    model = loaded(path)
    given = feeds(model, batch=1)
    before = ir.cost.of(model)
    start = time.process_time()
    found = groups(model, given, norms=norms)
    seconds = time.process_time() - start
    pins: dict[str, int] = {}
    for row in found.describe():
        if row.pinned:
            pins[row.pinned] = pins.get(row.pinned, 0) + row.channels
    free, worst = free_share(model, found), proved(model, given, found, ratios)
    prune = Prune(ratio=0.5, scope="local", round_to=1, norms=norms, refit=False)
    fit = resolve(None, model)
    ctx = Context(Target(), fit, fit, "random", model, Timings())
    small = model.copy()
    prune.apply(small, prune.plan(model, ctx), 1.0, ctx)
    after = ir.cost.of(small)
    sizes = ((before.params / 1e6, after.params / 1e6), (before.macs / 1e9, after.macs / 1e9))
    return Row(path.stem, *sizes, free, len(found.units), seconds, worst, pins)


def main() -> None:
    """One table row a model, as each is done."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("exports", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--norms", default="pin", choices=("pin", "allow"))
    parser.add_argument("--ratios", type=float, nargs="*", default=RATIOS, help="of the twin test; none: leave it out")
    args = parser.parse_intermixed_args()
    paths = sorted(args.exports.glob("*.onnx"))
    lines, pins = [HEAD], []
    print(HEAD, flush=True)
    for path in [p for p in paths if not args.names or p.stem in args.names]:
        try:
            row = measure(path, args.norms, args.ratios)
            lines.append(row.text())
            pins += [f"- {row.name}: {n} × {why}" for why, n in row.pins.items()]
        except Exception as error:
            lines.append(f"| {path.stem} | {type(error).__name__}: {str(error)[:80]} |" + " |" * 7)
        print(lines[-1], flush=True)
    if args.out:
        args.out.write_text("\n".join([*lines, "", "Pinned:", "", *pins, ""]))


if __name__ == "__main__":
    main()
