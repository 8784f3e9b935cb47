"""What is done to gradients before the optimizer sees them: clipping, then L2 regularisation."""

import math

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.kernels.prefetch import prefetch_ahead

Float32Array = npt.NDArray[np.float32]


@njit(cache=True, nogil=True, error_model="numpy")
def shape_gradients(
    rows: Float32Array,
    positions: npt.NDArray[np.int64],
    gradients: Float32Array,
    scale: np.float32,
    limits: npt.NDArray[np.float64],
    shaped: Float32Array,
) -> None:
    """Write scaled, clipped and regularised gradients.

    Args:
        rows: float32[capacity, width], read: a row starts with its vector.
        positions: int64[n]; the gradient of -1 is not written.
        gradients: float32[n, dim], sums.
        scale: 1 / N.
        limits: float64[3]: the most of a value and of a row's norm (infinite: no limit), and what
            of the vector is added.
        shaped: float32[n, dim], written.
    """
    most, longest = np.float32(limits[0]), limits[1]
    l2 = np.float32(limits[2])
    dim = gradients.shape[1]
    for i in range(positions.size):
        prefetch_ahead(rows, positions, i)
        row = positions[i]
        if row < 0:
            continue
        vector, gradient, out = rows[row, :dim], gradients[i], shaped[i]
        squares = 0.0
        for c in range(dim):
            g = min(max(gradient[c] * scale, -most), most)
            out[c] = g
            squares += np.float64(g) * np.float64(g)
        norm = math.sqrt(squares)
        shrink = np.float32(longest / norm) if norm > longest else np.float32(1.0)
        for c in range(dim):
            out[c] = out[c] * shrink + l2 * vector[c]
