"""Memory for what is kept between two runs of a session."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Room:
    """Room for arrays of one kind, taken for all of them at once: so many `rows`, whose sizes and type the first tells.

    What is kept between the activations of two runs, array by array, leaves holes that nothing else fits into (800 MB
    were seen of a network of 5 MB).
    """

    rows: int
    _left: np.ndarray | None = None

    def keep(self, array: np.ndarray) -> np.ndarray:
        """A copy of these rows `[P, ...]`; in memory of its own where the room does not do."""
        if self._left is None:
            self._left = np.empty((self.rows, *array.shape[1:]), array.dtype)
        kept, self._left = self._left[: len(array)], self._left[len(array) :]
        if len(kept) < len(array):
            kept = np.empty(array.shape, array.dtype)
        kept[:] = array
        return kept


__all__ = ["Room"]
