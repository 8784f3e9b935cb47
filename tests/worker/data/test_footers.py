"""Which files are damaged, and which are intact but can't be read: only damage may be skipped."""

import base64
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from worker.data.footers import open_source, read_footer
from worker.data.planning import make_plan
from worker.errors import DataError, UnreadableError
from worker.spec import DataSpec, FeatureSpec, SparseFeature

FEATURES = FeatureSpec(
    label="label",
    dense=(),
    dense_transform="none",
    sparse=(SparseFeature(name="x", column="x", table="t"),),
)


def write_128_bit_integers(path: Path) -> Path:
    """A file with the 128-bit integers `c`, as Polars writes it: Arrow's schema alone says so."""
    pq.write_table(pa.table({"label": [0.0], "x": [0.0], "c": [1]}), path)
    schema = base64.b64decode(pq.read_metadata(path).metadata[b"ARROW:schema"])
    wide = schema.replace((64).to_bytes(4, "little"), (128).to_bytes(4, "little"))
    assert wide != schema
    table = pa.table({"label": [0, 1], "x": [1, 2], "c": pa.array([bytes(16)] * 2, pa.binary(16))})
    with pq.ParquetWriter(path, table.schema, store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"ARROW:schema": base64.b64encode(wide)})
    with pytest.raises(pa.ArrowNotImplementedError):
        pq.read_metadata(path)
    return path


def refused(path: Path, on_bad_file: Any) -> DataError:
    data = DataSpec(features=FEATURES, batch_size=1, on_bad_file=on_bad_file)
    with pytest.raises(DataError) as caught:
        make_plan([str(path)], data)
    assert not isinstance(caught.value, UnreadableError)
    assert caught.value.file == str(path)
    return caught.value


@pytest.mark.parametrize("on_bad_file", ["fail", "skip"])
def test_a_type_that_cant_be_read_is_named_and_no_damage(tmp_path: Path, on_bad_file: Any) -> None:
    error = refused(write_128_bit_integers(tmp_path / "a.parquet"), on_bad_file)

    assert "a column has a type that can't be read" in str(error)
    assert error.column == "c"
    assert error.got == "128-bit integer"
    assert "cast it" in str(error)


@pytest.mark.parametrize("on_bad_file", ["fail", "skip"])
def test_an_encrypted_file_is_no_damaged_one(tmp_path: Path, on_bad_file: Any) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PARE" + bytes(50) + (30).to_bytes(4, "little") + b"PARE")

    assert "a file is encrypted" in str(refused(path, on_bad_file))


@pytest.mark.parametrize("on_bad_file", ["fail", "skip"])
def test_a_file_that_may_not_be_read_is_no_damaged_one(
    tmp_path: Path, on_bad_file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"label": [0], "x": [1]}), path)

    def open_filesystem(url: str) -> Any:  # root may read every file, so none can be closed to it
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("worker.data.footers.open_filesystem", open_filesystem)

    assert "a file may not be read" in str(refused(path, on_bad_file))


def test_the_schema_of_a_footer_is_the_one_that_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    columns = {"u": pa.array([bytes(16)], pa.uuid()), "j": pa.array(["[]"], pa.json_())}
    pq.write_table(pa.table(columns), path, store_schema=False)

    with open_source(str(path)) as source:
        schema = read_footer(source, str(path)).schema

    assert schema.equals(pq.ParquetFile(path).read_row_group(0).schema)
    assert schema.types == [pa.uuid(), pa.json_()]
