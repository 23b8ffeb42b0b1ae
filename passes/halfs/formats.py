"""The two 16-bit float formats: their limits, and what a constant loses in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from onnx import TensorProto


@dataclass(frozen=True)
class Format:
    """A 16-bit float type.

    most: greatest finite value. noise: relative squared error above which a constant counts as lost: its values lie
    where the format has few bits left (fp16 below 6e-5), or are rounded to zero.
    cast_opset: the first opset whose Cast knows the type.
    """

    name: str
    dtype: Any
    onnx_type: int
    most: float
    noise: float
    cast_opset: int

    @property
    def type_str(self) -> str:
        """As operator schemas spell it."""
        return "tensor(float16)" if self.name == "fp16" else "tensor(bfloat16)"


FP16 = Format("fp16", np.dtype(np.float16), TensorProto.FLOAT16, 65504.0, 1e-6, 6)
BF16 = Format(
    "bf16", np.dtype(ml_dtypes.bfloat16), TensorProto.BFLOAT16, float(ml_dtypes.finfo(ml_dtypes.bfloat16).max), 3e-5, 13
)


def overflows(values: np.ndarray, half: Format) -> bool:
    """Whether a finite value is beyond the format (infinities are the same in both)."""
    finite = values[np.isfinite(values)]
    return bool(finite.size) and float(np.abs(finite).max()) > half.most


def clamped(values: np.ndarray, half: Format) -> np.ndarray:
    """Finite values beyond the format brought to its limits, then converted."""
    inside = np.where(np.isfinite(values), np.clip(values, -half.most, half.most), values)
    return inside.astype(half.dtype)


def lost(values: np.ndarray, half: Format) -> float:
    """Relative squared error of the finite values after conversion (clamped)."""
    wide = values.astype(np.float64)
    finite = np.isfinite(wide)
    error = np.where(finite, clamped(values, half).astype(np.float64) - wide, 0.0)
    signal = float((np.where(finite, wide, 0.0) ** 2).sum())
    return float((error**2).sum()) / signal if signal > 0 else 0.0
