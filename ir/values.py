"""Weights that are not decoded yet: in their message, in the bytes taken out of it, or in a file beside the model.

A constant holds one of these until somebody asks for its values; copies of a model share them.
"""

from __future__ import annotations

import os
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx_graphsurgeon.ir.tensor import LazyValues

from .errors import ModelError
from .model import packed_nbytes

LARGE = 1 << 16  # bytes of a weight that is taken out of its message


def np_dtype(elem_type: int) -> Any:
    """The numpy (or ml_dtypes) type of an ONNX element type; None when it is undefined."""
    return helper.tensor_dtype_to_np_dtype(elem_type) if elem_type else None


class ProtoValues(LazyValues):
    """Values that stay in their `TensorProto`, or in the bytes taken out of it, until they are touched."""

    def __init__(self, proto: TensorProto, raw: bytes | None = None):
        self.tensor = proto
        self.raw: Any = raw
        self.shape = tuple(proto.dims)
        self.dtype = np.dtype(np_dtype(proto.data_type))
        self.packed_nbytes = packed_nbytes(self.dtype, self.shape)
        self.nbytes = self.packed_nbytes
        self._array: weakref.ref[np.ndarray] | None = None

    def move(self, raw: Any) -> None:
        """Take the same bytes from another buffer."""
        self.raw, self._array = raw, None

    def load(self) -> np.ndarray:
        """Decode the proto: an array of the declared shape, one for all copies of the model and their sessions."""
        array = self._array() if self._array is not None else None
        if array is None:
            array = self._decode()
            self._array = weakref.ref(array)
        return array

    def _decode(self) -> np.ndarray:
        try:
            if self.raw is not None:
                return np.frombuffer(self.raw, self.dtype).reshape(self.shape)
            return np.asarray(numpy_helper.to_array(self.tensor))
        except (ValueError, TypeError) as error:
            raise ModelError(f"initializer '{self.tensor.name}' cannot be decoded: {error}") from error


class ExternalValues(LazyValues):
    """Values in a file beside the model, mapped into memory when touched. named: the path before links are followed."""

    def __init__(self, proto: TensorProto, path: Path, offset: int, length: int, named: str):
        self.tensor = proto
        self.path, self.offset, self.length, self.named = path, offset, length, named
        self.shape = tuple(proto.dims)
        self.dtype = np.dtype(np_dtype(proto.data_type))
        self.packed_nbytes = packed_nbytes(self.dtype, self.shape)
        self.nbytes = self.packed_nbytes

    def raw(self) -> np.ndarray:
        """The bytes, mapped (uint8, one dimension)."""
        if not self.length:
            return np.zeros(0, np.uint8)
        return np.memmap(self.path, np.uint8, "r", self.offset, (self.length,))

    def load(self) -> np.ndarray:
        """A mapped array of the declared shape (4-bit types are unpacked)."""
        if self.length < self.packed_nbytes:
            raise ModelError(f"external data of '{self.tensor.name}' is shorter than its shape {self.shape} needs")
        if self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64)) == self.packed_nbytes:
            return self.raw()[: self.packed_nbytes].view(self.dtype).reshape(self.shape)
        proto = TensorProto(data_type=self.tensor.data_type, dims=self.shape, raw_data=self.raw().tobytes())
        return numpy_helper.to_array(proto)


def _external(proto: TensorProto, base: Path | None) -> ExternalValues:
    """Resolve an external tensor; paths that leave the model's folder are refused."""
    info = {entry.key: entry.value for entry in proto.external_data}
    location = info.get("location", "")
    if base is None:
        raise ModelError(f"initializer '{proto.name}' is stored in '{location}', but the model has no folder")
    root = Path(os.path.realpath(base))
    path = Path(os.path.realpath(root / location))
    if not location or os.path.isabs(location) or root not in path.parents:
        raise ModelError(f"initializer '{proto.name}': external data '{location}' leaves the model's folder; refused")
    if proto.data_type == TensorProto.STRING:
        raise ModelError(
            f"initializer '{proto.name}' holds strings, which ONNX keeps in the model file, not '{location}'"
        )
    if not os.path.isfile(path):  # false for names that are too long, too
        raise ModelError(f"initializer '{proto.name}': external data file '{location}' is missing beside the model")
    size = path.stat().st_size
    offset = int(info.get("offset", 0) or 0)
    needed = packed_nbytes(np.dtype(np_dtype(proto.data_type)), tuple(proto.dims))
    length = int(info.get("length", 0) or 0) or needed
    if offset < 0 or offset + length > size or length < needed:
        raise ModelError(f"initializer '{proto.name}': external data '{location}' is too short (truncated?)")
    return ExternalValues(proto, path, offset, length, os.path.abspath(root / location))


def lazy_values(proto: TensorProto, base: Path | None) -> LazyValues:
    """The undecoded values of a tensor proto."""
    if np_dtype(proto.data_type) is None:
        raise ModelError(f"initializer '{proto.name}' has an undefined element type")
    if proto.data_location == TensorProto.EXTERNAL:
        return _external(proto, base)
    return ProtoValues(proto)


def take_weights(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, bytes]]:
    """The message without its large weights, and their bytes by name.

    A message's memory goes only as a whole, so weights that stay in it are held a second time once they are decoded.
    """
    raw = {}
    for tensor in proto.graph.initializer if sys.byteorder == "little" else ():
        dtype = np_dtype(tensor.data_type)
        if dtype is None or len(tensor.raw_data) < LARGE or np.dtype(dtype).kind not in "fiub":
            continue
        count = int(np.prod(tensor.dims, dtype=np.int64))
        if tensor.name not in raw and len(tensor.raw_data) == count * np.dtype(dtype).itemsize:
            raw[tensor.name] = tensor.raw_data
            tensor.ClearField("raw_data")
    return (onnx.ModelProto.FromString(proto.SerializeToString()), raw) if raw else (proto, raw)
