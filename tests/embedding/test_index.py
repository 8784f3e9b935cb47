"""The index kernels against a dict, with keys that crowd into few home slots."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from embedding import index
from embedding.index import (
    begin_doubling,
    collect,
    continue_doubling,
    find,
    find_batch,
    geometry_of,
    insert,
    remove,
)
from embedding.mixing import buckets_of, mix64

EXTREMES = [0, -1, 1, 2**63 - 1, -(2**63)]
CAPACITY = 32


def home(key, capacity):
    """The bits of the mix that follow the bucket's 12, as a slot."""
    return (int(mix64(np.uint64(key & (2**64 - 1)))) << 12) % 2**64 * capacity >> 64


# Keys whose home is among the last and first slots: their cluster wraps around the end.
CROWDED = [key for key in range(3000) if home(key, CAPACITY) in (29, 31, 0)]


def rows_by_key(entries):
    used = entries[:, 1] != 0
    return dict(zip(entries[used, 0].tolist(), (entries[used, 1] - 1).tolist(), strict=True))


def longest_probe(entries, split=0):
    """Probe for every key by hand, failing where one can't be reached; return the longest."""
    capacity = len(entries)
    longest = 0
    for slot in np.flatnonzero(entries[:, 1]):
        key = int(entries[slot, 0])
        start = (
            home(key, capacity // 2) if home(key, capacity // 2) < split else home(key, capacity)
        )
        distance = (int(slot) - start) % capacity
        between = (start + np.arange(distance)) % capacity
        assert (entries[between, 1] != 0).all(), "an empty slot cuts a key off from its home"
        longest = max(longest, distance + 1)
    return longest


@njit
def insert_one(entries, split, key, row):
    insert(entries, geometry_of(entries, split), key, row)


@njit
def remove_one(entries, split, key):
    return remove(entries, geometry_of(entries, split), key)


@njit
def find_one(entries, split, key):
    return find(entries, geometry_of(entries, split), key)


keys = st.one_of(st.sampled_from(CROWDED), st.sampled_from(EXTREMES), st.integers(-50, 50))
actions = st.lists(st.tuples(st.booleans(), keys), max_size=120)


@settings(max_examples=200, deadline=None)
@given(actions)
def test_insert_and_remove_agree_with_a_dict(actions):
    entries, model = np.zeros((CAPACITY, 2), np.int64), {}
    for number, (adding, key) in enumerate(actions):
        if adding and key not in model and len(model) < CAPACITY - 1:
            insert_one(entries, 0, key, number)
            model[key] = number
        elif not adding:
            assert remove_one(entries, 0, key) == model.pop(key, -1)

    assert rows_by_key(entries) == model
    assert all(find_one(entries, 0, key) == model.get(key, -1) for key in [*CROWDED, *EXTREMES])
    longest_probe(entries)
    assert not entries[entries[:, 1] == 0].any()


doings = st.lists(st.tuples(st.sampled_from(["insert", "remove", "move"]), keys), max_size=80)


@pytest.mark.parametrize("piece", [1, 3, 40])
@settings(max_examples=200, deadline=None)
@given(first=st.lists(keys, max_size=CAPACITY - 1, unique=True), then=doings)
def test_doubling_in_pieces_keeps_every_key_reachable_while_others_come_and_go(piece, first, then):
    entries, model = np.zeros((2 * CAPACITY, 2), np.int64), {}
    for number, key in enumerate(first):
        insert_one(entries[:CAPACITY], 0, key, number)
        model[key] = number
    split = begin_doubling(entries)
    assert split == CAPACITY
    for number, (action, key) in enumerate(then):
        if action == "move":
            split = continue_doubling(entries, split, piece)
        elif action == "remove":
            assert remove_one(entries, split, key) == model.pop(key, -1)
        elif key not in model and len(model) < CAPACITY:
            insert_one(entries, split, key, 100 + number)
            model[key] = 100 + number
        assert rows_by_key(entries) == model
        longest_probe(entries, split)
        assert all(find_one(entries, split, key) == row for key, row in model.items())
    split = continue_doubling(entries, split, CAPACITY)

    assert split == 0
    assert rows_by_key(entries) == model
    longest_probe(entries)
    assert not entries[entries[:, 1] == 0].any()


@pytest.mark.parametrize("size", [0, 1, index.BLOCK - 1, index.BLOCK, index.BLOCK + 1, 1000])
def test_a_batch_finds_what_single_keys_find(size):
    entries = np.zeros((1024, 2), np.int64)
    for key in range(0, 1000, 2):
        insert_one(entries, 0, key, 3 * key)
    keys = np.random.default_rng(size).integers(-20, 1020, size)
    rows = np.empty(size, np.int64)

    find_batch(entries, 0, keys, rows)

    assert rows.tolist() == [3 * k if 0 <= k < 1000 and k % 2 == 0 else -1 for k in keys.tolist()]


def test_collect_returns_the_keys_of_the_buckets_asked_for():
    entries = np.zeros((1024, 2), np.int64)
    all_keys = np.arange(-300, 300)
    for row, key in enumerate(all_keys):
        insert_one(entries, 0, key, row)
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
        insert_one(entries, 0, key, row)

    slots = np.flatnonzero(entries[:, 1])
    homes = np.array([home(int(key), 65536) for key in entries[slots, 0]])
    lengths = ((slots - homes) & 65535) + 1

    assert len(keys) == int(0.7 * 65536)
    # Linear probing at load a: (1 + 1 / (1 - a)) / 2 on average (Knuth 1963), 2.17 at .7.
    assert lengths.mean() == pytest.approx(2.17, rel=0.1)
    assert lengths.max() < 150
