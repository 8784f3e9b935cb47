import numpy as np
import pytest

from worker.models.factorization import add_pair_sums, add_pair_sums_gradient
from worker.models.interaction import Interaction
from worker.models.protocol import SampleVectors, SharedInputs

SHAPES = [
    *[(3, 2, 1), (1, 3, 16), (5, 27, 16), (2, 9, 7), (0, 4, 4), (4, 5, 33), (2, 16, 8)],
    *[(2, 17, 48), (3, 33, 3), (2, 1, 5)],
]


@pytest.fixture(params=SHAPES, ids=str)
def vectors(request):
    return np.random.default_rng(0).normal(size=request.param).astype(np.float32)


@pytest.fixture(params=[False, True], ids=["lookups only", "with a first vector"])
def first(request, vectors):
    """The first vector of each sample, or none."""
    return np.ascontiguousarray(vectors[:, 0, : vectors.shape[2] * request.param])


def pairs_of(vectors):
    return [(i, j) for i in range(vectors.shape[1]) for j in range(i)]


def scattered(vectors, has_first):
    """All vectors but the first, in random order and with gaps between them."""
    n, f, dim = vectors[:, has_first:].shape
    places = np.random.default_rng(5).permutation(n * f).reshape(f, n) * (dim + 3) + 2
    flat = np.full(n * f * (dim + 3) + 2, np.nan, np.float32)
    for (i, s), place in np.ndenumerate(places):
        flat[place : place + dim] = vectors[s, has_first + i]
    return SampleVectors(flat, places)


def test_dots_are_those_of_all_pairs_row_by_row(vectors, first):
    n, f, dim = vectors.shape
    has_first = first.shape[1] > 0
    interaction = Interaction(f - has_first, dim, has_first=has_first)
    pairs = pairs_of(vectors)
    out = np.full((n + 2, interaction.width), 7, np.float32)

    interaction.forward(first, scattered(vectors, has_first), out[1:-1])

    assert interaction.width == first.shape[1] + len(pairs)
    assert np.array_equal(out[1:-1, : first.shape[1]], first)
    exact = vectors.astype(np.float64)
    for pair, (i, j) in enumerate(pairs):
        expected = (exact[:, i] * exact[:, j]).sum(axis=1)
        found = out[1:-1, first.shape[1] + pair]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert (out[[0, -1]] == 7).all()


def test_predictions_have_the_same_elements_those_of_the_first_vector_last(vectors, first):
    n, f, dim = vectors.shape
    has_first = first.shape[1] > 0
    interaction = Interaction(f - has_first, dim, has_first=has_first)
    samples = scattered(vectors, has_first)
    expected, out = np.empty((2, n, interaction.width), np.float32)
    interaction.forward(first, samples, expected)

    interaction.predict(first, samples, out)

    np.testing.assert_array_equal(out, expected[:, interaction.prediction_order])
    lookups = f - has_first
    among = lookups * (lookups - 1) // 2
    pair = {(i, j): k for k, (i, j) in enumerate(pairs_of(vectors))}
    before = [pair[i + has_first, j + has_first] for i in range(lookups) for j in range(i)]
    np.testing.assert_array_equal(
        interaction.prediction_order[:among], np.array(before, np.int64) + first.shape[1]
    )


@pytest.mark.parametrize("seed", range(6))
def test_dots_of_what_runs_of_samples_share_have_the_same_bits(seed):
    rng = np.random.default_rng(seed)
    has_first = seed % 2 == 1
    lookups, dim = ((3, 4), (26, 16), (20, 5), (2, 33), (40, 16), (17, 8))[seed]
    runs = rng.integers(1, 9, 5)
    n, group = int(runs.sum()), np.repeat(np.arange(5), runs)
    shared = rng.random(lookups) < 0.6
    shared[: seed % 3] = True
    one = rng.normal(size=(5, lookups, dim)).astype(np.float32)[group]
    other = rng.normal(size=(n, lookups, dim)).astype(np.float32)
    vectors = scattered(np.where(shared[:, None], one, other), 0)
    first = rng.normal(size=(n, dim * has_first)).astype(np.float32)
    inputs = SharedInputs.of(group, shared.tolist(), dense=False)
    interaction = Interaction(lookups, dim, has_first=has_first)
    expected = np.empty((n, interaction.width), np.float32)
    interaction.predict(first, vectors, expected)
    out = np.full_like(expected, np.nan)

    begun = interaction.predict_shared(first, vectors, inputs, out)

    assert begun == inputs.leading * (inputs.leading - 1) // 2
    assert np.isnan(out[np.setdiff1d(np.arange(n), inputs.firsts), :begun]).all()
    np.testing.assert_array_equal(out[:, begun:], expected[:, begun:])
    np.testing.assert_array_equal(out[inputs.firsts], expected[inputs.firsts])


def test_the_gradient_of_dots_is_the_other_vector_times_that_of_the_pair(vectors, first):
    n, f, dim = vectors.shape
    has_first = first.shape[1] > 0
    interaction = Interaction(f - has_first, dim, has_first=has_first)
    inputs = scattered(vectors, has_first)
    grad_out = np.random.default_rng(1).normal(size=(n, interaction.width)).astype(np.float32)
    grad_first = np.full_like(first, np.nan)
    grad_flat = np.ones_like(inputs.flat)

    interaction.backward(first, inputs, grad_out, grad_first, grad_flat)

    expected = np.zeros(vectors.shape)
    expected[:, :1, : first.shape[1]] += grad_out[:, np.newaxis, : first.shape[1]]
    for pair, (i, j) in enumerate(pairs_of(vectors), first.shape[1]):
        expected[:, i] += grad_out[:, [pair]].astype(np.float64) * vectors[:, j]
        expected[:, j] += grad_out[:, [pair]].astype(np.float64) * vectors[:, i]
    if has_first:
        np.testing.assert_allclose(grad_first, expected[:, 0], rtol=1e-4, atol=1e-4)
    elements = inputs.positions[..., np.newaxis] + np.arange(dim)
    found = grad_flat[elements].transpose(1, 0, 2) - 1
    np.testing.assert_allclose(found, expected[:, has_first:], rtol=1e-4, atol=1e-4)
    assert grad_flat.sum() == pytest.approx(grad_flat.size + found.sum(), rel=1e-3, abs=1e-2)


def test_samples_that_share_a_vector_add_their_gradients():
    positions = np.zeros((2, 3), np.int64)
    grad_flat = np.zeros(16, np.float32)
    flat = np.arange(16, dtype=np.float32)

    Interaction(2, 16, has_first=False).backward(
        np.empty((3, 0), np.float32),
        SampleVectors(flat, positions),
        np.array([[1], [2], [4]], np.float32),
        np.empty((3, 0), np.float32),
        grad_flat,
    )

    np.testing.assert_array_equal(grad_flat, 14 * flat)


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
