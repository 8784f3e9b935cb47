import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding.kernels.mixing import NUM_BUCKETS, buckets_of, mix64
from embedding.spec.composition import MultiHash, compose
from embedding.spec.table import TableSpec
from embedding.table.key_maps import map_keys, static_keys

EXTREMES = [-(2**63), -(2**63) + 1, -2, -1, 0, 1, 2**63 - 2, 2**63 - 1]
a_key = st.integers(-(2**63), 2**63 - 1) | st.sampled_from(EXTREMES)
a_modulus = st.integers(2, 2**63 - 1) | st.integers(2, 50)


def pairs(keys: list[int], modulus: int) -> list[tuple[int, int]]:
    table = TableSpec(name="t", dim=4)
    quotient, remainder = compose(table, MultiHash(modulus=modulus)).parts
    array = np.array(keys, np.int64)
    mapped = map_keys(quotient, array), map_keys(remainder, array)
    assert all(part.dtype == np.int64 for part in mapped)
    return list(zip(mapped[0].tolist(), mapped[1].tolist(), strict=True))


@settings(deadline=None)
@given(st.lists(a_key, min_size=1, max_size=20), a_modulus)
def test_a_key_is_quotient_times_modulus_plus_remainder(keys: list[int], modulus: int) -> None:
    for key, (quotient, remainder) in zip(keys, pairs(keys, modulus), strict=True):
        assert 0 <= remainder < modulus
        assert quotient * modulus + remainder == key


@settings(deadline=None)
@given(a_key, a_key, a_modulus)
def test_no_two_keys_have_both_rows_in_common(one: int, other: int, modulus: int) -> None:
    found = pairs([one, other], modulus)

    assert (found[0] == found[1]) == (one == other)


@pytest.mark.parametrize("modulus", [2, 3, 4096, 2**31, 2**62, 2**63 - 1])
def test_the_extreme_keys_are_all_told_apart(modulus: int) -> None:
    assert len(set(pairs(EXTREMES, modulus))) == len(EXTREMES)


def test_keys_of_an_undivided_part_stay_as_they_are() -> None:
    part = compose(TableSpec(name="t", dim=4), MultiHash(modulus=3)).parts[0]
    keys = np.array([5, -5], np.int64)

    assert map_keys(type(part)(table="t", dim=4), keys) is keys


# Static rows --------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(a_key, min_size=1, max_size=20), st.integers(1, 2**28))
def test_a_static_row_is_in_the_bucket_of_its_keys(keys: list[int], rows: int) -> None:
    array = np.array(keys, np.int64)

    static = static_keys(array, rows)

    assert static.dtype == np.int64
    assert buckets_of(static).tolist() == buckets_of(array).tolist()
    assert static_keys(array, rows).tolist() == static.tolist()


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_every_bucket_has_so_many_static_rows(rows: int) -> None:
    static = np.unique(static_keys(np.arange(400_000), rows))

    assert np.bincount(buckets_of(static)).tolist() == [rows] * NUM_BUCKETS


def test_keys_share_the_static_rows_of_their_bucket_evenly() -> None:
    keys = np.arange(1_000_000)
    keys = keys[buckets_of(keys) == 77]

    _, counts = np.unique(static_keys(keys, 4), return_counts=True)

    assert counts.size == 4
    assert counts.min() > keys.size / 4 * 0.6


def test_static_rows_are_spread_over_the_slots_of_a_hash_table() -> None:
    """By the bits that follow the bucket's, as an index takes them, and by the lowest."""
    static = np.unique(static_keys(np.arange(400_000), 4))
    mixes = [int(mix64(np.uint64(key & (2**64 - 1)))) for key in static.tolist()]

    assert len(mixes) == 4 * NUM_BUCKETS
    assert len({mix >> (52 - 16) & 0xFFFF for mix in mixes}) == len(mixes), "at a load of 1/4"
    assert len({mix % len(mixes) for mix in mixes}) == len(mixes)
