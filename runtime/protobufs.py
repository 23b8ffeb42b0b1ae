"""The ONNX model zoo's test data: folders `test_data_set_*` with `input_0.pb`, `input_1.pb` and so on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import numpy_helper

from ..ir.errors import DataError
from ..ir.external import external_tensors
from .feeds import Indexed
from .specs import InputSpec


def folders(path: Path) -> list[Path]:
    """The data sets in a folder: itself, or its `test_data_set_*` (in the order of their numbers)."""
    if any(path.glob("input_*.pb")):
        return [path]
    found = [p for p in path.glob("test_data_set_*") if any(p.glob("input_*.pb"))]
    return sorted(found, key=_number)


def _number(path: Path) -> tuple[int, str]:
    digits = re.findall(r"\d+", path.stem)
    return (int(digits[-1]) if digits else 0, path.name)


def source(sets: Sequence[Path], specs: Mapping[str, InputSpec]) -> Indexed:
    """One feed a data set; `input_k.pb` is the input that its proto names, or else the model's k-th."""
    return Indexed(len(sets), lambda i: _feed(sets[i], specs))


def _feed(folder: Path, specs: Mapping[str, InputSpec]) -> dict[str, Any]:
    names = list(specs)
    feed: dict[str, Any] = {}
    for k, path in enumerate(sorted(folder.glob("input_*.pb"), key=_number)):
        fallback = names[k] if k < len(names) else path.stem
        spec = specs.get(fallback)
        name, value = read(path, sequence=spec is not None and spec.dtype is None)
        feed[name if name in specs else fallback] = value
    return feed


def read(path: Path, sequence: bool = False) -> tuple[str, Any]:
    """(name in the file, array), or a list of arrays when a sequence is expected."""
    found = onnx.SequenceProto() if sequence else onnx.TensorProto()
    try:
        found.ParseFromString(path.read_bytes())
        if any(external_tensors(found)):
            raise DataError(f"{path} keeps its values in another file, which is not followed; store them in it")
        if isinstance(found, onnx.SequenceProto):
            return found.name, numpy_helper.to_list(found)
        return found.name, numpy_helper.to_array(found)
    except DataError:
        raise
    except Exception as error:  # a damaged file makes onnx and numpy raise nearly anything
        raise DataError(f"{path} is not a readable tensor: {type(error).__name__}: {error}") from error


__all__ = ["folders", "read", "source"]
