"""How a model gets into ONNX Runtime without being held several times over.

Small models go in as bytes. Above `INLINE`, weights stay outside the message, as arrays that ONNX Runtime reads in
place (measured on 400 MB of weights: the process grows by 1.03 times the model instead of 3, and loads faster).
Above protobuf's 2 GiB a model is written to a temporary folder, from which ONNX Runtime maps it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import hashlib
import mmap
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union

import numpy as np
import onnx_graphsurgeon as gs
import onnxruntime as ort
from onnx import TensorProto, helper

from .. import ir
from ..ir.errors import ModelError
from ..ir.exporting import tensor_proto, to_proto, weight_bytes
from ..ir.files import check_there
from ..ir.model import INLINE_LIMIT, Model
from ..ir.spill import let_go
from ..ir.wire import data_files

ModelLike = Union[Model, str, "os.PathLike[str]", bytes]
INLINE = 8 << 20  # bytes of weights up to which a model is one message
LARGE = 32 << 20  # bytes of weights beyond which a model's sessions must be few
RISE = 16 << 20  # bytes that a loop may add before what it frees is returned
SMALL = 1024  # bytes of a tensor that always stays in the message: shape inference reads such tensors there


@dataclass
class Payload:
    """What an `InferenceSession` is made of.

    data: serialised model, or a path. names, values: weights beside it. folder: kept as long as it is mapped.
    digest: sha256 of the contents; None for a path, which is hashed when somebody asks.
    """

    data: bytes | str
    names: list[str] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)
    folder: tempfile.TemporaryDirectory[str] | None = None
    digest: str | None = None

    def start(self, options: Any, providers: list[str]) -> Any:
        """The session. Raises whatever ONNX Runtime raises."""
        large = bool(self.names) or (isinstance(self.data, str) and os.path.getsize(self.data) > LARGE)
        if self.names:
            options.add_external_initializers(self.names, self.values)
        if large:
            give_back()
        session = ort.InferenceSession(self.data, options, providers=providers)
        if isinstance(self.data, bytes):
            self.data = b""
        if large:
            give_back()
        return session


def is_large(model: Any) -> bool:
    """Whether a model, or the file of a path, is so large that its sessions must be few."""
    return size(model) > LARGE


def size(model: Any) -> int:
    """Bytes of a model's weights, or of the file of a path; 0 for a serialised model."""
    if isinstance(model, Model):
        return weight_bytes(model)
    return os.path.getsize(model) if isinstance(model, str | os.PathLike) else 0


def give_back() -> None:
    """Return memory to the system: what is freed, which glibc keeps (480 MB of 400), and weights that lie in files.

    Graphs are cyclic, so that a candidate that nobody knows any more keeps its weights until garbage is collected.
    """
    gc.collect()
    let_go()
    _trim()


def _trim() -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


class Tide:
    """Keeps what a loop over feeds frees from piling up: glibc before 2.38 does not find the pieces again that aligned
    allocations leave, so that a session without an arena may grow with every run (by 9 MB each, of 3 MB tensors)."""

    def __init__(self) -> None:
        self._low = _resident()

    def turn(self) -> None:
        """Return what is freed to the system where the process has grown by much since that was done last."""
        now = _resident()
        if now > self._low + RISE:
            _trim()
            now = self._low = _resident()
        self._low = min(self._low, now)


def _resident() -> int:
    """Bytes of this process in memory; 0 where the system does not say so in passing."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * mmap.PAGESIZE
    except (OSError, ValueError, IndexError):
        return 0


def payload(model: ModelLike, outputs: Sequence[str] | None) -> Payload:
    """Make a model ready to load; `outputs` names inner tensors to fetch. Raises ModelError."""
    if isinstance(model, (str, os.PathLike)):
        check_there(model)
    if outputs is not None and not isinstance(model, Model):
        model = ir.from_bytes(model) if isinstance(model, bytes) else ir.load(os.fspath(model))
    if isinstance(model, bytes):
        return Payload(model, digest=hashlib.sha256(model).hexdigest())
    if not isinstance(model, Model):
        return Payload(os.fspath(model))
    known = {t.name for t in model.graph.outputs}
    extra = [n for n in outputs or () if n not in known]
    if extra:
        _check_names(model, extra)
    weights = weight_bytes(model)
    if weights <= INLINE:
        data = ir.to_bytes(model, extra)
        return Payload(data, digest=hashlib.sha256(data).hexdigest())
    return _beside(model, extra) if weights <= INLINE_LIMIT else _written(model, extra)


def _beside(model: Model, extra: Sequence[str]) -> Payload:
    """Weights of the main graph outside the message."""
    made = Payload(b"")
    total = hashlib.sha256()
    main = {id(t._values) for n in model.graph.nodes for t in n.inputs if isinstance(t, gs.Constant)}

    def store(tensor: gs.Constant) -> TensorProto:
        values = tensor._values
        dtype = np.dtype(values.dtype)
        if values.nbytes < SMALL or dtype.kind not in "fiub" or id(values) not in main:
            return tensor_proto(tensor)
        # A lazy value is decoded for this session alone: touching it would keep a second copy in the model.
        array: Any = np.ascontiguousarray(values.load() if hasattr(values, "load") else values)
        total.update(memoryview(array).cast("B"))
        made.names.append(tensor.name)
        made.values.append(ort.OrtValue.ortvalue_from_numpy(array))
        shell = TensorProto(name=tensor.name, dims=array.shape, data_location=TensorProto.EXTERNAL)
        shell.data_type = helper.np_dtype_to_tensor_dtype(dtype)
        shell.external_data.add(key="location", value="memory")
        return shell

    made.data = data = to_proto(model, extra, store=store).SerializeToString(deterministic=True)
    total.update(data)
    made.digest = total.hexdigest()
    return made


def _written(model: Model, extra: Sequence[str]) -> Payload:
    folder = tempfile.TemporaryDirectory(prefix="onnxslim-")
    path = os.path.join(folder.name, "model.onnx")
    if extra:
        model = model.copy()
        tensors = model.tensors()
        model.graph.outputs = [*model.graph.outputs, *(tensors[n] for n in extra)]
    ir.save(model, path)
    return Payload(path, folder=folder)


def _check_names(model: Model, names: Iterable[str]) -> None:
    outer = {t.name for t in model.graph.inputs}
    for node in model.graph.nodes:
        outer.update(t.name for t in (*node.inputs, *node.outputs) if t.name)
    unknown = [n for n in names if n not in outer]
    if unknown:
        raise ModelError(f"the model's main graph has no tensor '{unknown[0]}' to look at")


def digest(model: ModelLike) -> str:
    """sha256 (hex) of a model's contents, external data included.

    Equal for a small `Model`, its bytes and its file; a large `Model` is hashed in pieces.
    """
    made = payload(model, None)
    return made.digest or hash_file(made.data)


def hash_file(path: Any) -> str:
    """sha256 (hex) of a model file and of the external data it names."""
    total = hashlib.sha256()
    for part in [Path(path), *data_files(path)]:
        with open(part, "rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                total.update(block)
    return total.hexdigest()


__all__ = ["ModelLike", "Payload", "digest", "give_back", "hash_file", "is_large", "payload", "size"]
