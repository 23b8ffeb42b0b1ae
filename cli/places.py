"""Where results go: checked before any work, so that no run ends with nowhere to write."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from ..ir.errors import OutputError


def default_output(model: str | Path) -> Path:
    """`model.onnx` -> `model.slim.onnx` beside it."""
    path = Path(model)
    return path.with_name((path.stem if path.suffix == ".onnx" else path.name) + ".slim.onnx")


def check(path: Path, kept: list[Path], what: str = "output") -> None:
    """Raise OutputError unless `path` can be written and is none of `kept`, by name, link or hard link."""
    try:
        path.lstat()
    except FileNotFoundError:
        pass
    except OSError as e:  # a name that is too long, a folder that may not be looked into
        raise OutputError(f"cannot write {path}: {e.strerror or e}") from None
    for other in kept:
        if same(path, other):
            raise OutputError(f"the {what} {path} is the same file as {other}; it would be overwritten, name another")
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
