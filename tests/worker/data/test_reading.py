import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from worker.data.batch import Bags, Batch
from worker.data.columns import columns_from_table
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
        SparseFeature(name="id", column="id", table="t"),
        SparseFeature(name="s", column="s", table="t"),
        SparseFeature(name="l", column="l", table="t", weights="w"),
    ),
)
ROWS = 100
GROUP = 30
DENSE_ONLY = FeatureSpec(label=None, dense=("d",), dense_transform="none", sparse=())


def table(first: int = 0, rows: int = ROWS) -> pa.Table:
    """Rows whose dense value is their number."""
    numbers = np.arange(first, first + rows)
    lists = [list(range(n % 4)) for n in numbers]
    return pa.table(
        {
            "unused": pa.array(numbers * 7),
            "y": pa.array(numbers % 2),
            "d": pa.array(numbers, pa.float32()),
            "id": pa.array(numbers * 1000 - 50),
            "s": pa.array([f"name {n % 11}" if n % 5 else None for n in numbers], pa.string()),
            "l": pa.array(lists, pa.list_(pa.int64())),
            "w": pa.array([[0.5] * len(x) for x in lists], pa.list_(pa.float64())),
        }
    )


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    paths = [str(tmp_path / f"{i}.parquet") for i in range(3)]
    for i, path in enumerate(paths):
        pq.write_table(table(i * ROWS), path, row_group_size=GROUP, compression="zstd")
    return paths


def plan_of(files: list[str], features: FeatureSpec = FEATURES, **options: Any) -> Plan:
    options = {"batch_size": 16, **options}
    return make_plan(files, DataSpec(features=features, **options))


def read_all(plan: Plan, features: FeatureSpec = FEATURES, **options: Any) -> list[Batch]:
    reader = Reader(plan, features, **options)
    batches = [reader.read(i)[0] for i in range(plan.total_batches)]
    reader.close()
    return batches


def numbers(batch: Batch) -> list[int]:
    return batch.dense[:, 0].astype(int).tolist()


def planned_numbers(plan: Plan, batch_id: int) -> list[int]:
    """The numbers of the rows that the plan gives to a batch of `files`."""
    rows = []
    for piece in plan.pieces(batch_id):
        order = plan.row_order(plan.epoch_of(batch_id), piece.file, piece.row_group)
        positions = np.arange(GROUP) if order is None else order
        first = int(Path(plan.files[piece.file].path).stem) * ROWS + piece.row_group * GROUP
        rows += (first + positions[piece.start : piece.stop]).tolist()
    return rows


def lengths_of(bags: Bags) -> np.ndarray:
    return np.ones(bags.keys.size) if bags.offsets is None else np.diff(bags.offsets)


def assert_equal(batch: Batch, rows: pa.Table) -> None:
    expected = columns_from_table(rows, FEATURES, where=("expected", 0))
    np.testing.assert_array_equal(batch.labels, expected.labels)
    np.testing.assert_array_equal(batch.dense, expected.dense)
    for mine, other in zip(batch.sparse, expected.sparse, strict=True):
        np.testing.assert_array_equal(mine.keys, other.keys)
        np.testing.assert_array_equal(lengths_of(mine), lengths_of(other))
        assert (mine.weights is None) == (other.weights is None)
        if mine.weights is not None:
            np.testing.assert_array_equal(mine.weights, other.weights)


@pytest.mark.parametrize("shuffle", ["none", "files", "rows"])
@pytest.mark.parametrize("batch_size", [7, 30, 64, 1000])
def test_every_epoch_has_each_row_once_with_all_its_columns(
    files: list[str], shuffle: str, batch_size: int
) -> None:
    plan = plan_of(files, batch_size=batch_size, lanes=2, epochs=2, shuffle=shuffle, seed=3)
    every = pa.concat_tables([table(i * ROWS) for i in range(3)])

    batches = read_all(plan)

    for i, batch in enumerate(batches):
        assert numbers(batch) == planned_numbers(plan, i)
        assert_equal(batch, every.take(pa.array(numbers(batch), pa.int64())))
    for epoch in range(2):
        ids = range(epoch * plan.batches_per_epoch, (epoch + 1) * plan.batches_per_epoch)
        rows = [number for i in ids for number in numbers(batches[i])]
        assert sorted(rows) == list(range(3 * ROWS))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The row groups that were decoded, in order: one at a time, as if they were large."""
    calls: list[int] = []
    original = pq.ParquetFile.read_row_groups

    def read_row_groups(self: pq.ParquetFile, row_groups: list[int], **options: Any) -> pa.Table:
        calls.extend(row_groups)
        return original(self, row_groups, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", read_row_groups)
    monkeypatch.setattr("worker.data.reading.AHEAD_ROWS", 1)
    return calls


def test_lanes_that_take_turns_decode_each_row_group_once(
    files: list[str], decoded: list[int]
) -> None:
    read_all(plan_of(files, lanes=3, epochs=1))

    assert len(decoded) == 3 * 4


def test_the_memory_of_kept_row_groups_is_bounded(files: list[str], decoded: list[int]) -> None:
    plan = plan_of(files, lanes=3)
    bounded, unbounded = read_all(plan, cache_bytes=0), read_all(plan)

    assert [numbers(batch) for batch in bounded] == [numbers(batch) for batch in unbounded]
    assert len(decoded) > 2 * 3 * 4

    reader = Reader(plan, FEATURES, cache_bytes=1)
    for i in range(plan.total_batches):
        reader.read(i)
        assert len(reader._blocks) == len(reader._places) == 1
        assert reader._cached_bytes == sum(b.columns.nbytes for b in reader._blocks.values())


def test_the_row_group_used_last_is_kept_longest(files: list[str], decoded: list[int]) -> None:
    plan = plan_of(files, batch_size=GROUP)
    reader = Reader(plan, FEATURES)
    reader.read(0)
    reader = Reader(plan, FEATURES, cache_bytes=int(2.5 * reader._cached_bytes))
    decoded.clear()

    for batch_id in (0, 1, 0, 2, 0):
        reader.read(batch_id)

    assert decoded == [0, 1, 2]


@pytest.mark.parametrize("shuffle", ["none", "files", "rows"])
@pytest.mark.parametrize("lanes", [1, 3])
def test_rows_that_no_epoch_takes_again_are_forgotten_once_they_are_read(
    files: list[str], decoded: list[int], shuffle: str, lanes: int
) -> None:
    plan = plan_of(files, lanes=lanes, epochs=2, shuffle=shuffle)
    reader = Reader(plan, FEATURES, once=True)

    read = [reader.read(i)[0] for i in range(plan.total_batches)]

    assert [numbers(a) for a in read] == [numbers(b) for b in read_all(plan)]
    assert not reader._blocks
    assert not reader._places
    assert reader._cached_bytes == 0


def test_what_is_forgotten_is_decoded_once_in_each_epoch_that_orders_it_anew(
    files: list[str], decoded: list[int]
) -> None:
    for shuffle, times in (("none", 1), ("rows", 2)):
        decoded.clear()
        read_all(plan_of(files, lanes=3, epochs=2, shuffle=shuffle), once=True)

        assert len(decoded) == times * 3 * 4


def test_a_batch_that_is_read_again_has_its_rows_and_takes_none_from_others(
    files: list[str], decoded: list[int]
) -> None:
    plan = plan_of(files, batch_size=10)
    reader = Reader(plan, FEATURES, once=True)

    read = [numbers(reader.read(i)[0]) for i in (0, 0, 0, 1)]

    assert len(reader._blocks) == 1  # batch 2 was not read yet
    read += [numbers(reader.read(i)[0]) for i in (2, 0)]
    assert read == [list(range(10 * i, 10 * i + 10)) for i in (0, 0, 0, 1, 2, 0)]
    assert decoded == [0, 0]


def test_the_number_of_open_files_is_bounded(tmp_path: Path) -> None:
    for i in range(40):
        pq.write_table(table(i, 1), tmp_path / f"{i:02}.parquet")
    before = len(os.listdir("/proc/self/fd"))
    plan = plan_of([str(tmp_path)], DENSE_ONLY, batch_size=1)
    reader = Reader(plan, DENSE_ONLY)

    rows = [numbers(reader.read(i)[0]) for i in [*range(40), *range(40)]]

    assert rows == [[i] for i in range(40)] * 2
    assert len(os.listdir("/proc/self/fd")) <= before + 32
    reader.close()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_closed_reader_may_be_used_again(files: list[str]) -> None:
    reader = Reader(plan_of(files), FEATURES)
    first = numbers(reader.read(0)[0])

    reader.close()

    assert numbers(reader.read(0)[0]) == first


# Damage


def overwrite(path: str, row_group: int, column: str, noise: bytes = b"\xff") -> None:
    """Overwrite the bytes of one column of a row group."""
    group = pq.read_metadata(path).row_group(row_group)
    chunk = next(
        c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == column
    )
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    with open(path, "r+b") as file:
        file.seek(start)
        file.write(noise * chunk.total_compressed_size)


def test_an_unreadable_row_group_is_named(files: list[str]) -> None:
    plan = plan_of(files)
    overwrite(files[1], 2, "id")

    with pytest.raises(UnreadableError) as caught:
        read_all(plan)

    assert (caught.value.file, caught.value.row_group) == (files[1], 2)
    assert "on_bad_file" in str(caught.value)


@pytest.mark.parametrize("shuffle", ["none", "rows"])
@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_an_unreadable_row_group_shortens_its_batches(
    files: list[str], shuffle: str, cache_bytes: int
) -> None:
    plan = plan_of(files, lanes=2, epochs=2, shuffle=shuffle)
    overwrite(files[1], 2, "id")
    bad = set(range(ROWS + 2 * GROUP, ROWS + 3 * GROUP))
    whole = plan_of(files, DENSE_ONLY, lanes=2, epochs=2, shuffle=shuffle)
    reader = Reader(plan, FEATURES, on_bad_file="skip", cache_bytes=cache_bytes)

    for i, expected in enumerate(read_all(whole, DENSE_ONLY)):
        batch, skipped = reader.read(i)
        assert numbers(batch) == [n for n in numbers(expected) if n not in bad]
        assert batch.num_samples + skipped == plan.rows_of(i)


def test_a_skipped_row_group_takes_no_more_memory_with_each_batch(files: list[str]) -> None:
    plan = plan_of(files, batch_size=1)
    overwrite(files[0], 0, "d")
    reader = Reader(plan, FEATURES, on_bad_file="skip")

    frames = []
    for i in range(GROUP):
        reader.read(i)
        (error,) = reader._decoder.errors.values()
        frames.append(len(traceback.extract_tb(error.__traceback__)))

    assert frames[-1] == frames[1]


def test_a_batch_without_any_readable_row_is_empty_and_complete(files: list[str]) -> None:
    plan = plan_of(files, batch_size=10)
    overwrite(files[0], 0, "d")

    batch, skipped = Reader(plan, FEATURES, on_bad_file="skip").read(0)

    assert (batch.num_samples, skipped) == (0, 10)
    assert batch.dense.shape == (0, 1)
    assert batch.labels.shape == (0,)
    assert len(batch.sparse) == 3
    assert batch.sparse[0].weights is None
    assert batch.sparse[2].weights is not None


def test_a_flipped_bit_is_found_where_the_file_has_checksums(tmp_path: Path) -> None:
    path = str(tmp_path / "f.parquet")
    pq.write_table(
        table(), path, compression="none", use_dictionary=False, write_page_checksum=True
    )
    plan = plan_of([path], DENSE_ONLY)
    chunk = pq.read_metadata(path).row_group(0).column(2)
    with open(path, "r+b") as file:
        file.seek(chunk.data_page_offset + chunk.total_compressed_size - 1)
        file.write(b"\x7f")

    with pytest.raises(UnreadableError, match=r"(?i)crc|checksum"):
        read_all(plan, DENSE_ONLY)


def test_columns_that_no_feature_needs_are_not_read(files: list[str]) -> None:
    plan = plan_of(files)
    for group in range(4):
        overwrite(files[0], group, "unused")

    assert sum(batch.num_samples for batch in read_all(plan)) == 3 * ROWS


def grown(path: Path) -> None:
    pq.write_table(table(0, 101), path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def rewritten(path: Path) -> None:
    """The same size, another footer."""
    data = path.read_bytes()
    at = data.rindex(b"parquet-cpp")
    path.write_bytes(data[:at] + b"PARQUET" + data[at + 7 :])


@pytest.mark.parametrize("change", [grown, cut, rewritten])
@pytest.mark.parametrize("on_bad_file", ["fail", "skip"])
def test_a_file_that_changed_since_it_was_planned_is_refused(
    files: list[str], change: Callable[[Path], None], on_bad_file: Any
) -> None:
    plan = plan_of(files)
    change(Path(files[0]))

    with pytest.raises(DataError, match="changed since it was planned") as caught:
        Reader(plan, FEATURES, on_bad_file=on_bad_file).read(0)

    assert not isinstance(caught.value, UnreadableError)
    assert caught.value.file == files[0]


def test_a_file_that_went_away_is_named_or_skipped(files: list[str]) -> None:
    plan = plan_of(files)
    os.remove(files[0])

    with pytest.raises(UnreadableError, match="can't be opened") as caught:
        Reader(plan, FEATURES).read(0)

    assert caught.value.file == files[0]
    assert Reader(plan, FEATURES, on_bad_file="skip").read(0)[1] == 16


def test_a_bad_label_is_an_error_even_where_bad_files_are_skipped(tmp_path: Path) -> None:
    path = str(tmp_path / "f.parquet")
    rows = table()
    labels = rows["y"].to_pylist()
    labels[GROUP + 4] = 3
    rows = rows.set_column(1, "y", pa.array(labels))
    pq.write_table(rows, path, row_group_size=GROUP)

    with pytest.raises(DataError, match="got 3, expected 0 or 1") as caught:
        read_all(plan_of([path], shuffle="rows"), on_bad_file="skip")

    assert (caught.value.file, caught.value.row_group, caught.value.row) == (path, 1, 4)


# Other places and empty files


def test_files_without_rows_are_passed_over(tmp_path: Path) -> None:
    pq.write_table(table(0, 0), tmp_path / "a.parquet")
    with pq.ParquetWriter(tmp_path / "b.parquet", table().schema) as writer:
        writer.write_table(table(0, 0))
        writer.write_table(table(0, 20))
        writer.write_table(table(0, 0))
        writer.write_table(table(20, 20))

    (batch,) = read_all(plan_of([str(tmp_path)], batch_size=40))

    assert numbers(batch) == list(range(40))


def test_files_of_a_memory_filesystem_are_planned_and_read() -> None:
    filesystem = fsspec.filesystem("memory")
    with filesystem.open("/reading-test/f.parquet", "wb") as file:
        pq.write_table(table(), file, row_group_size=GROUP)

    batches = read_all(plan_of(["memory://reading-test/*.parquet"]))
    filesystem.rm("/reading-test", recursive=True)

    assert [n for batch in batches for n in numbers(batch)] == list(range(ROWS))


# Prediction


def test_a_file_is_read_in_order_with_its_rows(files: list[str]) -> None:
    parts = list(read_file(plan_of(files).files[0], FEATURES, 16, keep=["unused"]))

    assert [batch.num_samples for _, batch in parts] == [16] * 6 + [4]
    rows = pa.concat_tables([rows for rows, _ in parts])
    assert rows["unused"].to_pylist() == [n * 7 for n in range(ROWS)]
    assert rows.schema.field("s").type == pa.string()
    for rows, batch in parts:
        assert_equal(batch, rows)


def test_kept_columns_are_those_of_the_features_unless_more_are_wanted(files: list[str]) -> None:
    planned = plan_of(files, DENSE_ONLY).files[0]

    def names(**options: Any) -> list[str]:
        return next(read_file(planned, DENSE_ONLY, 8, **options))[0].column_names

    assert names() == ["d"]
    assert names(keep=["id", "d"]) == ["d", "id"]


def test_prediction_names_what_is_wrong_with_a_file(files: list[str], tmp_path: Path) -> None:
    overwrite(files[0], 1, "d")
    damaged, whole = plan_of(files[:2], DENSE_ONLY).files
    pq.write_table(table().drop_columns(["d"]), files[1])

    with pytest.raises(UnreadableError) as corrupt:
        list(read_file(damaged, DENSE_ONLY, 8))
    with pytest.raises(DataError, match="changed since it was planned"):
        next(read_file(whole, DENSE_ONLY, 8))

    assert corrupt.value.row_group == 1
