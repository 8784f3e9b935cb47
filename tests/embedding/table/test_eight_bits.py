"""Vectors of 8 bits: a scale for each row, which rounds nothing twice."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding import Adagrad, EmbeddingVariable, RowwiseAdagrad, Sgd, TableSpec, step_scalars
from embedding.spec.initial_values import Constant, Uniform
from embedding.table.precision import INT8, narrow_rows, places_of, read_vectors
from embedding.table.transfer import write_vectors


def table(*, dim=16, name="t", dtype="int8", **options):
    options = {"optimizer": Sgd(), "initializer": Uniform(scale=1.0), **options}
    return EmbeddingVariable(TableSpec(name=name, dim=dim, value_dtype=dtype, **options))


def apply(variable, keys, gradients, *, step=0, lr=0.05):
    scalars = step_scalars(variable.spec.optimizer, learning_rate=lr, step=step)
    ones = np.ones(len(keys), np.int64)
    variable.apply(keys, ones, gradients, None, step=step, scale=1.0, scalars=scalars)


def nearest(vectors):
    """Write vectors and read them back."""
    vectors = np.atleast_2d(np.asarray(vectors, np.float32))
    n, dim = vectors.shape
    variable, out = table(dim=dim), np.empty((n, dim), np.float32)
    arrays = variable._rows.arrays
    write_vectors(arrays, np.arange(n), INT8, vectors)
    read_vectors(arrays.values, np.arange(n), INT8, out)
    return out


def drawn(vectors, *, step=0, seed=7, keys=None):
    n, dim = vectors.shape
    values, out = np.zeros((n, places_of(dim, INT8)), np.float32), np.empty((n, dim), np.float32)
    keys = np.arange(n) if keys is None else keys
    narrow_rows(values, np.arange(n), INT8, dim, vectors, keys, np.uint64(seed), step)
    read_vectors(values, np.arange(n), INT8, out)
    return out


finite = st.floats(width=32, min_value=-(2.0**120), max_value=2.0**120)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 20).flatmap(lambda n: st.lists(finite, min_size=n, max_size=n)))
def test_no_value_is_off_by_more_than_half_of_the_scale_and_nothing_is_rounded_twice(row):
    once = nearest(row)

    largest = max(abs(np.float32(value)) for value in row)
    scale = max(2.0 ** np.ceil(np.log2(largest / 127)) if largest else 0.0, 2.0**-126)
    assert (abs(once[0].astype(np.float64) - np.float32(row)) <= scale / 2).all()
    assert np.array_equal(nearest(once), once)
    assert np.array_equal(drawn(once), once)


def test_values_at_the_ends_of_the_range():
    largest = np.finfo(np.float32).max
    rows = [[0, -0.0, 0], [127, 1, -127], [128, 1, 64], [largest, 0, -largest], [1e-45, 1e-38, 0]]
    found = nearest(rows)

    assert found[:2].tolist() == [[0, 0, 0], [127, 1, -127]]
    assert found[2].tolist() == [128, 2, 64]
    assert np.isfinite(found).all()
    assert abs(found[4] - rows[4]).max() <= 2.0**-127


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_reads_as_such(bad):
    found = nearest([[1, bad, 2], [1, 2, 3]])

    assert np.isnan(found[0]).all()
    assert np.isfinite(found[1]).all()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.77])
def test_a_value_is_rounded_up_as_often_as_it_is_far_up(share):
    n = 40_000
    vectors = np.tile(np.array([127, 5 + share, -5 - share], np.float32), (n, 1))

    out = drawn(vectors)

    assert (out[:, 0] == 127).all()
    deviation = (share * (1 - share) / n) ** 0.5
    for column in (1, 2):
        assert set(np.unique(abs(out[:, column]))) == {5, 6}
        assert abs((abs(out[:, column]) == 6).mean() - share) < 5 * deviation
    assert abs(np.corrcoef(out[:, 1:].T)[0, 1]) < 5 / n**0.5


def test_draws_depend_on_seed_key_step_and_column_alone():
    vectors = np.random.default_rng(1).normal(size=(300, 7)).astype(np.float32)
    order = np.random.default_rng(2).permutation(300)
    once = drawn(vectors)

    assert np.array_equal(drawn(vectors[order], keys=order), once[order])
    for other in ({"step": 1}, {"seed": 8}, {"keys": np.arange(300) + 1000}):
        assert (drawn(vectors, **other) != once).any()


def test_steps_far_below_the_scale_move_rows_as_in_float32():
    narrow, wide = (
        table(dtype=dtype, initializer=Constant(value=1.0)) for dtype in ("int8", "float32")
    )
    keys, gradients = np.arange(2000), np.ones((2000, 16), np.float32)
    gradients[:, 0] = 0  # so that the scale stays what it is
    for step in range(100):
        for each in (narrow, wide):
            apply(each, keys, gradients, step=step, lr=2.0**-6 / 20)

    moved, expected = (1 - each.export().vectors[:, 1:].mean() for each in (narrow, wide))
    assert moved == pytest.approx(expected, rel=0.02)
    assert (narrow.export().vectors[:, 0] == 1).all(), "what has no gradient is not rounded anew"


@pytest.mark.parametrize("dim", [1, 3, 4, 16, 33])
@pytest.mark.parametrize("optimizer", [Adagrad(), RowwiseAdagrad()])
def test_rows_that_have_been_elsewhere_go_on_to_the_same_bits(dim, optimizer):
    still = table(dim=dim, optimizer=optimizer)
    moved = table(dim=dim, optimizer=optimizer)
    keys = np.array([0, -1, 7, 2**63 - 1, -(2**63), *range(100, 600)])
    rng = np.random.default_rng(dim)
    for step in range(6):
        gradients = rng.normal(size=(len(keys), dim)).astype(np.float32)
        for each in (still, moved):
            apply(each, keys, gradients, step=step)
        again = table(dim=dim, optimizer=optimizer)
        again.import_rows(moved.export())
        moved = again

    one, other = still.export(), moved.export()
    assert one.vectors.tobytes() == other.vectors.tobytes()
    assert one.slots.tobytes() == other.slots.tobytes()


def test_a_new_row_holds_what_a_pull_of_its_key_returned():
    variable, keys = table(dim=5), np.arange(100)
    before, admitted = np.empty((100, 5), np.float32), np.empty(100, np.uint8)
    variable.pull(keys, None, before, admitted)

    apply(variable, keys, np.zeros((100, 5), np.float32))

    assert np.array_equal(variable.export().vectors[np.argsort(variable.export().keys)], before)
    assert np.array_equal(nearest(before), before)


def test_a_vector_takes_a_byte_a_value_and_one_more():
    assert [4 * places_of(dim, INT8) for dim in (1, 3, 4, 15, 16, 64)] == [4, 4, 8, 16, 20, 68]
    variable = table(optimizer=RowwiseAdagrad())
    apply(variable, np.arange(1000), np.ones((1000, 16), np.float32))
    assert variable.memory()["rows"] == 1000 * 24
