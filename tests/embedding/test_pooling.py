import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding.pooling import coefficients, pool, pool_gradient, pool_max, pool_max_gradient

COMBINERS = ["sum", "mean", "sqrtn"]


def reference_coefficients(bag_weights, combiner):
    """Float64 coefficients of one bag, from the definition."""
    weights = np.asarray(bag_weights, np.float64)
    divisor = {
        "sum": 1.0,
        "mean": weights.sum(),
        "sqrtn": np.sqrt(np.square(weights).sum()),
    }[combiner]
    return weights / divisor if divisor != 0 else np.zeros(len(weights))


@st.composite
def batches(draw):
    """Bags of rows of a small buffer: (dim, rows, bags of row numbers, weights by bag or None)."""
    dim = draw(st.sampled_from([1, 3, 8, 16, 33]))
    num_rows = draw(st.integers(1, 6))
    bags = draw(st.lists(st.lists(st.integers(0, num_rows - 1), max_size=5), max_size=7))
    weights = None
    if draw(st.booleans()):
        weight = st.sampled_from([-1.0, 0.0, 0.25, 1.0, 3.0])
        weights = [draw(st.lists(weight, min_size=len(b), max_size=len(b))) for b in bags]
    return dim, num_rows, bags, weights


def arrays_of(dim, bags, weights):
    offsets = np.cumsum([0] + [len(bag) for bag in bags])
    positions = np.array([row * dim for bag in bags for row in bag], np.int64)
    flat_weights = None
    if weights is not None:
        flat_weights = np.array([w for bag in weights for w in bag], np.float32)
    return positions, offsets, flat_weights


@settings(max_examples=60, deadline=None)
@given(batches(), st.sampled_from(COMBINERS), st.integers(0, 2**32 - 1))
def test_pooling_and_its_gradient_equal_their_definition(batch, combiner, seed):
    dim, num_rows, bags, weights = batch
    positions, offsets, flat_weights = arrays_of(dim, bags, weights)
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(num_rows, dim)).astype(np.float32)
    column, width = 2, dim + 3
    out = np.full((len(bags), width), 7, np.float32)
    grad_out = generator.normal(size=out.shape).astype(np.float32)
    grad_rows = np.zeros_like(rows)
    expected = np.zeros((len(bags), dim))
    expected_grad = np.zeros(rows.shape)
    for i, bag in enumerate(bags):
        bag_weights = weights[i] if weights else np.ones(len(bag))
        for row, c in zip(bag, reference_coefficients(bag_weights, combiner), strict=True):
            expected[i] += c * rows[row]
            expected_grad[row] += c * grad_out[i, column : column + dim]

    coefs = coefficients(offsets, flat_weights, combiner)
    pool(rows.ravel(), positions, offsets, coefs, out, column, dim)
    pool_gradient(grad_out, column, dim, positions, offsets, coefs, grad_rows.ravel())

    np.testing.assert_allclose(out[:, column : column + dim], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(grad_rows, expected_grad, rtol=1e-5, atol=1e-5)
    assert (out[:, :column] == 7).all()
    assert (out[:, column + dim :] == 7).all()


@pytest.mark.parametrize("combiner", COMBINERS)
def test_one_key_a_sample_pools_as_bags_of_one(combiner):
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(5, 4)).astype(np.float32)
    positions = generator.integers(0, 5, 9) * 4
    weights = generator.normal(size=9).astype(np.float32)
    offsets = np.arange(10)
    for given_weights in (None, weights):
        flat = coefficients(None, given_weights, combiner)
        bags = coefficients(offsets, given_weights, combiner)
        plain, bagged = np.empty((9, 4), np.float32), np.empty((9, 4), np.float32)
        pool(rows.ravel(), positions, None, flat, plain, 0, 4)
        pool(rows.ravel(), positions, offsets, bags, bagged, 0, 4)
        plain_grad, bagged_grad = np.zeros((2, 20), np.float32)
        pool_gradient(plain, 0, 4, positions, None, flat, plain_grad)
        pool_gradient(plain, 0, 4, positions, offsets, bags, bagged_grad)

        np.testing.assert_array_equal(plain, bagged)
        np.testing.assert_array_equal(plain_grad, bagged_grad)


def test_no_coefficients_are_made_where_all_are_1():
    offsets = np.array([0, 2, 3])
    weights = np.array([1, 2, 3], np.float32)

    assert all(coefficients(None, None, combiner) is None for combiner in COMBINERS)
    assert coefficients(offsets, None, "sum") is None
    assert coefficients(offsets, weights, "sum") is weights


@pytest.mark.parametrize("combiner", ["mean", "sqrtn"])
def test_a_bag_whose_weights_sum_to_0_gives_0(combiner):
    offsets = np.array([0, 2, 4])
    weights = np.array([0, 0, 1, 3], np.float32)

    coefs = coefficients(offsets, weights, combiner)

    np.testing.assert_array_equal(coefs[:2], [0, 0])
    assert (coefs[2:] > 0).all()


def test_weights_that_cancel_give_0_for_mean_only():
    offsets = np.array([0, 2])
    weights = np.array([2, -2], np.float32)

    np.testing.assert_array_equal(coefficients(offsets, weights, "mean"), [0, 0])
    np.testing.assert_allclose(
        coefficients(offsets, weights, "sqrtn"), [0.5**0.5, -(0.5**0.5)], rtol=1e-6
    )


def test_an_unknown_combiner_is_refused():
    with pytest.raises(ValueError, match=r"'sqrtn', 'max' or 'none', got 'min'"):
        coefficients(None, None, "min")


def test_gradients_are_added_in_sample_order():
    # In float32 (1e8 + 1) - 1e8 is 0 and (1e8 - 1e8) + 1 is 1: the order shows.
    grad_out = np.array([[1e8], [1.0], [-1e8], [1.0]], np.float32)
    total = np.zeros(1, np.float32)

    pool_gradient(grad_out, 0, 1, np.zeros(4, np.int64), None, None, total)

    assert total[0] == 1.0


def test_gradients_are_added_to_what_is_there():
    total = np.array([10, 20], np.float32)

    pool_gradient(np.ones((1, 2), np.float32), 0, 2, np.zeros(1, np.int64), None, None, total)

    np.testing.assert_array_equal(total, [11, 21])


def test_rows_may_be_read_only():
    rows = np.arange(4, dtype=np.float32)
    rows.flags.writeable = False
    out = np.empty((1, 2), np.float32)

    pool(rows, np.array([2]), None, None, out, 0, 2)

    np.testing.assert_array_equal(out, [[2, 3]])


def test_a_part_of_a_batch_is_pooled_with_its_part_of_the_offsets():
    rows = np.arange(12, dtype=np.float32)
    positions = np.array([0, 4, 8, 4])
    offsets = np.array([0, 2, 3, 4])
    coefs = coefficients(offsets, np.array([1, 2, 3, 4], np.float32), "sum")
    whole, part = np.empty((3, 4), np.float32), np.empty((2, 4), np.float32)

    pool(rows, positions, offsets, coefs, whole, 0, 4)
    pool(rows, positions, offsets[1:], coefs, part, 0, 4)

    np.testing.assert_array_equal(part, whole[1:])


def test_a_maximum_is_that_of_each_element_and_of_nothing_zero():
    rows = np.array([[-1, 5], [-2, 6], [-3, 4]], np.float32)
    out = np.full((3, 4), 7, np.float32)

    pool_max(rows.ravel(), np.array([4, 0, 2]), np.array([0, 2, 2, 3]), out, 1, 2)

    np.testing.assert_array_equal(out, [[7, -1, 5, 7], [7, 0, 0, 7], [7, -2, 6, 7]])


def test_the_gradient_of_a_maximum_goes_to_the_first_occurrence_that_reaches_it():
    rows = np.array([[1, 9], [3, 2], [3, 9]], np.float32)
    grad_out = np.array([[10, 20], [0, 0], [3, 4]], np.float32)
    grad = np.ones((3, 2), np.float32)

    pool_max_gradient(
        grad_out, 0, 2, rows.ravel(), np.array([0, 2, 4, 2]), np.array([0, 3, 3, 4]), grad.ravel()
    )

    np.testing.assert_array_equal(grad, [[1, 21], [14, 5], [1, 1]])


def test_a_maximum_takes_no_weights():
    assert coefficients(np.array([0, 2]), None, "max") is None
    with pytest.raises(ValueError, match="takes no weights"):
        coefficients(None, np.ones(2, np.float32), "max")
