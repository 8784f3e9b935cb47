import numpy as np
import pytest

from worker.models.factorization import add_pair_sums, add_pair_sums_gradient
from worker.models.interaction import PairwiseDots

SHAPES = [(3, 2, 1), (1, 3, 16), (5, 27, 16), (2, 9, 7), (0, 4, 4)]


@pytest.fixture(params=SHAPES, ids=str)
def vectors(request):
    return np.random.default_rng(0).normal(size=request.param).astype(np.float32)


def pairs_of(vectors):
    return [(i, j) for i in range(vectors.shape[1]) for j in range(i)]


def test_dots_are_those_of_all_pairs_row_by_row(vectors):
    n, f, dim = vectors.shape
    pairs = pairs_of(vectors)
    dots = PairwiseDots(f, dim)
    # The columns beside the dot products belong to others.
    out = np.full((n, len(pairs) + 2), 7, np.float32)

    dots.forward(vectors.reshape(n, f * dim), out[:, 1:-1])

    exact = vectors.astype(np.float64)
    for pair, (i, j) in enumerate(pairs):
        expected = (exact[:, i] * exact[:, j]).sum(axis=1)
        np.testing.assert_allclose(out[:, 1 + pair], expected, rtol=1e-4, atol=1e-5)
    assert dots.num_pairs == len(pairs)
    assert (out[:, [0, -1]] == 7).all()


def test_the_gradient_of_dots_is_the_other_vector_times_that_of_the_pair(vectors):
    n, f, dim = vectors.shape
    pairs = pairs_of(vectors)
    dots = PairwiseDots(f, dim)
    grad_out = np.random.default_rng(1).normal(size=(n, len(pairs))).astype(np.float32)
    grad = np.full((n, f * dim), np.nan, np.float32)

    dots.backward(vectors.reshape(n, f * dim), grad_out, grad)

    expected = np.zeros(vectors.shape)
    for pair, (i, j) in enumerate(pairs):
        expected[:, i] += grad_out[:, [pair]].astype(np.float64) * vectors[:, j]
        expected[:, j] += grad_out[:, [pair]].astype(np.float64) * vectors[:, i]
    np.testing.assert_allclose(grad.reshape(vectors.shape), expected, rtol=1e-4, atol=1e-4)


def test_pair_sums_are_the_sums_of_the_dots_of_all_pairs(vectors):
    logits = np.ones(len(vectors), np.float32)

    add_pair_sums(vectors, logits)

    exact = vectors.astype(np.float64)
    expected = sum((exact[:, i] * exact[:, j]).sum(axis=1) for i, j in pairs_of(vectors))
    np.testing.assert_allclose(logits, 1 + expected, rtol=1e-4, atol=1e-4)


def test_the_gradient_of_pair_sums_is_the_sum_of_the_others(vectors):
    grad_logits = np.random.default_rng(1).normal(size=len(vectors)).astype(np.float32)
    grad = np.ones_like(vectors)

    add_pair_sums_gradient(vectors, grad_logits, grad)

    expected = np.ones(vectors.shape)
    for i, j in pairs_of(vectors):
        expected[:, i] += grad_logits[:, None].astype(np.float64) * vectors[:, j]
        expected[:, j] += grad_logits[:, None].astype(np.float64) * vectors[:, i]
    np.testing.assert_allclose(grad, expected, rtol=1e-4, atol=1e-4)
