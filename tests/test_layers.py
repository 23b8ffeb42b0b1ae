"""Imports go one way (ir <- runtime <- passes <- cli), relatively in the package; tests use the package's name."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = {
    "ir": set(),
    "runtime": {"ir"},
    "passes": {"ir", "runtime"},
    "model_zoo": {"ir", "runtime", "passes"},
    "cli": {"ir", "runtime", "passes", "model_zoo"},
}
ROOMS = set(ALLOWED)


def files() -> Iterator[tuple[str, Path]]:
    """(room, file) of every module of the package."""
    for room in sorted(ROOMS):
        for path in sorted((ROOT / room).rglob("*.py")):
            yield room, path


def imports(path: Path) -> Iterator[tuple[int, str, int]]:
    """(level, module, line) of every import."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{a.name}" if node.module else a.name for a in node.names]
            yield from ((node.level, name, node.lineno) for name in names)


def room_of(path: Path, level: int, module: str) -> str | None:
    """The room that a relative import reaches; None when it stays inside its own folder or leaves the package."""
    package = ("onnxslim_opt", *path.relative_to(ROOT).parent.parts)
    base = package[: len(package) - level + 1]
    full = (*base, *module.split("."))
    return full[1] if len(full) > 1 else None


@pytest.mark.parametrize(
    ("room", "path"), list(files()), ids=lambda v: str(v.relative_to(ROOT)) if isinstance(v, Path) else v
)
def test_a_module_imports_only_what_lies_below_it(room, path):
    for level, module, line in imports(path):
        if level:
            reached = room_of(path, level, module)
            assert reached == room or reached in ALLOWED[room], f"{path.name}:{line} imports {module} from {room}"
        else:
            top = module.split(".")[0]
            assert top != "onnxslim_opt", f"{path.name}:{line}: inside the package imports are relative"
            assert top not in ROOMS, f"{path.name}:{line}: 'import {top}' would be a second copy of the package"


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=lambda p: p.name)
def test_tests_import_the_package_by_its_name(path):
    for level, module, line in imports(path):
        assert level or module.split(".")[0] not in ROOMS, f"{path.name}:{line}: import onnxslim_opt.{module}"


def test_a_relative_import_is_followed_correctly():
    assert room_of(ROOT / "passes" / "prune" / "cut.py", 3, "ir.edit") == "ir"
    assert room_of(ROOT / "passes" / "run.py", 2, "runtime.latency") == "runtime"
    assert room_of(ROOT / "passes" / "run.py", 1, "base.Pass") == "passes"
    assert room_of(ROOT / "runtime" / "feeds.py", 2, "passes") == "passes"


def test_the_command_line_starts_without_the_heavy_libraries():
    heavy = ["onnx", "onnxruntime", "onnx_graphsurgeon", "numpy", "scipy", "tensorly", "rich"]
    code = f"import sys, onnxslim_opt.cli.app; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "[]"
