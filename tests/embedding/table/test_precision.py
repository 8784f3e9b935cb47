"""Vectors of 16 bits: which values they can hold, and how they are rounded."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from embedding import EmbeddingVariable, TableEntries, TableSpec, step_scalars
from embedding.kernels.finite import all_finite
from embedding.kernels.mixing import mix64
from embedding.spec.initial_values import Constant, Normal, Uniform
from embedding.spec.json_form import table_from_json, to_json
from embedding.spec.optimizers import OPTIMIZERS, Sgd
from embedding.table.precision import kind_of, narrow_rows, read_vector, stored_width, write_vector

NARROW = ("float16", "bfloat16")
QUANTUM = {"float16": 2.0**-10, "bfloat16": 2.0**-7}  # distance of two values from 1 on


@njit
def read_vectors(values, rows, kind, out):
    for i in range(rows.size):
        read_vector(values, rows[i], kind, out, i, out.shape[1])


@njit
def write_vectors(values, rows, kind, vectors):
    for i in range(rows.size):
        write_vector(values, rows[i], kind, vectors, i, vectors.shape[1])


def all_values(dtype):
    """Every number of 16 bits, as float32: what read_vectors has to return."""
    bits = np.arange(65536, dtype=np.uint16)
    if dtype == "float16":
        return bits, bits.view(np.float16).astype(np.float32)
    return bits, (bits.astype(np.uint32) << 16).view(np.float32)


def stored(bits):
    """One row for two values."""
    return bits.astype(np.uint16).view(np.float32).reshape(-1, 1).copy()


def nearest(dtype, values):
    """Round through the table's kernels: write vectors of one row each, read them back."""
    vectors = np.asarray(values, np.float32).reshape(-1, 1)
    rows = np.arange(len(vectors))
    memory = np.zeros((len(vectors), 1), np.float32)
    write_vectors(memory, rows, kind_of(dtype), vectors)
    out = np.empty_like(vectors)
    read_vectors(memory, rows, kind_of(dtype), out)
    return out[:, 0]


@pytest.mark.parametrize("dtype", NARROW)
def test_every_number_of_16_bits_is_read_exactly(dtype):
    bits, values = all_values(dtype)
    out = np.empty((32768, 2), np.float32)

    read_vectors(stored(bits), np.arange(32768), kind_of(dtype), out)

    numbers = ~np.isnan(values)
    assert np.array_equal(out.reshape(-1)[numbers].view(np.uint32), values[numbers].view(np.uint32))
    assert np.isnan(out.reshape(-1)[~numbers]).all()


@pytest.mark.parametrize("dtype", NARROW)
def test_what_can_be_held_is_kept_as_it_is(dtype):
    _, values = all_values(dtype)
    numbers = values[~np.isnan(values)]

    assert np.array_equal(nearest(dtype, numbers).view(np.uint32), numbers.view(np.uint32))
    assert np.isnan(nearest(dtype, [np.nan, -np.nan])).all()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_writing_rounds_to_the_nearest(numbers):
    values = np.array(numbers, np.float32)
    for dtype in NARROW:
        _, held = all_values(dtype)
        held = np.unique(held[np.isfinite(held)]).astype(np.float64)
        right = np.clip(np.searchsorted(held, values.astype(np.float64)), 1, len(held) - 1)
        distance = np.minimum(abs(held[right] - values), abs(held[right - 1] - values))

        rounded = nearest(dtype, values).astype(np.float64)

        assert np.array_equal(abs(rounded - values.astype(np.float64)), distance)


def test_what_is_too_large_for_float16_becomes_its_largest_number():
    values = [65504, 65505, 1e9, -7e4, np.inf, -np.inf]
    assert nearest("float16", values).tolist() == [65504, 65504, 65504, -65504, np.inf, -np.inf]


def rounded(dtype, values, *, step=0, seed=7, keys=None):
    """Round rows of one vector stochastically."""
    wide = np.ascontiguousarray(values, np.float32)
    n, dim = wide.shape
    memory = np.zeros((n, (dim + 1) // 2), np.float32)
    rows = np.arange(n)
    keys = rows if keys is None else keys
    narrow_rows(memory, rows, kind_of(dtype), dim, wide, keys, np.uint64(seed), step)
    out = np.empty_like(wide)
    read_vectors(memory, rows, kind_of(dtype), out)
    return out


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.77])
@pytest.mark.parametrize("size", [1.0, -1.0, 2.0**-16])
def test_a_value_is_rounded_up_as_often_as_it_is_far_up(dtype, share, size):
    # 2^-16 is below the normal numbers of float16, where two values are 2^-24 apart.
    small = dtype == "float16" and abs(size) < 1
    quantum = 2.0**-24 if small else abs(size) * QUANTUM[dtype]
    value = np.float32(size + np.sign(size) * share * quantum)
    n = 40_000

    out = rounded(dtype, np.full((n, 3), value))

    ups = abs(out) > abs(size)
    assert set(np.unique(out)) == {np.float32(size), np.float32(size + np.sign(size) * quantum)}
    exact = (abs(float(value)) - abs(size)) / quantum
    for column in range(3):
        deviation = (exact * (1 - exact) / n) ** 0.5
        assert abs(ups[:, column].mean() - exact) < 5 * deviation
    # Columns are drawn apart.
    assert abs(np.corrcoef(ups.T)[np.triu_indices(3, 1)]).max() < 5 / n**0.5


@pytest.mark.parametrize("dtype", NARROW)
def test_draws_depend_on_seed_key_step_and_column_alone(dtype):
    values = np.random.default_rng(1).normal(size=(500, 5)).astype(np.float32)
    order = np.random.default_rng(2).permutation(500)
    once = rounded(dtype, values)

    assert np.array_equal(rounded(dtype, values[order], keys=order), once[order])
    assert (rounded(dtype, values, step=1) != once).any()
    assert (rounded(dtype, values, seed=8) != once).any()
    assert (rounded(dtype, values, keys=np.arange(500) + 1000) != once).any()


def neighbour(dtype, value, draw):
    """The number of 16 bits that a finite float32 is rounded to by a draw of 16 bits."""
    bits, least, largest = 7, -133, 2.0**128 - 2.0**120
    if dtype == "float16":
        bits, least, largest = 10, -24, 65504.0
    size = abs(float(value))
    exponent = max(math.frexp(size)[1] - 1 - bits, least)
    if dtype == "float16":
        draw = draw >> 3 << 3 if size >= 2.0**-14 else draw * (size >= 2.0**-40)
    whole = math.floor(math.ldexp(size, -exponent) + draw / 2**16)
    return math.copysign(min(math.ldexp(whole, exponent), largest), value)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("dim", [16, 33])
def test_many_columns_are_rounded_each_by_its_own_draw(dtype, dim):
    """By mix64 of the seed, the key, the step and the column, 16 bits a column."""
    rng = np.random.default_rng(dim)
    wide = rng.normal(size=(100, dim)).astype(np.float32)
    wide[::3] = np.ldexp(wide[::3], rng.integers(-140, 120, (34, dim)))
    wide[1::3] = np.ldexp(wide[1::3], rng.integers(-44, 17, (33, dim)))
    wide[3, :7] = [0.0, -0.0, 3.4e38, -3.4e38, 1e-45, 6e-8, -65519]
    wide[4, :3] = [np.inf, -np.inf, np.nan]
    keys = rng.integers(-(2**63), 2**63 - 1, 100)
    expected = wide.copy()
    for i, c in np.argwhere(np.isfinite(wide)).tolist():
        base = int(mix64(np.uint64(int(mix64(np.uint64(int(keys[i]) % 2**64 ^ 7))) + 12)))
        draws = int(mix64(np.uint64((base + c - c % 2) % 2**64))) >> 32
        expected[i, c] = neighbour(dtype, wide[i, c], draws >> 16 if c % 2 else draws & 0xFFFF)

    out = rounded(dtype, wide, step=12, keys=keys)

    assert np.array_equal(out, expected, equal_nan=True)
    assert np.array_equal(np.signbit(out[:3]), np.signbit(wide[:3]))


@pytest.mark.parametrize("dtype", NARROW)
def test_numbers_that_can_be_held_are_never_rounded_away(dtype):
    _, values = all_values(dtype)
    values = values[np.isfinite(values)].reshape(-1, 1)

    assert np.array_equal(rounded(dtype, values), values)
    assert not np.isfinite(rounded(dtype, [[np.inf], [-np.inf], [np.nan]])).any()


# Tables ---------------------------------------------------------------------------------------


def table(dtype, *, dim=5, optimizer=None, initializer=None):
    return EmbeddingVariable(
        TableSpec(
            name="t",
            dim=dim,
            value_dtype=dtype,
            optimizer=optimizer or Sgd(),
            initializer=initializer or Uniform(scale=1.0),
        )
    )


def pull(variable, keys):
    values = np.empty((len(keys), variable.spec.dim), np.float32)
    variable.pull(keys, None, values, np.empty(len(keys), np.uint8))
    return values


def apply(variable, keys, gradients, *, step=0, lr=0.05):
    scalars = step_scalars(variable.spec.optimizer, learning_rate=lr, step=step)
    ones = np.ones(len(keys), np.int64)
    variable.apply(keys, ones, gradients, None, step=step, scale=0.5, scalars=scalars)


KEYS = np.array([0, -1, 7, 2**63 - 1, -(2**63), *range(100, 5000)])


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("initializer", [Normal(stddev=0.3), Constant(value=1 / 3)])
def test_a_new_row_holds_what_a_pull_of_its_key_returned(dtype, initializer):
    variable = table(dtype, initializer=initializer)
    before = pull(variable, KEYS)

    apply(variable, KEYS, np.zeros((len(KEYS), 5), np.float32))

    assert np.array_equal(pull(variable, KEYS), before)
    assert np.array_equal(nearest(dtype, before.reshape(-1)), before.reshape(-1))


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_update_is_that_of_float32_rounded_to_a_neighbour(dtype, optimizer):
    kind = OPTIMIZERS[optimizer]
    variable, exact = table(dtype, optimizer=kind()), table("float32", optimizer=kind())
    gradients = np.random.default_rng(0).normal(size=(len(KEYS), 5)).astype(np.float32)
    apply(variable, KEYS, gradients)
    exact.import_rows(variable.export())
    some = KEYS[::3].copy()

    apply(variable, some, gradients[: len(some)], step=1)
    apply(exact, some, gradients[: len(some)], step=1)

    narrow, wide = variable.export(), exact.export()
    assert np.array_equal(narrow.slots, wide.slots)
    # One distance, and that below the normal numbers of float16.
    assert (abs(narrow.vectors - wide.vectors) <= abs(wide.vectors) * QUANTUM[dtype] + 2**-24).all()
    untouched = ~np.isin(narrow.keys, some)
    assert np.array_equal(narrow.vectors[untouched], wide.vectors[untouched])
    assert not np.array_equal(narrow.vectors, wide.vectors)


@pytest.mark.parametrize("dtype", NARROW)
def test_steps_far_below_the_distance_of_two_values_move_rows_as_in_float32(dtype):
    variable, exact, stuck, wide = (
        table(kind, dim=16, initializer=Constant(value=1.0))
        for kind in (dtype, "float32", dtype, "float32")
    )
    keys = np.arange(2000)
    gradients = np.full((2000, 16), 2.0, np.float32)
    apply(stuck, keys, 0 * gradients)
    for step in range(100):
        # An import rounds to the nearest.
        wide.import_rows(stuck.export())
        for each in (variable, exact, wide):
            apply(each, keys, gradients, step=step, lr=QUANTUM[dtype] / 20)
        stuck.import_rows(wide.export())

    assert (pull(stuck, keys) == 1).all(), "each step is less than half of that distance"
    moved, expected = (
        1.0 - pull(each, keys).astype(np.float64).mean() for each in (variable, exact)
    )
    assert expected == pytest.approx(100 * QUANTUM[dtype] / 20, rel=1e-3)
    assert moved == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("dim", [1, 2, 5, 16])
def test_exports_come_back_bit_for_bit(dtype, dim):
    variable, other = table(dtype, dim=dim), table(dtype, dim=dim)
    gradients = np.random.default_rng(3).normal(size=(len(KEYS), dim)).astype(np.float32)
    apply(variable, KEYS, gradients)

    other.import_rows(variable.export())

    first, second = variable.export(), other.export()
    for name in ("keys", "frequency", "version", "vectors", "slots"):
        assert np.array_equal(getattr(first, name), getattr(second, name))
    assert np.array_equal(pull(variable, KEYS), pull(other, KEYS))


@pytest.mark.parametrize("dtype", NARROW)
def test_imported_vectors_are_rounded_to_the_nearest(dtype):
    variable = table(dtype, dim=2)
    vectors = np.array([[1 / 3, -1 / 3], [1e-6, 2.0]], np.float32)
    ones = np.ones(2, np.int64)
    variable.import_rows(
        TableEntries(np.array([1, 2]), ones, ones, vectors, np.empty((2, 0), np.float32))
    )

    values = pull(variable, np.array([1, 2]))

    assert np.array_equal(values.reshape(-1), nearest(dtype, vectors.reshape(-1)))


@pytest.mark.parametrize("dtype", NARROW)
def test_light_rows_are_evicted_by_what_they_hold(dtype):
    variable = table(dtype, dim=2, initializer=Constant(value=1.0))
    keys = np.arange(10)
    apply(
        variable,
        keys,
        np.where(keys < 4, 2.0, 0.0).astype(np.float32)[:, None].repeat(2, 1),
        lr=1.0,
    )

    assert variable.evict(l2_weight_threshold=0.5).tolist() == [0, 1, 2, 3]
    assert variable.evict(l2_weight_threshold=0.99).size == 0
    assert variable.evict(l2_weight_threshold=1.01).size == 6


def test_a_vector_takes_half_the_bytes():
    widths = {dtype: stored_width(table(dtype, dim=16).spec) for dtype in ("float32", *NARROW)}
    assert widths == {"float32": 16, "float16": 8, "bfloat16": 8}
    adagrad = TableSpec(name="t", dim=5, value_dtype="bfloat16")
    assert stored_width(adagrad) == 3 + 5
    variable = table("float16", dim=16)
    apply(variable, KEYS, np.zeros((len(KEYS), 16), np.float32))
    assert variable.memory()["rows"] == len(KEYS) * 32


def test_the_dtype_travels_and_is_checked():
    spec = TableSpec(name="t", dim=2, value_dtype="bfloat16")
    assert table_from_json(to_json(spec)) == spec
    with pytest.raises(
        ValueError, match="value_dtype must be one of float32, float16, bfloat16, int8"
    ):
        TableSpec(name="t", dim=2, value_dtype="float8")


def test_all_finite_sees_every_place():
    for place in (0, 5, 11):
        for bad in (np.nan, np.inf, -np.inf):
            values = np.zeros((3, 4), np.float32)
            assert all_finite(values)
            values.reshape(-1)[place] = bad
            assert not all_finite(values)
