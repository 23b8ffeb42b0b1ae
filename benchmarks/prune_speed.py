#!/usr/bin/env python3
"""How much faster models run for the MACs that pruning removes, measured in pairs.

    python benchmarks/prune_speed.py EXPORTS_DIR [--amounts macs=0.5 speedup=1.6] [--norms pin|allow] [NAME ...]

EXPORTS_DIR holds NAME.onnx files. No data is given: channels go by magnitude, since only time is looked at. Every row
is one `prune`, its result timed in turns with the model as it was (both after `simplify`), one thread.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from onnxslim_opt.passes.prune import Prune
from onnxslim_opt.passes.simplify import Simplify
from onnxslim_opt.runtime import latency
from onnxslim_opt.runtime.feeds import resolve
from onnxslim_opt.runtime.latency import Timings

from onnxslim_opt import Context, Target, ir

HEAD = """| model | amount | MACs | parameters | ms | speed-up | predicted | plan s |
|---|---|---|---|---|---|---|---|"""
SECONDS = 6.0


def finished(model: ir.Model) -> ir.Model:
    """Nodes in order, shapes known."""
    ir.order.sort(model)
    ir.shapes.refresh(model)
    return model


def row(model: ir.Model, name: str, amount: str, norms: str) -> str:
    """Prune by one amount and time it."""
    key, _, value = amount.partition("=")
    prune = Prune(norms=norms, refit=False, **{key: float(value)})  # type: ignore[arg-type]
    feeds = resolve(None, model)
    ctx = Context(Target.detect(), feeds, feeds, "random", model, Timings())
    small, start = model.copy(), time.perf_counter()
    plan = prune.plan(model, ctx)
    spent = time.perf_counter() - start
    prune.apply(small, plan, 1.0, ctx)
    finished(small)
    before, after = ir.cost.of(model), ir.cost.of(small)
    timed = latency.compare(model, small, feeds, seconds=SECONDS)
    predicted = "–" if plan.pace is None else f"{plan.pace.steps.total / plan.pace.steps.us[plan.pace.count - 1]:.2f}"
    shares = [f"{b / a - 1:+.1%}" for a, b in ((before.macs, after.macs), (before.params, after.params))]
    ms = f"{timed.before_ms:.2f} → {timed.after_ms:.2f}"
    label = amount + (", norms=allow" if norms == "allow" else "")
    return f"| {name} | {label} | {' | '.join(shares)} | {ms} | {timed.speedup:.2f} | {predicted} | {spent:.1f} |"


def main() -> None:
    """One row an amount, as each is done."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("exports", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--amounts", nargs="*", default=["macs=0.25", "macs=0.5", "speedup=1.5", "speedup=2"])
    parser.add_argument("--norms", default="pin", choices=("pin", "allow"))
    args = parser.parse_intermixed_args()
    print(HEAD, flush=True)
    for path in sorted(args.exports.glob("*.onnx")):
        if args.names and path.stem not in args.names:
            continue
        model = ir.load(path)
        Simplify().run(model)
        finished(model)
        for amount in args.amounts:
            print(row(model, path.stem, amount, args.norms), flush=True)


if __name__ == "__main__":
    main()
