"""The highest rows and the histogram of frequencies, against plain Python."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding import CounterEntries, EmbeddingVariable, TableEntries, TableSpec
from embedding.spec.admission import BloomAdmission, CounterAdmission
from embedding.spec.optimizers import AdamAsync
from embedding.table.inspection import BIN_STARTS, TopRows, frequency_histogram, norms

DIM = 3
SPEC = TableSpec(name="t", dim=DIM, optimizer=AdamAsync())

any_int64 = st.integers(-(2**63), 2**63 - 1)
a_key = any_int64 | st.integers(-5, 5) | st.sampled_from([-(2**63), 2**63 - 1])
# Few values, so that there are ties.
a_number = st.integers(0, 3) | st.sampled_from([2**53, 2**53 + 1, 2**63 - 1])
a_float = st.sampled_from([0.0, -0.0, 1.0, -1.0, 3.0, 1e-30, 3e38, math.inf])
a_row = st.tuples(a_number, a_number, st.tuples(*[a_float] * DIM))
a_table = st.dictionaries(a_key, a_row, max_size=40)


def columns(rows):
    keys = np.array(list(rows), np.int64)
    n = keys.size
    vectors = np.array([row[2] for row in rows.values()], np.float32).reshape(n, DIM)
    return TableEntries(
        keys,
        np.array([row[0] for row in rows.values()], np.int64),
        np.array([row[1] for row in rows.values()], np.int64),
        vectors,
        np.hstack([vectors + 1, vectors + 2]),
    )


def filled(rows):
    table = EmbeddingVariable(SPEC)
    table.import_rows(columns(rows))
    return table


def norm(vector):
    return math.sqrt(sum(float(np.float32(x)) ** 2 for x in vector))


VALUES = {
    "frequency": lambda row: row[0],
    "version": lambda row: row[1],
    "norm": lambda row: norm(row[2]),
}


@settings(deadline=None)
@given(a_table, st.integers(0, 50), st.sampled_from(sorted(VALUES)))
def test_top_is_the_sorted_table_cut_off(rows, n, by):
    found = filled(rows).top(n, by)

    expected = sorted(rows, key=lambda key: (-VALUES[by](rows[key]), key))[:n]
    assert found.keys.tolist() == expected
    wanted = columns({key: rows[key] for key in expected})
    for name in ("frequency", "version", "vectors", "slots"):
        assert getattr(found, name).tobytes() == getattr(wanted, name).tobytes()


@settings(deadline=None)
@given(a_table, st.integers(0, 10), st.sampled_from(sorted(VALUES)), st.data())
def test_top_does_not_depend_on_the_parts_or_their_order(rows, n, by, data):
    keys = data.draw(st.permutations(list(rows)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(keys)), max_size=4)))
    parts = [keys[a:b] for a, b in zip([0, *cuts], [*cuts, len(keys)], strict=True)]
    highest = TopRows(SPEC, n, by)

    for part in parts:
        highest.add(columns({key: rows[key] for key in part}))

    assert highest.entries.keys.tolist() == filled(rows).top(n, by).keys.tolist()


def test_top_of_a_table_of_many_parts(monkeypatch):
    rows = {key: (key % 97, key % 89, (key, 0, 0)) for key in range(5000)}
    table = filled(rows)
    monkeypatch.setattr("embedding.table.state._PART_BYTES", 1000)

    for by, value in VALUES.items():
        expected = sorted(rows, key=lambda key: (-value(rows[key]), key))[:200]
        assert table.top(200, by).keys.tolist() == expected
    assert table.frequency_histogram().sum() == 5000


def test_top_copies():
    table = filled({1: (1, 1, (1, 1, 1))})

    table.top(1).vectors[:] = 0

    assert table.export().vectors.tolist() == [[1, 1, 1]]


def test_rows_that_are_not_numbers_come_first():
    table = filled({1: (1, 1, (9, 9, 9)), 2: (1, 1, (0, math.nan, 0)), 3: (1, 1, (math.nan,) * 3)})

    assert table.top(1, "norm").keys.tolist() == [2]
    assert table.top(3, "norm").keys.tolist() == [2, 3, 1]


def test_top_of_removed_rows_is_none():
    table = filled({1: (5, 1, (1, 1, 1)), 2: (4, 2, (1, 1, 1))})

    table.evict(min_version=2)

    assert table.top(10).keys.tolist() == [2]
    assert table.frequency_histogram().tolist() == [0, 0, 0, 1] + [0] * 60


def test_what_can_not_be_ranked_is_refused():
    table = filled({})

    with pytest.raises(ValueError, match="n must be >= 0, got -1"):
        table.top(-1)
    with pytest.raises(ValueError, match="by must be one of frequency, version, norm, got 'age'"):
        table.top(1, "age")
    with pytest.raises(ValueError, match="of must be rows or unadmitted, got 'counters'"):
        table.frequency_histogram("counters")


# Histogram ----------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 2**63 - 1) | st.integers(0, 20)))
def test_every_frequency_is_counted_in_the_bin_of_its_bits(frequencies):
    counts = frequency_histogram(np.array(frequencies, np.int64))

    expected = [0] * 64
    for frequency in frequencies:
        expected[frequency.bit_length()] += 1
    assert counts.tolist() == expected


def test_bins_start_where_powers_of_two_do():
    edges = np.array([(1 << i) + d for i in range(1, 63) for d in (-1, 0)], np.int64)

    counts = frequency_histogram(edges)

    assert counts.tolist() == [0, 1, *[2] * 61, 1]
    assert BIN_STARTS.tolist() == [0] + [1 << i for i in range(63)]
    assert frequency_histogram(np.array([-1, -(2**63)]))[0] == 2


def test_histograms_are_taken_in_parts(monkeypatch):
    frequency = np.random.default_rng(0).zipf(1.2, 1000) % 2**40
    whole = frequency_histogram(frequency)

    monkeypatch.setattr("embedding.table.inspection._VALUES_AT_ONCE", 7)

    assert frequency_histogram(frequency).tolist() == whole.tolist()
    assert whole.sum() == 1000


def test_rows_and_unadmitted_keys_have_histograms_of_their_own():
    table = EmbeddingVariable(TableSpec(name="t", dim=1, admission=CounterAdmission(min_count=9)))
    one = np.ones((2, 1), np.float32)
    numbers = np.array([20, 31])
    table.import_rows(TableEntries(numbers, numbers, numbers, one, one))
    unadmitted = np.array([1, 2, 3])
    table.import_counters(CounterEntries(unadmitted, unadmitted, unadmitted))

    assert np.flatnonzero(table.frequency_histogram()).tolist() == [5]
    assert table.frequency_histogram("unadmitted")[:4].tolist() == [0, 1, 2, 0]


def test_a_bloom_filter_has_no_unadmitted_keys_to_show():
    rule = BloomAdmission(min_count=3, max_elements=100)
    table = EmbeddingVariable(TableSpec(name="t", dim=1, admission=rule))
    key = np.array([1])
    table.import_counters(CounterEntries(key, key, key))

    assert table.frequency_histogram("unadmitted").sum() == 0
    assert table.frequency(key).tolist() == [1]


def test_norms_are_those_of_float64():
    vectors = np.random.default_rng(0).normal(size=(100, 17)).astype(np.float32)
    vectors[0] = 3e38

    expected = np.linalg.norm(vectors.astype(np.float64), axis=1)

    assert norms(vectors) == pytest.approx(expected, rel=1e-14)
    assert np.isfinite(norms(vectors)).all()
