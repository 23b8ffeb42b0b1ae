"""A report as one HTML page that needs nothing else: styles inline, bars as small inline SVG, no scripts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from . import words

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:66rem;margin:2rem auto;padding:0 1rem;color:#1d2530;background:#fff}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}code,pre{font:13px ui-monospace,monospace}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #e2e6ec}
td{overflow-wrap:break-word}td:first-child,details td{overflow-wrap:anywhere}
td.n,th.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}th{font-weight:600;background:#f6f8fa}
.verdict{padding:.6rem 1rem;border-radius:6px;font-weight:600}.good{background:#e2f5e6;color:#135c28}
.bad{background:#fde7e4;color:#8c1d10}.warn{background:#fff4d6;padding:.4rem 1rem;border-radius:6px}
.muted{color:#697586}pre{background:#f6f8fa;padding:.8rem;overflow-x:auto;border-radius:6px}
details{margin:.3rem 0}summary{cursor:pointer}
"""


def render(report: Mapping[str, Any]) -> str:
    """The page for a report as `Report.to_json` gives it."""
    body = [
        f"<h1>onnxslim-opt: {escape(words.model_name(report))}</h1>",
        _verdict(report),
        *(f'<p class="warn">{escape(n)}</p>' for n in _notes(report)),
        "<h2>Before and after</h2>",
        _summary(report),
        "<h2>Steps</h2>",
        _steps(report["steps"]),
        "<h2>Outputs beside the original</h2>",
        _numerics(report.get("numerics")),
        "<h2>Left alone, and why</h2>",
        _skipped(report["steps"]),
        "<h2>Recipe</h2>",
        f"<pre>{escape(json.dumps(report['command'], indent=1))}</pre>",
        f'<p class="muted">{escape(words.tool_line(report))}</p>',
    ]
    head = f"<meta charset='utf-8'><title>{escape(words.model_name(report))}</title><style>{STYLE}</style>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(body)}</body></html>\n"


def _verdict(report: Mapping[str, Any]) -> str:
    good = report["verdict"] == "ok"
    items = "".join(f"<li>{escape(r)}</li>" for r in report.get("reasons", ()))
    line = f'<p class="verdict {"good" if good else "bad"}">{escape(words.verdict(report))}</p>'
    return line + (f"<ul>{items}</ul>" if items else "")


def _notes(report: Mapping[str, Any]) -> list[str]:
    """What was said during the run and is not among the reasons of the verdict."""
    return [n for n in report.get("notes", ()) if n not in report.get("reasons", ())]


def _summary(report: Mapping[str, Any]) -> str:
    rows = []
    for row in words.summary(report):
        bar = "" if row.fraction is None else _bar(row.fraction)
        rows.append((row.what, row.before, row.after, row.change, bar))
    return _table(("", "before", "after", "change", ""), rows, numeric=(1, 2), raw=(4,))


def _bar(fraction: float, width: int = 160) -> str:
    """What is left of the original, as a bar; longer than the grey frame means more than before."""
    most = max(1.0, fraction)
    full, part = width / most, width * min(1.0, fraction / most)
    colour = "#2f9e5b" if fraction <= 1 else "#c9382a"
    return (
        f'<svg width="{width}" height="12" role="img" aria-label="{fraction:.0%}">'
        f'<rect width="{full:.1f}" height="12" fill="#e2e6ec"/>'
        f'<rect width="{part:.1f}" height="12" fill="{colour}"/></svg>'
    )


def _steps(steps: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for k, step in enumerate(steps, 1):
        state = words.state(step)
        after, spec = step["after"], escape(step["spec"]).replace(":", ":<wbr>")
        cells = (str(k), spec, state, words.did(step), words.size(after["bytes"]), words.count(after["macs"]))
        spent = (f"{step['seconds']:.1f} s", f"{step['peak_mb']:.0f} MB")
        rows.append((*cells, words.sqnr(step.get("numerics")) if step["kept"] else "", *spent))
    head = ("", "pass", "", "what it did", "size", "MACs", "SQNR", "time", "memory")
    return _table(head, rows, numeric=(4, 5, 6, 7, 8), raw=(1,))


def _numerics(numerics: Mapping[str, Any] | None) -> str:
    if not numerics:
        return "<p>not compared</p>"
    rows = [
        (
            o["name"],
            words.db(o),
            words.number(o["cosine"]),
            words.number(o["max_abs"]),
            words.percent(o["argmax_agreement"]),
        )
        for o in numerics["outputs"]
    ]
    where = f"<p class='muted'>on {numerics['feeds']} check feeds, source: {escape(numerics['source'])}</p>"
    head = ("output", "SQNR", "cosine", "largest difference", "same argmax")
    return where + _table(head, rows, numeric=(1, 2, 3, 4))


def _skipped(steps: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for step in steps:
        if step["skipped"]:
            rows = [(s["node"], s["reason"]) for s in step["skipped"]]
            title = f"{step['pass']}: {len(rows)} left alone"
            table = _table(("node", "reason"), rows)
            parts.append(f"<details><summary>{escape(title)}</summary>{table}</details>")
    return "".join(parts) or "<p>nothing</p>"


def _table(
    head: Sequence[str], rows: Iterable[Sequence[str]], numeric: Sequence[int] = (), raw: Sequence[int] = ()
) -> str:
    def cell(tag: str, k: int, text: str) -> str:
        kind = ' class="n"' if k in numeric else ""
        return f"<{tag}{kind}>{text if k in raw else escape(str(text))}</{tag}>"

    lines = ["".join(cell("th", k, h) for k, h in enumerate(head))]
    lines += ["".join(cell("td", k, c) for k, c in enumerate(row)) for row in rows]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"
