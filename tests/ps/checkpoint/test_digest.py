from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from embedding import CounterEntries, EmbeddingVariable, TableEntries, TableSpec
from embedding.kernels.mixing import NUM_BUCKETS
from embedding.spec.admission import CounterAdmission
from embedding.spec.optimizers import AdamAsync
from ps.checkpoint.digest import block_digests, bucket_digests, model_digest
from ps.routing import BLOCK_SIZE
from ps.shard.dense import DenseBlocks
from ps.spec import StoreSpec

SPEC = TableSpec(name="t", dim=2, optimizer=AdamAsync(), admission=CounterAdmission(min_count=5))
KEYS = np.array([3, -1, 2**63 - 1, 0, 77, 78])
COUNTED = np.array([4, 5, -(2**63)])


def table_of(rows: TableEntries, counters: CounterEntries, spec: TableSpec = SPEC) -> Any:
    table = EmbeddingVariable(spec)
    table.import_rows(rows)
    table.import_counters(counters)
    return table


def rows() -> TableEntries:
    n = KEYS.size
    numbers = np.arange(n)
    vectors = np.linspace(0, 1, 2 * n, dtype=np.float32).reshape(n, 2)
    slots = np.linspace(-1, 0, 4 * n, dtype=np.float32).reshape(n, 4)
    return TableEntries(KEYS.copy(), numbers + 5, numbers + 1, vectors, slots)


def counters() -> CounterEntries:
    return CounterEntries(COUNTED.copy(), np.array([1, 2, 3]), np.array([7, 8, 9]))


def dense() -> DenseBlocks:
    store = StoreSpec(tables=(), dense_size=1500, dense_optimizer=AdamAsync(), num_shards=1)
    blocks = DenseBlocks(store, 0)
    blocks.rows[:] = np.arange(blocks.rows.size, dtype=np.float32).reshape(blocks.rows.shape)
    return blocks


def digest_of(table: EmbeddingVariable, blocks: DenseBlocks) -> str:
    digests = bucket_digests(table, (0, NUM_BUCKETS))
    return model_digest({table.spec.name: digests}, block_digests(blocks))


def flip(array: np.ndarray, place: int, bit: int = 0) -> None:
    """Change one bit of one element."""
    array.reshape(-1)[place : place + 1].view(np.uint8)[bit // 8] ^= np.uint8(1 << bit % 8)


PLAIN = digest_of(table_of(rows(), counters()), dense())


@pytest.mark.parametrize("bit", [0, 9, 31])
@pytest.mark.parametrize("place", [0, 5])
@pytest.mark.parametrize("column", ["keys", "frequency", "version", "vectors", "slots"])
def test_one_bit_of_a_row_changes_the_digest(column: str, place: int, bit: int) -> None:
    changed = rows()
    flip(getattr(changed, column), place, bit)

    assert digest_of(table_of(changed, counters()), dense()) != PLAIN


@pytest.mark.parametrize("bit", [0, 31, 62])
@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("column", ["keys", "frequency", "version"])
def test_one_bit_of_a_counter_changes_the_digest(column: str, place: int, bit: int) -> None:
    changed = counters()
    flip(getattr(changed, column), place, bit)

    assert digest_of(table_of(rows(), changed), dense()) != PLAIN


@pytest.mark.parametrize("place", [0, 1499, BLOCK_SIZE, 3 * BLOCK_SIZE, 5 * BLOCK_SIZE])
@pytest.mark.parametrize("bit", [0, 31])
def test_one_bit_of_a_parameter_or_its_slots_changes_the_digest(place: int, bit: int) -> None:
    changed = dense()
    flip(changed.rows, place, bit)

    assert digest_of(table_of(rows(), counters()), changed) != PLAIN


def test_the_sign_of_zero_changes_the_digest() -> None:
    changed = rows()
    assert changed.vectors[0, 0] == 0
    changed.vectors[0, 0] = -0.0

    assert digest_of(table_of(changed, counters()), dense()) != PLAIN


def without_first(entries: Any) -> Any:
    return type(entries)(*(getattr(entries, name)[1:] for name in entries.__slots__))


@pytest.mark.parametrize(
    "change",
    [
        lambda: table_of(without_first(rows()), counters()),
        lambda: table_of(rows(), without_first(counters())),
        lambda: table_of(rows(), counters(), replace(SPEC, name="u")),
    ],
)
def test_a_key_more_or_another_name_changes_the_digest(
    change: Callable[[], EmbeddingVariable],
) -> None:
    assert digest_of(change(), dense()) != PLAIN


def test_a_counter_is_not_a_row_with_the_same_numbers() -> None:
    as_row, as_counter = (EmbeddingVariable(TableSpec(name="t", dim=1)) for _ in range(2))
    one, zero = np.array([1]), np.zeros((1, 1), np.float32)
    as_row.import_rows(TableEntries(one, one, one, zero, zero))
    as_counter.import_counters(CounterEntries(one, one, one))

    a, b = (bucket_digests(table, (0, NUM_BUCKETS)) for table in (as_row, as_counter))

    assert a.tobytes() != b.tobytes()


def test_the_order_of_insertion_does_not_matter() -> None:
    order = np.array([4, 0, 5, 2, 1, 3])
    table = EmbeddingVariable(SPEC)
    table.import_counters(counters())
    for i in order:
        part = TableEntries(*(getattr(rows(), name)[i : i + 1] for name in TableEntries.__slots__))
        table.import_rows(part)

    assert digest_of(table, dense()) == PLAIN


def test_rows_that_came_and_went_do_not_matter() -> None:
    table = EmbeddingVariable(SPEC)
    numbers = np.arange(1000, 2000)
    zeros = np.zeros((1000, 6), np.float32)
    table.import_rows(TableEntries(numbers, numbers, 0 * numbers, zeros[:, :2], zeros[:, 2:]))
    table.evict(1)
    table.import_rows(rows())
    table.import_counters(counters())

    assert digest_of(table, dense()) == PLAIN


def test_digests_of_parts_are_parts_of_the_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_of(rows(), counters())
    whole = bucket_digests(table, (0, NUM_BUCKETS))

    for cut in (0, 1, 2048, 4000, NUM_BUCKETS):
        parts = [bucket_digests(table, (0, cut)), bucket_digests(table, (cut, NUM_BUCKETS))]
        assert np.concatenate(parts).tobytes() == whole.tobytes()
    monkeypatch.setattr("ps.checkpoint.digest.PART_BYTES", 100)
    monkeypatch.setattr("ps.checkpoint.digest._COUNTER_BYTES", 100)
    monkeypatch.setattr("embedding.table.state._LISTED_BYTES", 40)
    assert bucket_digests(table, (0, NUM_BUCKETS)).tobytes() == whole.tobytes()


def test_tables_count_by_name_and_blocks_in_order() -> None:
    one, two = (np.full((NUM_BUCKETS, 32), n, np.uint8) for n in (1, 2))
    digest = model_digest({"a": one, "b": two}, [b"x", b"y"])

    assert model_digest({"b": two, "a": one}, [b"x", b"y"]) == digest
    assert model_digest({"a": two, "b": one}, [b"x", b"y"]) != digest
    assert model_digest({"a": one, "b": two}, [b"y", b"x"]) != digest
    assert model_digest({"a": one}, [b"x", b"y"]) != digest


def test_the_digest_of_a_small_model_is_what_it_was() -> None:
    """A change of it is a change of what is promised within a version."""
    assert PLAIN == "81417f4dc7da9dc10dafa4930b2ca5005f65c15cddf91f4889269d3bcb7deab8"
