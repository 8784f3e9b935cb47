"""The index kernels against a dict, with keys that crowd into few home slots."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from embedding.kernels.mixing import buckets_of, mix64
from embedding.table import index
from embedding.table.index import (
    MAX_ROWS,
    PLACES,
    WORDS,
    begin_growth,
    continue_growth,
    find,
    find_batch,
    geometry_of,
    home_of,
    insert_from,
    may_be_beyond,
    remove,
)

EXTREMES = [0, -1, 1, 2**63 - 1, -(2**63)]
LINES = 8
CAPACITY = LINES * PLACES


def home(key, lines):
    """The 34 bits of the mix that follow the bucket's 12, as a line."""
    return ((int(mix64(np.uint64(key & (2**64 - 1)))) << 12) % 2**64 >> 30) * lines >> 34


# Keys whose home is among the last and first lines: their cluster wraps around the end.
CROWDED = [key for key in range(700) if home(key, LINES) in (6, 7, 0)]


def empty(lines):
    return np.zeros((lines, WORDS), np.int64)


def entries_of(entries):
    """Keys and rows int64[lines, 5], a row -1 where the entry is empty."""
    return entries[:, :PLACES], entries.view(np.uint32)[:, 10:15].astype(np.int64) - 1


def rows_by_key(entries):
    keys, rows = entries_of(entries)
    return dict(zip(keys[rows >= 0].tolist(), rows[rows >= 0].tolist(), strict=True))


def check_empty_entries(entries):
    """What is not used is zero, and comes last in its line."""
    keys, rows = entries_of(entries)
    assert not keys[rows < 0].any()
    assert not entries.view(np.uint32)[(rows < 0).any(axis=1), 15].any()
    assert (np.diff((rows >= 0).astype(int), axis=1) <= 0).all()


def longest_search(entries, split=0, before=0):
    """Search for every key by hand, failing where one can't be reached; return the most lines."""
    lines = len(entries)
    keys, rows = entries_of(entries)
    longest = 0
    for line, place in np.argwhere(rows >= 0):
        key = int(keys[line, place])
        start = home(key, before) if home(key, before) < split else home(key, lines)
        distance = (int(line) - start) % lines
        between = (start + np.arange(distance)) % lines
        assert (rows[between] >= 0).all(), "a line with room cuts a key off from its home"
        longest = max(longest, distance + 1)
    return longest


@njit
def insert_one(entries, split, key, row, before=0):
    geometry = geometry_of(entries, split, before)
    insert_from(entries, home_of(np.int64(key), geometry), geometry.lines, key, row)


@njit
def remove_one(entries, split, key, before=0):
    return remove(entries, geometry_of(entries, split, before), key)


@njit
def find_one(entries, split, key, before=0):
    return find(entries, geometry_of(entries, split, before), key)


keys = st.one_of(st.sampled_from(CROWDED), st.sampled_from(EXTREMES), st.integers(-50, 50))
actions = st.lists(st.tuples(st.booleans(), keys), max_size=120)


@settings(max_examples=200, deadline=None)
@given(actions)
def test_insert_and_remove_agree_with_a_dict(actions):
    entries, model = empty(LINES), {}
    for number, (adding, key) in enumerate(actions):
        if adding and key not in model and len(model) < CAPACITY - 1:
            insert_one(entries, 0, key, number)
            model[key] = number
        elif not adding:
            assert remove_one(entries, 0, key) == model.pop(key, -1)

    assert rows_by_key(entries) == model
    assert all(find_one(entries, 0, key) == model.get(key, -1) for key in [*CROWDED, *EXTREMES])
    longest_search(entries)
    check_empty_entries(entries)


doings = st.lists(st.tuples(st.sampled_from(["insert", "remove", "move"]), keys), max_size=80)


@pytest.mark.parametrize(("piece", "lines"), [(1, 16), (3, 10), (10, 16), (2, 9), (4, 23)])
@settings(max_examples=120, deadline=None)
@given(first=st.lists(keys, max_size=CAPACITY - 1, unique=True), then=doings)
def test_growth_in_pieces_keeps_every_key_reachable_while_others_come_and_go(
    piece, lines, first, then
):
    entries, model = empty(lines), {}
    for number, key in enumerate(first):
        insert_one(entries[:LINES], 0, key, number)
        model[key] = number
    split = begin_growth(entries, LINES)
    assert split == LINES
    for number, (action, key) in enumerate(then):
        if action == "move":
            split = continue_growth(entries, split, LINES, piece)
        elif action == "remove":
            assert remove_one(entries, split, key, LINES) == model.pop(key, -1)
        elif key not in model and len(model) < CAPACITY:
            insert_one(entries, split, key, 100 + number, LINES)
            model[key] = 100 + number
        assert rows_by_key(entries) == model
        longest_search(entries, split, LINES)
        assert all(find_one(entries, split, key, LINES) == row for key, row in model.items())
        check_empty_entries(entries)
    split = continue_growth(entries, split, LINES, LINES)

    assert split == 0
    assert rows_by_key(entries) == model
    longest_search(entries)
    check_empty_entries(entries)


def test_a_full_home_line_says_of_nearly_every_absent_key_that_it_is_nowhere():
    entries, lines = empty(64), 64
    present = np.arange(280)  # of 320 places
    for key in present:
        insert_one(entries, 0, key, key)
    absent = np.arange(1000, 3000)

    @njit
    def beyond(entries, keys):
        geometry = geometry_of(entries, 0, 0)
        count = 0
        for key in keys:
            count += may_be_beyond(entries, home_of(key, geometry))
        return count

    _, rows = entries_of(entries)
    full = (rows >= 0).all(axis=1)
    in_full = sum(full[home(int(key), lines)] for key in absent)
    assert in_full > 1000
    assert 0 < beyond(entries, absent) < 0.15 * in_full

    entries.view(np.uint32)[:, 15] = 0  # as another software's
    assert beyond(entries, absent) == in_full
    found = np.empty(present.size, np.int64)
    assert find_batch(entries, 0, 0, present, found) == 0
    assert found.tolist() == present.tolist()


@pytest.mark.parametrize("size", [0, 1, index.BLOCK - 1, index.BLOCK, index.BLOCK + 1, 1000])
def test_a_batch_finds_what_single_keys_find(size):
    entries = empty(256)
    for key in range(0, 1000, 2):
        insert_one(entries, 0, key, 3 * key)
    keys = np.random.default_rng(size).integers(-20, 1020, size)
    rows = np.empty(size, np.int64)

    find_batch(entries, 0, 0, keys, rows)

    assert rows.tolist() == [3 * k if 0 <= k < 1000 and k % 2 == 0 else -1 for k in keys.tolist()]


def test_searches_stay_short_for_a_shard_that_owns_an_eighth_of_the_buckets():
    lines, count = 16384, int(0.7 * 16384 * PLACES)
    candidates = np.arange(600_000)
    keys = candidates[buckets_of(candidates) < 512][:count]
    entries = empty(lines)
    for row, key in enumerate(keys):
        insert_one(entries, 0, key, row)

    stored, rows = entries_of(entries)
    line, _ = np.nonzero(rows >= 0)
    homes = np.array([home(int(key), lines) for key in stored[rows >= 0]])
    lengths = ((line - homes) % lines) + 1

    # Of lines drawn at random, what is too much for one goes on to the next.
    drawn = np.bincount(np.random.default_rng(1).integers(0, lines, count), minlength=lines)
    passed = itertools.accumulate(drawn, lambda rest, new: max(rest + new - PLACES, 0), initial=0)
    assert len(keys) == count
    assert lengths.mean() == pytest.approx(1 + sum(passed) / count, rel=0.05)
    assert lengths.max() < 30


def test_rows_of_all_32_bits_come_back():
    entries = empty(2)
    rows = [0, 1, 2**31 - 2, 2**31, MAX_ROWS - 1]
    for key, row in enumerate(rows):
        insert_one(entries, 0, key, row)

    assert [find_one(entries, 0, key) for key in range(5)] == rows
    assert [remove_one(entries, 0, key) for key in range(5)] == rows
    assert not entries.any()
