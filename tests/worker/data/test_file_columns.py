"""Columns that a file has by another name or not at all, and those that folders say."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from worker.data.batch import Batch
from worker.data.file_columns import FileColumn, arrow_type, constant, named_table
from worker.data.key_hash import hash_strings
from worker.data.plan import Plan
from worker.data.planning import make_plan
from worker.data.reading import Reader, read_file
from worker.spec import DataSpec, FeatureSpec, SparseFeature


def features_of(*sparse: str, label: str | None = None, dense: Sequence[str] = ()) -> FeatureSpec:
    return FeatureSpec(
        label=label,
        dense=tuple(dense),
        dense_transform="none",
        sparse=tuple(SparseFeature(name=name, column=name, table="t") for name in sparse),
    )


def plan_of(path: Path | str, features: FeatureSpec) -> Plan:
    return make_plan([str(path)], DataSpec(features=features, batch_size=16))


def read(plan: Plan, features: FeatureSpec) -> Batch:
    reader = Reader(plan, features)
    (batch,) = (reader.read(i)[0] for i in range(plan.total_batches))
    reader.close()
    return batch


def test_columns_by_another_name_and_of_one_value_are_read_as_the_plan_says(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.parquet"
    times = pa.array(range(5), pa.timestamp("ns"))
    pq.write_table(pa.table({"u": range(5), "x": [9] * 5, "t": times}), path, row_group_size=2)
    columns = (
        FileColumn("x", "u"),
        FileColumn("t", "t", "timestamp[us, tz=UTC]"),
        FileColumn("y", None, "bool", "true"),
        FileColumn("s", None, "string", "00"),
        FileColumn("b", None, "binary", b"00".hex()),
        FileColumn("day", None, "date32[day]", "1970-01-03"),
        FileColumn("none"),
        FileColumn("d", None, "decimal128(4, 1)", "2.0"),
    )
    plan = plan_of(path, features_of("u"))
    (file,) = plan.files
    plan = replace(plan, files=(replace(file, columns=columns),))
    features = features_of("x", "t", "s", "b", "day", "none", label="y", dense=["x"])

    batch = read(Plan.from_json(json.loads(json.dumps(plan.to_json()))), features)

    zeros = hash_strings(pa.array(["00"])).tolist()
    assert batch.labels.tolist() == [1] * 5
    assert batch.dense[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert [bags.keys.tolist() for bags in batch.sparse] == [
        [0, 1, 2, 3, 4], [0] * 5, zeros * 5, zeros * 5, [2] * 5, [],
    ]  # fmt: skip
    rows = [rows for rows, _ in read_file(plan.files[0], features, 8, keep=["d"])]
    assert pa.concat_tables(rows)["d"].to_pylist() == [Decimal("2.0")] * 5


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (-(2**63), pa.int64()),
        (2**64 - 1, pa.uint64()),
        (0.1, pa.float32()),
        (5e-324, pa.float64()),
        (True, pa.bool_()),
        (Decimal("-1.50"), pa.decimal128(10, 2)),
        ("é/=", pa.string()),
        (b"\x00\xff", pa.binary()),
        (-1, pa.date32()),
        (-1, pa.timestamp("us")),
        (1, pa.timestamp("ns", "UTC")),
        (1, pa.timestamp("ms", "Europe/Paris")),
    ],
    ids=str,
)
def test_a_value_of_all_rows_survives_as_text(value: Any, kind: pa.DataType) -> None:
    column = constant("x", value, kind)
    expected = pa.scalar(value, kind)

    assert arrow_type(column.type or "") == kind
    assert column == FileColumn(**json.loads(json.dumps(asdict(column))))
    table = named_table(pa.table({"other": [0, 0]}), ["x"], [column])
    assert table["x"].cast(kind).combine_chunks().equals(pa.repeat(expected, 2))


def test_a_value_of_no_usable_type_is_refused_but_null_has_none() -> None:
    with pytest.raises(ValueError, match="time64"):
        constant("x", 1, pa.time64("us"))

    assert constant("x", None, pa.list_(pa.int64())) == FileColumn("x")


def test_folders_give_columns_that_their_files_lack(tmp_path: Path) -> None:
    for code, first in (("00", 0), ("1", 3), ("__HIVE_DEFAULT_PARTITION__", 6)):
        (tmp_path / f"code={code}").mkdir()
        rows = pa.table({"y": [0, 1, 0], "x": range(first, first + 3)})
        pq.write_table(rows, tmp_path / f"code={code}" / "a.parquet")
    features = features_of("code", "x", label="y")

    batch = read(plan_of(tmp_path, features), features)

    codes, x = batch.sparse
    assert codes.keys.tolist() == hash_strings(pa.array(["00", "1"])).repeat(3).tolist()
    assert codes.offsets is not None
    assert np.diff(codes.offsets).tolist() == [1] * 6 + [0] * 3
    assert x.keys.tolist() == list(range(9))


def test_a_column_of_the_file_is_not_taken_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / "x=7").mkdir()
    pq.write_table(pa.table({"x": [1, 2]}), tmp_path / "x=7" / "a.parquet")
    features = features_of("x")

    batch = read(plan_of(tmp_path, features), features)

    assert batch.sparse[0].keys.tolist() == [1, 2]
