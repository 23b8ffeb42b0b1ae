"""Paths and helpers that several tests use."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the command line does, and before numpy is loaded

import onnxruntime as ort
import pytest
from onnxslim_opt.runtime import session

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
sys.path.insert(0, str(Path(__file__).resolve().parent))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of public models and data that developers have beside the repository; skipped where absent."""
    if not (SHARED / "models").is_dir():
        pytest.skip("the shared models are not here")
    return SHARED


class Exact(ort.SessionOptions):
    """Options under which u8 × s8 products do not saturate."""

    def __init__(self) -> None:
        super().__init__()
        self.add_session_config_entry("session.x64quantprecision", "1")


@pytest.fixture
def exact_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is made for machines whose kernels do not saturate (VNNI) is computed as there, also on AVX2 and AVX512."""
    monkeypatch.setattr(ort, "SessionOptions", Exact)


@pytest.fixture
def literal_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes measure quantized models as they are written, in floats: no kernel of this machine has a say. (Under the
    options above ONNX Runtime refuses weights that are handed over beside the model.)"""
    real = session._options
    monkeypatch.setattr(session, "_options", lambda threads, optimize, arena: real(threads, False, arena))
