#!/usr/bin/env bash
# pyarrow 26.0.1: ParquetFile.iter_batches(n) fills batches across row groups, but for a dictionary column it ends a
# batch where the dictionary of a row group changes: two row groups of 10 rows, n = 7, give 7, 3, 4, 6 rows; the
# same strings without a dictionary 7, 7, 6. A reader that takes every batch but the last for n rows loses count.
# What to do: count rows, or re-slice.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check pyarrow==26.0.1
cd "$folder"
venv/bin/python - <<'PYTHON'
import pyarrow as pa
import pyarrow.parquet as pq


def batches(tables):
    with pq.ParquetWriter("a.parquet", tables[0].schema) as writer:
        for table in tables:
            writer.write_table(table)
    return [batch.num_rows for batch in pq.ParquetFile("a.parquet").iter_batches(7)]


plain = [pa.table({"s": ["a", "b"] * 5}), pa.table({"s": ["c", "d"] * 5})]
encoded = [pa.table({"s": t["s"].combine_chunks().dictionary_encode()}) for t in plain]
print("strings", batches(plain), "dictionaries", batches(encoded))
assert batches(plain) == [7, 7, 6]
assert batches(encoded) == [7, 3, 4, 6]
PYTHON
