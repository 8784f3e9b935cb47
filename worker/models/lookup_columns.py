"""The vectors of one lookup, from where those of all of them are and back."""

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.kernels.lines import add_row, copy_row
from worker.models.protocol import FloatArray


@njit(cache=True, nogil=True)
def take_columns(pooled: FloatArray, column: int, vectors: FloatArray) -> None:
    """Copy columns of float32[n, W] that begin at one into float32[n, dim], both C-contiguous."""
    (n, dim), width = vectors.shape, pooled.shape[1]
    source, target = pooled.reshape(-1), vectors.reshape(-1)
    for i in range(n):
        copy_row(source, i * width + column, dim, target, i * dim)


@njit(cache=True, nogil=True)
def put_columns(vectors: FloatArray, pooled: FloatArray, column: int) -> None:
    """Copy float32[n, dim] over columns of float32[n, W] that begin at one, both C-contiguous."""
    (n, dim), width = vectors.shape, pooled.shape[1]
    source, target = vectors.reshape(-1), pooled.reshape(-1)
    for i in range(n):
        copy_row(source, i * dim, dim, target, i * width + column)


@njit(cache=True, nogil=True)
def take_rows(flat: FloatArray, positions: npt.NDArray[np.int64], vectors: FloatArray) -> None:
    """Copy what begins at positions[n] of float32[any] into float32[n, dim], C-contiguous."""
    (n, dim), target = vectors.shape, vectors.reshape(-1)
    for i in range(n):
        copy_row(flat, positions[i], dim, target, i * dim)


@njit(cache=True, nogil=True)
def add_rows(vectors: FloatArray, positions: npt.NDArray[np.int64], flat: FloatArray) -> None:
    """Add float32[n, dim], C-contiguous, to what begins at positions[n], in the order of samples.

    Args:
        flat: float32[any], added to.
    """
    (n, dim), source = vectors.shape, vectors.reshape(-1)
    for i in range(n):
        add_row(source, i * dim, dim, flat, positions[i])
