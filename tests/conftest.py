"""Paths and helpers that several tests use."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the command line does, and before numpy is loaded

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
sys.path.insert(0, str(Path(__file__).resolve().parent))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of public models and data that developers have beside the repository; skipped where absent."""
    if not (SHARED / "models").is_dir():
        pytest.skip("the shared models are not here")
    return SHARED
