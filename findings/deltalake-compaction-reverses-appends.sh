#!/usr/bin/env bash
# deltalake 1.6.6: a table of four appends is read with the newest append first, and optimize.compact() writes one
# file in that reversed order while its metrics say preserveInsertionOrder: True. Samples that were appended in
# the order of time are then trained newest first, and the order they came in is nowhere left.
# What to do: keep a time column and sort by it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check deltalake==1.6.6 pyarrow==26.0.1
cd "$folder"
venv/bin/python - <<'PYTHON'
import pyarrow as pa
from deltalake import DeltaTable, write_deltalake

for part in range(4):
    write_deltalake("t", pa.table({"i": range(part * 1000, part * 1000 + 1000)}), mode="append")
before = DeltaTable("t").to_pyarrow_table()["i"].to_pylist()
metrics = DeltaTable("t").optimize.compact()
after = DeltaTable("t").to_pyarrow_table()["i"].to_pylist()
print("read", before[::1000], "compacted", after[::1000], metrics["preserveInsertionOrder"])
assert before[::1000] == [3000, 2000, 1000, 0]
assert metrics["preserveInsertionOrder"] is True and metrics["numFilesAdded"] == 1
assert len(after) == 4000 and after != sorted(after)
PYTHON
