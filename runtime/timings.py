"""Recorded timings: every timing a decision used, by what was timed, so that a run can be repeated to the byte."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime

from .. import ir
from ..ir.errors import BadInput

FORMAT = 1


class Timings:
    """Timings by content key; measured once, then replayed.

    path: a file to replay from, if it exists, and for `save` to write; None keeps them in memory only.
    engine: the runtime that models are timed in, see `latency.start`; what another one measured is another entry.
    Raises BadInput when the file is there but is no timings file.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, engine: str = "onnxruntime"):
        self.path = None if path is None else Path(path)
        self.engine = engine
        self.machine = {"cpu": cpu_name(), "onnxruntime": onnxruntime.__version__}
        self.entries: dict[str, Any] = {}
        self.replayed = 0
        if self.path is not None and self.path.exists():
            self._load(self.path)

    @staticmethod
    def key(*parts: Any) -> str:
        """A key from what determines a timing: digests, thread counts, shapes (anything JSON can say)."""
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()

    def measure(self, key: str, run: Callable[[], Any]) -> Any:
        """The recorded value of a key; `run()` (JSON-ready) is called and recorded when there is none."""
        key = key if self.engine == "onnxruntime" else f"{self.engine} {key}"
        if key in self.entries:
            self.replayed += 1
            return self.entries[key]
        self.entries[key] = json.loads(json.dumps(run()))  # what a replay would read, from the first time on
        return self.entries[key]

    def save(self) -> None:
        """Write the file, sorted and atomically; nothing to do without a path. Raises OutputError."""
        if self.path is None:
            return
        content = {"format": FORMAT, "machine": self.machine, "timings": self.entries}
        with ir.atomic(self.path) as file:
            file.write((json.dumps(content, sort_keys=True, indent=1) + "\n").encode())

    def _load(self, path: Path) -> None:
        try:
            content = json.loads(path.read_text())
            known = content["format"] == FORMAT
            self.entries, machine = dict(content["timings"]), dict(content["machine"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{path} is not a timings file: {error}") from error
        if not known:
            raise BadInput(f"{path}: timings of format {content['format']}; this version reads {FORMAT}")
        self.machine = machine  # timings come from where they were taken, even when replayed elsewhere


def cpu_name() -> str:
    """The processor's model name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


__all__ = ["Timings", "cpu_name"]
