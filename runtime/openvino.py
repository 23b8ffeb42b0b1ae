"""OpenVINO as another runtime to time models in, where its package is installed (`onnxslim-opt[openvino]`)."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .. import ir
from ..ir.errors import DataError, ModelError
from ..ir.exporting import weight_bytes
from ..ir.model import INLINE_LIMIT
from .loading import ModelLike, digest
from .specs import model_inputs, rename_feeds

NAME = "openvino"
_survived: set[str] = set()  # digests of the models that a run in another process did not end
TRIAL = """import sys, numpy, openvino
core = openvino.Core()
model = core.compile_model(core.read_model(sys.argv[1]), "CPU", {"INFERENCE_NUM_THREADS": "1"})
model(dict(numpy.load(sys.argv[2])))"""


def available() -> bool:
    """Whether OpenVINO can be imported here."""
    return importlib.util.find_spec("openvino") is not None


def version() -> str:
    """The installed version, without the build."""
    import openvino

    return str(openvino.__version__).split("-", maxsplit=1)[0]


class OpenVinoSession:
    """A model compiled for the CPU by OpenVINO, with what timing needs of a `Session`.

    threads: of one inference (0: one a core). Precision is OpenVINO's own choice, as it will be where the model runs
    (bfloat16 on processors that have it).

    Integer kernels have ended the whole process (kwt1 with all in integers, OpenVINO 2026.4): the first run of a model
    with QuantizeLinear is tried in another one.

    Raises ModelError when OpenVINO refuses the model, and at the first run when it crashes on it.
    """

    def __init__(self, model: ModelLike, *, threads: int = 1):
        import openvino

        self.threads, self.digest = threads, digest(model)
        loaded = _loaded(model)
        self.inputs = model_inputs(loaded)
        self._untried = loaded if any(n.op == "QuantizeLinear" for n in loaded.graph.nodes) else None
        core = openvino.Core()
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": str(threads), "NUM_STREAMS": "1"}
        try:
            compiled = core.compile_model(_read(core, model), "CPU", options)
        except RuntimeError as error:
            raise ModelError(f"OpenVINO refuses the model: {' '.join(str(error).split())[:300]}") from error
        self._outputs = [port.get_any_name() for port in compiled.outputs]
        self._request = compiled.create_infer_request()

    @property
    def clock(self) -> Callable[[], float]:
        """The process's CPU time with one thread, which may be one of OpenVINO's own; else the wall clock."""
        return time.process_time if self.threads == 1 else time.perf_counter

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Outputs by name. Raises DataError for feeds that do not fit, ModelError where OpenVINO crashes."""
        feeds = rename_feeds(feeds, self.inputs)
        if self._untried is not None and all(isinstance(v, np.ndarray) for v in feeds.values()):
            if self.digest not in _survived:
                _try(self._untried, feeds)
                _survived.add(self.digest)
            self._untried = None
        try:
            found = self._request.infer(feeds)
        except (RuntimeError, TypeError, ValueError) as error:
            raise DataError(f"OpenVINO cannot run these feeds: {' '.join(str(error).split())[:300]}") from error
        return dict(zip(self._outputs, found.values()))


def _try(model: ir.Model, feeds: Mapping[str, Any]) -> None:
    """Raises ModelError where a process of its own does not survive one run; what else fails, fails here again."""
    with tempfile.TemporaryDirectory(prefix="onnxslim-") as folder:
        files = [os.path.join(folder, name) for name in ("model.onnx", "feeds.npz")]
        ir.save(model, files[0])
        np.savez(files[1], **feeds)
        done = subprocess.run([sys.executable, "-c", TRIAL, *files], capture_output=True, check=False)
    if done.returncode not in (0, 1, 2):  # an exception would be 1
        how = signal.Signals(-done.returncode).name if done.returncode < 0 else f"code {done.returncode}"
        raise ModelError(f"OpenVINO {version()} crashes on the model ({how})")


def _loaded(model: ModelLike) -> ir.Model:
    if isinstance(model, ir.Model):
        return model
    return ir.from_bytes(model) if isinstance(model, bytes) else ir.load(model)


def _read(core: Any, model: ModelLike) -> Any:
    if isinstance(model, str | os.PathLike):
        return core.read_model(os.fspath(model))
    if isinstance(model, bytes) or weight_bytes(model) <= INLINE_LIMIT:
        return core.read_model(model if isinstance(model, bytes) else ir.to_bytes(model))
    with tempfile.TemporaryDirectory(prefix="onnxslim-") as folder:  # beyond protobuf's 2 GiB; weights are read at once
        ir.save(model, Path(folder) / "model.onnx")
        return core.read_model(os.path.join(folder, "model.onnx"))


__all__ = ["NAME", "OpenVinoSession", "available", "version"]
