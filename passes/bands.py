"""Large matrices a band of rows at a time: what is computed in double precision is then never as large as the matrix.

A layer can be nearly the whole model, and a copy of it in double precision is twice as large. Memory is promised in
models (docs/architecture.md, 'Where memory goes'), so nothing of a layer's size is made but what is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
CELLS = 1 << 20  # elements of a band: 8 MB in double precision, and enough rows for fast products


def bands(shape: Sequence[int], cells: int | None = None) -> Iterator[slice]:
    """Slices of the first axis with at most so many elements each (`CELLS` unless told), but at least one row."""
    step = max(1, (cells or CELLS) // max(1, int(np.prod(shape[1:], dtype=np.int64))))
    return (slice(k, min(k + step, shape[0])) for k in range(0, shape[0], step))


def mapped(function: Callable[..., Array], array: Array, *others: Array, dtype: Any = np.float32) -> Array:
    """`function` of the array and of others that broadcast to it, element by element, as `dtype`."""
    out = np.empty(array.shape, dtype)
    wide = [np.broadcast_to(o, array.shape) for o in others]
    for part in bands(array.shape):
        out[part] = function(array[part], *(w[part] for w in wide))
    return out


def energy(array: Array) -> float:
    """The sum of squares, in double precision."""
    return sum(float(np.square(array[part], dtype=np.float64).sum()) for part in bands(array.shape))


__all__ = ["bands", "energy", "mapped"]
