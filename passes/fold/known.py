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
    """Entries of a small tensor in row-major order, its shape and its type."""

    values: tuple[Entry, ...]
    shape: tuple[int, ...]
    dtype: Any = INT64

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def complete(self) -> bool:
        """Whether every entry is a number."""
        return all(v is not None and not isinstance(v, str) for v in self.values)

    @property
    def positions(self) -> np.ndarray:
        """Where each entry stands in `values`: what moves data is run on these."""
        return np.arange(len(self.values)).reshape(self.shape)

    def at(self, positions: np.ndarray) -> Known:
        """The entries at these positions, in their shape."""
        return Known(tuple(self.values[k] for k in positions.reshape(-1).tolist()), positions.shape, self.dtype)

    def array(self) -> np.ndarray:
        """The value, when complete."""
        return np.array(list(self.values), self.dtype).reshape(self.shape)


def whole(value: Entry) -> bool:
    """Whether an entry is a number that a 32-bit integer holds the whole part of."""
    return isinstance(value, (int, float)) and np.isfinite(value) and abs(value) < 2**31


def aligned(*parts: Known) -> tuple[tuple[int, ...], list[tuple[Entry, ...]]] | None:
    """The shape that tensors broadcast to and their entries side by side; None where they do not fit."""
    try:
        spread = np.broadcast_arrays(*(p.positions for p in parts))
    except ValueError:
        return None
    if spread[0].size > LIMIT:
        return None
    columns = ([p.values[k] for k in at.reshape(-1).tolist()] for p, at in zip(parts, spread))
    return spread[0].shape, list(zip(*columns))


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


def modulo(x: Entry, y: Entry, dtype: Any) -> Entry:
    """Integer remainder with the sign of the divisor, as Mod has it without `fmod`."""
    return int(x) % int(y) if numbers(x, y) and y != 0 and dtype.kind in "iu" else None  # type: ignore[arg-type]


def compared(ufunc: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """A rule for comparing numbers."""
    return lambda x, y, dtype: bool(ufunc(dtype.type(x), dtype.type(y))) if numbers(x, y) else None
