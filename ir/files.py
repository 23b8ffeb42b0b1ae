"""Reading and writing model files: whole or not at all."""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError
from onnx import TensorProto

from . import wire
from .errors import ModelError, OutputError
from .exporting import bare, tensor_proto, to_proto, weight_bytes
from .importing import from_proto
from .model import INLINE_LIMIT, Model, nbytes
from .values import LARGE, ExternalValues, take_weights

PathLike = str | os.PathLike[str]
EXTERNAL_FROM = 1024  # smaller tensors stay in the model file: shape inference reads them there
MESSAGE = 32 << 20  # bytes of weights up to which a model is written as one message
ALIGN = 4096  # a page, so that mapped weights are aligned


def from_bytes(data: bytes, base_dir: PathLike | None = None, name: str = "the model") -> Model:
    """Import a serialised model. Raises ModelError when it is not ONNX, truncated or unsound."""
    if not data:
        raise ModelError(f"{name} is empty; expected an ONNX model")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise ModelError(f"{name} is not an ONNX model, or is truncated or damaged") from error
    try:
        proto, raw = take_weights(proto)
        model = from_proto(proto, base_dir, raw)
        to_proto(model, store=bare)  # names that are not text, and the like, show here and not after an hour's work
        return model
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from error
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        raise ModelError(f"{name} is not a sound ONNX model: {type(error).__name__}: {error}") from error


def load(path: PathLike) -> Model:
    """Load a model file. External data is found beside the file and mapped, not read.

    Raises ModelError for a missing file, a file that is not ONNX or is damaged, and external data that is missing
    or lies outside the model's folder.
    """
    path = Path(path)
    check_there(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    return from_bytes(data, path.parent, str(path))


def check_there(path: PathLike) -> None:
    """Raises ModelError where there is no file to load: nothing, a folder, a pipe (models are read more than once)."""
    path = Path(path)
    try:
        there, folder, file = path.exists(), path.is_dir(), path.is_file()
    except OSError as error:  # a name too long, a folder on the way that may not be entered
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    if not there:
        raise ModelError(f"no such file: {path}")
    if folder:
        raise ModelError(f"cannot read {path}: it is a folder")
    if not file:
        raise ModelError(f"cannot read {path}: it is a pipe or a device, not a file; save it to a file first")


@contextlib.contextmanager
def atomic(path: PathLike) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path` that takes its name when the block ends well, and vanishes otherwise.

    Raises OutputError that names the file when it cannot be written (no folder, no right, disk full).
    """
    path = Path(path)
    temporary = ""
    try:
        # the start of the name alone, since a file may be called as long as the system allows
        descriptor, temporary = tempfile.mkstemp(".part", f".{path.name[:16]}.", path.parent)
        with open(descriptor, "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
        temporary = ""
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def save(model: Model, path: PathLike) -> None:
    """Write a model file, atomically.

    Weights of 1 KiB and more go to `<name>.data` beside it when the model came with external data or exceeds 2 GiB;
    `<name>.1.data` and so on when a file of that name is the model's own or not that of the model that is replaced.
    Raises OutputError when the place cannot be written, or holds the weights that the model came with; a file that
    stood there before is then untouched.
    """
    path = Path(path)
    if _holds_weights(model, path):
        raise OutputError(f"cannot write {path}: the model's own weights lie there; name another")
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder")
    if (model.header.external and _has_large(model)) or weight_bytes(model) > INLINE_LIMIT:
        _save_external(model, path)
        return
    with atomic(path) as file:
        for part in _parts(model):
            file.write(part)


def _parts(model: Model) -> Iterator[Any]:
    """The bytes of a model file; those of a large model weight by weight."""
    apart: dict[str, gs.Constant] = {}

    def store(tensor: gs.Constant) -> TensorProto:
        if np.dtype(tensor.dtype).kind not in "fiub" or nbytes(tensor) < LARGE:
            return tensor_proto(tensor)
        apart[tensor.name] = tensor
        return bare(tensor)

    if weight_bytes(model) > MESSAGE:
        proto = to_proto(model, store=store)
        if apart.keys() <= {t.name for t in proto.graph.initializer}:
            yield from wire.parts(proto, {n: nbytes(t) for n, t in apart.items()}, lambda name: _raw(apart[name]))
            return
    yield to_proto(model).SerializeToString(deterministic=True)


def _save_external(model: Model, path: Path) -> None:
    data_path = data_place(path, lambda place: _holds_weights(model, place))
    with atomic(path) as file, atomic(data_path) as data:
        proto = to_proto(model, store=_external_store(data, data_path.name))
        file.write(proto.SerializeToString(deterministic=True))


def data_place(path: Path, held: Callable[[Path], bool]) -> Path:
    """Where the weights of a model file go: beside it, in no file that is `held` or that another model may need."""
    replaced = wire.data_files(path)
    suffixes = itertools.chain([""], (f".{k}" for k in itertools.count(1)))
    places = (path.with_name(f"{path.name}{suffix}.data") for suffix in suffixes)
    return next(p for p in places if not held(p) and (p in replaced or not os.path.lexists(p)))


def _has_large(model: Model) -> bool:
    """Whether any weight would leave the message."""
    defaults = (gs.Constant(name, values) for name, values in model.header.defaults.items())
    return any(_shell(tensor) is not None for tensor in itertools.chain(model.constants().values(), defaults))


def _holds_weights(model: Model, path: Path) -> bool:
    """Whether the model's weights came from this file, by either name where there is a link."""
    named = os.path.join(os.path.realpath(path.parent), path.name)
    return not {named, os.path.realpath(path)}.isdisjoint(model.header.data_files)


def _external_store(file: IO[bytes], location: str) -> Callable[[gs.Constant], TensorProto]:
    """A store that appends a tensor's bytes to `file` and refers to them."""

    def store(tensor: gs.Constant) -> TensorProto:
        proto = _shell(tensor)
        if proto is None:
            return tensor_proto(tensor)
        raw = _raw(tensor)
        file.write(b"\0" * (-file.tell() % ALIGN))
        offset = file.tell()
        file.write(raw)
        proto.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", offset), ("length", len(raw))):
            proto.external_data.add(key=key, value=str(value))
        return proto

    return store


def _shell(tensor: gs.Constant) -> TensorProto | None:
    """Name, type and shape without data; None for what stays inline (small, or strings)."""
    if np.dtype(tensor.dtype) == object or tensor._values.nbytes < EXTERNAL_FROM:
        return None
    return bare(tensor)


def _raw(tensor: gs.Constant) -> Any:
    """The bytes of a tensor, as something that `write` takes and `len` counts."""
    if isinstance(tensor._values, ExternalValues):
        return tensor._values.raw()[: tensor._values.packed_nbytes]
    return tensor_proto(tensor).raw_data or onnx.numpy_helper.from_array(tensor.values).raw_data
