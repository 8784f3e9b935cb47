"""Pairwise dot products of a sample's vectors, forward and backward: the interaction of DLRM."""

from collections.abc import Mapping

import numpy as np
from numba import njit

from worker.models.layers import RowBuffer
from worker.models.protocol import FloatArray


class PairwiseDots:
    """The dot products v_i . v_j, j < i, in the order (1,0), (2,0), (2,1), (3,0), ...

    Args:
        num_vectors: f, vectors of a sample, >= 1.
        dim: d, width of a vector.
    """

    def __init__(self, num_vectors: int, dim: int) -> None:
        self.num_pairs = num_vectors * (num_vectors - 1) // 2
        self._shape = (num_vectors, dim)
        self._dots = RowBuffer((num_vectors - 1) ** 2)
        self._grad_dots = RowBuffer(num_vectors**2)

    def forward(self, vectors: FloatArray, out: FloatArray) -> None:
        """Write the dot products.

        Args:
            vectors: float32[n, f d], C-contiguous, a sample's vectors side by side.
            out: float32[n, f (f - 1) / 2], written.
        """
        n, (f, dim) = len(vectors), self._shape
        stacked = vectors.reshape(n, f, dim)
        # Rows 1 to f - 1 against rows 0 to f - 2: the pairs are the lower triangle, diagonal
        # included.
        dots = self._dots.rows(n).reshape(n, f - 1, f - 1)
        np.matmul(stacked[:, 1:], stacked[:, :-1].transpose(0, 2, 1), out=dots)
        _take_lower(dots, out)

    def backward(self, vectors: FloatArray, grad_out: FloatArray, grad_vectors: FloatArray) -> None:
        """Write the gradients of the vectors: that of v_i is the sum of g_ij v_j over j != i.

        Args:
            vectors: as given to `forward`.
            grad_out: float32[n, f (f - 1) / 2], gradient of what `forward` wrote.
            grad_vectors: float32[n, f d], C-contiguous, written.
        """
        n, (f, dim) = len(vectors), self._shape
        stacked = vectors.reshape(n, f, dim)
        grad_dots = self._grad_dots.rows(n).reshape(n, f, f)
        _fill_symmetric(grad_out, grad_dots)
        np.matmul(grad_dots, stacked, out=grad_vectors.reshape(n, f, dim))


def common_dim(model_type: str, dims: Mapping[str, int]) -> int:
    """Return the one width of all tables.

    Raises:
        ValueError: there is none, or they differ.
    """
    if not dims:
        raise ValueError(f"{model_type} needs a sparse feature, got none")
    if len(set(dims.values())) != 1:
        raise ValueError(
            f"{model_type} needs tables of the same dim, got {dict(dims)}; set embedding.dim, and "
            "no other dim under tables"
        )
    return next(iter(dims.values()))


@njit(cache=True, nogil=True)
def _take_lower(dots: FloatArray, out: FloatArray) -> None:
    """Write the lower triangles of dots[n, m, m], diagonal included, row by row to out."""
    n, m, _ = dots.shape
    for s in range(n):
        pair = 0
        for i in range(m):
            for j in range(i + 1):
                out[s, pair + j] = dots[s, i, j]
            pair += i + 1


@njit(cache=True, nogil=True)
def _fill_symmetric(pairs: FloatArray, out: FloatArray) -> None:
    """Write the matrices out[n, f, f] with `pairs` below and above a diagonal of zeros."""
    n, f, _ = out.shape
    for s in range(n):
        pair = 0
        for i in range(f):
            for j in range(i):
                out[s, i, j] = pairs[s, pair + j]
                out[s, j, i] = pairs[s, pair + j]
            out[s, i, i] = 0
            pair += i
