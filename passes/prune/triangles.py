"""Symmetric matrices in the memory of one: a factor in one triangle, what it is made of in the other."""

from __future__ import annotations

import numpy as np
from scipy.linalg import blas, lapack

Array = np.ndarray
BLOCK = 512  # rows copied at once


def mirror(matrix: Array, diagonal: Array) -> None:
    """Copy what lies below the diagonal over what lies above it, and set the diagonal; in place."""
    for k in range(0, len(matrix), BLOCK):
        block = matrix[k : k + BLOCK, k : k + BLOCK]
        low = np.tril(block, -1)
        block[:] = low + low.T
        matrix[k : k + BLOCK, k + BLOCK :] = matrix[k + BLOCK :, k : k + BLOCK].T
    np.einsum("ii->i", matrix)[:] = diagonal


def invert(matrix: Array) -> None:
    """Invert a positive definite matrix (float64, in one piece) in its own memory, by Cholesky's method; one that
    rounding has left indefinite by elimination. Raises `numpy.linalg.LinAlgError` for a singular one."""
    diagonal = matrix.diagonal().copy()
    factor, info = lapack.dpotrf(matrix.T, lower=1, clean=0, overwrite_a=1)
    if not info:
        _, info = lapack.dpotri(factor, lower=1, overwrite_c=1)
    if info:
        mirror(matrix, diagonal)
        matrix[:] = np.linalg.inv(matrix)
    else:
        mirror(matrix.T, matrix.diagonal().copy())


def subtract_product(array: Array, left: Array, right: Array) -> None:
    """array -= left @ right, without a copy of the array where that lies in one piece."""
    found = blas.dgemm(-1.0, right.T, left.T, 1.0, array.T, overwrite_c=1)
    if not np.shares_memory(found, array):
        array[:] = found.T


__all__ = ["invert", "mirror", "subtract_product"]
