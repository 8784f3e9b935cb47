"""The vectors of one lookup, from the pooled input of all of them and back."""

from numba import njit

from worker.models.protocol import FloatArray


@njit(cache=True, nogil=True)
def take_columns(pooled: FloatArray, column: int, vectors: FloatArray) -> None:
    """Copy columns of float32[n, W] that begin at one into float32[n, dim], C-contiguous."""
    n, dim = vectors.shape
    for i in range(n):
        for j in range(dim):
            vectors[i, j] = pooled[i, column + j]


@njit(cache=True, nogil=True)
def put_columns(vectors: FloatArray, pooled: FloatArray, column: int) -> None:
    """Copy float32[n, dim] over columns of float32[n, W] that begin at one."""
    n, dim = vectors.shape
    for i in range(n):
        for j in range(dim):
            pooled[i, column + j] = vectors[i, j]
