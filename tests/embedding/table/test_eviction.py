"""Eviction by weight and by budget; with age and with one another."""

import numpy as np
import pytest

from embedding import CounterEntries, EmbeddingVariable, TableEntries, TableSpec, rows_per_bucket
from embedding.kernels.mixing import NUM_BUCKETS, buckets_of
from embedding.spec.eviction import Eviction
from embedding.spec.json_form import table_from_json, to_json
from embedding.spec.optimizers import Adagrad, AdamAsync, Sgd

ONE_BUCKET = np.flatnonzero(buckets_of(np.arange(80_000)) == 99)[:12]


def filled(keys, *, vectors=None, frequency=1, version=1, optimizer=None):
    keys = np.asarray(keys, np.int64)
    n, dim = len(keys), 3
    table = EmbeddingVariable(TableSpec(name="t", dim=dim, optimizer=optimizer or Sgd()))
    table.import_rows(
        TableEntries(
            keys,
            np.broadcast_to(frequency, n).astype(np.int64),
            np.broadcast_to(version, n).astype(np.int64),
            np.ones((n, dim), np.float32) if vectors is None else np.float32(vectors),
            np.empty((n, 0), np.float32),
        )
    )
    return table


def kept(table):
    return sorted(table.export().keys.tolist())


# Weight ------------------------------------------------------------------------------------------


def test_rows_go_whose_half_squared_sum_is_below_the_threshold():
    # DeepRec's own check: .8282884, .7927219 and .6878 three times; half squared 1.029, .943, .710.
    values = np.array([[0.8282884], [0.7927219], [0.6878]]).repeat(3, axis=1)
    table = filled([0, 1, 2], vectors=values)

    assert table.evict(l2_weight_threshold=0.9).tolist() == [2]
    assert kept(table) == [0, 1]


def test_a_row_at_the_threshold_stays_and_the_norm_is_not_meant():
    table = filled([1, 2], vectors=[[2, 0, 0], [0, 1, 1]])

    assert table.evict(l2_weight_threshold=1.0).tolist() == []
    assert table.evict(l2_weight_threshold=1.0000001).tolist() == [2]
    assert table.evict(l2_weight_threshold=2.0).tolist() == []


def test_a_weight_that_is_not_a_number_is_kept_for_people_to_see():
    table = filled([1], vectors=[[np.nan, 0, 0]])

    assert table.evict(l2_weight_threshold=1e30).tolist() == []


def test_slots_do_not_count_as_weight():
    table = EmbeddingVariable(TableSpec(name="t", dim=1, optimizer=Adagrad()))
    one = np.array([1])
    zero, large = np.zeros((1, 1), np.float32), np.full((1, 1), 1e6, np.float32)
    table.import_rows(TableEntries(one, one, one, zero, large))

    assert table.evict(l2_weight_threshold=0.1).tolist() == [1]


def test_counters_have_no_weight_and_no_quota():
    table = filled([])
    keys = ONE_BUCKET
    table.import_counters(CounterEntries(keys, np.ones_like(keys), np.ones_like(keys)))

    assert table.evict(0, l2_weight_threshold=1e9, rows_per_bucket=1).tolist() == []
    assert table.evict(2).tolist() == keys.tolist()


# Budgets -----------------------------------------------------------------------------------------


def test_the_least_frequent_rows_of_a_bucket_go_first_and_smaller_keys_among_equals():
    frequency = [9, 1, 5, 5, 2, 5, 9, 9, 5, 9, 9, 9]
    table = filled(ONE_BUCKET, frequency=frequency, version=np.arange(12))

    evicted = table.evict(rows_per_bucket=8, evict_first="least_frequent")

    assert evicted.tolist() == sorted(ONE_BUCKET[[1, 4, 2, 3]].tolist())


def test_the_least_recently_updated_rows_go_first_where_that_is_asked_for():
    version = [3, 3, 8, 1, 3, 3, 9, 9, 9, 9, 9, 9]
    table = filled(ONE_BUCKET, frequency=np.arange(12), version=version)

    evicted = table.evict(rows_per_bucket=9, evict_first="least_recent")

    assert evicted.tolist() == sorted(ONE_BUCKET[[3, 0, 1]].tolist())


def test_a_quota_is_of_a_bucket_and_untouched_where_there_are_fewer():
    other = np.flatnonzero(buckets_of(np.arange(50_000)) == 100)[:5]
    table = filled([*ONE_BUCKET, *other])

    evicted = table.evict(rows_per_bucket=5)

    assert evicted.tolist() == ONE_BUCKET[:7].tolist()


def test_what_is_old_or_light_does_not_use_up_the_quota():
    version = np.arange(12)
    vectors = np.ones((12, 3))
    vectors[5:7] = 0
    table = filled(ONE_BUCKET, version=version, vectors=vectors)

    evicted = table.evict(4, l2_weight_threshold=0.1, rows_per_bucket=5, evict_first="least_recent")

    # 0 to 3 are old, 5 and 6 are light, and of the six that are left 4 is the oldest.
    assert evicted.tolist() == ONE_BUCKET[:7].tolist()
    assert len(table) == 5


@pytest.mark.parametrize("evict_first", ["least_frequent", "least_recent"])
def test_a_large_table_keeps_what_sorting_every_bucket_would_keep(evict_first):
    rng = np.random.default_rng(4)
    keys = np.unique(rng.integers(-(2**63), 2**63 - 1, 40_000))
    frequency, version = rng.integers(0, 4, (2, len(keys)))
    table = filled(keys, frequency=frequency, version=version)

    evicted = table.evict(rows_per_bucket=7, evict_first=evict_first)

    score = frequency if evict_first == "least_frequent" else version
    buckets = buckets_of(keys)
    order = np.lexsort((keys, score, buckets))
    ends = np.searchsorted(buckets[order], buckets[order], side="right")
    gone = ends - np.arange(len(keys)) > 7
    assert evicted.tolist() == sorted(keys[order][gone].tolist())
    assert np.bincount(buckets_of(table.export().keys)).max() == 7


def test_a_table_within_its_budget_of_bytes_takes_no_more_than_that():
    width, quota = 2, 64
    spec = TableSpec(
        name="t",
        dim=1,
        eviction=Eviction(max_bytes=(4 * width + 8 + 9 + 29) * NUM_BUCKETS * quota),
    )
    assert rows_per_bucket(spec) == quota
    table = EmbeddingVariable(spec)
    keys = np.arange(quota * NUM_BUCKETS * 5 // 4)
    ones = np.ones((len(keys), 1), np.float32)
    table.import_rows(TableEntries(keys, keys, keys, ones, ones))

    table.evict(rows_per_bucket=rows_per_bucket(spec))

    again = EmbeddingVariable(spec)
    again.import_rows(table.export())
    assert quota * NUM_BUCKETS * 0.99 < len(again) <= quota * NUM_BUCKETS
    assert again.memory()["total"] <= spec.eviction.max_bytes


@pytest.mark.parametrize(
    ("eviction", "quota"),
    [
        (None, 0),
        (Eviction(steps_to_live=3, l2_weight_threshold=0.5), 0),
        (Eviction(max_rows=64 * 4096), 64),
        (Eviction(max_rows=1_000_000), 244),
        # 16 values with two slots each, 8 bytes of metadata, 9 of key and flags and 29 of
        # index: 238 bytes.
        (Eviction(max_bytes=238 * 4096 * 100), 100),
        (Eviction(max_bytes=238 * 4096 * 100 - 1), 99),
        (Eviction(max_bytes=238 * 4096 * 100, max_rows=80 * 4096), 80),
        (Eviction(max_bytes=238 * 4096 * 100, max_rows=120 * 4096), 100),
    ],
)
def test_budgets_become_quotas_of_buckets(eviction, quota):
    spec = TableSpec(name="t", dim=16, optimizer=AdamAsync(), eviction=eviction)

    assert rows_per_bucket(spec) == quota


def test_a_budget_of_bytes_below_64_rows_a_bucket_is_refused():
    eviction = Eviction(max_bytes=238 * 4096 * 64 - 1)
    spec = TableSpec(name="t", dim=16, optimizer=AdamAsync(), eviction=eviction)

    with pytest.raises(ValueError, match="max_bytes must be >= 62390272"):
        rows_per_bucket(spec)


# The rule ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "at least one of steps_to_live, l2_weight_threshold, max_rows, max_bytes"),
        ({"steps_to_live": 0}, "steps_to_live must be >= 1"),
        ({"l2_weight_threshold": 0.0}, "l2_weight_threshold must be > 0"),
        ({"l2_weight_threshold": -1.0}, "l2_weight_threshold must be > 0"),
        ({"l2_weight_threshold": float("inf")}, "l2_weight_threshold must be finite"),
        ({"max_rows": 64 * 4096 - 1}, "max_rows must be >= 262144"),
        ({"max_bytes": 0}, "max_bytes must be >= 1"),
        ({"max_rows": 10**6, "evict_first": "largest"}, "evict_first must be"),
        ({"steps_to_live": 1, "every_steps": 0}, "every_steps must be >= 1"),
        ({"steps_to_live": 1, "every_steps": 10**30}, r"every_steps must be below 2\^62"),
        ({"steps_to_live": 2**63}, r"steps_to_live must be below 2\^62, got 9223372036854775808"),
        ({"max_rows": 10**30}, r"max_rows must be below 2\^62"),
        ({"max_bytes": 10**30}, r"max_bytes must be below 2\^62"),
    ],
)
def test_a_rule_out_of_range_is_refused_by_the_name_of_its_field(fields, said):
    with pytest.raises(ValueError, match=said):
        Eviction(**fields)


def test_a_rule_comes_back_from_json_and_an_old_one_without_the_new_fields_too():
    eviction = Eviction(max_rows=10**6, l2_weight_threshold=0.25, evict_first="least_recent")
    spec = TableSpec(name="t", dim=2, eviction=eviction)
    assert table_from_json(to_json(spec)) == spec

    old = to_json(spec) | {"eviction": {"steps_to_live": 8, "every_steps": 5}}
    assert table_from_json(old).eviction == Eviction(steps_to_live=8, every_steps=5)
