"""Kernels of SGD, the Adagrad family and RMSProp; the signature is described in `optimizers`."""

import math

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.kernels.lines import WIDTH, line_of, load_line, roots, store_line
from embedding.kernels.prefetch import prefetch_ahead

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]


@njit(cache=True, nogil=True, inline="always")
def mean_square(gradients: Float32Array, i: np.int64, scale: np.float32) -> np.float32:
    """Return the mean of the squares of the i-th scaled gradient, summed by column in float64."""
    total = 0.0
    for c in range(gradients.shape[1]):
        g = np.float64(gradients[i, c] * scale)
        total += g * g
    return np.float32(total / gradients.shape[1])


@njit(cache=True, nogil=True, error_model="numpy")
def sgd(
    rows: Float32Array,
    positions: Int64Array,
    gradients: Float32Array,
    scale: np.float32,
    scalars: Float64Array,
) -> None:
    """w -= lr g. Scalars: lr."""
    learning_rate = np.float32(scalars[0])
    dim = gradients.shape[1]
    for i in range(positions.size):
        prefetch_ahead(rows, positions, i)
        row = positions[i]
        if row < 0:
            continue
        vector, gradient = rows[row, :dim], gradients[i]
        for c in range(dim):
            vector[c] -= learning_rate * (gradient[c] * scale)


@njit(cache=True, nogil=True, error_model="numpy")
def sgd_momentum(
    rows: Float32Array,
    positions: Int64Array,
    gradients: Float32Array,
    scale: np.float32,
    scalars: Float64Array,
) -> None:
    """b = mu b + g; w -= lr b. Scalars: lr, mu."""
    learning_rate, momentum = np.float32(scalars[0]), np.float32(scalars[1])
    dim = gradients.shape[1]
    for i in range(positions.size):
        prefetch_ahead(rows, positions, i)
        row = positions[i]
        if row < 0:
            continue
        vector, momenta, gradient = rows[row, :dim], rows[row, dim : 2 * dim], gradients[i]
        for c in range(dim):
            b = momentum * momenta[c] + gradient[c] * scale
            momenta[c] = b
            vector[c] -= learning_rate * b


@njit(cache=True, nogil=True, error_model="numpy")
def sgd_nesterov(
    rows: Float32Array,
    positions: Int64Array,
    gradients: Float32Array,
    scale: np.float32,
    scalars: Float64Array,
) -> None:
    """b = mu b + g; w -= lr (g + mu b). Scalars: lr, mu."""
    learning_rate, momentum = np.float32(scalars[0]), np.float32(scalars[1])
    dim = gradients.shape[1]
    for i in range(positions.size):
        prefetch_ahead(rows, positions, i)
        row = positions[i]
        if row < 0:
            continue
        vector, momenta, gradient = rows[row, :dim], rows[row, dim : 2 * dim], gradients[i]
        for c in range(dim):
            g = gradient[c] * scale
            b = momentum * momenta[c] + g
            momenta[c] = b
            vector[c] -= learning_rate * (g + momentum * b)


@njit(cache=True, nogil=True, error_model="numpy")
def adagrad(
    rows: Float32Array,
    positions: Int64Array,
    gradients: Float32Array,
    scale: np.float32,
    scalars: Float64Array,
) -> None:
    """a += g^2; w -= lr g / sqrt(a). Scalars: lr. Source: Duchi et al. 2011, as in DeepRec.

    By lines, see `lines`, what a row has over by single values.
    """
    learning_rate = np.float32(scalars[0])
    learning_rates, scales = line_of(learning_rate), line_of(scale)
    dim, width = gradients.shape[1], rows.shape[1]
    whole = dim - dim % WIDTH
    values, sums = rows.reshape(-1), gradients.reshape(-1)
    for i in range(positions.size):
        prefetch_ahead(rows, positions, i)
        row = positions[i]
        if row < 0:
            continue
        vector, accumulators, gradient = row * width, row * width + dim, i * dim
        for c in range(0, whole, WIDTH):
            g = load_line(sums, gradient + c) * scales
            accumulator = load_line(values, accumulators + c) + g * g
            store_line(accumulator, values, accumulators + c)
            update = learning_rates * g / roots(accumulator)
            store_line(load_line(values, vector + c) - update, values, vector + c)
        for c in range(whole, dim):
            value = sums[gradient + c] * scale
            total = values[accumulators + c] + value * value
            values[accumulators + c] = total
            values[vector + c] -= learning_rate * value / math.sqrt(total)


@njit(cache=True, nogil=True, error_model="numpy")
def rowwise_adagrad(
    rows: Float32Array,
    positions: Int64Array,
    gradients: Float32Array,
    scale: np.float32,
    scalars: Float64Array,
) -> None:
    """a += mean(g^2) over the row; w -= lr g / sqrt(a). Scalars: lr."""
    learning_rate = np.float32(scalars[0])
    dim = gradients.shape[1]
    for i in range(positions.size):
        prefetch_ahead(rows, positions, i)
        row = positions[i]
        if row < 0:
            continue
        vector, gradient = rows[row, :dim], gradients[i]
        accumulator = rows[row, dim] + mean_square(gradients, i, scale)
        rows[row, dim] = accumulator
        root = math.sqrt(accumulator)
        for c in range(dim):
            vector[c] -= learning_rate * (gradient[c] * scale) / root


@njit(cache=True, nogil=True)
def power(rate: float, exponent: int) -> float:
    """Return rate^exponent by squaring: multiplications only, so alike on every machine."""
    result = 1.0
    while exponent > 0:
        if exponent & 1:
            result *= rate
        rate *= rate
        exponent >>= 1
    return result


@njit(cache=True, nogil=True, error_model="numpy")
def adagrad_decay(
    rows: Float32Array,
    positions: Int64Array,
    gradients: Float32Array,
    scale: np.float32,
    scalars: Float64Array,
) -> None:
    """Once a new period P > p: a = max(a rate^(P - p), a0), p = P. Then as Adagrad.

    Scalars: lr, P, rate, a0, and the most periods that one update catches up (0: all).
    The slot of p is one number or as wide as the vector; the first counts.
    Source: DeepRec's AdagradDecayOptimizer catches up one period; its p starts at 0, too.
    """
    learning_rate, baseline = np.float32(scalars[0]), np.float32(scalars[3])
    period, rate, most = np.int64(scalars[1]), scalars[2], np.int64(scalars[4])
    dim = gradients.shape[1]
    for i in range(positions.size):
        prefetch_ahead(rows, positions, i)
        row = positions[i]
        if row < 0:
            continue
        vector, accumulators, gradient = rows[row, :dim], rows[row, dim : 2 * dim], gradients[i]
        missed = period - np.int64(rows[row, 2 * dim])
        if missed > 0:
            if most > 0:
                missed = min(missed, most)
            kept = np.float32(power(rate, missed))
            caught_up = rows[row, 2 * dim] + np.float32(missed)
            for c in range(2 * dim, rows.shape[1]):
                rows[row, c] = caught_up
            for c in range(dim):
                accumulators[c] = max(accumulators[c] * kept, baseline)
        for c in range(dim):
            g = gradient[c] * scale
            accumulator = accumulators[c] + g * g
            accumulators[c] = accumulator
            vector[c] -= learning_rate * g / math.sqrt(accumulator)


@njit(cache=True, nogil=True, error_model="numpy")
def rmsprop(
    rows: Float32Array,
    positions: Int64Array,
    gradients: Float32Array,
    scale: np.float32,
    scalars: Float64Array,
) -> None:
    """v = d v + (1 - d) g^2; w -= lr g / (sqrt(v) + epsilon). Scalars: lr, d, epsilon, (mu)."""
    learning_rate, epsilon = np.float32(scalars[0]), np.float32(scalars[2])
    decay, rest = np.float32(scalars[1]), np.float32(1.0 - scalars[1])
    dim = gradients.shape[1]
    for i in range(positions.size):
        prefetch_ahead(rows, positions, i)
        row = positions[i]
        if row < 0:
            continue
        vector, squares, gradient = rows[row, :dim], rows[row, dim : 2 * dim], gradients[i]
        for c in range(dim):
            g = gradient[c] * scale
            v = decay * squares[c] + rest * (g * g)
            squares[c] = v
            vector[c] -= learning_rate * g / (math.sqrt(v) + epsilon)


@njit(cache=True, nogil=True, error_model="numpy")
def rmsprop_momentum(
    rows: Float32Array,
    positions: Int64Array,
    gradients: Float32Array,
    scale: np.float32,
    scalars: Float64Array,
) -> None:
    """v as in `rmsprop`; b = mu b + g / (sqrt(v) + epsilon); w -= lr b.

    Scalars: lr, d, epsilon, mu.
    """
    learning_rate, epsilon = np.float32(scalars[0]), np.float32(scalars[2])
    decay, rest = np.float32(scalars[1]), np.float32(1.0 - scalars[1])
    momentum = np.float32(scalars[3])
    dim = gradients.shape[1]
    for i in range(positions.size):
        prefetch_ahead(rows, positions, i)
        row = positions[i]
        if row < 0:
            continue
        vector, gradient = rows[row, :dim], gradients[i]
        squares, momenta = rows[row, dim : 2 * dim], rows[row, 2 * dim : 3 * dim]
        for c in range(dim):
            g = gradient[c] * scale
            v = decay * squares[c] + rest * (g * g)
            b = momentum * momenta[c] + g / (math.sqrt(v) + epsilon)
            squares[c] = v
            momenta[c] = b
            vector[c] -= learning_rate * b
