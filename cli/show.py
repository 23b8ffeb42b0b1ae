"""How results look on a terminal: tables on stdout, notes and progress on stderr, through rich."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..passes import words

WIDTH = 120
"""Columns when the output is no terminal."""
STYLES = {"kept": "green", "rolled back": "yellow", "failed": "bold red"}


def out() -> Console:
    """Standard output."""
    return _console(sys.stdout)


def err() -> Console:
    """Standard error."""
    return _console(sys.stderr)


def _console(file: Any) -> Console:
    width = None if file.isatty() else WIDTH
    return Console(file=file, width=width, highlight=False, markup=False, soft_wrap=False)


def put(
    title: str, head: Sequence[str], rows: Iterable[Sequence[Any]], numeric: Sequence[int] = (), wide: int = -1
) -> None:
    """Print a plain table on stdout; columns in `numeric` are right-aligned, column `wide` takes what room is left."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=any(head))
    for k, name in enumerate(head):
        side: Any = "right" if k in numeric else "left"
        made.add_column(name, justify=side, overflow="fold", ratio=1 if k == wide else None, header_style="dim")
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    console = out()
    if title:
        console.print(Text(title, style="bold"))
    console.print(made)


def report(told: Mapping[str, Any], verbose: bool = False) -> None:
    """The before/after table, the steps and the verdict."""
    console = out()
    rows = [(r.what, r.before, r.after, r.change) for r in words.summary(told)]
    put("", ("", "before", "after", "change"), rows, numeric=(1, 2))
    console.print()
    steps = [_step(k, step) for k, step in enumerate(told["steps"], 1)]
    put("", ("", "pass", "", "SQNR", "what it did"), steps, numeric=(3,), wide=4)
    if verbose:
        _refusals(told["steps"])
    console.print()
    style = "bold green" if told["verdict"] == "ok" else "bold red"
    path = told["output"]["path"]
    where = f": {path}" if path and told["verdict"] == "ok" else f" ({path})" if path else ""
    console.print(Text(words.verdict(told) + where, style=style))


def _step(k: int, step: Mapping[str, Any]) -> tuple[Any, ...]:
    state = words.state(step)
    shown = Text(state, style=STYLES.get(state, "yellow" if state.startswith("weakened") else "dim"))
    return k, step["spec"], shown, words.sqnr(step["numerics"]) if step["kept"] else "", words.did(step)


def _refusals(steps: Sequence[Mapping[str, Any]]) -> None:
    for step in steps:
        if step["skipped"]:
            rows = [(s["node"], s["reason"]) for s in step["skipped"]]
            put(f"\n{step['pass']} left alone", ("node", "reason"), rows, wide=1)
