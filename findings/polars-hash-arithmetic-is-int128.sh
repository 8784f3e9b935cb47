#!/usr/bin/env bash
# Polars 2.1.0: hash() is UInt64, and UInt64 with an Int64 column (+, %, ^) is Int128. write_parquet takes it.
# pyarrow 26.0.1 then can't open the file at all, also to read other columns: ArrowNotImplementedError
# "Integers with more than 64 bits not implemented". DuckDB 2.0.1 opens it, and shows 16-byte BLOBs.
# Expected: UInt64 as NumPy's % of equal signs would be, or a column that only itself can't be read.
# What to do: cast to UInt64 or Int64 before writing.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check polars==2.1.0 duckdb==2.0.1 pyarrow==26.0.1
cd "$folder"
venv/bin/python - <<'PYTHON'
import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

frame = pl.DataFrame({"id": [3, 4], "size": [10, 10]}).with_columns(
    modulo=pl.col("id").hash() % pl.col("size"),
    salted=pl.col("id").hash() ^ pl.col("size"),
    constant=pl.col("id").hash() % 10,
)
print(frame.schema)
assert frame.schema["modulo"] == frame.schema["salted"] == pl.Int128
assert frame.schema["constant"] == pl.UInt64
frame.write_parquet("a.parquet")
try:
    pq.read_table("a.parquet", columns=["id"])
    raise SystemExit("pyarrow reads other columns of such a file now")
except pa.ArrowNotImplementedError as error:
    print("pyarrow:", error)
    assert "more than 64 bits" in str(error)
kind = duckdb.sql("select typeof(modulo) from 'a.parquet' limit 1").fetchall()[0][0]
print("DuckDB:", kind)
assert kind == "BLOB"
PYTHON
