"""Where results go: checked before any work, so that no run ends with nowhere to write."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from ..ir.errors import OutputError


def default_output(model: str | Path) -> Path:
    """`model.onnx` -> `model.slim.onnx` beside it."""
    path = Path(model)
    return path.with_name((path.stem if path.suffix == ".onnx" else path.name) + ".slim.onnx")


def read_by(settings: Any) -> list[Path]:
    """Files that data, metric and preprocessing are read from; a folder of data stands for what is in it."""
    from ..runtime.functions import is_function
    from ..runtime.sources import RANDOM

    texts = [t for t in (settings.data, settings.metric, settings.preprocess) if isinstance(t, str) and t != RANDOM]
    named = [os.path.expanduser(t.rpartition(":")[0] if is_function(t) else t) for t in texts]
    return [Path(name) for name in named if os.path.exists(name)]


def check(path: Path, kept: list[Path], what: str = "output", every: bool = False) -> None:
    """Raise OutputError unless `path` can be written and is none of `kept`, by name, link or hard link.

    Of a folder in `kept` it must be none of the files that feeds are read from. every: all files of it are.
    """
    try:
        path.lstat()
    except FileNotFoundError:
        pass
    except OSError as e:  # a name that is too long, a folder that may not be looked into
        raise OutputError(f"cannot write {path}: {e.strerror or e}") from None
    for other in kept:
        if same(path, other):
            raise OutputError(f"the {what} {path} is the same file as {other}; it would be overwritten, name another")
        if other.is_dir() and _is_data(path, other, every):
            raise OutputError(f"the {what} {path} is one of the data in {other}; it would be overwritten, name another")
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder")
    if path.exists() and not path.is_file():
        raise OutputError(f"cannot write {path}: it is no ordinary file")
    folder = path.parent
    if not folder.exists():
        raise OutputError(f"cannot write {path}: there is no folder {folder}")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as e:
        raise OutputError(f"cannot write {path}: {e.strerror or e}") from None


def _is_data(path: Path, folder: Path, every: bool) -> bool:
    """Whether a path is a file that feeds are read from where `folder` is the data."""
    from ..runtime.images import SUFFIXES

    inside = path.is_file() and folder.resolve() in path.resolve().parents
    return inside and (every or path.suffix.lower() in (*SUFFIXES, ".npz", ".npy", ".pb"))


def folder(path: Path) -> None:
    """Make a folder for results. Raises OutputError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OutputError(f"cannot make the folder {path}: {e.strerror or e}") from None


def same(a: Path, b: Path) -> bool:
    """Whether two paths are one file, by name, link or hard link."""
    try:
        return os.path.samefile(a, b)
    except OSError:
        return os.path.realpath(a) == os.path.realpath(b)
