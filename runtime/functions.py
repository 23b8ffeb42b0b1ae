"""`FILE.py:FUNC`: the one place where code that the user named is executed (--data, --metric, --preprocess)."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator
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

    The file is executed, with its own folder importable while it runs and while the function runs. Raises
    OptionError when the file or the name is missing, or when the file raises.
    """
    file, _, name = spec.rpartition(":")
    if not is_function(spec):
        raise OptionError(f"'{spec}' does not name a function; write FILE.py:FUNC")
    path = Path(file).expanduser()
    if not path.is_file():
        raise OptionError(f"'{spec}': there is no file {path}")
    module = _execute(path.resolve(), spec)
    if not hasattr(module, name):
        near = ", ".join(n for n in vars(module) if not n.startswith("_") and callable(getattr(module, n)))
        raise OptionError(f"'{spec}': {path} defines no '{name}'" + (f"; it has {near}" if near else ""))
    found = getattr(module, name)
    return _Bound(found, path.resolve().parent) if callable(found) else found


def _execute(path: Path, spec: str) -> Any:
    name = "onnxslim_user_" + hashlib.sha256(str(path).encode()).hexdigest()[:12]
    loader = importlib.util.spec_from_file_location(name, path)
    if loader is None or loader.loader is None:
        raise OptionError(f"'{spec}': {path} is not a Python file")
    module = importlib.util.module_from_spec(loader)
    sys.modules[name] = module  # dataclasses and pickle look their module up there
    try:
        with importable(path.parent):
            loader.loader.exec_module(module)
    except Exception as error:
        raise OptionError(f"'{spec}': {path} raised {type(error).__name__}: {_first_line(error)}") from error
    return module


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]


@contextlib.contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Put a folder first on the import path while a user's code runs; its `exit()` ends the code, not the program."""
    sys.path.insert(0, str(folder))
    try:
        yield
    except SystemExit as e:
        raise RuntimeError(f"it called exit({'' if e.code is None else e.code})") from e
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))


class _Bound:
    """A user's function that finds the modules beside it whenever it runs, as a generator too."""

    def __init__(self, function: Callable[..., Any], folder: Path):
        self.function, self.folder = function, folder
        self.__name__ = getattr(function, "__name__", type(function).__name__)
        self.__doc__ = function.__doc__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with importable(self.folder):
            result = self.function(*args, **kwargs)
        return self._steps(result) if isinstance(result, Iterator) else result

    def _steps(self, iterator: Iterable[Any]) -> Iterator[Any]:
        items = iter(iterator)
        while True:
            with importable(self.folder):
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item


__all__ = ["importable", "is_function", "load_function"]
