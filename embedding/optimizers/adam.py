"""Kernels of the Adam family; the signature is described in `optimizers`."""

import math

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.kernels.prefetch import prefetch_ahead
from embedding.optimizers.gradient import mean_square

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]


@njit(cache=True, nogil=True, error_model="numpy")
def adam(
    rows: Float32Array,
    positions: Int64Array,
    gradients: Float32Array,
    scale: np.float32,
    scalars: Float64Array,
) -> None:
    """m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; w -= alpha m / (sqrt(v) + epsilon).

    Scalars: (unused), alpha = lr sqrt(1 - b2^t) / (1 - b1^t), b1, b2, epsilon.
    Source: Kingma and Ba 2015, with epsilon and t as in DeepRec's AdamAsyncOptimizer.
    """
    alpha = np.float32(scalars[1])
    beta1, rest1 = np.float32(scalars[2]), np.float32(1.0 - scalars[2])
    beta2, rest2 = np.float32(scalars[3]), np.float32(1.0 - scalars[3])
    epsilon = np.float32(scalars[4])
    dim = gradients.shape[1]
    for i in range(positions.size):
        prefetch_ahead(rows, positions, i)
        row = positions[i]
        if row < 0:
            continue
        vector, gradient = rows[row, :dim], gradients[i]
        means, squares = rows[row, dim : 2 * dim], rows[row, 2 * dim : 3 * dim]
        for c in range(dim):
            g = gradient[c] * scale
            m = beta1 * means[c] + rest1 * g
            v = beta2 * squares[c] + rest2 * (g * g)
            means[c] = m
            squares[c] = v
            vector[c] -= alpha * m / (math.sqrt(v) + epsilon)


@njit(cache=True, nogil=True, error_model="numpy")
def momentum_rmsprop(
    rows: Float32Array,
    positions: Int64Array,
    gradients: Float32Array,
    scale: np.float32,
    scalars: Float64Array,
) -> None:
    """v = b2 v + (1 - b2) g^2; m = b1 m + lr g / sqrt(v + epsilon); w -= m.

    Scalars: lr, (unused), b1, b2, epsilon. No bias correction.
    Source: DeepRec's AdamAsyncOptimizer with apply_sparse_rmsprop.
    """
    learning_rate, epsilon = np.float32(scalars[0]), np.float32(scalars[4])
    beta1, beta2 = np.float32(scalars[2]), np.float32(scalars[3])
    rest2 = np.float32(1.0 - scalars[3])
    dim = gradients.shape[1]
    for i in range(positions.size):
        prefetch_ahead(rows, positions, i)
        row = positions[i]
        if row < 0:
            continue
        vector, gradient = rows[row, :dim], gradients[i]
        means, squares = rows[row, dim : 2 * dim], rows[row, 2 * dim : 3 * dim]
        for c in range(dim):
            g = gradient[c] * scale
            v = beta2 * squares[c] + rest2 * (g * g)
            m = beta1 * means[c] + learning_rate * g / math.sqrt(v + epsilon)
            means[c] = m
            squares[c] = v
            vector[c] -= m


@njit(cache=True, nogil=True, error_model="numpy")
def adamw(
    rows: Float32Array,
    positions: Int64Array,
    gradients: Float32Array,
    scale: np.float32,
    scalars: Float64Array,
) -> None:
    """w -= d w, then as `adam`. Scalars: d, alpha, b1, b2, epsilon.

    Source: Loshchilov and Hutter 2019; d is what `decay_scaling` makes of the weight decay.
    """
    decay, alpha = np.float32(scalars[0]), np.float32(scalars[1])
    beta1, rest1 = np.float32(scalars[2]), np.float32(1.0 - scalars[2])
    beta2, rest2 = np.float32(scalars[3]), np.float32(1.0 - scalars[3])
    epsilon = np.float32(scalars[4])
    dim = gradients.shape[1]
    for i in range(positions.size):
        prefetch_ahead(rows, positions, i)
        row = positions[i]
        if row < 0:
            continue
        vector, gradient = rows[row, :dim], gradients[i]
        means, squares = rows[row, dim : 2 * dim], rows[row, 2 * dim : 3 * dim]
        for c in range(dim):
            g = gradient[c] * scale
            m = beta1 * means[c] + rest1 * g
            v = beta2 * squares[c] + rest2 * (g * g)
            means[c] = m
            squares[c] = v
            w = vector[c] - decay * vector[c]
            vector[c] = w - alpha * m / (math.sqrt(v) + epsilon)


@njit(cache=True, nogil=True, error_model="numpy")
def rowwise_adam(
    rows: Float32Array,
    positions: Int64Array,
    gradients: Float32Array,
    scale: np.float32,
    scalars: Float64Array,
) -> None:
    """v = b2 v + (1 - b2) mean(g^2) over the row; the rest as `adam`, with its scalars."""
    alpha = np.float32(scalars[1])
    beta1, rest1 = np.float32(scalars[2]), np.float32(1.0 - scalars[2])
    beta2, rest2 = np.float32(scalars[3]), np.float32(1.0 - scalars[3])
    epsilon = np.float32(scalars[4])
    dim = gradients.shape[1]
    for i in range(positions.size):
        prefetch_ahead(rows, positions, i)
        row = positions[i]
        if row < 0:
            continue
        vector, means, gradient = rows[row, :dim], rows[row, dim : 2 * dim], gradients[i]
        v = beta2 * rows[row, 2 * dim] + rest2 * mean_square(gradients, i, scale)
        rows[row, 2 * dim] = v
        root = math.sqrt(v) + epsilon
        for c in range(dim):
            m = beta1 * means[c] + rest1 * (gradient[c] * scale)
            means[c] = m
            vector[c] -= alpha * m / root
