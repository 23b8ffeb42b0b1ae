"""What a run says while it runs, on stderr: the pass at work, a bar for long loops, and lines that matter.

On a terminal the status is one live line; in a log it is one line a pass. `-q` says nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from . import show

if TYPE_CHECKING:
    from ..passes.pipeline import Event


class Voice:
    """An observer of a run that talks to the terminal. Use as a context manager, so that the live line ends."""

    def __init__(self, quiet: bool = False, verbose: bool = False):
        self.quiet, self.verbose = quiet, verbose
        self.console: Console = show.err()
        self._bars: Progress | None = None
        self._task: Any = None

    def __enter__(self) -> Voice:
        if not self.quiet and self.console.is_terminal:
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
            )
            self._bars = Progress(*columns, console=self.console, transient=True)
            self._bars.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def __call__(self, event: Event) -> None:
        """Hear an event of the pipeline."""
        if self.quiet:
            return
        if event.kind == "note":
            self.say(event.text, style="bold yellow" if event.text.startswith("NO REAL DATA") else "yellow")
        elif event.kind == "start" and event.p is not None:
            self._start(event.p.name)
        elif event.kind == "done" and event.step is not None:
            self._done(event)

    def say(self, text: str, style: str = "") -> None:
        """One line."""
        if not self.quiet:
            self.console.print(text, style=style, soft_wrap=True)

    def progress(self, items: Iterable[Any], label: str, total: int | None = None) -> Iterable[Any]:
        """A bar around a loop, on a terminal only."""
        if self._bars is None:
            return items
        if total is None:
            with contextlib.suppress(TypeError):
                total = len(items)  # type: ignore[arg-type]
        return self._with_bar(self._bars, items, label, total)

    def _with_bar(self, bars: Progress, items: Iterable[Any], label: str, total: int | None) -> Iterator[Any]:
        task = bars.add_task(f"  {label}", total=total)
        try:
            for item in items:
                yield item
                bars.advance(task)
        finally:
            bars.remove_task(task)

    def _start(self, name: str) -> None:
        if self._bars is not None:
            self._task = self._bars.add_task(name, total=None)

    def _done(self, event: Event) -> None:
        if self._bars is not None and self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None
        step = event.step
        assert step is not None
        state = "failed" if step.error else "kept" if step.kept else "rolled back" if step.reason else "nothing to do"
        self.say(f"{step.p.name}: {state}, {step.seconds:.1f} s", style="dim")
        if step.error:
            self.say(step.error, style="red")
        if step.cause is not None and self.verbose:
            self._trace(step.cause)

    def _trace(self, cause: Exception) -> None:
        import traceback

        self.say("".join(traceback.format_exception(cause)))
