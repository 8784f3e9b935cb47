"""Kernels of FTRL-proximal; the signature is described in `optimizers`.

Scalars of both: 1 / lr, power, l1, l2, l2_shrinkage. Sources: McMahan et al. 2013 (coordinates),
DeepRec's tables (rows); l2_shrinkage as in TensorFlow's FtrlV2.
"""

import math

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.kernels.prefetch import prefetch_ahead

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]


@njit(cache=True, nogil=True, inline="always")
def _root(n: np.float32, power: float) -> np.float32:
    """Return n^-power; the usual power is a square root, which is the same on every machine."""
    if power == -0.5:
        return np.float32(math.sqrt(n))
    return np.float32(math.pow(np.float64(n), -power))


@njit(cache=True, nogil=True, error_model="numpy")
def ftrl(
    rows: Float32Array,
    positions: Int64Array,
    gradients: Float32Array,
    scale: np.float32,
    scalars: Float64Array,
) -> None:
    """n' = n + g^2; z += g - (r(n') - r(n)) / lr w; w = -soft(z, l1) / (r(n') / lr + 2 l2).

    r(n) = n^-power, soft(z, l1) = sign(z) max(|z| - l1, 0).
    """
    inverse, power = np.float32(scalars[0]), scalars[1]
    l1, l2, shrinkage = np.float32(scalars[2]), np.float32(scalars[3]), np.float32(scalars[4])
    two = np.float32(2.0)
    dim = gradients.shape[1]
    for i in range(positions.size):
        prefetch_ahead(rows, positions, i)
        row = positions[i]
        if row < 0:
            continue
        vector, gradient = rows[row, :dim], gradients[i]
        sums, linear = rows[row, dim : 2 * dim], rows[row, 2 * dim : 3 * dim]
        for c in range(dim):
            g, w = gradient[c] * scale, vector[c]
            n = sums[c] + g * g
            root = _root(n, power)
            sigma = (root - _root(sums[c], power)) * inverse
            z = linear[c] + (g + two * shrinkage * w) - sigma * w
            sums[c] = n
            linear[c] = z
            soft = max(abs(z) - l1, np.float32(0.0))
            vector[c] = -math.copysign(soft, z) / (root * inverse + two * l2)


@njit(cache=True, nogil=True, error_model="numpy")
def row_ftrl(
    rows: Float32Array,
    positions: Int64Array,
    gradients: Float32Array,
    scale: np.float32,
    scalars: Float64Array,
) -> None:
    """n and z as in `ftrl`; with N the norm of the row's z:

    w = -z (N - l1) / N / (r(n') / lr + 2 l2) where N > l1, else the whole row is 0.
    """
    inverse, power = np.float32(scalars[0]), scalars[1]
    l1, l2, shrinkage = scalars[2], np.float32(scalars[3]), np.float32(scalars[4])
    two = np.float32(2.0)
    dim = gradients.shape[1]
    for i in range(positions.size):
        prefetch_ahead(rows, positions, i)
        row = positions[i]
        if row < 0:
            continue
        vector, gradient = rows[row, :dim], gradients[i]
        sums, linear = rows[row, dim : 2 * dim], rows[row, 2 * dim : 3 * dim]
        squares = 0.0
        for c in range(dim):
            g, w = gradient[c] * scale, vector[c]
            n = sums[c] + g * g
            sigma = (_root(n, power) - _root(sums[c], power)) * inverse
            z = linear[c] + (g + two * shrinkage * w) - sigma * w
            sums[c] = n
            linear[c] = z
            squares += np.float64(z) * np.float64(z)
        norm = math.sqrt(squares)
        kept = np.float32((norm - l1) / norm) if norm > l1 else np.float32(0.0)
        for c in range(dim):
            denominator = _root(sums[c], power) * inverse + two * l2
            vector[c] = -(linear[c] * kept) / denominator
