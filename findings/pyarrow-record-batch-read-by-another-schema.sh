#!/usr/bin/env bash
# pyarrow 26.0.1: the message of a record batch does not say its types, and read_record_batch believes the schema that
# it is given: int64 comes back as float64 (the bits, not the values), and with a schema of fewer columns the
# others are gone. Neither raises, and validate(full=True) passes: it knows lengths, not types.
# What to do: keep the schema's bytes or a digest of them beside batches that are read alone.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check pyarrow==26.0.1
cd "$folder"
venv/bin/python - <<'PYTHON'
import pyarrow as pa

batch = pa.record_batch({"key": pa.array([1, 2], pa.int64()), "w": pa.array([0.5, 0.25])})
message = pa.ipc.read_message(batch.serialize())
other = pa.schema([("key", pa.float64()), ("w", pa.float64())])
read = pa.ipc.read_record_batch(message, other)
read.validate(full=True)
print("int64 read as float64:", read["key"].to_pylist())
assert read["key"].to_pylist() == [5e-324, 1e-323]
fewer = pa.ipc.read_record_batch(pa.ipc.read_message(batch.serialize()), pa.schema([("key", pa.int64())]))
fewer.validate(full=True)
print("fewer columns:", fewer.schema.names, fewer["key"].to_pylist())
assert fewer.to_pydict() == {"key": [1, 2]}
PYTHON
