"""Optimizer kernels against NumPy in float32 (same bits) and float64, and published numbers.

The numbers are those of DeepRec's own tests (initial rows 1, gradient 2 unless said otherwise).
"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding.optimizers.rule import rule_for, step_scalars
from embedding.spec.optimizers import Adagrad, AdamAsync, Sgd

SPECS = [Sgd(), Adagrad(), AdamAsync(), AdamAsync(apply_sparse_rmsprop=True)]
NAMES = ["sgd", "adagrad", "adam", "rmsprop"]
each_optimizer = pytest.mark.parametrize("spec", SPECS, ids=NAMES)


def new_rows(rule, vectors):
    """Rows that start with these vectors, in the layout of a table or a dense block."""
    vectors = np.atleast_2d(np.asarray(vectors, np.float32))
    slots = np.tile(rule.initial_slots(vectors.shape[1]), (len(vectors), 1))
    return np.hstack([vectors, slots])


def twin(spec, row, gradient, scale, scalars, dtype):
    """One row's update written from the formulas; returns the new row."""
    parts = [
        part.astype(dtype) for part in np.split(row, 1 + len(rule_for(spec, sparse=True).slots))
    ]
    g = (gradient * np.float32(scale)).astype(dtype)
    if isinstance(spec, Sgd):
        (w,) = parts
        return w - dtype(scalars[0]) * g
    if isinstance(spec, Adagrad):
        w, a = parts
        a = a + g * g
        return np.concatenate([w - dtype(scalars[0]) * g / np.sqrt(a), a])
    w, m, v = parts
    lr, alpha, beta1, beta2, epsilon = (dtype(number) for number in scalars)
    v = beta2 * v + dtype(1 - scalars[3]) * (g * g)
    if spec.apply_sparse_rmsprop:
        m = beta1 * m + lr * g / np.sqrt(v + epsilon)
        return np.concatenate([w - m, m, v])
    m = beta1 * m + dtype(1 - scalars[2]) * g
    return np.concatenate([w - alpha * m / (np.sqrt(v) + epsilon), m, v])


@each_optimizer
@settings(max_examples=25, deadline=None)
@given(dim=st.integers(1, 70), seed=st.integers(0, 2**32 - 1))
def test_kernels_have_the_bits_of_float32_numpy_and_are_near_float64(spec, dim, seed):
    rng = np.random.default_rng(seed)
    rule = rule_for(spec, sparse=True)
    rows = new_rows(rule, rng.standard_normal((9, dim)))
    exact = rows.astype(np.float64)
    positions = np.array([7, -1, 0, 3])
    for step in range(3):
        scalars = step_scalars(spec, learning_rate=0.05, step=step)
        gradients = rng.standard_normal((4, dim)).astype(np.float32)
        expected = rows.copy()
        for position, gradient in zip(positions, gradients, strict=True):
            if position >= 0:
                expected[position] = twin(spec, rows[position], gradient, 0.25, scalars, np.float32)
                exact[position] = twin(spec, exact[position], gradient, 0.25, scalars, np.float64)

        rule.update(rows, positions, gradients, 0.25, scalars)

        assert np.array_equal(rows, expected)
    np.testing.assert_allclose(rows, exact, rtol=2e-5, atol=2e-6)


@each_optimizer
def test_a_parameter_gets_the_same_bits_however_wide_its_row_is(spec):
    rng = np.random.default_rng(5)
    vector, gradient = rng.standard_normal((2, 1024)).astype(np.float32)
    rule = rule_for(spec, sparse=False)
    scalars = step_scalars(spec, learning_rate=0.05, step=4)
    widths = [1024, 16, 1]
    results = []
    for width in widths:
        rows = new_rows(rule, vector.reshape(-1, width))
        gradients = gradient.reshape(-1, width)
        for _ in range(2):
            rule.update(rows, np.arange(len(rows)), gradients, np.float32(1 / 3), scalars)
        results.append(rows[:, :width].ravel())

    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])


def run(spec, *, learning_rate, steps, vector=(1.0,), gradient=(2.0,), sparse=True):
    """Return what lookups give, float32[steps + 1, dim]; gradient: of all steps, or one a step."""
    rule = rule_for(spec, sparse=sparse)
    rows = new_rows(rule, vector)
    gradients = np.broadcast_to(np.asarray(gradient, np.float32), (steps, len(vector)))
    seen = [rows[0, : len(vector)].copy()]
    for step in range(steps):
        scalars = step_scalars(spec, learning_rate=learning_rate, step=step)
        rule.update(rows, np.zeros(1, np.int64), gradients[step : step + 1], 1.0, scalars)
        seen.append(rows[0, : len(vector)].copy())
    return np.array(seen)


def test_sgd_takes_the_learning_rate_times_the_gradient_off_each_step():
    seen = run(Sgd(), learning_rate=0.1, steps=4)

    assert seen[:, 0] == pytest.approx([1 - 0.2 * k for k in range(5)], abs=1e-6)


def test_adagrad_gives_the_published_lookups():
    seen = run(Adagrad(initial_accumulator=0.1), learning_rate=0.1, steps=5)

    published = [1, 0.9012271, 0.8309542, 0.7734582, 0.7236138, 0.6790038]
    assert seen[:, 0] == pytest.approx(published, abs=2e-7)


def test_the_initial_accumulator_shortens_adagrads_first_step():
    accumulators = [1e-4, 0.1, 10.0]

    first = [run(Adagrad(initial_accumulator=a), learning_rate=0.1, steps=1) for a in accumulators]

    moved = [1 - float(seen[1, 0]) for seen in first]
    assert moved == pytest.approx([0.1 * 2 / math.sqrt(4 + a) for a in accumulators], abs=1e-6)


def test_adam_async_gives_the_published_lookups():
    seen = run(AdamAsync(), learning_rate=0.1, steps=4)

    assert seen[:, 0] == pytest.approx([1, 0.9, 0.8, 0.7, 0.6], abs=1e-6)


@pytest.mark.parametrize("sparse", [True, False])
def test_adam_async_gives_the_published_variables(sparse):
    first = run(
        AdamAsync(),
        learning_rate=0.001,
        steps=3,
        vector=(1.0, 2.0),
        gradient=(0.1, 0.1),
        sparse=sparse,
    )
    second = run(
        AdamAsync(),
        learning_rate=0.001,
        steps=3,
        vector=(3.0, 4.0),
        gradient=(0.01, 0.01),
        sparse=sparse,
    )

    assert first[1:, 0] == pytest.approx([0.999, 0.998, 0.997], abs=2e-6)
    assert first[1:, 1] == pytest.approx([1.999, 1.998, 1.997], abs=2e-6)
    assert second[1:, 0] == pytest.approx([2.999, 2.998, 2.997], abs=2e-6)


def test_the_bias_corrections_count_global_steps():
    spec = AdamAsync(beta1=0.9, beta2=0.99, epsilon=1e-7)

    scalars = step_scalars(spec, learning_rate=0.5, step=6)

    assert scalars[0] == 0.5
    assert scalars[1] == pytest.approx(0.5 * math.sqrt(1 - 0.99**7) / (1 - 0.9**7), rel=1e-15)
    assert scalars[2:] == (0.9, 0.99, 1e-7)


def test_sparse_rmsprop_changes_table_rows_and_leaves_dense_parameters_with_adam():
    plain, rmsprop = AdamAsync(), AdamAsync(apply_sparse_rmsprop=True)

    first_step = run(rmsprop, learning_rate=0.001, steps=1)

    # The first step is lr / sqrt(1 - beta2), without bias correction.
    assert 1 - float(first_step[1, 0]) == pytest.approx(0.001 / math.sqrt(0.001), rel=1e-4)
    assert rule_for(rmsprop, sparse=False) == rule_for(plain, sparse=False)
    assert rule_for(rmsprop, sparse=True) != rule_for(plain, sparse=True)


@pytest.mark.parametrize(("field", "value"), [("beta1", 0.5), ("beta2", 0.5), ("epsilon", 0.1)])
@pytest.mark.parametrize("rmsprop", [False, True])
def test_every_number_of_adam_async_matters(field, value, rmsprop):
    usual = AdamAsync(apply_sparse_rmsprop=rmsprop)
    other = AdamAsync(apply_sparse_rmsprop=rmsprop, **{field: value})
    gradients = ((2.0,), (-0.5,))

    a = run(usual, learning_rate=0.1, steps=2, gradient=gradients)
    b = run(other, learning_rate=0.1, steps=2, gradient=gradients)

    assert not np.allclose(a[2], b[2])


@each_optimizer
def test_a_wrong_number_of_scalars_is_refused_before_anything_changes(spec):
    rule = rule_for(spec, sparse=True)
    rows = new_rows(rule, [1.0])
    before = rows.copy()

    with pytest.raises(ValueError, match="step_scalars"):
        rule.update(rows, np.zeros(1, np.int64), np.ones((1, 1), np.float32), 1.0, (0.1, 0.2))

    assert np.array_equal(rows, before)
