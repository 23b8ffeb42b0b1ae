"""The report of a run, schema 1: what was done, what it cost in accuracy, what it gained, and how to do it again.

Pure data; the command line and `page.py` only render it. An infinite SQNR (outputs equal to the bit) is written as 999.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..ir.errors import LimitsNotMet, PassError
from ..ir.files import atomic
from ..ir.wire import data_files
from . import spec
from .base import LossyPass

if TYPE_CHECKING:
    from ..ir.cost import Cost
    from .transaction import Step

SCHEMA = 1
OK, MISSED, FAILED = "ok", "limits_not_met", "pass_failed"


@dataclass
class Report:
    """Everything that schema 1 holds, as plain dicts; `to_json` is the file's content."""

    command: dict[str, Any]
    input: dict[str, Any]
    output: dict[str, Any]
    steps: list[dict[str, Any]] = field(default_factory=list)
    numerics: dict[str, Any] | None = None
    metric: dict[str, Any] | None = None
    latency: dict[str, Any] | None = None
    verdict: str = OK
    reasons: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    peak_mb: float = 0.0
    tool: dict[str, Any] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0 when the result is within its limits and every pass ran; 3 when not (the best model is written anyway)."""
        return 0 if self.verdict == OK else 3

    def require(self) -> None:
        """Raise LimitsNotMet (or PassError) with the reasons unless the verdict is "ok"."""
        if self.verdict == FAILED:
            raise PassError("; ".join(self.reasons))
        if self.verdict != OK:
            raise LimitsNotMet("; ".join(self.reasons))

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-ready data, in the order of the schema."""
        keys = ("tool", "command", "input", "output", "steps", "numerics", "metric", "latency", "verdict", "reasons")
        head = {"schema": SCHEMA, **{k: getattr(self, k) for k in keys}}
        return jsonable({**head, "notes": self.notes, "seconds": self.seconds, "peak_mb": self.peak_mb})

    def save(self, path: str | Path) -> None:
        """Write JSON, or one HTML page when the name ends in .html; atomically. Raises OutputError."""
        if str(path).lower().endswith((".html", ".htm")):
            from .page import render

            text = render(self.to_json())
        else:
            text = json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        with atomic(path) as file:
            file.write(text.encode())


def describe_file(path: str | Path | None, cost: Cost, data: bytes | None = None) -> dict[str, Any]:
    """The `input` or `output` entry: path, sha256, nodes, params, macs, bytes (those of the file when there is one).

    A result has neither path nor sha256 before it is saved.
    """
    entry = {"path": None if path is None else str(path), "sha256": None, **cost.to_json()}
    if path is not None and Path(path).is_file():
        entry |= {"sha256": sha256(Path(path)), "bytes": file_bytes(Path(path))}
    elif data is not None:
        entry |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    return entry


def sha256(path: Path) -> str:
    """Hash of a file, read in blocks."""
    total = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            total.update(block)
    return total.hexdigest()


def file_bytes(path: Path) -> int:
    """Size of a model file, with the external data files that it names."""
    return sum(part.stat().st_size for part in (path, *data_files(path)))


def describe_step(step: Step) -> dict[str, Any]:
    """One row of `steps`."""
    return {
        "pass": step.p.name,
        "options": spec.chosen(step.p),
        "spec": spec.show(step.p),
        "automatic": step.automatic,
        "lossy": isinstance(step.p, LossyPass),
        "seconds": step.seconds,
        "peak_mb": step.peak_mb,
        "changed": step.result.changed,
        "kept": step.kept,
        "strength": step.strength,
        "reason": step.reason,
        "error": step.error,
        "did": dict(step.result.did),
        "skipped": [{"node": s.node, "reason": s.reason} for s in step.result.skipped],
        "before": step.before.to_json(),
        "after": step.after.to_json(),
        "numerics": None if step.numerics is None else step.numerics.to_json(),
        "latency": None if step.latency is None else step.latency.to_json(),
        "tried": list(step.tried),
        "notes": list(step.notes),
        "details": dict(step.result.details),
    }


def describe_tool(target: Any) -> dict[str, Any]:
    """Which versions, on which machine and for which target."""
    from importlib.metadata import version

    packages = ("onnxslim-opt", "onnx", "onnxruntime", "onnx-graphsurgeon", "numpy")
    return {
        "name": "onnxslim-opt",
        "version": version("onnxslim-opt"),
        "packages": {name: version(name) for name in packages[1:]},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "target": target.name,
        "native": target.native,
        "timed_in": target.engine,
        "isa": list(getattr(target, "isa", ())),
    }


def jsonable(value: Any) -> Any:
    """`value` with numpy numbers unpacked, NaN and infinities as None, and everything else that JSON lacks as text."""
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value, key=str) if isinstance(value, set | frozenset) else value
        return [jsonable(v) for v in items]
    if hasattr(value, "tolist"):
        return jsonable(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
