"""`FILE.py:FUNC`: the one place where code that the user named is executed (--data, --metric, --preprocess)."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..ir.errors import OptionError


def is_function(spec: Any) -> bool:
    """Whether a text has the form FILE.py:FUNC."""
    if not isinstance(spec, str):
        return False
    file, colon, name = spec.rpartition(":")
    return bool(colon) and file.endswith(".py") and name.isidentifier()


def load_function(spec: str) -> Callable[..., Any]:
    """The object FUNC of FILE.py.

    The file is executed, with its own folder importable while it runs and while the function runs; the working folder
    it changes to is its own, and ours stays. Raises OptionError when the file or the name is missing, or when the file
    raises.
    """
    file, _, name = spec.rpartition(":")
    if not is_function(spec):
        raise OptionError(f"'{spec}' does not name a function; write FILE.py:FUNC")
    path = Path(file).expanduser()
    if not path.is_file():
        raise OptionError(f"'{spec}': there is no file {path}")
    place = Place(path.resolve().parent)
    module = _execute(path.resolve(), spec, place)
    if not hasattr(module, name):
        near = ", ".join(n for n in vars(module) if not n.startswith("_") and callable(getattr(module, n)))
        raise OptionError(f"'{spec}': {path} defines no '{name}'" + (f"; it has {near}" if near else ""))
    found = getattr(module, name)
    return _Bound(found, place) if callable(found) else found


def _execute(path: Path, spec: str, place: Place) -> Any:
    name = "onnxslim_user_" + hashlib.sha256(str(path).encode()).hexdigest()[:12]
    loader = importlib.util.spec_from_file_location(name, path)
    if loader is None or loader.loader is None:
        raise OptionError(f"'{spec}': {path} is not a Python file")
    module = importlib.util.module_from_spec(loader)
    sys.modules[name] = module  # dataclasses and pickle look their module up there
    try:
        with place.entered():
            loader.loader.exec_module(module)
    except Exception as error:
        raise OptionError(f"'{spec}': {path} raised {type(error).__name__}: {_first_line(error)}") from error
    return module


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]


@dataclass
class Place:
    """Where a user's code runs: its folder, and the working folder it changed to, if it did."""

    folder: Path
    working: str | None = None

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """The folder first on the import path, the code's working folder; its `exit()` ends it, not the program."""
        sys.path.insert(0, str(self.folder))
        ours = _working()
        try:
            with _inside(self.working):
                try:
                    yield
                finally:
                    left = _working()
                    self.working = None if left == ours else left
        except SystemExit as e:
            raise RuntimeError(f"it called exit({'' if e.code is None else e.code})") from e
        finally:
            with contextlib.suppress(ValueError):
                sys.path.remove(str(self.folder))


@contextlib.contextmanager
def _inside(working: str | None) -> Iterator[None]:
    """Work in a folder, and come back whatever happens there; None: in the folder as it is."""
    ours = _working()
    if working not in (None, ours):
        os.chdir(working)
    try:
        yield
    finally:
        if ours is not None and ours != _working():
            os.chdir(ours)


def _working() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # the folder is gone
        return None


def _outward(function: Callable[..., Any], ours: str | None) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with _inside(ours):
            return function(*args, **kwargs)

    return call


class _Bound:
    """A user's function that finds the modules beside it whenever it runs, as a generator too."""

    def __init__(self, function: Callable[..., Any], place: Place):
        self.function, self.place = function, place
        self.__name__ = getattr(function, "__name__", type(function).__name__)
        self.__doc__ = function.__doc__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        handed = [self._handed(value) for value in args]
        with self.place.entered():
            result = self.function(*handed, **kwargs)
        return self._steps(result) if isinstance(result, Iterator) else result

    def _handed(self, value: Any) -> Any:
        """An argument that means the same from the code's working folder: a path, or a function of ours."""
        ours = _working() or ""
        if isinstance(value, Path):
            return value if self.place.working is None else Path(ours, value)
        return _outward(value, ours or None) if callable(value) else value

    def _steps(self, iterator: Iterable[Any]) -> Iterator[Any]:
        items = iter(iterator)
        while True:
            with self.place.entered():
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item


__all__ = ["is_function", "load_function"]
