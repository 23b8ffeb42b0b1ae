"""Which passes there are: found by being a module or folder of this package, or by an entry point.

Nothing is registered by hand. Every module beside this one is searched for `Pass` subclasses with a `name`, and so
is every entry point of group `onnxslim_opt.passes` (a pass class, or a module that holds some). Two classes with one
name are an error. A module that cannot be imported does not take the others down; its reason is told when a
pass is asked for that nobody else provides.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from types import ModuleType
from typing import Any

from ..ir.errors import OptionError, PassError
from .base import Pass

GROUP = "onnxslim_opt.passes"
PACKAGE = __name__.rpartition(".")[0]
ROOMS = frozenset(
    (
        *("base", "budget", "diverge", "judge", "optimize", "pace", "page", "pipeline", "recipe"),
        *("registry", "report", "run", "solver", "spec", "target", "transaction", "words"),
    )
)
"""Modules of this package that run passes and hold none."""


@dataclass(frozen=True)
class Registry:
    """The passes by name, and why a module that may hold more could not be loaded."""

    passes: Mapping[str, type[Pass]]
    broken: Mapping[str, str]

    def get(self, name: str) -> type[Pass]:
        """The pass class called `name`. Raises OptionError with the nearest names and the whole list."""
        if name in self.passes:
            return self.passes[name]
        raise OptionError(f"unknown pass {name!r}{nearest(name, self.passes)}{self._missing(name)}")

    def _missing(self, name: str) -> str:
        reasons = [f"{m} could not be loaded: {why}" for m, why in self.broken.items() if name in m.split(".")]
        return "".join(f" ({reason})" for reason in reasons)


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: what was probably meant, and everything there is."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    meant = f", did you mean {close[0]!r}?" if close else ""
    return f"{meant or ';'} known: {', '.join(names) or 'none'}"


@cache
def registry() -> Registry:
    """Every pass of this installation."""
    return collect([*_own(), *_installed()])


def collect(sources: Iterable[tuple[str, Any]]) -> Registry:
    """A registry of (where, module | class | Exception) pairs. Raises PassError when two passes share a name."""
    passes: dict[str, type[Pass]] = {}
    broken: dict[str, str] = {}
    for where, thing in sources:
        if isinstance(thing, BaseException):
            broken[where] = f"{type(thing).__name__}: {thing}"
            continue
        for cls in _classes(thing):
            other = passes.setdefault(cls.name, cls)
            if other is not cls:
                raise PassError(f"two passes are called {cls.name!r}: {_place(other)} and {_place(cls)}; remove one")
    return Registry(dict(sorted(passes.items())), broken)


def _own() -> Iterator[tuple[str, Any]]:
    package = importlib.import_module(PACKAGE)
    for found in pkgutil.iter_modules(package.__path__):
        if found.name not in ROOMS and not found.name.startswith("_"):
            yield found.name, _attempt(lambda name=found.name: importlib.import_module(f"{PACKAGE}.{name}"))


def _installed() -> Iterator[tuple[str, Any]]:
    points = sorted(metadata.entry_points(group=GROUP), key=lambda p: (p.name, p.value))
    return ((p.value, _attempt(p.load)) for p in points)


def _attempt(load: Any) -> Any:
    try:
        return load()
    except Exception as e:  # someone else's module: whatever it raises is the reason that it is absent
        return e


def _classes(thing: Any) -> Iterator[type[Pass]]:
    """The named passes that a module defines (those that it only imports from elsewhere are not its own)."""
    if inspect.isclass(thing) and issubclass(thing, Pass):
        yield thing
    elif isinstance(thing, ModuleType):
        for value in list(vars(thing).values()):
            if inspect.isclass(value) and issubclass(value, Pass) and value.name and _is_own(value, thing):
                yield value


def _is_own(cls: type[Pass], module: ModuleType) -> bool:
    return cls.__module__ == module.__name__ or cls.__module__.startswith(module.__name__ + ".")


def _place(cls: type[Pass]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
