"""The vectors of one lookup, from the pooled input of all of them and back."""

from numba import njit

from embedding.kernels.lines import copy_row
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
