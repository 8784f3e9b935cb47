#!/usr/bin/env bash
# pyarrow 26.0.1: the footer's schema is not what the same file is decoded to. UUID and JSON columns without a
# stored Arrow schema (DuckDB, ClickHouse, fastparquet): FileMetaData.schema.to_arrow_schema() and
# dataset().schema say fixed_size_binary[16] and string, ParquetFile.schema_arrow, read_schema and read_table give
# extension types arrow.uuid and arrow.json. So a check of types by the footer passes what a reader then can't take.
# What to do: check ParquetFile(...).schema_arrow.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check pyarrow==26.0.1 duckdb==2.0.1
cd "$folder"
venv/bin/python - <<'PYTHON'
import duckdb
import pyarrow.dataset as ds
import pyarrow.parquet as pq

duckdb.sql("copy (select uuid() u, '[1]'::json j from range(3)) to 'a.parquet'")
footer = [str(f.type) for f in pq.read_metadata("a.parquet").schema.to_arrow_schema()]
dataset = [str(f.type) for f in ds.dataset("a.parquet").schema]
opened = [str(f.type) for f in pq.ParquetFile("a.parquet").schema_arrow]
schema = [str(f.type) for f in pq.read_schema("a.parquet")]
decoded = [str(f.type) for f in pq.read_table("a.parquet").schema]
print("footer", footer, "dataset", dataset, "opened", opened, "decoded", decoded, sep="\n")
assert footer == ["fixed_size_binary[16]", "string"]
assert dataset[0] == "fixed_size_binary[16]"
assert opened == schema == decoded == ["extension<arrow.uuid>", "extension<arrow.json>"]
PYTHON
