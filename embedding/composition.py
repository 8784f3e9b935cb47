"""The vector of each occurrence of a key where it is not one row as it is: kernels, both ways.

`flat` and positions are as in `pooling`. Vectors are assembled occurrence by occurrence into
float32[nnz, dim], which is pooled like any buffer; gradients go back in the same order, so that
sums do not depend on where the rows live.
"""

import numpy as np
import numpy.typing as npt
from numba import njit

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


@njit(cache=True, nogil=True)
def assemble_copy(
    flat: FloatArray, positions: IntArray, vectors: FloatArray, column: int, dim: int
) -> None:
    """Copy the row of each occurrence into vectors[:, column:column + dim]."""
    for o in range(len(positions)):
        for k in range(dim):
            vectors[o, column + k] = flat[positions[o] + k]


@njit(cache=True, nogil=True)
def assemble_add(flat: FloatArray, positions: IntArray, vectors: FloatArray) -> None:
    """Add the row of each occurrence to its vector."""
    for o in range(len(positions)):
        for k in range(vectors.shape[1]):
            vectors[o, k] += flat[positions[o] + k]


@njit(cache=True, nogil=True)
def assemble_multiply(flat: FloatArray, positions: IntArray, vectors: FloatArray) -> None:
    """Multiply the vector of each occurrence by its row, element by element."""
    for o in range(len(positions)):
        for k in range(vectors.shape[1]):
            vectors[o, k] *= flat[positions[o] + k]


@njit(cache=True, nogil=True)
def spread_copy(
    gradient: FloatArray, column: int, dim: int, positions: IntArray, flat_grad: FloatArray
) -> None:
    """Add gradient[:, column:column + dim] to the rows of the occurrences."""
    for o in range(len(positions)):
        for k in range(dim):
            flat_grad[positions[o] + k] += gradient[o, column + k]


@njit(cache=True, nogil=True)
def spread_multiply(
    gradient: FloatArray,
    flat: FloatArray,
    others: IntArray,
    positions: IntArray,
    flat_grad: FloatArray,
) -> None:
    """Add gradient times the other factor, the row at `others`, to the rows at `positions`."""
    for o in range(len(positions)):
        for k in range(gradient.shape[1]):
            flat_grad[positions[o] + k] += gradient[o, k] * flat[others[o] + k]


@njit(cache=True, nogil=True)
def clip_norms(vectors: FloatArray, max_norm: float, scales: FloatArray) -> None:
    """Scale each vector x with |x| > c = max_norm to c x / |x|; norms are float64.

    Args:
        vectors: float32[nnz, dim], changed.
        scales: float32[nnz], written: c / |x|, or 1 where a vector stayed as it was.

    Source: `max_norm` of TensorFlow's `embedding_lookup_sparse`.
    """
    for o in range(len(vectors)):
        squares = 0.0
        for value in vectors[o]:
            squares += np.float64(value) * np.float64(value)
        scales[o] = 1.0
        if squares > max_norm * max_norm:
            scales[o] = max_norm / np.sqrt(squares)
            for k in range(vectors.shape[1]):
                vectors[o, k] *= scales[o]


@njit(cache=True, nogil=True)
def clip_norms_gradient(
    vectors: FloatArray, max_norm: float, scales: FloatArray, gradient: FloatArray
) -> None:
    """Turn the gradient of clipped vectors y into that of the vectors x before, in place.

    dx = c / |x| (dy - y (y . dy) / c^2), as y = c x / |x|.

    Args:
        vectors, scales: float32[nnz, dim] and float32[nnz], as `clip_norms` left them.
        gradient: float32[nnz, dim], changed.
    """
    for o in range(len(vectors)):
        if scales[o] != 1.0:
            along = 0.0
            for k in range(vectors.shape[1]):
                along += np.float64(vectors[o, k]) * np.float64(gradient[o, k])
            along /= max_norm * max_norm
            for k in range(vectors.shape[1]):
                gradient[o, k] = scales[o] * (gradient[o, k] - vectors[o, k] * along)
