"""The second-order term of a factorization machine, forward and backward.

The sum of the dot products of all pairs of a sample's vectors, in linear time:
1/2 (sum over k of (sum over i of v_ik)^2 - sum over i of v_ik^2).

Source: Rendle 2010, "Factorization Machines", lemma 3.1, with every feature's value 1.
"""

import numpy as np
from numba import njit

from worker.models.protocol import FloatArray


@njit(cache=True, nogil=True)
def add_pair_sums(vectors: FloatArray, logits: FloatArray) -> None:
    """Add each sample's second-order term to its logit.

    Args:
        vectors: float32[n, f, d].
        logits: float32[n], added to.
    """
    n, f, d = vectors.shape
    sums = np.empty(d, np.float32)
    squares = np.empty(d, np.float32)
    for s in range(n):
        sums[:] = 0
        squares[:] = 0
        for i in range(f):
            for k in range(d):
                sums[k] += vectors[s, i, k]
                squares[k] += vectors[s, i, k] * vectors[s, i, k]
        total = np.float32(0)
        for k in range(d):
            total += sums[k] * sums[k] - squares[k]
        logits[s] += np.float32(0.5) * total


@njit(cache=True, nogil=True)
def add_pair_sums_gradient(
    vectors: FloatArray, grad_logits: FloatArray, grad_vectors: FloatArray
) -> None:
    """Add the term's gradient, for v_i the logit's times the sum of the other vectors.

    Args:
        vectors: float32[n, f, d], as given to `add_pair_sums`.
        grad_logits: float32[n].
        grad_vectors: float32[n, f, d], added to.
    """
    n, f, d = vectors.shape
    sums = np.empty(d, np.float32)
    for s in range(n):
        sums[:] = 0
        for i in range(f):
            for k in range(d):
                sums[k] += vectors[s, i, k]
        for i in range(f):
            for k in range(d):
                grad_vectors[s, i, k] += grad_logits[s] * (sums[k] - vectors[s, i, k])
