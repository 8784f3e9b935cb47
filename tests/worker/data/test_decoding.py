"""Row groups of every size give the same batches: small ones come together, large ones in parts."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from worker.data.batch import Batch
from worker.data.columns import columns_from_table
from worker.data.open_file import OpenFile
from worker.data.plan import Plan
from worker.data.planning import make_plan
from worker.data.reading import Reader, read_file
from worker.errors import DataError, UnreadableError
from worker.spec import DataSpec, FeatureSpec, SparseFeature

FEATURES = FeatureSpec(
    label="y",
    dense=("d",),
    dense_transform="none",
    sparse=(
        SparseFeature(name="i", column="i", table="t"),
        SparseFeature(name="s", column="s", table="t"),
        SparseFeature(name="l", column="l", table="t", weights="w"),
    ),
)
ROWS = 500


def table(rows: int = ROWS, bad_label_at: int | None = None) -> pa.Table:
    numbers = np.arange(rows)
    lists = [list(range(n % 4)) for n in numbers]
    return pa.table(
        {
            "y": pa.array([2 if n == bad_label_at else n % 2 for n in numbers]),
            "d": pa.array(numbers, pa.float32()),
            "i": pa.array([None if n % 97 == 5 else n * 7 for n in numbers], pa.int64()),
            "s": pa.array([f"name {n % 11}" for n in numbers]),
            "l": pa.array(lists, pa.list_(pa.int64())),
            "w": pa.array([[0.5] * len(x) for x in lists], pa.list_(pa.float64())),
        }
    )


def plan_of(paths: list[Path], **options: Any) -> Plan:
    data = DataSpec(features=FEATURES, **{"batch_size": 16, **options})
    return make_plan([str(path) for path in paths], data)


def batches(plan: Plan, **options: Any) -> list[Batch]:
    reader = Reader(plan, FEATURES, **options)
    found = [reader.read(i)[0] for i in range(plan.total_batches)]
    reader.close()
    return found


def assert_same(mine: list[Batch], others: list[Batch]) -> None:
    """The same arrays, and the same ones left out."""
    for a, b in zip(mine, others, strict=True):
        np.testing.assert_array_equal(a.labels, b.labels)
        np.testing.assert_array_equal(a.dense, b.dense)
        for x, y in zip(a.sparse, b.sparse, strict=True):
            np.testing.assert_array_equal(x.keys, y.keys)
            assert (x.offsets is None) == (y.offsets is None)
            if x.offsets is not None:
                np.testing.assert_array_equal(x.offsets, y.offsets)
            if x.weights is not None:
                np.testing.assert_array_equal(x.weights, y.weights)


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups of more than 32 rows are large."""
    monkeypatch.setattr("worker.data.open_file._WHOLE_BYTES", 0)
    monkeypatch.setattr("worker.data.open_file.MOST_PART_ROWS", 32)
    monkeypatch.setattr("worker.data.open_file.LEAST_PART_ROWS", 32)
    monkeypatch.setattr("worker.data.decoding.LEAST_PART_ROWS", 32)


def one_by_one(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    with monkeypatch.context() as patched:
        patched.setattr("worker.data.reading.AHEAD_ROWS", 1)
        return batches(plan)


@pytest.mark.parametrize("shuffle", ["none", "files", "rows"])
@pytest.mark.parametrize("cache_bytes", [0, 3000, 1 << 30])
@pytest.mark.parametrize("lanes", [1, 3])
def test_small_row_groups_that_come_together_give_the_same_batches(
    tmp_path: Path, shuffle: str, cache_bytes: int, lanes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / f"{i}.parquet" for i in range(3)]
    for i, path in enumerate(paths):
        pq.write_table(table().slice(i * 150, 150 - i), path, row_group_size=4 + i)
    plan = plan_of(paths, shuffle=shuffle, lanes=lanes, epochs=2, seed=5)

    alone = one_by_one(plan, monkeypatch)
    assert_same(batches(plan, cache_bytes=cache_bytes), alone)
    assert_same(batches(plan, cache_bytes=cache_bytes, once=True), alone)


@pytest.mark.parametrize("shuffle", ["none", "files", "rows"])
@pytest.mark.parametrize("cache_bytes", [0, 8000, 1 << 30])
@pytest.mark.parametrize("lanes", [1, 3, 11])
def test_large_row_groups_that_come_in_parts_give_the_same_batches(
    tmp_path: Path,
    shuffle: str,
    cache_bytes: int,
    lanes: int,
    request: pytest.FixtureRequest,
) -> None:
    paths = [tmp_path / "0.parquet", tmp_path / "1.parquet"]
    for path in paths:
        pq.write_table(table(), path, row_group_size=230)
    plan = plan_of(paths, shuffle=shuffle, lanes=lanes, epochs=2, seed=5)
    whole = batches(plan)

    request.getfixturevalue("in_parts")

    assert_same(batches(plan, cache_bytes=cache_bytes), whole)
    assert_same(batches(plan, cache_bytes=cache_bytes, once=True), whole)


def test_one_call_reads_many_small_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(table(), tmp_path / "a.parquet", row_group_size=5)
    calls: list[int] = []
    read = OpenFile.read

    def counted(self: OpenFile, row_groups: list[int], columns: Any) -> pa.Table:
        calls.append(len(row_groups))
        return read(self, row_groups, columns)

    monkeypatch.setattr(OpenFile, "read", counted)
    batches(plan_of([tmp_path / "a.parquet"]))

    assert calls == [100]


def test_a_large_row_group_is_never_held_whole(tmp_path: Path, in_parts: None) -> None:
    pq.write_table(table(), tmp_path / "a.parquet")
    plan = plan_of([tmp_path / "a.parquet"])
    reader = Reader(plan, FEATURES, cache_bytes=0)

    for i in range(plan.total_batches):
        reader.read(i)
        assert sum(block.columns.num_rows for block in reader._blocks.values()) <= 32


@pytest.mark.parametrize("rows_of_group", [5, 400])
def test_a_bad_label_is_named_by_its_own_row_group_and_not_before_its_batch(
    tmp_path: Path, rows_of_group: int, in_parts: None
) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(table(bad_label_at=203), path, row_group_size=rows_of_group)
    plan = plan_of([path])
    reader = Reader(plan, FEATURES)

    for i in range(192 // 16):
        reader.read(i)
    with pytest.raises(DataError, match="got 2, expected 0 or 1") as caught:
        reader.read(203 // 16)
    row_group, row = divmod(203, rows_of_group)
    assert (caught.value.row_group, caught.value.row) == (row_group, row)
    with pytest.raises(DataError, match="got 2") as told:
        list(read_file(plan.files[0], FEATURES, 16))
    assert (told.value.row_group, told.value.row) == (row_group, row)


def test_of_small_row_groups_only_the_damaged_one_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(table(), path, row_group_size=10)
    plan = plan_of([path], shuffle="rows")
    chunk = pq.read_metadata(path).row_group(7).column(1)
    data = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data[start : start + 20] = b"\xff" * 20
    path.write_bytes(data)

    reader = Reader(plan, FEATURES, on_bad_file="skip")
    read = [reader.read(i) for i in range(plan.total_batches)]

    assert sum(skipped for _, skipped in read) == 10
    values = sorted(v for batch, _ in read for v in batch.dense[:, 0].tolist())
    assert values == [n for n in range(ROWS) if not 70 <= n < 80]
    with pytest.raises(UnreadableError) as caught:
        batches(plan)
    assert caught.value.row_group == 7


def test_of_a_large_row_group_what_comes_after_the_damage_is_skipped_by_every_reader(
    tmp_path: Path, in_parts: None
) -> None:
    path = tmp_path / "a.parquet"
    options = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
    pq.write_table(table(), path, data_page_size=256, write_batch_size=16, **options)
    plan = plan_of([path])
    chunk = pq.read_metadata(path).row_group(0).column(1)
    data = bytearray(path.read_bytes())
    data[chunk.data_page_offset + chunk.total_compressed_size - 1] ^= 0xFF
    path.write_bytes(data)

    def kept(order: list[int]) -> dict[int, int]:
        reader = Reader(plan, FEATURES, on_bad_file="skip", cache_bytes=0)
        return {i: reader.read(i)[0].num_samples for i in order}

    forwards = kept(list(range(plan.total_batches)))

    assert forwards == kept(list(reversed(range(plan.total_batches))))
    assert 0 < sum(forwards.values()) < ROWS
    assert [forwards[i] for i in sorted(forwards)] == sorted(forwards.values(), reverse=True)


@pytest.mark.parametrize("on_bad_file", ["fail", "skip"])
def test_an_unknown_compression_is_no_damage(tmp_path: Path, on_bad_file: Any) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(table(), path, compression="snappy")
    data = path.read_bytes()
    codec = b"\x19\x18\x01d\x15\x02"  # of column d in the footer: snappy; LZO is 0x06
    assert data.count(codec) == 1
    path.write_bytes(data.replace(codec, codec[:-1] + b"\x06"))

    with pytest.raises(DataError, match="LZO") as caught:
        batches(plan_of([path]), on_bad_file=on_bad_file)
    assert not isinstance(caught.value, UnreadableError)
    assert caught.value.column == "d"


@pytest.mark.parametrize("shuffle", ["none", "rows"])
@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_row_groups_of_any_size_in_one_file_give_each_row_once(
    tmp_path: Path, shuffle: str, batch_size: int
) -> None:
    whole = table()
    lists = pa.array([None if n % 5 == 0 else [n, None] for n in range(ROWS)], pa.list_(pa.int64()))
    weights = pa.array([None if n % 5 == 0 else [1.0, 2.0] for n in range(ROWS)])
    whole = whole.set_column(4, "l", lists).set_column(5, "w", weights)
    whole = whole.set_column(3, "s", whole["s"].dictionary_encode())
    sizes = [1, 0, 1, 200, 0, 3, 1, 60, 0]
    start = 0
    with pq.ParquetWriter(tmp_path / "0.parquet", whole.schema) as writer:
        for size in sizes:
            writer.write_table(whole.slice(start, size))
            start += size
    pq.write_table(whole.slice(0, 0), tmp_path / "1.parquet")
    turned = whole.slice(start).select(["w", "s", "y", "l", "i", "d"])
    pq.write_table(turned, tmp_path / "2.parquet", row_group_size=1)
    plan = plan_of(
        [tmp_path / f"{i}.parquet" for i in range(3)], shuffle=shuffle, batch_size=batch_size
    )

    read = batches(plan, once=True)

    assert [b.num_samples for b in read[:-1]] == [batch_size] * (len(read) - 1)
    rows = np.concatenate([b.dense[:, 0] for b in read]).astype(int)
    assert sorted(rows) == list(range(ROWS))
    expected = columns_from_table(whole.take(rows), FEATURES, where=("expected", 0))
    cuts = [*range(0, ROWS, batch_size), ROWS]
    assert_same(read, [expected.batch(i, j) for i, j in itertools.pairwise(cuts)])
