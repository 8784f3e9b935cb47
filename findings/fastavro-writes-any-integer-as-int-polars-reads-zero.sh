#!/usr/bin/env bash
# fastavro 1.13.1 writes an integer of any 64 bits into a field of Avro's type int, which has 32, without a word, and reads
# it back whole: both types have the same encoding. polars 2.1.0 reads what is beyond 32 bits as another number: 2^40
# as 0, -2^31 - 1 as 2^31 - 1. So a schema with int for ids that have outgrown it is noticed by nobody. And a union is
# written as its first branch that takes a number, where float takes integers: ["null", "float", "long"] rounds 2^24 + 1.
# What to do: long for ids; in unions long before float. Where it is read into an int32 column of Arrow it is an error.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check fastavro==1.13.1 polars==2.1.0 pyarrow==25.0.0
cd "$folder"
venv/bin/python - <<'PYTHON'
import io

import fastavro
import polars as pl
import pyarrow as pa


def written(kind, numbers):
    schema = {"type": "record", "name": "sample", "fields": [{"name": "id", "type": kind}]}
    file = io.BytesIO()
    fastavro.writer(file, fastavro.parse_schema(schema), [{"id": number} for number in numbers])
    return file.getvalue()


ids = [7, 2**40, -(2**31) - 1]
as_int = written("int", ids)
back = [row["id"] for row in fastavro.reader(io.BytesIO(as_int))]
polars = pl.read_avro(io.BytesIO(as_int))["id"].to_list()
print("int: written", ids, "fastavro reads", back, "polars reads", polars)
assert back == ids and polars == [7, 0, 2**31 - 1]
assert pl.read_avro(io.BytesIO(written("long", ids)))["id"].to_list() == ids

union = [row["id"] for row in fastavro.reader(io.BytesIO(written(["null", "float", "long"], [2**24 + 1])))]
print("null, float, long: written", 2**24 + 1, "read", union)
assert union == [float(2**24)]
assert [row["id"] for row in fastavro.reader(io.BytesIO(written(["null", "long", "float"], [2**24 + 1])))] == [2**24 + 1]

try:
    pa.array(back, pa.int32())
    raise SystemExit("Arrow took them")
except (pa.ArrowInvalid, OverflowError) as error:
    print("Arrow:", error)
PYTHON
