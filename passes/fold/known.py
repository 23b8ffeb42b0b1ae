"""What may be known of a small tensor, entry by entry, and arithmetic on entries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

LIMIT = 256
INT64 = np.dtype(np.int64)
FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
INTS = (INT64, np.dtype(np.int32))
# A number, a symbol, or unknown.
Entry = int | float | bool | str | None


@dataclass(frozen=True)
class Known:
    """Entries of a tensor of rank 0 or 1, and its type."""

    values: tuple[Entry, ...]
    scalar: bool
    dtype: Any = INT64

    @property
    def complete(self) -> bool:
        """Whether every entry is a number."""
        return all(v is not None and not isinstance(v, str) for v in self.values)

    def array(self) -> np.ndarray:
        """The value, when complete."""
        return np.array(self.values[0] if self.scalar else list(self.values), self.dtype)


def whole(value: Entry) -> bool:
    """Whether an entry is a number that a 32-bit integer holds the whole part of."""
    return isinstance(value, (int, float)) and np.isfinite(value) and abs(value) < 2**31


def paired(a: Known, b: Known) -> list[tuple[Entry, Entry]] | None:
    """Entries of two tensors side by side, one entry broadcast; None when the lengths differ."""
    n = max(len(a.values), len(b.values))
    if {len(a.values), len(b.values)} - {1, n}:
        return None
    x = a.values * n if len(a.values) == 1 else a.values
    y = b.values * n if len(b.values) == 1 else b.values
    return list(zip(x, y))


def numbers(x: Entry, y: Entry) -> bool:
    """Whether both are numbers."""
    return not (x is None or y is None or isinstance(x, str) or isinstance(y, str))


def arith(ufunc: Callable[..., Any], neutral: int | None, right_only: bool = False) -> Callable[..., Any]:
    """A rule for numbers by `ufunc` in their own type; an operand equal to `neutral` leaves a symbol as it is."""

    def rule(x: Entry, y: Entry, dtype: Any) -> Entry:
        if numbers(x, y):
            with np.errstate(all="ignore"):
                return ufunc(dtype.type(x), dtype.type(y)).item()
        if neutral is not None and not isinstance(y, str) and y == neutral:
            return x
        if neutral is not None and not right_only and not isinstance(x, str) and x == neutral:
            return y
        return None

    return rule


def divide(x: Entry, y: Entry, dtype: Any) -> Entry:
    """Division; of integers toward zero, as ONNX has it."""
    if not isinstance(y, str) and y == 1:
        return x
    if not numbers(x, y) or y == 0:
        return None
    if dtype.kind == "f":
        return (dtype.type(x) / dtype.type(y)).item()
    quotient = abs(int(x)) // abs(int(y))  # type: ignore[arg-type]
    return quotient if (x < 0) == (y < 0) else -quotient  # type: ignore[operator]


def equal(x: Entry, y: Entry, dtype: Any) -> Entry:
    """Equality, where numbers or symbols decide it."""
    if numbers(x, y):
        return bool(x == y)
    for symbol, number in ((x, y), (y, x)):  # a size is never negative
        if isinstance(symbol, str) and isinstance(number, int) and number < 0:
            return False
    return True if isinstance(x, str) and x == y else None
