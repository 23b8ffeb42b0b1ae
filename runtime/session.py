"""Running a model: a quiet ONNX Runtime session with one way in for models, files and bytes.

A model above protobuf's 2 GiB is written to a temporary folder with external data and loaded from there; everything
else goes through memory. ONNX Runtime's errors become one line of `ModelError` or `DataError`.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Union

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from .. import ir
from ..ir.errors import DataError, ModelError, SlimError
from ..ir.exporting import INLINE_LIMIT, weight_bytes
from ..ir.model import Model
from .specs import ORT_DTYPES, InputSpec, rename_feeds, session_inputs

ModelLike = Union[Model, str, "os.PathLike[str]", bytes]

_NOISE = (  # what of ONNX Runtime's messages says nothing to a user, and what replaces it
    (r"\[ONNXRuntimeError\] : \d+ : \w+ : ", ""),
    # C++ source and function
    (r"(?:/[\w.+-]+)+/[\w.-]+\.(?:h|cc|hpp):\d+ [^\n]*?\)(?: const)?(?: \[with [^\]]*\])? ", ""),
    (r"This is an invalid model\. In Node, ", ""),
    (r"Invalid model\. ", ""),
    (r"Fatal error: ", ""),
    (r"Exception during initialization: ", ""),
    (r"Load model from .*? failed:", ""),
    (r"Please fix either the inputs/outputs or the model\.", ""),
    (r"ONNX Runtime only \*guarantees\* support for .*?opset versions\.", ""),
    (r"(?s)Opset (\d+) is under development.*?till opset (\d+)\.", r"opset \1 is newer than \2, the newest known"),
    (
        r"Non-zero status code returned while running (\w+) node\. Name:'([^']*)' Status Message:",
        r"node '\2' (\1):",
    ),
)


class Session:
    """A model ready to run on the CPU.

    model: a `Model`, a path, or the bytes of a `ModelProto`.
    threads: threads inside an operator (0: one a core).
    outputs: tensor names to fetch instead of the graph outputs; inner tensors of the main graph may be named.
    optimize: False runs every node as it stands in the file.
    providers: ONNX Runtime's execution providers; the CPU's when None.
    arena: False gives memory back after every run, for sessions that fetch many tensors.

    inputs: `InputSpec` by name. outputs: names. kinds: ONNX Runtime's type of every output ("tensor(float)").

    Raises ModelError when ONNX Runtime refuses the model.
    """

    def __init__(
        self,
        model: ModelLike,
        *,
        threads: int = 1,
        outputs: Sequence[str] | None = None,
        optimize: bool = True,
        providers: Sequence[str] | None = None,
        arena: bool = True,
    ):
        self.threads = threads
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._source = self._serialise(model, outputs)
        self._session = self._start(_options(threads, optimize, arena), list(providers or ["CPUExecutionProvider"]))
        self.inputs: dict[str, InputSpec] = session_inputs(self._session)
        present = [o.name for o in self._session.get_outputs()]
        self.outputs: list[str] = list(present if outputs is None else dict.fromkeys(outputs))
        self.kinds: dict[str, str] = {o.name: o.type for o in self._session.get_outputs()}
        plain = [*self.kinds.values(), *(a.type for a in self._session.get_inputs())]
        self._exotic = any(_is_exotic(t) for t in plain)
        self._digest: str | None = None

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Outputs by name, in the model's order.

        feeds: array (or list of arrays, for a sequence) by input name. A single input under another name is taken
        (see `rename_feeds`). Raises DataError for feeds that do not fit, ModelError when the model itself fails.
        """
        feeds = {k: v for k, v in rename_feeds(feeds, self.inputs).items() if v is not None}
        try:
            values = self._run_exotic(feeds) if self._exotic else self._session.run(self.outputs, feeds)
        except SlimError:
            raise
        except Exception as error:
            raise _run_error(error) from error
        return dict(zip(self.outputs, values))

    @property
    def digest(self) -> str:
        """sha256 of the model that runs, external data included (hex)."""
        if self._digest is None:
            self._digest = digest(self._source)
        return self._digest

    def _serialise(self, model: ModelLike, outputs: Sequence[str] | None) -> bytes | str:
        if isinstance(model, bytes) and outputs is not None:
            model = ir.from_bytes(model)
        elif isinstance(model, (str, os.PathLike)):
            if not Path(model).is_file():
                raise ModelError(f"{model}: no such file")
            if outputs is None:
                return os.fspath(model)
            model = ir.load(os.fspath(model))
        if isinstance(model, bytes):
            return model
        known = {t.name for t in model.graph.outputs}
        extra = [n for n in outputs or () if n not in known]
        if extra:
            _check_names(model, extra)
        if weight_bytes(model) <= INLINE_LIMIT:
            return ir.to_bytes(model, extra)
        return self._write(model, extra)

    def _write(self, model: Model, extra: Sequence[str]) -> str:
        self._folder = tempfile.TemporaryDirectory(prefix="onnxslim-")
        path = os.path.join(self._folder.name, "model.onnx")
        if extra:
            model = model.copy()
            tensors = model.tensors()
            model.graph.outputs = [*model.graph.outputs, *(tensors[n] for n in extra)]
        ir.save(model, path)
        return path

    def _start(self, options: Any, providers: list[str]) -> Any:
        try:
            return ort.InferenceSession(self._source, options, providers=providers)
        except Exception as error:
            name = f"{self._source}: " if isinstance(self._source, str) and self._folder is None else ""
            raise ModelError(f"{name}ONNX Runtime refuses the model: {one_line(error)}") from error

    def _run_exotic(self, feeds: Mapping[str, Any]) -> list[Any]:
        """Through OrtValues, for types that ONNX Runtime's numpy bridge does not know (bfloat16, float8, int4)."""
        wrapped = {k: _to_ort(v) for k, v in feeds.items()}
        found = self._session.run_with_ort_values(self.outputs, wrapped)
        return [_from_ort(v, self.kinds.get(n, "")) for n, v in zip(self.outputs, found)]


def _options(threads: int, optimize: bool, arena: bool) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = arena
    # Workers that spin between runs would take the cores from numpy and from a model measured beside this one.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    return options


def _check_names(model: Model, names: Iterable[str]) -> None:
    outer = {t.name for t in model.graph.inputs}
    for node in model.graph.nodes:
        outer.update(t.name for t in (*node.inputs, *node.outputs) if t.name)
    unknown = [n for n in names if n not in outer]
    if unknown:
        raise ModelError(f"the model's main graph has no tensor '{unknown[0]}' to look at")


def _is_exotic(kind: str) -> bool:
    return kind.startswith("tensor(") and kind[7:-1].startswith(("bfloat", "float8", "int4", "uint4", "float4"))


def _to_ort(value: Any) -> Any:
    if isinstance(value, list):
        raise DataError("sequence inputs beside inputs of 8-bit float or bfloat16 type are not supported")
    array = np.ascontiguousarray(value).reshape(np.shape(value))
    if array.dtype.kind in "OUS":
        return ort.OrtValue.ortvalue_from_numpy(array)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, helper.np_dtype_to_tensor_dtype(array.dtype))


def _from_ort(value: Any, kind: str) -> Any:
    if not _is_exotic(kind):
        return value.numpy()
    dtype, shape = np.dtype(ORT_DTYPES[kind[7:-1]]), tuple(value.shape())
    if "int4" in kind:  # two values a byte, low half first
        raw = np.frombuffer(ctypes.string_at(value.data_ptr(), (int(np.prod(shape)) + 1) // 2), np.uint8)
        halves = np.stack([raw & 15, raw >> 4], -1).reshape(-1)[: int(np.prod(shape))]
        signed = halves.astype(np.int8) if kind[7] == "u" else ((halves ^ 8).astype(np.int8) - 8)
        return signed.astype(dtype).reshape(shape)
    count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    return np.frombuffer(ctypes.string_at(value.data_ptr(), count), dtype).reshape(shape)


def one_line(error: BaseException) -> str:
    """ONNX Runtime's message as one line, without codes and C++ places."""
    text = str(error)
    for pattern, plain in _NOISE:
        text = re.sub(pattern, plain, text)
    text = " ".join(text.split())
    return text if len(text) <= 400 else text[:397] + "..."


def _run_error(error: Exception) -> SlimError:
    text = one_line(error)
    # ONNX Runtime's own errors have classes of their own; plain ones come from turning the feeds into tensors.
    plain = isinstance(error, (ValueError, TypeError)) or type(error) is RuntimeError
    if plain or type(error).__name__ == "InvalidArgument":
        return DataError(f"the feeds do not fit the model: {text}")
    return ModelError(f"the model fails when it runs: {text}")


def digest(source: ModelLike) -> str:
    """sha256 (hex) of a model: of its bytes, or of its file and the external data it names."""
    if isinstance(source, Model):
        with_data = weight_bytes(source) > INLINE_LIMIT
        return Session(source).digest if with_data else digest(ir.to_bytes(source))
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    total = hashlib.sha256()
    for path in [Path(source), *_external_files(Path(source))]:
        with open(path, "rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                total.update(block)
    return total.hexdigest()


def _external_files(path: Path) -> list[Path]:
    proto = onnx.load(path, load_external_data=False)
    places = {e.value: None for t in proto.graph.initializer for e in t.external_data if e.key == "location"}
    return [path.parent / p for p in places if (path.parent / p).is_file()]


__all__ = ["ModelLike", "Session", "digest", "one_line"]
