"""Models to try the compiler on: three small trained ones come with the package, public ones are fetched.

    for model in list_models():
        print(model.name, model.task, model.size_bytes, model.accuracy)
    build("digits_resnet", "resnet.onnx")

What there is stands in `manifest.toml`; `tasks.py` has the data and the metric of the project's own models.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..ir.errors import BadInput, OutputError
from . import fetch

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["ZooModel", "build", "list_models", "model_path"]

_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class ZooModel:
    """One model of the zoo.

    path        where it lies on this machine; None for a public model that was not fetched yet
    accuracy    top-1 (0 to 1) on the task's test images, by ONNX Runtime; None where the zoo has no labels
    source      "shipped", or the address it is fetched from
    """

    name: str
    path: Path | None
    task: str
    description: str
    accuracy: float | None
    size_bytes: int
    source: str
    licence: str
    sha256: str


def list_models() -> list[ZooModel]:
    """Every model of the zoo, the shipped ones first; nothing is fetched."""
    manifest = tomllib.loads((_HERE / "manifest.toml").read_text("utf-8"))
    shipped = [_entry(row, _HERE / _file_name(row["name"]), "shipped") for row in manifest["shipped"]]
    return shipped + [_entry(row, _in_cache(row), row["url"]) for row in manifest["public"]]


def model_path(name: str) -> Path:
    """A file with that model: in the package for a shipped one, else in the cache, where it is fetched to.

    Do not write to it. Raises BadInput for an unknown name, and as `fetch.download` does.
    """
    model = _find(name)
    if model.source == "shipped":
        return _HERE / _file_name(name)
    return fetch.cached(_file_name(name), model.source, model.sha256, model.size_bytes)


def build(name: str, out: str | Path) -> Path:
    """Puts a model at `out`, or in it as NAME.onnx if it is a folder, and returns the file's path.

    An existing file is replaced, in one step. Raises BadInput as `model_path`, OutputError for the place.
    """
    out = Path(out)
    if out.is_dir():
        out = out / _file_name(name)
    content = _read(model_path(name))
    with fetch.replacing(out) as file:
        file.write(content)
    return out


def _entry(row: dict[str, Any], path: Path | None, source: str) -> ZooModel:
    return ZooModel(
        row["name"],
        path,
        row["task"],
        row["description"],
        row.get("accuracy"),
        row["bytes"],
        source,
        row["licence"],
        row["sha256"],
    )


def _file_name(name: str) -> str:
    return f"{name}.onnx"


def _in_cache(row: dict[str, Any]) -> Path | None:
    """The public model's file if it was fetched; by size alone, `model_path` looks closer."""
    try:
        path = fetch.cache_dir() / _file_name(row["name"])
        return path if path.stat().st_size == row["bytes"] else None
    except (OSError, OutputError):
        return None


def _find(name: str) -> ZooModel:
    models = {model.name: model for model in list_models()}
    if name not in models:
        raise BadInput(f"the zoo has no model {name!r}; it has {', '.join(models)}")
    return models[name]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from error
