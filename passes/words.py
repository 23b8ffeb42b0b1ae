"""A report in words: the rows and phrases that the command line's table and the HTML page share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VERDICTS = {
    "ok": "done",
    "limits_not_met": "the limits are not met; the best model found was written",
    "pass_failed": "a pass failed and was rolled back; the best model found was written",
}

WHOLE = ("", "*")  # what stands for the whole model where a pass says what it left alone


@dataclass(frozen=True)
class Row:
    """One line of the before/after table. fraction: what is left, 1 = all; None where it makes no sense."""

    what: str
    before: str
    after: str
    change: str
    fraction: float | None = None


def summary(report: Mapping[str, Any]) -> list[Row]:
    """Size, parameters, MACs, latency, metric and SQNR, before and after."""
    before, after = report["input"], report["output"]
    rows = [
        _ratio("file size", before["bytes"], after["bytes"], size, "smaller", "bigger"),
        _ratio("parameters", before["params"], after["params"], count, "fewer", "more"),
        _ratio("MACs", before["macs"], after["macs"], count, "fewer", "more"),
        _latency(report.get("latency"), report.get("tool", {})),
        _metric(report.get("metric"), report.get("command")),
        _sqnr_row(report.get("numerics")),
    ]
    return [row for row in rows if row is not None]


def _ratio(what: str, before: int, after: int, show: Any, less: str, more: str) -> Row | None:
    if not before or not after:  # sizes inside subgraphs may be unknown before or after
        return None
    fraction = after / before
    if abs(fraction - 1) < 0.005:
        change = "same"
    elif fraction < 0.67:
        change = f"{1 / fraction:.1f}x {less}"
    else:
        change = f"{abs(1 - fraction):.0%} {less if fraction < 1 else more}"
    return Row(what, show(before), show(after), change, fraction)


def _latency(latency: Mapping[str, Any] | None, tool: Mapping[str, Any]) -> Row | None:
    if not latency:
        return None
    speedup, threads = latency["speedup"], latency.get("threads", 1)
    elsewhere = "" if tool.get("timed_in", "onnxruntime") == "onnxruntime" else f" in {tool['timed_in']}"
    where = f"of one feed{elsewhere}" if tool.get("native", True) else f"here, not on {tool.get('target')}"
    what = f"latency {where} ({threads or 'all'} thread{'s' if threads != 1 else ''})"
    word = "same" if abs(speedup - 1) < 0.03 else f"{speedup:.2f}x {'faster' if speedup > 1 else 'as fast'}"
    return Row(what, milliseconds(latency["before_ms"]), milliseconds(latency["after_ms"]), word, 1 / speedup)


def _metric(metric: Mapping[str, Any] | None, command: Mapping[str, Any] | None) -> Row | None:
    if not metric:
        return None
    before, after = metric["before"], metric["after"]
    function = str((command or {}).get("metric") or "").rpartition(":")[2]
    what = f"metric ({function})" if function.isidentifier() else "metric"
    if after is None:
        return Row(what, number(before), "failed", "")
    change = "same" if after == before else f"{(after - before) / abs(before):+.2%}" if before else ""
    return Row(what, number(before), number(after), change)


def _sqnr_row(numerics: Mapping[str, Any] | None) -> Row | None:
    if not numerics:
        return None
    kind = "random feeds (nothing real)" if numerics["source"] == "random" else "check feeds"
    kind += " (fitted on as well)" if numerics.get("shared") else ""
    where = f"signal to noise (SQNR), worst output, on {numerics['feeds']} {kind}"
    return Row("output fidelity", "", sqnr(numerics), where)


def sqnr(numerics: Mapping[str, Any] | None) -> str:
    """SQNR of the worst output of which something was compared."""
    if not numerics or not numerics["outputs"]:
        return ""
    return db(min(numerics["outputs"], key=lambda o: math.inf if o["sqnr_db"] is None else o["sqnr_db"]))


def db(output: Mapping[str, Any]) -> str:
    """One output's SQNR."""
    value = output["sqnr_db"]
    if value is None:
        return output.get("trouble") or ""
    return "exact" if value >= 999 else output.get("trouble") or "broken" if value <= -999 else f"{value:.1f} dB"


def did(step: Mapping[str, Any]) -> str:
    """What a pass did, in its own counts, or why it did nothing; what it left alone."""
    parts, told = _counts(step["did"]) if step["kept"] else [], list[str]()
    if step["error"]:
        parts.append(step["error"])
    elif step["reason"]:
        parts.append(step["reason"].removeprefix("weakened: ").removeprefix("rolled back: "))  # it stands beside it
    elif not step["changed"]:
        told = [s["reason"] for s in step["skipped"] if s["node"] in WHOLE]
        parts += told or [note.removeprefix(f"{step['pass']}: ") for note in step["notes"][-1:]]
    if len(step["skipped"]) > len(told):
        parts.append(f"{len(step['skipped']) - len(told)} left alone")
    return "; ".join(parts) or ("no change needed" if not step["changed"] else "")


def _counts(did: Mapping[str, Any]) -> list[str]:
    """`channels removed: 8 of 64; layers refitted: 3`: a count named "of" is the whole of the one before it."""
    parts: list[str] = []
    for key, value in did.items():
        if key == "of" and parts:
            parts[-1] += f" of {short(value)}"
        elif value and key != "of":
            parts.append(f"{key}: {short(value)}")
    return parts


def state(step: Mapping[str, Any]) -> str:
    """kept, weakened, rolled back, failed or nothing to do."""
    if step["error"]:
        return "failed"
    if not step["kept"]:
        return "rolled back" if step["reason"] else "nothing to do"
    strength = step.get("strength")
    return f"weakened to {strength:.0%}" if strength is not None and strength < 1 else "kept"


def verdict(report: Mapping[str, Any]) -> str:
    """The verdict as a sentence."""
    return VERDICTS.get(report["verdict"], report["verdict"])


def model_name(report: Mapping[str, Any]) -> str:
    """The input's file name."""
    return Path(report["input"]["path"]).name if report["input"]["path"] else "model"


def tool_line(report: Mapping[str, Any]) -> str:
    """Versions and time."""
    tool = report["tool"]
    packages = ", ".join(f"{k} {v}" for k, v in tool.get("packages", {}).items())
    return (
        f"{tool.get('name')} {tool.get('version')} ({packages}), target {tool.get('target')}, {report['seconds']:.1f} s"
    )


def size(n: float) -> str:
    """Bytes, in decimal units as file managers count."""
    return (
        f"{n} B"
        if n < 1000
        else f"{n / 1e3:.1f} kB"
        if n < 1e6
        else f"{n / 1e6:.2f} MB"
        if n < 1e9
        else f"{n / 1e9:.2f} GB"
    )


def count(n: float) -> str:
    """A count with a metric suffix."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= unit:
            return f"{n / unit:.2f} {name}"
    return str(int(n))


def milliseconds(ms: float) -> str:
    """Milliseconds with three significant digits."""
    return f"{ms:.3g} ms" if ms < 1000 else f"{ms / 1000:.3g} s"


def number(value: float | None) -> str:
    """A number with four significant digits."""
    return "" if value is None else f"{value:.4g}"


def percent(value: float | None) -> str:
    """A fraction as percent."""
    return "" if value is None else f"{value:.1%}"


def short(value: Any) -> str:
    """A count or a measure in a phrase."""
    if isinstance(value, int) and value >= 100_000:
        return count(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
