"""Rows that training would refuse are found, left out of the plan, and kept aside with why."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from worker.data.arrivals import Arrivals
from worker.data.bad_records import MOST_REFUSED
from worker.data.directory_stream import DirectoryStream
from worker.data.plan import FilePlan, Plan
from worker.data.reading import Reader
from worker.errors import DataError
from worker.spec import FeatureSpec, SparseFeature

FEATURES = FeatureSpec(
    label="label",
    dense=("d",),
    dense_transform="none",
    sparse=(SparseFeature(name="a", column="a", table="a"),),
)


def write(folder: Path, labels: list[int], dense: list[float]) -> None:
    rows = len(labels)
    table = pa.table({"label": labels, "d": dense, "a": list(range(rows)), "other": ["x"] * rows})
    pq.write_table(table, folder / "part-1.parquet", row_group_size=3)


def arrivals(folder: Path, **options: object) -> Arrivals:
    folder.mkdir(exist_ok=True)
    settings = {"on_bad_file": "skip", "on_bad_record": "quarantine", "aside": folder / "aside"}
    return Arrivals(DirectoryStream(str(folder)), FEATURES, kinds=(), **{**settings, **options})  # type: ignore[arg-type]


def only(coming: Arrivals) -> FilePlan:
    (file,) = coming.take(most=9, now=0.0)
    return file.plan


def test_bad_rows_are_left_out_and_kept_aside(tmp_path: Path) -> None:
    write(tmp_path, [0, 2, 1, 1, 0, 1, 1], [0.5, 1, np.inf, 3, 4, 5, -np.inf])
    coming = arrivals(tmp_path)

    file = only(coming)

    assert file.row_group_rows == (1, 3, 0)
    batch, skipped = Reader(Plan((file,), batch_size=9), FEATURES).read(0)
    assert (batch.sparse[0].keys.tolist(), skipped) == ([0, 3, 4, 5], 0)
    aside = pq.read_table(tmp_path / "aside")
    assert aside["_row"].to_pylist() == [1, 2, 6]
    assert aside["other"].to_pylist() == ["x"] * 3
    assert aside["_reason"][0].as_py().startswith("a label is not 0 or 1 (label): got 2")
    assert coming.skipped == (0, 3)
    assert "3 rows" in coming.take_notes()[0]


def test_skipped_rows_are_kept_nowhere(tmp_path: Path) -> None:
    write(tmp_path, [0, 2], [0.5, 1])

    file = only(arrivals(tmp_path, on_bad_record="skip"))

    assert file.row_group_rows == (1,)
    assert not (tmp_path / "aside").exists()


def test_a_file_full_of_bad_rows_is_refused_whole(tmp_path: Path) -> None:
    rows = MOST_REFUSED + 1
    write(tmp_path, [2] * rows, [0.0] * rows)
    coming = arrivals(tmp_path)

    assert coming.take(most=9, now=0.0) == []
    assert coming.skipped == (1, 0)
    assert arrivals(tmp_path, skipped=coming.skipped).skipped == (1, 0)
    assert "part-1.parquet" in (tmp_path / "aside" / "files.jsonl").read_text()
    with pytest.raises(DataError, match="label"):
        arrivals(tmp_path, on_bad_file="fail").take(most=9, now=0.0)


def test_nothing_is_looked_through_where_bad_rows_end_the_job(tmp_path: Path) -> None:
    write(tmp_path, [0, 2], [0.5, 1])

    file = only(arrivals(tmp_path, on_bad_record="fail"))

    assert file.row_group_rows == (2,)


def test_rows_with_a_weight_that_is_none_are_left_out_too(tmp_path: Path) -> None:
    table = pa.table({"label": [0, 1, 1], "d": [0.5] * 3, "a": [0, 1, 2], "w": [1.0, -2.0, 0.0]})
    pq.write_table(table, tmp_path / "part-1.parquet")
    features = replace(FEATURES, weight="w")
    coming = Arrivals(
        DirectoryStream(str(tmp_path)),
        features,
        kinds=(),
        on_bad_file="fail",
        on_bad_record="quarantine",
        aside=tmp_path / "aside",
    )

    batch, _ = Reader(Plan((only(coming),), batch_size=9), features).read(0)

    assert batch.weights is not None
    assert batch.weights.tolist() == [1, 0]
    (reason,) = pq.read_table(tmp_path / "aside")["_reason"].to_pylist()
    assert reason.endswith("(w): got -2.0, expected a finite number >= 0")
