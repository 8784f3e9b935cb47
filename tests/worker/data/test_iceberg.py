"""Iceberg tables are read by the fields of a snapshot; freshly written by pyiceberg."""

import json
import struct
import zlib
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.transforms import IdentityTransform, VoidTransform
from pyiceberg.typedef import Record
from pyiceberg.types import (
    DateType,
    DecimalType,
    IntegerType,
    LongType,
    NestedField,
    StringType,
)
from pyiceberg.utils.config import Config

from runtime.storage import StorageError
from worker.data.key_hash import hash_strings
from worker.data.planning import find_files
from worker.errors import DataError

pytestmark = pytest.mark.writers

Read = Callable[..., Any]


@pytest.fixture
def catalog(tmp_path: Path) -> SqlCatalog:
    catalog = SqlCatalog(
        "tests", uri=f"sqlite:///{tmp_path}/catalog.db", warehouse=f"file://{tmp_path}/store"
    )
    catalog.create_namespace("ns")
    return catalog


def rows(start: int, stop: int, **columns: Any) -> pa.Table:
    return pa.table({"x": pa.array(range(start, stop)), **columns})


def folder_of(table: Table) -> Path:
    return Path(table.location().removeprefix("file://"))


def snapshots(table: Table) -> list[int]:
    return [snapshot.snapshot_id for snapshot in table.snapshots()]


def test_rows_are_those_of_the_newest_snapshot(catalog: SqlCatalog, read: Read) -> None:
    table = catalog.create_table("ns.t", rows(0, 1).schema)
    table.append(rows(0, 10))
    table.append(rows(10, 20))
    table.delete("x < 5")
    folder = folder_of(table)
    assert len(list(folder.glob("data/*.parquet"))) == 3

    found = read(f"iceberg://{folder}", sparse=["x"])

    assert sorted(found.keys("x")) == [[n] for n in range(5, 20)]
    assert found.plan.tables == (f"iceberg://{folder}@{snapshots(table)[-1]}",)
    with pytest.raises(StorageError, match=f"Write iceberg://{folder} "):
        read(folder / "data", sparse=["x"])


def test_a_snapshot_is_read_with_the_columns_of_its_time(catalog: SqlCatalog, read: Read) -> None:
    table = catalog.create_table("ns.t", rows(0, 1).schema)
    table.append(rows(0, 2))
    table.append(rows(2, 3))
    with table.update_schema() as change:
        change.rename_column("x", "user")
    first, second = snapshots(table)
    folder = folder_of(table)

    assert read(f"iceberg://{folder}@{first}", sparse=["x"]).keys("x") == [[0], [1]]
    appended = read(f"iceberg://{folder}@{second}", sparse=["x"])
    assert appended.keys("x") == [[2], [0], [1]]  # manifests list the newest append first
    assert read(f"iceberg://{folder}", sparse=["user"]).keys("user") == [[2], [0], [1]]
    with pytest.raises(StorageError, match=f"no such snapshot. Its newest are {first}, {second}"):
        read(f"iceberg://{folder}@7", sparse=["x"])


def test_columns_are_found_by_their_field_ids(catalog: SqlCatalog, read: Read) -> None:
    table = catalog.create_table("ns.t", rows(0, 1, uid=[0], day=[0]).schema)
    table.append(rows(0, 1, uid=[7], day=[1]))
    with table.update_schema() as change:
        change.rename_column("uid", "user")
    with table.update_schema(allow_incompatible_changes=True) as change:
        change.delete_column("day")
    with table.update_schema() as change:
        change.add_column("day", LongType())
        change.add_column("uid", LongType())
    table.append(rows(1, 2, user=[8], day=[2], uid=[9]))

    found = read(f"iceberg://{folder_of(table)}", sparse=["x", "user", "day", "uid"], dense=["day"])

    assert [found.keys(name) for name in ("x", "user", "day", "uid")] == [
        [[1], [0]], [[8], [7]], [[2], []], [[9], []],
    ]  # fmt: skip
    assert found.batch.dense.tolist() == [[2], [0]]


def test_columns_that_are_gone_are_not_in_the_table(catalog: SqlCatalog, read: Read) -> None:
    table = catalog.create_table("ns.t", rows(0, 1, old=[0]).schema)
    table.append(rows(0, 1, old=[0]))
    with table.update_schema(allow_incompatible_changes=True) as change:
        change.delete_column("old")

    with pytest.raises(DataError, match="the table lacks a column"):
        read(f"iceberg://{folder_of(table)}", sparse=["old"])


def test_wider_types_are_the_same_values(catalog: SqlCatalog, read: Read) -> None:
    table = catalog.create_table("ns.t", Schema(NestedField(1, "x", IntegerType())))
    table.append(pa.table({"x": pa.array([1], pa.int32())}))
    with table.update_schema() as change:
        change.update_column("x", field_type=LongType())
    table.append(pa.table({"x": pa.array([2**40])}))

    assert read(f"iceberg://{folder_of(table)}", sparse=["x"]).keys("x") == [[2**40], [1]]


def test_a_column_that_came_later_has_its_default_before(catalog: SqlCatalog, read: Read) -> None:
    table = catalog.create_table("ns.t", rows(0, 1).schema)
    table.append(rows(0, 1))
    with table.update_schema() as change:
        change.add_column("day", DateType(), default_value=date(2024, 1, 1))
    table.append(rows(1, 2, day=pa.array([None], pa.date32())))

    assert read(f"iceberg://{folder_of(table)}", sparse=["x", "day"]).keys("day") == [[], [19723]]


PARTITIONED = Schema(
    NestedField(1, "x", LongType()),
    NestedField(2, "day", DateType()),
    NestedField(3, "s", StringType()),
    NestedField(4, "d", DecimalType(9, 2)),
)
SPEC = PartitionSpec(
    PartitionField(1, 1000, VoidTransform(), "x_void"),
    PartitionField(2, 1001, IdentityTransform(), "day"),
    PartitionField(3, 1002, IdentityTransform(), "s"),
    PartitionField(4, 1003, IdentityTransform(), "d"),
)


def test_partitioned_tables_are_read(catalog: SqlCatalog, read: Read) -> None:
    table = catalog.create_table("ns.t", PARTITIONED, partition_spec=SPEC)
    days = pa.array([date(2024, 1, 1), None], pa.date32())
    decimals = pa.array([Decimal("2.00"), None], pa.decimal128(9, 2))
    table.append(rows(0, 2, day=days, s=["a b/c%2F", None], d=decimals))

    found = read(f"iceberg://{folder_of(table)}", sparse=["x", "day", "s"], dense=["d"])

    order = [key for (key,) in found.keys("x")]
    assert sorted(order) == [0, 1]
    assert [found.keys("day")[order.index(n)] for n in (0, 1)] == [[19723], []]
    (key,) = hash_strings(pa.array(["a b/c%2F"])).tolist()
    assert [found.keys("s")[order.index(n)] for n in (0, 1)] == [[key], []]
    assert found.batch.dense[order.index(0)].tolist() == [2]


def test_partition_values_fill_columns_that_added_files_lack(
    catalog: SqlCatalog, read: Read, tmp_path: Path
) -> None:
    """Files that Hive wrote and that were added to a table have neither ids nor these columns."""
    spec = PartitionSpec(
        PartitionField(2, 1001, IdentityTransform(), "day"),
        PartitionField(3, 1002, IdentityTransform(), "s"),
        PartitionField(4, 1003, IdentityTransform(), "d"),
    )
    table = catalog.create_table("ns.t", PARTITIONED, partition_spec=spec)
    path = tmp_path / "added.parquet"
    pq.write_table(pa.table({"x": [1, 2]}), path)
    names = '[{"field-id": 1, "names": ["x"]}, {"field-id": 2, "names": ["day"]}]'
    with table.transaction() as change:
        change.set_properties({"schema.name-mapping.default": names})
        with change.update_snapshot().fast_append() as append:
            append.append_data_file(
                data_file(path, rows=2, partition=[19723, "00", Decimal("2.00")])
            )

    found = read(f"iceberg://{folder_of(table)}", sparse=["x", "day", "s"], dense=["d"])

    assert found.keys("x") == [[1], [2]]
    assert found.keys("day") == [[19723]] * 2
    assert found.keys("s") == [hash_strings(pa.array(["00"])).tolist()] * 2
    assert found.batch.dense.tolist() == [[2], [2]]


def data_file(path: Path, *, rows: int, partition: list[Any], **fields: Any) -> DataFile:
    return DataFile.from_args(
        content=fields.pop("content", DataFileContent.DATA),
        file_path=f"file://{path}",
        file_format=fields.pop("file_format", FileFormat.PARQUET),
        partition=Record(*partition),
        record_count=rows,
        file_size_in_bytes=path.stat().st_size,
        **fields,
    )


def append_file(table: Table, file: DataFile) -> None:
    with table.transaction() as change, change.update_snapshot().fast_append() as append:
        file.spec_id = 0
        append.append_data_file(file)


def test_files_without_ids_or_names_for_them_are_refused(
    catalog: SqlCatalog, read: Read, tmp_path: Path
) -> None:
    table = catalog.create_table("ns.t", rows(0, 1).schema)
    pq.write_table(rows(0, 2), tmp_path / "added.parquet")
    append_file(table, data_file(tmp_path / "added.parquet", rows=2, partition=[]))

    with pytest.raises(DataError, match=r"added\.parquet.*no field ids"):
        read(f"iceberg://{folder_of(table)}", sparse=["x"])


def test_files_of_another_format_are_refused(
    catalog: SqlCatalog, read: Read, tmp_path: Path
) -> None:
    table = catalog.create_table("ns.t", rows(0, 1).schema)
    (tmp_path / "a.orc").touch()
    file = data_file(tmp_path / "a.orc", rows=2, partition=[], file_format=FileFormat.ORC)
    append_file(table, file)

    with pytest.raises(StorageError, match="files of the format ORC"):
        read(f"iceberg://{folder_of(table)}", sparse=["x"])


def files_of(table: Table) -> list[str]:
    return [task.file.file_path for task in table.scan().plan_files()]


def test_rows_that_delete_files_delete_are_not_read(
    catalog: SqlCatalog, read: Read, tmp_path: Path
) -> None:
    table = catalog.create_table("ns.t", rows(0, 1).schema)
    table.append(rows(0, 4))
    table.append(rows(4, 8))
    newer, older = files_of(table)
    for name, deletes in (
        ("one", {"file_path": [older, newer, older], "pos": [3, 0, 1]}),
        ("two", {"file_path": [older], "pos": [1]}),
    ):
        pq.write_table(pa.table(deletes), tmp_path / f"{name}.parquet")
        file = data_file(
            tmp_path / f"{name}.parquet",
            rows=3,
            partition=[],
            content=DataFileContent.POSITION_DELETES,
        )
        append_file(table, file)
    table.append(rows(8, 9))  # which the delete files are older than

    found = read(f"iceberg://{folder_of(table)}", sparse=["x"])

    assert sorted(found.keys("x")) == [[n] for n in (0, 2, 5, 6, 7, 8)]
    assert sorted(table.scan().to_arrow()["x"].to_pylist()) == [0, 2, 5, 6, 7, 8]


def puffin(path: Path, data: str, *deleted: int) -> None:
    """Write a deletion vector of a data file: a Roaring bitmap of one container in Puffin."""
    bitmap = struct.pack("<IIHHI", 12346, 1, 0, len(deleted) - 1, 16)
    bitmap += struct.pack(f"<{len(deleted)}H", *deleted)
    vector = struct.pack("<IQI", 1681511377, 1, 0) + bitmap
    blob = struct.pack(">I", len(vector)) + vector + struct.pack(">I", zlib.crc32(vector))
    about = {
        "type": "deletion-vector-v1",
        "fields": [],
        "snapshot-id": -1,
        "sequence-number": -1,
        "offset": 4,
        "length": len(blob),
        "properties": {"referenced-data-file": data, "cardinality": str(len(deleted))},
    }
    footer = json.dumps({"blobs": [about], "properties": {}}).encode()
    whole = b"PFA1" + blob + b"PFA1" + footer + struct.pack("<iI", len(footer), 0) + b"PFA1"
    path.write_bytes(whole)


def test_rows_that_deletion_vectors_delete_are_not_read(
    catalog: SqlCatalog, read: Read, tmp_path: Path
) -> None:
    table = catalog.create_table("ns.t", rows(0, 1).schema)
    table.append(rows(0, 4))
    puffin(tmp_path / "deleted.puffin", files_of(table)[0], 0, 3)
    file = data_file(
        tmp_path / "deleted.puffin",
        rows=2,
        partition=[],
        content=DataFileContent.POSITION_DELETES,
        file_format=FileFormat.PUFFIN,
    )
    append_file(table, file)

    assert read(f"iceberg://{folder_of(table)}", sparse=["x"]).keys("x") == [[1], [2]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"content": DataFileContent.EQUALITY_DELETES}, "equality deletes"),
        (
            {"content": DataFileContent.POSITION_DELETES, "file_format": FileFormat.AVRO},
            "delete files of the format AVRO",
        ),
    ],
)
def test_deletes_that_cannot_be_read_are_refused(
    catalog: SqlCatalog, read: Read, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    table = catalog.create_table("ns.t", rows(0, 1).schema)
    table.append(rows(0, 3))
    pq.write_table(rows(0, 1), tmp_path / "deletes.parquet")
    append_file(table, data_file(tmp_path / "deletes.parquet", rows=1, partition=[], **options))

    with pytest.raises(StorageError, match=message):
        read(f"iceberg://{folder_of(table)}", sparse=["x"])


def test_an_empty_table_has_no_rows(catalog: SqlCatalog) -> None:
    table = catalog.create_table("ns.t", rows(0, 1).schema)

    assert find_files(f"iceberg://{folder_of(table)}") == []
    table.append(rows(0, 1))
    assert len(find_files(f"iceberg://{folder_of(table)}")) == 1
    table.delete("x >= 0")
    assert find_files(f"iceberg://{folder_of(table)}") == []


# How tables are named


def test_a_table_is_named_by_its_metadata_or_its_catalog(
    catalog: SqlCatalog, read: Read, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    table = catalog.create_table("ns.t", rows(0, 1).schema)
    table.append(rows(0, 2))
    before = table.metadata_location
    table.append(rows(2, 3))
    monkeypatch.setenv("PYICEBERG_CATALOG__TESTS__URI", f"sqlite:///{tmp_path}/catalog.db")
    monkeypatch.setattr("pyiceberg.catalog._ENV_CONFIG", Config())  # is read at import

    by_catalog = read("iceberg://tests/ns.t", sparse=["x"])
    by_metadata = read(f"iceberg://{before}", sparse=["x"])

    assert by_catalog.keys("x") == [[2], [0], [1]]
    assert by_catalog.plan.tables == (f"iceberg://tests/ns.t@{snapshots(table)[1]}",)
    assert by_metadata.keys("x") == [[0], [1]]
    assert by_metadata.plan.tables == (f"iceberg://{before}@{snapshots(table)[0]}",)


def test_the_newest_metadata_of_a_folder_must_be_one(
    catalog: SqlCatalog, read: Read, tmp_path: Path
) -> None:
    table = catalog.create_table("ns.t", rows(0, 1).schema)
    table.append(rows(0, 2))
    first = Path(table.metadata_location.removeprefix("file://"))
    table.append(rows(2, 3))
    folder = folder_of(table)
    name = f"iceberg://{folder}"
    assert read(name, sparse=["x"]).plan.rows_per_epoch == 3

    newest = Path(table.metadata_location.removeprefix("file://"))
    (newest.parent / newest.name.replace("-", "-0", 1)).write_bytes(newest.read_bytes())
    with pytest.raises(StorageError, match="two metadata files are the newest"):
        read(name, sparse=["x"])
    (newest.parent / "v1.metadata.json").write_bytes(first.read_bytes())
    for hint in (first.name, first.name.removesuffix(".metadata.json"), "1\n"):
        (newest.parent / "version-hint.text").write_text(hint)
        assert read(name, sparse=["x"]).plan.rows_per_epoch == 2

    (tmp_path / "plain").mkdir()
    with pytest.raises(StorageError, match="no metadata of an Iceberg table"):
        read(f"iceberg://{tmp_path}/plain", sparse=["x"])
    with pytest.raises(StorageError, match=r"iceberg://nowhere/ns\.t"):
        read("iceberg://nowhere/ns.t", sparse=["x"])
