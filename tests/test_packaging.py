"""Packaging: every folder of the package is listed and mapped, data files are shipped, the commands exist."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("ir", "runtime", "passes", "cli", "model_zoo")


@pytest.fixture(scope="module")
def project() -> dict:
    """pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def folders() -> dict[str, str]:
    """{package: folder} of every folder of the package that holds modules."""
    found = {"onnxslim_opt": "onnxslim_opt"}
    for room in ROOMS:
        for path in [ROOT / room, *sorted((ROOT / room).rglob("*"))]:
            if path.is_dir() and any(path.glob("*.py")):
                inside = path.relative_to(ROOT)
                found["onnxslim_opt." + ".".join(inside.parts)] = inside.as_posix()
    return found


def test_every_package_is_listed_and_mapped(project):
    table = project["tool"]["setuptools"]
    assert set(table["packages"]) == set(folders())
    assert len(table["packages"]) == len(set(table["packages"]))
    assert table["package-dir"] == folders()


def test_every_folder_is_a_package():
    for folder in folders().values():
        assert (ROOT / folder / "__init__.py").is_file(), f"{folder} has no __init__.py"


def test_data_files_are_shipped(project):
    data = project["tool"]["setuptools"]["package-data"]
    assert data["onnxslim_opt"] == ["py.typed"]
    patterns = data["onnxslim_opt.model_zoo"]
    zoo = ROOT / "model_zoo"
    assert all(any(zoo.glob(p)) for p in patterns), "a pattern that matches nothing"
    for path in zoo.iterdir():
        if path.is_file() and path.suffix not in (".py", ".sh"):
            assert any(path.match(p) for p in patterns), f"{path.name} is not shipped"


def test_the_name_of_another_project_is_not_taken(project):
    assert project["project"]["name"] == "onnxslim-opt"
    assert "onnxslim" not in project["tool"]["setuptools"]["packages"]
    assert not (ROOT / "onnxslim").exists()


def test_the_commands_are_one_function(project):
    assert project["project"]["scripts"] == {
        "onnxslim": "onnxslim_opt.cli:main",
        "onnxslim-opt": "onnxslim_opt.cli:main",
    }
    assert metadata.version("onnxslim-opt") == project["project"]["version"]


def test_the_core_needs_no_training_framework(project):
    needed = " ".join(project["project"]["dependencies"])
    for heavy in ("torch", "tensorflow", "scikit", "matplotlib", "pillow"):
        assert heavy not in needed
