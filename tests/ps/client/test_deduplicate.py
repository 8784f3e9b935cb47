from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding.kernels.mixing import NUM_BUCKETS, buckets_of
from ps.client.deduplicate import Deduplicated, Deduplicator, keep_admitted
from ps.routing import Routing

a_key = st.one_of(
    st.integers(-3, 12), st.sampled_from([2**63 - 1, -(2**63), 2**52, -1]), st.integers(0, 5000)
)
a_batch = st.lists(st.lists(a_key, max_size=30), min_size=3, max_size=3)


def flat(tables: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    keys = np.array([key for table in tables for key in table], np.int64)
    return keys, np.cumsum([0, *map(len, tables)])


def assert_is_reference(
    found: Deduplicated,
    tables: list[list[int]],
    dims: list[int],
    routing: Routing,
) -> None:
    """Against np.unique of each table, shared out by bucket."""
    key = value = 0
    row_of: dict[tuple[int, int], int] = {}
    for shard in range(routing.num_shards):
        assert found.key_starts[shard] == key
        assert found.value_starts[shard] == value
        for table, dim in enumerate(dims):
            keys, counts = np.unique(np.array(tables[table], np.int64), return_counts=True)
            ours = routing.buckets[buckets_of(keys)] == shard
            size = found.sizes[shard, table]
            got_keys, got_counts = found.keys[key : key + size], found.counts[key : key + size]
            order = np.argsort(got_keys)
            assert got_keys[order].tolist() == keys[ours].tolist()
            assert got_counts[order].tolist() == counts[ours].tolist()
            for number, got in enumerate(got_keys.tolist()):
                row_of[table, got] = value + number * dim
            key += size
            value += size * dim
    assert found.key_starts[-1] == key == found.keys.size == found.counts.size
    assert found.value_starts[-1] == value
    occurrences = [(table, k) for table, keys in enumerate(tables) for k in keys]
    assert found.positions.tolist() == [row_of[each] for each in occurrences]
    assert found.keys[found.places].tolist() == [k for _, k in occurrences]
    same_row = dict(zip(found.positions.tolist(), found.places.tolist(), strict=True))
    assert found.places.tolist() == [same_row[position] for position in found.positions.tolist()]
    assert len(set(same_row.values())) == len(same_row) == found.keys.size


@given(
    st.lists(a_batch, min_size=1, max_size=4),
    st.lists(st.integers(1, 5), min_size=3, max_size=3),
    st.sampled_from([1, 2, 3, 7, 100]),
)
@settings(max_examples=60, deadline=None)
def test_batches_agree_with_numpy(
    batches: list[list[list[int]]], dims: list[int], num_shards: int
) -> None:
    routing = Routing.even(num_shards)
    deduplicate = Deduplicator(dims, routing)
    for tables in batches:
        assert_is_reference(deduplicate(*flat(tables)), tables, dims, routing)


def test_one_object_serves_batches_of_any_size_in_any_order() -> None:
    rng = np.random.default_rng(3)
    buckets = rng.integers(0, 5, NUM_BUCKETS).astype(np.uint16)
    routing = Routing(0, 5, 0, buckets, np.empty(0, np.uint16))
    deduplicate = Deduplicator([2, 3], routing)
    for size in (10, 0, 3000, 1, 20_000, 5, 600, 600):
        tables = [rng.integers(-size, size, size).tolist(), rng.zipf(1.2, size // 2).tolist()]
        assert_is_reference(deduplicate(*flat(tables)), tables, [2, 3], routing)


def test_results_are_not_overwritten_by_the_next_batch() -> None:
    deduplicate = Deduplicator([2], Routing.even(2))
    first = deduplicate(*flat([[5, 5, 6]]))
    before = [first.keys.copy(), first.counts.copy(), first.positions.copy()]

    deduplicate(*flat([[9, 8, 7, 7]]))

    assert all(
        np.array_equal(a, b)
        for a, b in zip(before, (first.keys, first.counts, first.positions), strict=True)
    )


def test_scratch_numbers_that_run_out_start_again() -> None:
    deduplicate = Deduplicator([1], Routing.even(1))
    deduplicate(*flat([[1, 2, 3]]))
    deduplicate._base = 2**62

    assert_is_reference(deduplicate(*flat([[3, 4, 3]])), [[3, 4, 3]], [1], Routing.even(1))
    assert deduplicate._base < 100


def test_keys_of_two_tables_are_not_confused() -> None:
    found = Deduplicator([1, 1], Routing.even(1))(*flat([[7, 7], [7]]))

    assert found.keys.tolist() == [7, 7]
    assert found.counts.tolist() == [2, 1]
    assert found.sizes.tolist() == [[1, 1]]


def test_keys_of_a_shard_are_in_the_order_of_their_first_appearance() -> None:
    """So messages are the same from run to run, whatever was in the scratch memory."""
    found = Deduplicator([1], Routing.even(1))(*flat([[9, 3, 9, -5, 3, 4]]))

    assert found.keys.tolist() == [9, 3, -5, 4]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_keep_admitted_keeps_the_rows_of_admitted_keys(data: Any) -> None:
    sizes = data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=4))
    dims = data.draw(st.lists(st.integers(1, 4), min_size=len(sizes), max_size=len(sizes)))
    n = sum(sizes)
    admitted = data.draw(st.lists(st.integers(0, 1), min_size=n, max_size=n))
    width = [dim for size, dim in zip(sizes, dims, strict=True) for _ in range(size)]
    gradients = np.arange(sum(width), dtype=np.float32)
    rows = np.split(gradients, np.cumsum(width)[:-1]) if width else []

    got = keep_admitted(
        gradients, np.array(admitted, np.uint8), np.array(sizes), np.array(dims, np.int64)
    )

    kept = [row for row, bit in zip(rows, admitted, strict=True) if bit]
    assert got.tolist() == (np.concatenate(kept).tolist() if kept else [])


def test_where_all_keys_are_admitted_nothing_is_copied() -> None:
    gradients = np.ones(6, np.float32)

    got = keep_admitted(gradients, np.ones(3, np.uint8), np.array([3]), np.array([2]))

    assert got is gradients
