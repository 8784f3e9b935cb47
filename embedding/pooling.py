"""Pooling: the rows of a bag become one vector, and its gradient goes back to the rows.

The rows that a batch pulled lie in one flat float32 buffer. An occurrence of a key addresses its
row by its *position*: where in the buffer the row's first column is. One pooled input is written
for each lookup, side by side in float32[n, W]; bags are given by offsets as in
`worker.data.batch.Bags`.
A run of a batch's samples is pooled with its part of `offsets` and all positions and coefficients.
"""

import numpy as np
import numpy.typing as npt
from numba import njit

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


def coefficients(
    offsets: IntArray | None, weights: FloatArray | None, combiner: str
) -> FloatArray | None:
    """Return what the row of each occurrence is multiplied by.

    sum: w; mean: w / sum(w) of the bag; sqrtn: w / sqrt(sum(w^2)) of the bag. A bag whose divisor
    is 0 gets 0, so that it pools to zeros. Divisors are float64. max and none: rows are taken as
    they are.

    Args:
        offsets: int64[n + 1], or None where every sample has one key.
        weights: float32[nnz], or None where all are 1; always None for `max` and `none`.
        combiner: `sum`, `mean`, `sqrtn`, `max` or `none`.

    Returns:
        float32[nnz], for `sum` the weights themselves; None where all are 1.

    Raises:
        ValueError: the combiner is not known, or one that takes no weights is given some.

    Source: TensorFlow's `embedding_lookup_sparse`, with 0 in place of its 0 / 0.
    """
    if combiner not in ("sum", "mean", "sqrtn", "max", "none"):
        raise ValueError(
            f"combiner must be 'sum', 'mean', 'sqrtn', 'max' or 'none', got {combiner!r}"
        )
    if combiner in ("max", "none") and weights is not None:
        raise ValueError(f"combiner {combiner!r} takes no weights: it has no use for them")
    if weights is None:
        if offsets is None or combiner in ("sum", "max", "none"):
            return None
        weights = np.ones(offsets[-1], np.float32)
    if combiner == "sum":
        return weights
    if offsets is None:
        offsets = np.arange(len(weights) + 1)
    out = np.empty(len(weights), np.float32)
    _normalize(offsets, weights, combiner == "sqrtn", out)
    return out


@njit(cache=True, nogil=True)
def _normalize(offsets: IntArray, weights: FloatArray, root: bool, out: FloatArray) -> None:
    for i in range(len(offsets) - 1):
        total = 0.0
        for o in range(offsets[i], offsets[i + 1]):
            weight = np.float64(weights[o])
            total += weight * weight if root else weight
        divisor = np.sqrt(total) if root else total
        for o in range(offsets[i], offsets[i + 1]):
            out[o] = 0.0 if divisor == 0.0 else weights[o] / divisor


@njit(cache=True, nogil=True)
def pool(
    flat: FloatArray,
    positions: IntArray,
    offsets: IntArray | None,
    coefs: FloatArray | None,
    out: FloatArray,
    column: int,
    dim: int,
) -> None:
    """Write the pooled vector of each sample into out[:, column:column + dim].

    Args:
        flat: float32[any], the pulled rows.
        positions: int64[nnz], where the row of each occurrence begins in `flat`.
        offsets: int64[n + 1], or None where every sample has one key. An empty bag gives zeros.
        coefs: float32[nnz] from `coefficients`, or None where all are 1.
        out: float32[n, W], C-contiguous.
        column: first column that is written.
        dim: width of a row.
    """
    for i in range(len(out)):
        target = out[i, column : column + dim]
        target[:] = 0
        begin, end = (i, i + 1) if offsets is None else (offsets[i], offsets[i + 1])
        for o in range(begin, end):
            row = flat[positions[o] : positions[o] + dim]
            for k in range(dim):
                target[k] += row[k] if coefs is None else coefs[o] * row[k]


@njit(cache=True, nogil=True)
def pool_gradient(
    grad_out: FloatArray,
    column: int,
    dim: int,
    positions: IntArray,
    offsets: IntArray | None,
    coefs: FloatArray | None,
    flat_grad: FloatArray,
) -> None:
    """Add the gradient of each pooled vector to the gradients of its rows, in sample order.

    Args:
        grad_out: float32[n, W], C-contiguous, gradient of what `pool` wrote.
        column, dim, positions, offsets, coefs: as given to `pool`.
        flat_grad: float32[any], laid out as `flat`; added to, so the caller zeroes it once a batch.
    """
    for i in range(len(grad_out)):
        source = grad_out[i, column : column + dim]
        begin, end = (i, i + 1) if offsets is None else (offsets[i], offsets[i + 1])
        for o in range(begin, end):
            row = flat_grad[positions[o] : positions[o] + dim]
            for k in range(dim):
                row[k] += source[k] if coefs is None else coefs[o] * source[k]


@njit(cache=True, nogil=True)
def pool_max(
    flat: FloatArray,
    positions: IntArray,
    offsets: IntArray,
    out: FloatArray,
    column: int,
    dim: int,
) -> None:
    """Write the elementwise maximum of each bag's rows into out[:, column:column + dim].

    Args:
        flat, positions, out, column, dim: as given to `pool`.
        offsets: int64[n + 1]. An empty bag gives zeros.
    """
    for i in range(len(out)):
        target = out[i, column : column + dim]
        target[:] = 0
        for o in range(offsets[i], offsets[i + 1]):
            row = flat[positions[o] : positions[o] + dim]
            for k in range(dim):
                if o == offsets[i] or row[k] > target[k]:
                    target[k] = row[k]


@njit(cache=True, nogil=True)
def pool_max_gradient(
    grad_out: FloatArray,
    column: int,
    dim: int,
    flat: FloatArray,
    positions: IntArray,
    offsets: IntArray,
    flat_grad: FloatArray,
) -> None:
    """Add the gradient of each maximum to the first occurrence in the bag that reaches it.

    Args:
        grad_out: float32[n, W], C-contiguous, gradient of what `pool_max` wrote.
        column, dim, flat, positions, offsets: as given to `pool_max`.
        flat_grad: float32[any], laid out as `flat`; added to.
    """
    first = np.empty(dim, np.int64)
    for i in range(len(grad_out)):
        if offsets[i] == offsets[i + 1]:
            continue
        first[:] = positions[offsets[i]]
        for o in range(offsets[i] + 1, offsets[i + 1]):
            for k in range(dim):
                if flat[positions[o] + k] > flat[first[k] + k]:
                    first[k] = positions[o]
        for k in range(dim):
            flat_grad[first[k] + k] += grad_out[i, column + k]


@njit(cache=True, nogil=True)
def fill_up(
    flat: FloatArray, positions: IntArray, offsets: IntArray | None, out: FloatArray
) -> None:
    """Write the rows of each bag one after another, and zeros behind them.

    Args:
        flat, positions, offsets: as given to `pool`.
        out: float32[n, L, dim], C-contiguous; no bag has more than L keys.
    """
    n, _, dim = out.shape
    for i in range(n):
        begin, end = (i, i + 1) if offsets is None else (offsets[i], offsets[i + 1])
        for o in range(begin, end):
            row = flat[positions[o] : positions[o] + dim]
            for k in range(dim):
                out[i, o - begin, k] = row[k]
        out[i, end - begin :] = 0


@njit(cache=True, nogil=True)
def fill_up_gradient(
    grad_out: FloatArray, positions: IntArray, offsets: IntArray | None, flat_grad: FloatArray
) -> None:
    """Add the gradient of what `fill_up` wrote to that of the rows, in the order of occurrences.

    What comes to the zeros behind a bag goes nowhere.

    Args:
        grad_out: float32[n, L, dim], C-contiguous.
        positions, offsets: as given to `fill_up`.
        flat_grad: float32[any], laid out as `flat`; added to.
    """
    n, _, dim = grad_out.shape
    for i in range(n):
        begin, end = (i, i + 1) if offsets is None else (offsets[i], offsets[i + 1])
        for o in range(begin, end):
            row = flat_grad[positions[o] : positions[o] + dim]
            for k in range(dim):
                row[k] += grad_out[i, o - begin, k]
