"""`.npz` and `.npy` data: arrays by input name, first axis = samples, cut into feeds of the model's batch.

Uncompressed files are mapped into memory and only the slices that are used are read; a compressed `.npz` member is
read whole when it is first needed.
"""

from __future__ import annotations

import contextlib
import math
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..ir.errors import DataError
from .feeds import Indexed
from .specs import InputSpec, fits, required


def source(data: Mapping[str, Any], specs: Mapping[str, InputSpec], notes: list[str], label: str) -> Indexed:
    """Feeds from arrays whose first axis counts samples.

    An array with one dimension more than its input gives one entry a feed; one of the input's own rank gives slices
    of the model's fixed batch, or of 1. A name of "" is the only input's.
    """
    members = _relevant(_named(data, specs, label), specs, notes)
    cuts: dict[str, Callable[[int], Any]] = {}
    counts: dict[str, int] = {}
    for name, array in members.items():
        array = array if hasattr(array, "shape") else np.asarray(array)
        count, cuts[name] = _cut(array, _spec_for(name, specs, len(members)), name, notes, label)
        if count is not None:
            counts[name] = count
    if len(set(counts.values())) > 1:
        told = ", ".join(f"'{n}' {c}" for n, c in counts.items())
        raise DataError(f"{label}: the arrays differ in their number of samples: {told}")
    total = next(iter(counts.values()), 1 if cuts else 0)
    if not total:
        raise DataError(f"{label} has no samples")
    return Indexed(total, lambda i: {n: cut(i) for n, cut in cuts.items()})


def _relevant(data: dict[str, Any], specs: Mapping[str, InputSpec], notes: list[str]) -> dict[str, Any]:
    """What the model takes, when that is all there (labels beside the inputs are left out); else everything."""
    if not all(s.name in data for s in required(specs)):
        return data
    for name in [n for n in data if n not in specs]:
        text = f"the data's '{name}' is no input of the model and is left out"
        if text not in notes:
            notes.append(text)
    return {n: a for n, a in data.items() if n in specs}


def _named(data: Mapping[str, Any], specs: Mapping[str, InputSpec], label: str) -> dict[str, Any]:
    if "" not in data:
        return dict(data)
    needed = required(specs)
    if len(needed) != 1:
        raise DataError(
            f"{label} has no input names, and the model takes {', '.join(s.name for s in needed) or 'nothing'}; "
            "give an .npz with arrays by input name"
        )
    return {needed[0].name: data[""]}


def _spec_for(name: str, specs: Mapping[str, InputSpec], arrays: int) -> InputSpec | None:
    needed = required(specs)
    if name in specs:
        return specs[name]
    return needed[0] if arrays == 1 and len(needed) == 1 else None


def _cut(
    array: Any, spec: InputSpec | None, name: str, notes: list[str], label: str
) -> tuple[int | None, Callable[[int], Any]]:
    """(number of feeds, feed i's part); no number for a scalar, which is the same in every feed."""
    if array.ndim == 0:
        return None, lambda i: np.asarray(array)
    if spec is None or spec.shape is None:
        return len(array), lambda i: array[i : i + 1]
    if array.ndim == len(spec.shape) + 1 and (fits(spec, array.shape[1:])):
        return len(array), lambda i: np.asarray(array[i])
    if array.ndim == len(spec.shape) - 1 and fits(spec, (spec.batch or 1, *array.shape)):
        return 1, lambda i: np.asarray(array)[None]
    size = spec.batch or 1
    count = len(array) // size
    if not count:
        raise DataError(f"{label}: '{name}' has {len(array)} samples; the model's batch is fixed at {size}")
    if len(array) % size:
        notes.append(f"'{name}': the last {len(array) % size} samples do not fill a batch of {size} and are left out")
    return count, lambda i: array[i * size : (i + 1) * size]


def files(paths: Sequence[Path], specs: Mapping[str, InputSpec], notes: list[str]) -> Indexed:
    """Feeds from one or more files; `.npy` files named after the inputs belong together."""
    by_input = {p.stem: p for p in paths if p.suffix == ".npy" and p.stem in specs}
    names = [s.name for s in required(specs)]
    if names and all(n in by_input for n in names) and len(paths) > 1:
        return source({n: load(p) for n, p in by_input.items()}, specs, notes, str(paths[0].parent))
    if len(paths) == 1:
        return _open(paths[0], specs, notes)
    return _chain([(path, _open(path, specs, notes).count) for path in paths], specs)


def _chain(parts: Sequence[tuple[Path, int]], specs: Mapping[str, InputSpec]) -> Indexed:
    """Several files one after the other, with one of them open at a time."""
    ends = np.cumsum([n for _, n in parts])
    opened: dict[Path, Indexed] = {}

    def load_one(i: int) -> Any:
        k = int(np.searchsorted(ends, i, "right"))
        path = parts[k][0]
        if path not in opened:
            opened.clear()
            opened[path] = _open(path, specs, [])
        return opened[path].load(i - int(ends[k] - parts[k][1]))

    return Indexed(int(ends[-1]), load_one)


def _open(path: Path, specs: Mapping[str, InputSpec], notes: list[str]) -> Indexed:
    if path.suffix == ".npy":
        return source({"": load(path)}, specs, notes, str(path))
    members = _relevant(load_npz(path), specs, notes)
    if not members:
        raise DataError(f"{path} holds no arrays")
    return source({n: LazyMember.array(a) for n, a in members.items()}, specs, notes, str(path))


def load(path: Path) -> np.ndarray:
    """An `.npy` file, mapped. Pickled objects are refused."""
    with _readable(f"{path} is not a readable .npy file"):
        return np.load(path, mmap_mode="r", allow_pickle=False)


@contextlib.contextmanager
def _readable(problem: str) -> Iterator[None]:
    """Raises DataError with what is wrong: a damaged file makes numpy, zipfile and zlib raise nearly anything."""
    try:
        yield
    except Exception as error:
        hint = "" if isinstance(error, OSError) else "; save it anew with numpy, as plain numbers"
        raise DataError(f"{problem}: {str(error) or type(error).__name__}{hint}") from error


class LazyMember:
    """A compressed member of an .npz: read whole at first use."""

    def __init__(self, path: Path, name: str):
        self.path, self.name = path, name

    @staticmethod
    def array(value: Any) -> np.ndarray:
        """The array itself, reading it when it is still in its file."""
        return value.read() if isinstance(value, LazyMember) else value

    def read(self) -> np.ndarray:
        """Decompress."""
        with (
            _readable(f"{self.path}: array '{self.name}' cannot be read"),
            np.load(self.path, allow_pickle=False) as archive,
        ):
            return archive[self.name]


def load_npz(path: Path) -> dict[str, Any]:
    """The arrays of an `.npz` by name: mapped where they are stored, `LazyMember` where they are compressed."""
    with _readable(f"{path} is not a readable .npz file"), zipfile.ZipFile(path) as archive:
        infos = [i for i in archive.infolist() if i.filename.endswith(".npy")]
    found: dict[str, Any] = {}
    for info in infos:
        name = info.filename[: -len(".npy")]
        mapped = _map_member(path, info) if info.compress_type == zipfile.ZIP_STORED else None
        found[name] = LazyMember(path, name) if mapped is None else mapped
    return found


def _map_member(path: Path, info: zipfile.ZipInfo) -> np.ndarray | None:
    """Map an uncompressed member; None when its header cannot be followed (numpy then reads it, or says why not)."""
    try:
        with open(path, "rb") as file:
            file.seek(info.header_offset)
            local = file.read(30)  # the local file header: two lengths at its end, then name and extra field
            start = info.header_offset + 30 + sum(struct.unpack("<HH", local[26:30]))
            file.seek(start)
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
            size = math.prod(shape) * dtype.itemsize
            if local[:4] != b"PK\x03\x04" or dtype.hasobject or not 0 < size <= start + info.file_size - file.tell():
                return None
            return np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran else "C")
    except Exception:
        return None


__all__ = ["files", "load", "load_npz", "source"]
