"""What the first factor of a split multiplies, and the normal equations of its refit.

T (q, D) has a row for each row of the first factor's matrix and a column for each entry of the unfolded input. Where an
index runs along with the input's (the kernel of `channel_in`, the channels of `separable`), T is zero off the diagonal
of that index: it is kept as blocks, and products cost the size of the index less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .norm import Array, Norm


@dataclass(frozen=True)
class Basis:
    """T in blocks (S, p, m), one for each value of the shared indices; rows (S, p) and columns (S, m) are T's."""

    blocks: Array
    rows: Array
    columns: Array

    @classmethod
    def of(cls, spec: str, factors: Sequence[Array], shape: Sequence[int]) -> Basis:
        """T of a split's factors; shape: of the weight."""
        left, target = spec.split("->")
        head, *terms = left.split(",")
        inputs, kept = target.replace("o", ""), head.replace("o", "")
        size = dict(zip(target, shape)) | {c: n for t, f in zip([head, *terms], factors) for c, n in zip(t, f.shape)}
        shared, free = [c for c in kept if c in inputs], [c for c in kept if c not in inputs]
        rest = [c for c in inputs if c not in shared]
        varying = [c for c in shared if any(c in t for t in terms)]
        core = np.einsum(f"{','.join(terms)}->{''.join([*varying, *free, *rest])}", *factors[1:], optimize=True)
        lead = [size[c] if c in varying else 1 for c in shared]
        p, m = (math.prod(size[c] for c in letters) for letters in (free, rest))
        full = [size[c] for c in shared]
        blocks = np.broadcast_to(core.reshape(*lead, p, m), (*full, p, m)).reshape(math.prod(full), p, m)
        return cls(blocks, _places(kept, shared + free, size, p), _places(inputs, shared + rest, size, m))

    @property
    def dense(self) -> Array:
        """T itself."""
        out = np.zeros((self.rows.size, self.columns.size), self.blocks.dtype)
        self.add_to(out, 1.0)
        return out

    def single(self) -> Basis:
        """In single precision."""
        return Basis(self.blocks.astype(np.float32), self.rows, self.columns)

    def add_to(self, out: Array, times: float) -> None:
        """Add so many times T to (q, D)."""
        for block, rows, columns in zip(self.blocks, self.rows, self.columns):
            out[np.ix_(rows, columns)] += block.dtype.type(times) * block

    def times(self, right: Array) -> Array:
        """T X for X (D, k)."""
        if len(self.blocks) == 1:
            return np.asarray(self.blocks[0] @ right)
        out = np.empty((self.rows.size, right.shape[1]), np.result_type(self.blocks, right))
        for block, rows, columns in zip(self.blocks, self.rows, self.columns):
            out[rows] = block @ right[columns]
        return out


def _places(letters: str, order: Sequence[str], size: dict[str, int], last: int) -> Array:
    """Flat positions in an index over `letters`, the letters taken in another order; (…, last)."""
    flat = np.arange(math.prod(size[c] for c in letters)).reshape([size[c] for c in letters])
    return flat.transpose([letters.index(c) for c in order]).reshape(-1, last)


def normal(t: Basis, flat: Array, norm: Norm, single: bool = False) -> tuple[Array, Array]:
    """(T M Tᵀ, T M Wᵀ) for W (O, D): the normal equations; `single`: to single precision, at half the price."""
    t, flat = (t.single(), flat.astype(np.float32)) if single else (t, flat)
    if norm.thin is not None:
        rows = norm.single if single else norm.thin
        seen = t.times(rows.T)
        gram, right = seen @ seen.T, seen @ (flat @ rows.T).T
        level = gram.dtype.type(norm.diagonal)
        return gram + level * t.times(t.dense.T), right + level * t.times(flat.T)
    if norm.dense is None:
        crossed = np.zeros((t.rows.size, t.columns.size), t.blocks.dtype)
    else:
        crossed = t.times(norm.single if single else norm.dense)
    t.add_to(crossed, norm.diagonal)
    return t.times(crossed.T), crossed @ flat.T
