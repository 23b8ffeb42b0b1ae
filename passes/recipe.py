"""What a run is asked to do, as data: arguments of `optimize`, options of `opt` and a recipe file are one thing.

A recipe is a TOML file with the names of the command line (`max_drop = "1%"`), or a report: its `command` is the recipe
of its own run. Passes are the text of `-p`, or one table each:

    [[pass]]
    name = "prune"
    ratio = 0.25
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..ir.errors import OptionError
from . import spec
from .base import Pass
from .registry import nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PATHS = ("data", "metric", "preprocess", "timings")
IMAGE = ("image_size", "image_mean", "image_std", "image_layout", "image_scale", "preprocess")


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run besides the model.

    passes: the text of `-p`, or passes. data, metric: as on the command line, or Python objects.
    samples: feeds to use at most. input_shape: {name: shape} for dynamic inputs of random or image feeds.
    max_drop: fraction (or text with %). min_sqnr: dB. exclude: regex searched in node names.
    threads: of sessions that are timed. memory_mb: bound on statistics. timings: file of timings to replay and keep.
    """

    passes: str | Sequence[Pass] = "simplify"
    data: Any = None
    metric: Any = None
    max_drop: float | str | None = None
    min_sqnr: float | None = None
    target: Any = None
    exclude: str | None = None
    samples: int | None = None
    input_shape: Mapping[str, Sequence[int]] = field(default_factory=dict)
    image_size: Any = None
    image_mean: Any = None
    image_std: Any = None
    image_layout: str | None = None
    image_scale: float | None = None
    preprocess: Any = None
    seed: int = 0
    jobs: int = 1
    threads: int = 1
    memory_mb: int = 512
    timings: Any = None

    def checked(self) -> Settings:
        """The settings with impossible values refused (OptionError) and texts read."""
        for name in ("jobs", "memory_mb"):
            _number(name, getattr(self, name), 1)
        for name in ("seed", "threads"):
            _number(name, getattr(self, name), 0)
        if self.samples is not None:
            _number("samples", self.samples, 1)
        if self.exclude is not None:
            pattern(self.exclude)
        sqnr = None if self.min_sqnr is None else _real("min_sqnr", self.min_sqnr)
        return replace(self, max_drop=fraction(self.max_drop), min_sqnr=sqnr)

    def parsed(self) -> tuple[Pass, ...]:
        """The passes. Raises OptionError for unknown names, options and impossible values."""
        if isinstance(self.passes, str):
            return spec.parse(self.passes)
        if isinstance(self.passes, Pass):
            return (self.passes,)
        return tuple(self.passes)

    def command(self) -> dict[str, Any]:
        """The recipe of this run, JSON-ready: what differs from the defaults, files by absolute path."""
        recipe: dict[str, Any] = {"passes": spec.show(self.parsed())}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name != "passes" and value != f.default and not (f.name == "input_shape" and not value):
                recipe[f.name] = _plain(f.name, value)
        return recipe


def load(path: str | Path) -> dict[str, Any]:
    """Settings of a recipe file, TOML or a JSON report. Raises OptionError naming what is wrong with it."""
    path = Path(path)
    table = _read(path)
    if not isinstance(table, dict):
        raise OptionError(f"recipe {path} is a JSON {type(table).__name__}; expected an object with options as keys")
    if "command" in table and "schema" in table:
        table = table["command"]
    known = {f.name for f in fields(Settings)}
    table = {k.replace("-", "_"): v for k, v in table.items()}
    if "pass" in table:
        table["passes"] = _passes(table.pop("pass"), path)
    if isinstance(table.get("passes"), list):
        table["passes"] = ",".join(map(str, table["passes"]))
    table.pop("model", None)
    table.pop("output", None)
    for key in table:
        if key not in known:
            raise OptionError(f"recipe {path}: unknown key {key!r}{nearest(key, known | {'pass'})}")
    return {k: _beside(path, v) if k in PATHS else v for k, v in table.items()}


def fraction(value: float | str | None) -> float | None:
    """`"1%"`, `"0.01"` or 0.01 as 0.01. Raises OptionError outside 0 to 1."""
    if value is None:
        return None
    text = str(value).strip()
    try:
        number = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise OptionError(f"max_drop {value!r} is not a number; write 0.01 or 1%") from None
    if not 0 <= number <= 1:
        raise OptionError(f"max_drop {value!r} is outside 0 to 1; write 0.01 or 1% for one percent")
    return number


def pattern(text: str) -> re.Pattern[str]:
    """A compiled regex. Raises OptionError."""
    try:
        return re.compile(text)
    except re.error as e:
        raise OptionError(f"exclude {text!r} is not a regular expression: {e}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as e:
        raise OptionError(f"cannot read recipe {path}: {e.strerror or e}") from None
    except ValueError as e:
        raise OptionError(f"recipe {path} is not valid {path.suffix.lstrip('.') or 'TOML'}: {e}") from None


def _passes(tables: Any, path: Path) -> str:
    if not isinstance(tables, list) or not all(isinstance(t, dict) and "name" in t for t in tables):
        raise OptionError(f"recipe {path}: every [[pass]] needs a name")
    built = [spec.build(str(t["name"]), {k: v for k, v in t.items() if k != "name"}) for t in tables]
    return spec.show(built)


def _beside(path: Path, value: Any) -> Any:
    """A file named in a recipe lies beside it, or where the command runs."""
    if not isinstance(value, str):
        return value
    near = path.parent / value
    return str(near) if (path.parent / value.rsplit(":", 1)[0]).exists() else value


def _plain(name: str, value: Any) -> Any:
    if name in PATHS and isinstance(value, str | Path):
        return _absolute(str(value))
    if isinstance(value, Mapping):
        return {str(k): _plain(name, v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(name, v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return f"<{getattr(value, '__name__', None) or getattr(value, 'name', None) or type(value).__name__}>"


def _absolute(value: str) -> str:
    file, colon, function = value.rpartition(":")
    if colon and file.endswith(".py"):
        return f"{Path(file).expanduser().resolve()}:{function}"
    path = Path(value).expanduser()
    return str(path.resolve()) if path.exists() or path.suffix else value


def _number(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise OptionError(f"{name} is {value!r}; expected a whole number of at least {least}")


def _real(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise OptionError(f"{name} is {value!r}; expected a number") from None
    if number != number:
        raise OptionError(f"{name} is NaN; expected a number")
    return number
