"""Delta tables are read as their log says: written by deltalake, or by hand where it can't."""

import base64
import json
import struct
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from runtime.storage import StorageError
from worker.data.key_hash import hash_strings
from worker.data.plan import Plan
from worker.data.reading import read_file
from worker.errors import DataError

pytestmark = pytest.mark.writers

Read = Callable[..., Any]


def hashed(*values: str | None) -> list[list[int]]:
    """The bag of each string."""
    keys = hash_strings(pa.array(values, pa.string())).tolist()
    return [[] if v is None else [key] for v, key in zip(values, keys, strict=True)]


def rows(start: int, stop: int, **columns: Any) -> pa.Table:
    numbers = range(start, stop)
    return pa.table({"label": [n % 2 for n in numbers], "x": list(numbers), **columns})


def test_deleted_rows_are_not_read(tmp_path: Path, read: Read) -> None:
    write_deltalake(tmp_path, rows(0, 300))
    DeltaTable(tmp_path).delete("x < 200")
    assert len(list(tmp_path.glob("*.parquet"))) == 2

    found = read(f"delta://{tmp_path}", sparse=["x"], label="label")

    assert found.keys("x") == [[n] for n in range(200, 300)]
    assert found.batch.labels.tolist() == [n % 2 for n in range(200, 300)]
    assert found.plan.tables == (f"delta://{tmp_path}@1",)
    with pytest.raises(StorageError, match=f"Write delta://{tmp_path} "):
        read(tmp_path, sparse=["x"])


def test_a_version_is_read_as_it_was(tmp_path: Path, read: Read) -> None:
    write_deltalake(tmp_path, rows(0, 3))
    write_deltalake(tmp_path, rows(3, 5), mode="overwrite")
    write_deltalake(tmp_path, rows(5, 6), mode="append")

    assert read(f"delta://{tmp_path}@0", sparse=["x"]).keys("x") == [[0], [1], [2]]
    assert read(f"delta://{tmp_path}@1", sparse=["x"]).keys("x") == [[3], [4]]
    newest = read(f"delta://{tmp_path}", sparse=["x"])
    assert newest.keys("x") == [[5], [3], [4]]  # deltalake lists the newest append first
    assert newest.plan.tables == (f"delta://{tmp_path}@2",)


def test_a_plan_keeps_the_version_that_it_was_made_of(tmp_path: Path, read: Read) -> None:
    write_deltalake(tmp_path, rows(0, 3))
    before = read(f"delta://{tmp_path}", sparse=["x"]).plan

    write_deltalake(tmp_path, rows(0, 9), mode="overwrite")

    assert [file.row_group_rows for file in before.files] == [(3,)]
    assert read(before.tables[0], sparse=["x"]).plan == before


def test_partition_columns_have_the_types_of_the_table(tmp_path: Path, read: Read) -> None:
    moment = datetime(2024, 1, 1, 2, 3, 4, 5000, tzinfo=UTC)
    names = ["s", "day", "at", "n", "yes"]
    table = rows(
        0,
        4,
        s=["00", "a b/c=d%2F", "é", None],
        day=pa.array([date(2024, 1, 1)] * 4),
        at=pa.array([moment] * 4, pa.timestamp("us", "UTC")),
        n=pa.array([7] * 4, pa.int32()),
        yes=[True] * 4,
    )
    write_deltalake(tmp_path, table, partition_by=names)

    found = read(f"delta://{tmp_path}", sparse=["x", *names], dense=["n"])

    order = [key for (key,) in found.keys("x")]
    strings = [table["s"][n].as_py() for n in order]
    assert sorted(order) == [0, 1, 2, 3]
    assert found.keys("s") == hashed(*strings)
    assert found.keys("day") == [[19723]] * 4
    assert found.keys("at") == [[int(moment.timestamp() * 1e6)]] * 4
    assert found.keys("n") == [[7]] * 4
    assert found.keys("yes") == [[1]] * 4
    assert found.batch.dense.tolist() == [[7]] * 4


def test_a_column_that_came_later_is_null_before(tmp_path: Path, read: Read) -> None:
    write_deltalake(tmp_path, rows(0, 1))
    write_deltalake(tmp_path, rows(1, 2, late=["a"]), mode="append", schema_mode="merge")

    found = read(f"delta://{tmp_path}", sparse=["x", "late"], dense=["x"])

    assert dict(zip((n for (n,) in found.keys("x")), found.keys("late"), strict=True)) == {
        0: [],
        1: hashed("a")[0],
    }


def test_what_is_missing_is_named(tmp_path: Path, read: Read) -> None:
    write_deltalake(tmp_path / "t", rows(0, 3))
    (tmp_path / "plain").mkdir()

    for name in ("none", "plain", "t@7"):
        with pytest.raises(StorageError) as caught:
            read(f"delta://{tmp_path}/{name}", sparse=["x"])
        assert caught.value.url == f"delta://{tmp_path}/{name}"
    with pytest.raises(
        DataError, match=rf"lacks a column .*delta://{tmp_path}/t@0.*no such name, but 'x'"
    ):
        read(f"delta://{tmp_path}/t", sparse=["X"])


def test_a_name_that_deltalake_takes_for_another_is_refused(tmp_path: Path, read: Read) -> None:
    write_deltalake(tmp_path / "a b", rows(0, 3))
    (tmp_path / "a%20b").mkdir()

    assert read(f"delta://{tmp_path}/a b", sparse=["x"]).keys("x") == [[0], [1], [2]]
    with pytest.raises(StorageError, match="percent escape"):
        read(f"delta://{tmp_path}/a%20b", sparse=["x"])
    with pytest.raises(StorageError, match=r"b\[1\]"):  # where deltalake panics
        read(f"delta://{tmp_path}/b[1]", sparse=["x"])


@pytest.mark.parametrize("skip", [False, True])
def test_a_file_that_is_gone_or_another_one_is_no_damage(
    tmp_path: Path, read: Read, skip: bool
) -> None:
    write_deltalake(tmp_path, rows(0, 3))
    (file,) = tmp_path.glob("*.parquet")
    options = {"on_bad_file": "skip"} if skip else {}

    pq.write_table(rows(0, 4), file)
    with pytest.raises(DataError, match="not the one that its table lists"):
        read(f"delta://{tmp_path}", sparse=["x"], **options)
    file.unlink()
    with pytest.raises(DataError, match="a file of a table is gone"):
        read(f"delta://{tmp_path}", sparse=["x"], **options)


# Tables as other writers make them


def write_log(
    folder: Path,
    *,
    fields: dict[str, dict[str, Any]],
    adds: list[dict[str, Any]],
    features: list[str],
    configuration: dict[str, str] | None = None,
    partitioned_by: list[str] | None = None,
) -> str:
    """Write the log of a table of long columns whose files lie in a folder."""
    schema = {
        "type": "struct",
        "fields": [
            {"name": name, "type": "long", "nullable": True, "metadata": metadata}
            for name, metadata in fields.items()
        ],
    }
    protocol = {
        "minReaderVersion": 3,
        "minWriterVersion": 7,
        "readerFeatures": features,
        "writerFeatures": features,
    }
    table = {
        "id": "3f77436b-9ff6-4f47-8ce1-da452c77096c",
        "format": {"provider": "parquet", "options": {}},
        "schemaString": json.dumps(schema),
        "partitionColumns": partitioned_by or [],
        "createdTime": 1,
        "configuration": configuration or {},
    }
    whole = {"partitionValues": {}, "modificationTime": 1, "dataChange": True}
    actions: list[dict[str, Any]] = [{"protocol": protocol}, {"metaData": table}]
    for add in adds:
        if "size" not in add:
            add["size"] = (folder / add["path"]).stat().st_size
        actions.append({"add": {**whole, **add}})
    (folder / "_delta_log").mkdir()
    text = "".join(json.dumps(action) + "\n" for action in actions)
    (folder / "_delta_log" / f"{0:020}.json").write_text(text)
    return f"delta://{folder}"


@pytest.mark.parametrize("mode", ["name", "id"])
def test_renamed_columns_are_those_of_the_mapping(tmp_path: Path, read: Read, mode: str) -> None:
    def field(name: str, number: int) -> pa.Field:
        return pa.field(name, pa.int64(), metadata={"PARQUET:field_id": str(number)})

    # In the table `a` is what its file calls `b`, and the other way round; `new` is not in it.
    schema = pa.schema([field("a", 2), field("b", 1), field("new", 9)])
    pq.write_table(pa.table([[1, 2], [3, 4], [5, 6]], schema=schema), tmp_path / "f.parquet")

    def mapped(name: str, number: int) -> dict[str, Any]:
        return {"delta.columnMapping.id": number, "delta.columnMapping.physicalName": name}

    table = write_log(
        tmp_path,
        fields={
            "a": mapped("b", 1), "b": mapped("a", 2), "new": mapped("col-4", 4), "p": mapped("q", 3)
        },
        adds=[{"path": "f.parquet", "partitionValues": {"q": "8"}}],
        features=["columnMapping"],
        configuration={"delta.columnMapping.mode": mode},
        partitioned_by=["p"],
    )  # fmt: skip

    found = read(table, sparse=["a", "b", "new", "p"])

    assert [found.keys(name) for name in ("a", "b", "new", "p")] == [
        [[3], [4]], [[1], [2]], [[], []], [[8], [8]],
    ]  # fmt: skip


def test_files_by_whole_urls_are_found(tmp_path: Path, read: Read) -> None:
    (tmp_path / "elsewhere").mkdir()
    file = tmp_path / "elsewhere" / "a%2F b.parquet"
    pq.write_table(rows(0, 2), file)
    url = f"file://{tmp_path}/elsewhere/a%252F%20b.parquet"
    (tmp_path / "t").mkdir()
    table = write_log(
        tmp_path / "t",
        fields={"label": {}, "x": {}},
        adds=[{"path": url, "size": file.stat().st_size}],
        features=["timestampNtz"],
    )

    assert read(table, sparse=["x"]).keys("x") == [[0], [1]]


def deletion_vector(*deleted: int) -> dict[str, Any]:
    """An inline deletion vector: a Roaring bitmap of one container, in Z85."""
    bitmap = struct.pack("<IIHHI", 12346, 1, 0, len(deleted) - 1, 16)
    bitmap += struct.pack(f"<{len(deleted)}H", *deleted)
    data = struct.pack("<iqi", 1681511377, 1, 0) + bitmap
    data += bytes(-len(data) % 4)
    own = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"
    z85 = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
    text = base64.b85encode(data).translate(bytes.maketrans(own, z85)).decode()
    return {
        "storageType": "i",
        "pathOrInlineDv": text,
        "sizeInBytes": len(data),
        "cardinality": len(deleted),
    }


def test_rows_that_deletion_vectors_delete_are_not_read(tmp_path: Path, read: Read) -> None:
    folder = tmp_path / "day=a%20b"
    folder.mkdir()
    pq.write_table(rows(0, 5), folder / "a.parquet", row_group_size=2)
    pq.write_table(rows(5, 7), tmp_path / "b.parquet")
    pq.write_table(rows(7, 9), tmp_path / "c.parquet")
    size = (folder / "a.parquet").stat().st_size
    table = write_log(
        tmp_path,
        fields={"label": {}, "x": {}, "p": {}},
        adds=[
            {
                "path": path,
                "size": size if "/" in path else (tmp_path / path).stat().st_size,
                "partitionValues": {"p": "1"},
                "deletionVector": deletion_vector(*deleted) if deleted else None,
                "stats": json.dumps({"numRecords": records}),
            }
            for path, deleted, records in (
                ("day=a%2520b/a.parquet", [0, 2, 3], 5),
                ("b.parquet", [], 2),
                ("c.parquet", [0, 1], 2),
            )
        ],
        features=["deletionVectors"],
        partitioned_by=["p"],
    )

    found = read(table, sparse=["x", "p"], label="label")

    assert found.keys("x") == [[1], [4], [5], [6]]
    assert found.batch.labels.tolist() == [1, 0, 1, 0]
    assert [file.row_group_rows for file in found.plan.files] == [(1, 0, 1), (2,), (0,)]
    assert Plan.from_json(json.loads(json.dumps(found.plan.to_json()))) == found.plan
    assert read(table, sparse=["p"]).keys("p") == [[1]] * 4
    shuffled = read(table, sparse=["x"], shuffle="rows")
    assert sorted(shuffled.keys("x")) == [[1], [4], [5], [6]]
    (planned, *_), features = found.plan.files, found.features
    parts = list(read_file(planned, features, 8, keep=["x"]))
    assert [n for rows, _ in parts for n in rows["x"].to_pylist()] == [1, 4]


@pytest.mark.parametrize("deleted", [5, 60000])
def test_a_deletion_vector_of_another_file_is_refused(
    tmp_path: Path, read: Read, deleted: int
) -> None:
    pq.write_table(rows(0, 5), tmp_path / "a.parquet")
    vector = deletion_vector(deleted)
    table = write_log(
        tmp_path,
        fields={"x": {}},
        adds=[
            {
                "path": "a.parquet",
                "deletionVector": vector,
                "stats": json.dumps({"numRecords": 5}),
            }
        ],
        features=["deletionVectors"],
    )

    with pytest.raises((DataError, StorageError)):
        read(table, sparse=["x"])


def test_a_table_that_could_have_deletion_vectors_but_has_none_is_read(
    tmp_path: Path, read: Read
) -> None:
    write_deltalake(tmp_path, rows(0, 5), configuration={"delta.enableDeletionVectors": "true"})
    DeltaTable(tmp_path).delete("x < 2")

    assert read(f"delta://{tmp_path}", sparse=["x"]).keys("x") == [[2], [3], [4]]


def test_features_that_nobody_here_knows_are_refused(tmp_path: Path, read: Read) -> None:
    pq.write_table(rows(0, 5), tmp_path / "a.parquet")
    table = write_log(
        tmp_path, fields={"x": {}}, adds=[{"path": "a.parquet"}], features=["rowsOfTheFuture"]
    )

    with pytest.raises(StorageError, match="rowsOfTheFuture"):
        read(table, sparse=["x"])
