"""Running a model: a quiet ONNX Runtime session with one way in for models, files and bytes.

ONNX Runtime's errors become one line of `ModelError` or `DataError`. See `loading` for what a session costs in memory.
"""

from __future__ import annotations

import ctypes
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import helper

from ..ir.errors import DataError, ModelError, OptionError, RefusedFeeds, SlimError
from .loading import ModelLike, digest, hash_file, payload
from .specs import InputSpec, dtype_of, halved, rename_feeds, session_inputs

THREADS = 64  # that no machine is too small for; a large one takes four a core
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
    shapes_first: run Shape nodes as soon as they can, so that what they look at is freed.
    profile: the beginning of a file name; every run is then profiled until `end_profiling`.

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
        shapes_first: bool = False,
        profile: str | None = None,
    ):
        self.threads = threads
        self._payload = payload(model, outputs)
        options = _options(threads, optimize, arena)
        if shapes_first:
            options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, profile
        self._session = self._start(options, list(providers or ["CPUExecutionProvider"]))
        self.inputs: dict[str, InputSpec] = session_inputs(self._session)
        present = [o.name for o in self._session.get_outputs()]
        self.outputs: list[str] = list(present if outputs is None else dict.fromkeys(outputs))
        self.kinds: dict[str, str] = {o.name: o.type for o in self._session.get_outputs()}
        plain = [*self.kinds.values(), *(a.type for a in self._session.get_inputs())]
        self._exotic = any(_is_exotic(t) for t in plain)

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Outputs by name, in the model's order.

        feeds: array (or list of arrays, for a sequence) by input name. A single input under another name is taken
        (see `rename_feeds`). Raises RefusedFeeds where these do not fit, ModelError when the model itself fails.
        """
        feeds = {k: v for k, v in rename_feeds(feeds, self.inputs).items() if v is not None}
        feeds = halved(feeds, self.inputs)
        try:
            values = self._run_exotic(feeds) if self._exotic else self._session.run(self.outputs, feeds)
        except SlimError:
            raise
        except Exception as error:
            raise _run_error(error) from error
        return dict(zip(self.outputs, values))

    def end_profiling(self) -> str:
        """Write what `profile` asked for; returns the file's path."""
        return str(self._session.end_profiling())

    @property
    def clock(self) -> Callable[[], float]:
        """What a run is timed with: the thread's CPU time, where it has no other threads and the system counts finely
        (Windows does so in steps of 15 ms); else the wall clock."""
        fine = time.get_clock_info("thread_time").resolution < 1e-6
        return time.thread_time if self.threads == 1 and fine else time.perf_counter

    @property
    def digest(self) -> str:
        """sha256 of the model that runs, external data included (hex)."""
        if self._payload.digest is None:
            self._payload.digest = hash_file(self._payload.data)
        return self._payload.digest

    def _start(self, options: Any, providers: list[str]) -> Any:
        data = self._payload.data
        try:
            return self._payload.start(options, providers)
        except Exception as error:
            name = f"{data}: " if isinstance(data, str) and self._payload.folder is None else ""
            raise ModelError(f"{name}ONNX Runtime refuses the model: {one_line(error)}") from error

    def _run_exotic(self, feeds: Mapping[str, Any]) -> list[Any]:
        """Through OrtValues, for types that ONNX Runtime's numpy bridge does not know (bfloat16, float8, int4)."""
        wrapped = {k: _to_ort(v) for k, v in feeds.items()}
        found = self._session.run_with_ort_values(self.outputs, wrapped)
        return [_from_ort(v, self.kinds.get(n, "")) for n, v in zip(self.outputs, found)]


def check_threads(name: str, threads: int) -> None:
    """Raises OptionError for too many to be meant: starting 100,000 takes minutes, in which no signal is heard."""
    cores = os.cpu_count() or 1
    most = max(THREADS, 4 * cores)
    if threads > most:
        raise OptionError(f"{name} is {threads}; expected at most {most} (cores of this machine: {cores})")


def _options(threads: int, optimize: bool, arena: bool) -> Any:
    check_threads("threads", threads)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = arena
    # Weights in memory of their own: the arena would round them up to the next power of two.
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    # Workers that spin between runs would take the cores from numpy and from a model measured beside this one.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    return options


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
    dtype, shape = dtype_of(kind), tuple(value.shape())
    count = int(np.prod(shape, dtype=np.int64))
    if "int4" in kind:  # two values a byte, low half first
        raw = np.frombuffer(ctypes.string_at(value.data_ptr(), (count + 1) // 2), np.uint8)
        halves = np.stack([raw & 15, raw >> 4], -1).reshape(-1)[:count]
        signed = halves.astype(np.int8) if kind[7] == "u" else ((halves ^ 8).astype(np.int8) - 8)
        return signed.astype(dtype).reshape(shape)
    return np.frombuffer(ctypes.string_at(value.data_ptr(), count * dtype.itemsize), dtype).reshape(shape)


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
        return RefusedFeeds(f"the feeds do not fit the model: {text}")
    return ModelError(f"the model fails when it runs: {text}")


__all__ = ["ModelLike", "Session", "check_threads", "digest", "one_line"]
