import numpy as np
import pytest

from embedding.kernels.mixing import buckets_of
from embedding.table import rows as rows_module
from embedding.table.machine_limits import Limit
from embedding.table.reservation import Budget
from embedding.table.rows import IN_MEMORY, MAX_ROWS, Rows, lines_for, room_in
from embedding.table.usage import FREQUENCY, VERSION, usage_of, write_usage


def budget_of(memory: int, *, address: int = 1 << 40, shares: int = 1) -> Budget:
    return Budget(
        Limit(address, "the address space", "Use more servers"),
        shares,
        Limit(memory, "the machine's memory", "Evict"),
    )


BUDGET = budget_of(1 << 30)


def with_versions(keys, versions):
    rows = Rows(2, BUDGET)
    numbers = rows.add(np.asarray(keys))
    both = np.full(numbers.size, versions)
    write_usage(rows.arrays.metadata, rows.arrays.state, numbers, both, both)
    return rows


def test_adding_gives_each_key_a_row_of_its_own_and_keeps_those_it_has():
    rows = Rows(4, BUDGET)
    first = rows.add(np.array([5, -5, 2**63 - 1]))

    second = rows.add(np.array([-5, 6, 5, 6]))

    assert len(set(first.tolist())) == 3
    assert second[[0, 2]].tolist() == [first[1], first[0]]
    assert second[1] == second[3]
    assert second[1] not in first
    assert len(rows) == 4


def test_growth_keeps_every_row_where_it_is():
    rows = Rows(1, BUDGET)
    placed = {}
    for start in range(0, 20_000, 1000):
        keys = np.arange(start, start + 1000) * 7919
        placed |= dict(zip(keys.tolist(), rows.add(keys).tolist(), strict=True))

    keys = np.array(list(placed))
    assert rows.find(keys).tolist() == list(placed.values())
    assert (rows.find(keys + 1) == -1).all()


def test_removed_rows_are_used_again_before_new_ones():
    rows = with_versions(range(100), 1)
    touched = rows.memory()
    rows.remove(np.arange(30))

    again = rows.add(np.arange(1000, 1030))

    assert sorted(again.tolist()) == sorted(set(range(100)) - set(rows.find(np.arange(30, 100))))
    assert rows.memory() == touched
    assert len(rows) == 100


def test_removing_absent_keys_changes_nothing():
    rows = with_versions(range(10), 1)

    rows.remove(np.array([77, -1, 77]))

    assert len(rows) == 10
    assert (rows.find(np.arange(10)) >= 0).all()


@pytest.mark.parametrize("keys_to_spread", [0, 10**6])
def test_keys_come_sorted_by_bucket_then_key(monkeypatch, keys_to_spread):
    monkeypatch.setattr(rows_module, "_KEYS_TO_SPREAD", keys_to_spread)
    keys = np.random.default_rng(2).integers(-(2**63), 2**63 - 1, 50_000)
    rows = with_versions(keys, 0)

    found, positions = rows.in_buckets((100, 2500))

    buckets = buckets_of(keys)
    wanted = keys[(buckets >= 100) & (buckets < 2500)]
    assert np.array_equal(found, wanted[np.lexsort((wanted, buckets_of(wanted)))])
    assert positions.tolist() == rows.find(found).tolist()


@pytest.mark.parametrize("buckets", [(-1, 3), (3, 2), (0, 4097)])
def test_buckets_that_do_not_exist_are_refused(buckets):
    with pytest.raises(ValueError, match="buckets must be"):
        Rows(1, BUDGET).in_buckets(buckets)


def test_a_full_reservation_refuses_more_keys_says_why_and_stays_as_it_was():
    rows = Rows(8, budget_of(100 * 68), name="table user")
    capacity = len(rows.arrays.values)
    rows.add(np.arange(capacity - 10))

    with pytest.raises(MemoryError, match="table user has") as refused:
        rows.add(np.arange(capacity + 1))
    assert f"has {capacity - 10} rows of width 8 and can't take 11 more" in str(refused.value)
    assert f"room for {capacity}." in str(refused.value)
    assert str(refused.value).endswith("is the machine's memory (0.0 MiB). Evict")
    rows.add(np.arange(capacity))

    assert len(rows) == capacity == 100


def test_keys_that_have_rows_are_taken_where_there_is_no_room_for_more():
    """The index may have places left when the reserved rows have not."""
    rows = Rows(4, budget_of(45_000))
    keys = np.arange(650)
    first = rows.add(keys)

    again = rows.add(keys[:100])

    assert again.tolist() == first[:100].tolist()
    assert len(rows) == 650


@pytest.mark.parametrize("width", [0, 1, 32, 300])
@pytest.mark.parametrize("share", [100_000, 3 << 20, 5 << 30, 1 << 38])
def test_what_is_reserved_fits_into_the_share_and_uses_most_of_it(width, share):
    room = room_in(budget_of(1 << 50, address=7 * share, shares=7), width)

    taken = room.rows * (16 + 9 + 4 * width) + room.lines * 64
    assert taken <= share
    assert room.rows <= IN_MEMORY.keys_a_line * room.lines
    if room.rows < MAX_ROWS:
        assert taken >= (0.8 if share > 1 << 30 else 0.4) * share
        assert room.cause.startswith("a share of 1/7 in the address space (")


def test_memory_is_not_divided():
    alone, one_of_many = (room_in(budget_of(1 << 34, shares=n), 32) for n in (1, 50))

    assert alone == one_of_many
    assert one_of_many.cause == "the machine's memory (16.0 GiB)"


def test_a_row_number_has_32_bits():
    room = room_in(budget_of(1 << 50, address=1 << 50), 1)

    assert (room.rows, room.cause) == (MAX_ROWS, "the 32 bits of a row's number")


def test_no_batch_moves_more_than_its_share_of_a_growth(monkeypatch):
    moved, real = [], rows_module.continue_growth

    def continue_growth(entries, split, before, num_lines):
        after = real(entries, split, before, num_lines)
        moved.append(split - after)
        return after

    monkeypatch.setattr(rows_module, "continue_growth", continue_growth)
    rows, batch = Rows(0, BUDGET), 1000
    rows.add(np.arange(10 * batch))
    moved.clear()
    for start in range(10 * batch, 300 * batch, batch):
        rows.make_room(batch)
        rows.add(np.arange(start, start + batch))
        index = rows.memory()["index"] / len(rows)
        assert len(rows.arrays.entries) < 2 * 4096 or 64 / 3.4 <= index <= 64 / 3.4 * 1.51

    assert len(moved) > 60
    assert max(moved) <= IN_MEMORY.lines_a_key * batch
    assert len(rows.arrays.entries) == lines_for(len(rows), IN_MEMORY)


def test_frequencies_and_versions_are_kept_whatever_of_64_bits_they_have():
    rows = with_versions(range(4), 1)
    numbers = rows.find(np.arange(4))
    frequency, version = np.array([0, 2**32, 2**63 - 1, 7]), np.array([-1, 2**40, -(2**63), 2**32])
    taken = rows.memory()["metadata"]
    copied_before = rows.copy(numbers, np.arange(4))

    write_usage(rows.arrays.metadata, rows.arrays.state, numbers, frequency, version)
    copied = rows.copy(numbers, np.arange(4))

    assert rows.metadata_of(np.arange(5), FREQUENCY, 3).tolist() == [*frequency.tolist(), 3]
    assert rows.metadata_of(np.arange(5), VERSION, 4).tolist() == [*version.tolist(), 4]
    for arrays, wanted in ((copied, frequency), (copied_before, np.ones(4))):
        found = usage_of(arrays.metadata, arrays.state, np.arange(4), FREQUENCY)
        assert found.tolist() == wanted.tolist()
    assert taken == 4 * 8
