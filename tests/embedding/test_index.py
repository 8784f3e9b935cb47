"""The index kernels against a dict, with keys that crowd into few home slots."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding import index
from embedding.index import collect, find, find_batch, insert, remove, spread_over_double
from embedding.mixing import buckets_of, mix64

EXTREMES = [0, -1, 1, 2**63 - 1, -(2**63)]
CAPACITY = 32

_HOMES = [int(mix64(np.uint64(k))) & (CAPACITY - 1) for k in range(3000)]
# Keys whose home is among the last and first slots: their cluster wraps around the end.
CROWDED = [k for k, home in enumerate(_HOMES) if home in (29, 31, 0)]


def rows_by_key(entries):
    used = entries[:, 1] != 0
    return dict(zip(entries[used, 0].tolist(), (entries[used, 1] - 1).tolist(), strict=True))


def longest_probe(entries):
    """Probe for every key by hand, failing where one can't be reached; return the longest."""
    mask = len(entries) - 1
    longest = 0
    for slot in np.flatnonzero(entries[:, 1]):
        home = int(mix64(np.uint64(int(entries[slot, 0]) & (2**64 - 1)))) & mask
        distance = (int(slot) - home) & mask
        between = (home + np.arange(distance)) & mask
        assert (entries[between, 1] != 0).all(), "an empty slot cuts a key off from its home"
        longest = max(longest, distance + 1)
    return longest


keys = st.one_of(st.sampled_from(CROWDED), st.sampled_from(EXTREMES), st.integers(-50, 50))
actions = st.lists(st.tuples(st.booleans(), keys), max_size=120)


@settings(max_examples=200, deadline=None)
@given(actions)
def test_insert_and_remove_agree_with_a_dict(actions):
    entries, model = np.zeros((CAPACITY, 2), np.int64), {}
    for number, (adding, key) in enumerate(actions):
        if adding and key not in model and len(model) < CAPACITY - 1:
            insert(entries, key, number)
            model[key] = number
        elif not adding:
            assert remove(entries, key) == model.pop(key, -1)

    assert rows_by_key(entries) == model
    assert all(find(entries, key) == model.get(key, -1) for key in [*CROWDED[:40], *EXTREMES])
    longest_probe(entries)
    assert not entries[entries[:, 1] == 0].any()


@settings(max_examples=200, deadline=None)
@given(st.lists(keys, max_size=CAPACITY - 1, unique=True))
def test_doubling_keeps_every_key_reachable(keys):
    entries = np.zeros((2 * CAPACITY, 2), np.int64)
    for number, key in enumerate(keys):
        insert(entries[:CAPACITY], key, number)

    spread_over_double(entries)

    assert rows_by_key(entries) == {key: number for number, key in enumerate(keys)}
    longest_probe(entries)
    assert not entries[entries[:, 1] == 0].any()


@pytest.mark.parametrize("size", [0, 1, index.BLOCK - 1, index.BLOCK, index.BLOCK + 1, 1000])
def test_a_batch_finds_what_single_keys_find(size):
    entries = np.zeros((1024, 2), np.int64)
    for key in range(0, 1000, 2):
        insert(entries, key, 3 * key)
    keys = np.random.default_rng(size).integers(-20, 1020, size)
    rows = np.empty(size, np.int64)

    find_batch(entries, keys, rows)

    assert rows.tolist() == [3 * k if 0 <= k < 1000 and k % 2 == 0 else -1 for k in keys.tolist()]


def test_collect_returns_the_keys_of_the_buckets_asked_for():
    entries = np.zeros((1024, 2), np.int64)
    all_keys = np.arange(-300, 300)
    for row, key in enumerate(all_keys):
        insert(entries, key, row)
    keys, rows = np.empty(600, np.int64), np.empty(600, np.int64)

    count = collect(entries, 1000, 3000, keys, rows)

    buckets = buckets_of(all_keys)
    wanted = all_keys[(buckets >= 1000) & (buckets < 3000)]
    assert sorted(keys[:count].tolist()) == wanted.tolist()
    assert (rows[:count] == keys[:count] + 300).all()


def test_probes_stay_short_for_a_shard_that_owns_an_eighth_of_the_buckets():
    candidates = np.arange(400_000)
    keys = candidates[buckets_of(candidates) < 512][: int(0.7 * 65536)]
    entries = np.zeros((65536, 2), np.int64)
    for row, key in enumerate(keys):
        insert(entries, key, row)

    mask = np.uint64(65535)
    slots = np.flatnonzero(entries[:, 1])
    homes = np.array([int(mix64(np.uint64(k)) & mask) for k in entries[slots, 0]])
    lengths = ((slots - homes) & 65535) + 1

    assert len(keys) == int(0.7 * 65536)
    # Linear probing at load a: (1 + 1 / (1 - a)) / 2 on average (Knuth 1963), 2.17 at .7.
    assert lengths.mean() == pytest.approx(2.17, rel=0.1)
    assert lengths.max() < 150
