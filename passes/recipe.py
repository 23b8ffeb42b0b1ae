"""What a run is asked to do, as data: arguments of `optimize`, options of `opt` and a recipe file are one thing.

A recipe is a TOML file with the names of the command line (`max_drop = "1%"`), or a report: its `command` is the recipe
of its own run. Passes are the text of `-p`, or one table each:

    [[pass]]
    name = "prune"
    ratio = 0.25
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from ..ir.errors import OptionError
from ..runtime.session import check_threads
from ..runtime.sources import RANDOM
from ..runtime.timings import Timings
from . import spec
from .base import Pass
from .registry import nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PATHS = ("data", "metric", "preprocess", "timings")
OUTSIDE = ("model", "output", "report", "recipe", "dump", "dry_run", "quiet", "verbose")
"""Of the command line and no part of a recipe."""
PASSES = "give the text of -p, or passes like Prune(ratio=0.25)"


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run besides the model.

    passes: the text of `-p`, or a list of passes and such texts. data, metric: as on the command line, or objects.
    samples: feeds to use at most. input_shape: {name: shape} for dynamic inputs of random feeds.
    max_drop: fraction (or text with %). min_sqnr: dB. exclude: regex searched in node names.
    threads: of sessions that are timed. memory_mb: bound on statistics. timings: file of timings to replay and keep.
    """

    passes: str | Sequence[Pass | str] = "simplify"
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
        """The settings with impossible values refused (OptionError), texts read and arrays as plain numbers."""
        for name in PATHS:
            if isinstance(getattr(self, name), str) and not getattr(self, name).strip():
                raise OptionError(f"{name} is {getattr(self, name)!r}, which names nothing")
        for name in ("jobs", "memory_mb"):
            _number(name, getattr(self, name), 1)
        for name in ("seed", "threads"):
            _number(name, getattr(self, name), 0)
        for name in ("jobs", "threads"):
            check_threads(name, getattr(self, name))
        if self.samples is not None:
            _number("samples", self.samples, 1)
        if self.exclude is not None:
            pattern(self.exclude)
        sqnr = None if self.min_sqnr is None else _real("min_sqnr", self.min_sqnr)
        if not isinstance(self.timings, str | os.PathLike | Timings | None):
            raise OptionError(f"timings is {self.timings!r}; expected a file")
        if not (self.preprocess is None or isinstance(self.preprocess, str) or callable(self.preprocess)):
            raise OptionError(f"preprocess is {self.preprocess!r}; expected FILE.py:FUNC or a function")
        return replace(
            self,
            max_drop=fraction(self.max_drop),
            min_sqnr=sqnr,
            input_shape=_shapes(self.input_shape),
            image_size=_size(self.image_size),
            image_mean=_reals("image_mean", self.image_mean),
            image_std=_reals("image_std", self.image_std),
            image_scale=None if self.image_scale is None else _real("image_scale", self.image_scale),
        )

    def parsed(self) -> tuple[Pass, ...]:
        """The passes. Raises OptionError for unknown names, options and impossible values."""
        given = (self.passes,) if isinstance(self.passes, str | Pass) else self.passes
        if not isinstance(given, Iterable):
            raise OptionError(f"passes is {given!r}; {PASSES}")
        passes = tuple(p for item in given for p in _as_passes(item))
        if not passes:
            raise OptionError(spec.NO_PASS)
        return passes

    def command(self) -> dict[str, Any]:
        """The recipe of this run, JSON-ready: what differs from the defaults, files by absolute path."""
        recipe: dict[str, Any] = {"passes": spec.show(self.parsed())}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name != "passes" and not _is_default(f, value):
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
    if not isinstance(table, dict):
        raise OptionError(f"recipe {path}: the report's command is a {type(table).__name__}; expected an object")
    known = {f.name for f in fields(Settings)}
    table = {k.replace("-", "_"): v for k, v in table.items()}
    if "pass" in table:
        if "passes" in table:
            raise OptionError(f"recipe {path}: passes are named twice, by 'passes' and by [[pass]]; keep one")
        table["passes"] = _passes(table.pop("pass"), path)
    elif isinstance(table.get("passes"), list):
        table["passes"] = _joined(table["passes"], path)
    for key in table:
        if key in OUTSIDE:
            raise OptionError(f"recipe {path}: {key!r} is no part of a recipe; give it on the command line")
        if key not in known:
            raise OptionError(f"recipe {path}: unknown key {key!r}{nearest(key, known | {'pass'})}")
    return {k: _beside(path, v) if k in PATHS and not _is_random(k, v) else v for k, v in table.items()}


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
    if not isinstance(text, str | re.Pattern):
        raise OptionError(f"exclude is {text!r}; expected a regular expression")
    try:
        return re.compile(text)
    except re.error as e:
        raise OptionError(f"exclude {text!r} is not a regular expression: {e}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except OSError as e:
        raise OptionError(f"cannot read recipe {path}: {e.strerror or e}") from None
    except ValueError as e:
        raise OptionError(f"recipe {path} is not valid {path.suffix.lstrip('.') or 'TOML'}: {e}") from None


def _passes(tables: Any, path: Path) -> tuple[Pass, ...]:
    if not isinstance(tables, list) or not all(isinstance(t, dict) and "name" in t for t in tables):
        raise OptionError(f"recipe {path}: every [[pass]] needs a name")
    return tuple(spec.build(str(t["name"]), {k: v for k, v in t.items() if k != "name"}) for t in tables)


def _joined(texts: list[Any], path: Path) -> str:
    if not all(isinstance(t, str) for t in texts):
        raise OptionError(f"recipe {path}: 'passes' holds texts as for -p; a table a pass is written [[pass]]")
    return ",".join(texts)


def _as_passes(item: Any) -> tuple[Pass, ...]:
    if isinstance(item, str):
        return spec.parse(item)
    if not isinstance(item, Pass):
        made = f"the class {item.__name__}" if isinstance(item, type) else repr(item)
        raise OptionError(f"passes holds {made}; {PASSES}")
    return (spec.checked(item),)


def _is_default(f: Field[Any], value: Any) -> bool:
    """Whether a value is the field's default; arrays and the like never are, nor are they asked."""
    if f.default is MISSING:
        return not value
    return value is f.default or (type(value) is type(f.default) and bool(value == f.default))


def _is_random(name: str, value: Any) -> bool:
    """Whether this is the word for random feeds, and no file, whatever lies about; `./random` is one."""
    return name == "data" and isinstance(value, str) and value == RANDOM


def _beside(path: Path, value: Any) -> Any:
    """A file named in a recipe lies beside it, or where the command runs."""
    if not isinstance(value, str) or not value:
        return value
    near = os.path.join(path.parent, value)
    return near if (path.parent / value.rsplit(":", 1)[0]).exists() else value


def _plain(name: str, value: Any) -> Any:
    if _is_random(name, value):
        return value
    if name in PATHS and isinstance(value, str | Path):
        return _absolute(str(value))
    if isinstance(value, re.Pattern):
        return value.pattern
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
    return str(Path(value).expanduser().resolve())


def _shapes(value: Any) -> dict[str, tuple[int, ...]]:
    if not isinstance(value, Mapping):
        raise OptionError(f"input_shape is {value!r}; expected shapes by name like {{'x': [1, 3, 224, 224]}}")
    shapes = {name: _whole(shape) for name, shape in value.items()}
    for name, shape in shapes.items():
        if shape is None:
            raise OptionError(
                f"input_shape of {name!r} is {value[name]!r}; expected whole numbers like [1, 3, 224, 224]"
            )
    return shapes  # type: ignore[return-value]


def _size(value: Any) -> int | tuple[int, ...] | None:
    if value is None:
        return None
    sizes = _whole([value] if isinstance(value, Integral) else value)
    if sizes is None or len(sizes) not in (1, 2):
        raise OptionError(f"image_size is {value!r}; expected a number or [height, width]")
    return sizes[0] if len(sizes) == 1 else sizes


def _reals(name: str, value: Any) -> tuple[float, ...] | None:
    if value is None:
        return None
    listed = _listed(value)
    if listed is None or not all(isinstance(v, Real) and math.isfinite(_float(v)) for v in listed):
        raise OptionError(f"{name} is {value!r}; expected a list of finite numbers, one a channel")
    return tuple(v if isinstance(v, int) else float(v) for v in listed)


def _whole(value: Any) -> tuple[int, ...] | None:
    """Sizes as plain whole numbers of at least 1; None for anything else."""
    listed = _listed(value)
    if listed is None or not all(isinstance(v, Integral) and not isinstance(v, bool) and int(v) >= 1 for v in listed):
        return None
    return tuple(int(v) for v in listed)


def _listed(value: Any) -> Sequence[Any] | None:
    """The items of a list, a tuple or an array of one axis; None for anything else."""
    plain = value.tolist() if hasattr(value, "tolist") else value
    return plain if isinstance(plain, list | tuple) else None


def _number(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise OptionError(f"{name} is {value!r}; expected a whole number of at least {least}")


def _real(name: str, value: Any) -> float:
    number = _float(value)
    if not math.isfinite(number):
        raise OptionError(f"{name} is {value!r}; expected a finite number")
    return number


def _float(value: Any) -> float:
    """A number or its text as a float; NaN for anything else, truth values among them."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
