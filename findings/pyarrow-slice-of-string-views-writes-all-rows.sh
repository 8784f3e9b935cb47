#!/usr/bin/env bash
# pyarrow 26.0.1: an IPC file or message of a *slice* of a string_view (or binary_view) column has the text of all rows, also of
# those that were sliced away. Of other layouts (string, large_string, lists) what is in the slice is written, and of the
# rows behind it what fills up 64 bytes.
# Expected: a part of a batch takes the room of a part, and says nothing of the other rows. Sharding a batch into N files
# writes N times the data, and who is sent one customer's rows gets everybody's; reading the file shows nothing of it.
# What to do: cast to string before slicing into files.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check pyarrow==26.0.1
"$folder/venv/bin/python" - <<'PYTHON'
import pyarrow as pa

TEXTS = [f"the secret of customer {i}" for i in range(10_000)]


def written(column):
    """An IPC file of row 5 alone."""
    batch = pa.record_batch({"text": column}).slice(5, 1)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    data = sink.getvalue().to_pybytes()
    assert pa.ipc.open_file(data).read_all().num_rows == 1
    return data


views = pa.array(TEXTS, pa.string_view())
files = {
    "string": written(pa.array(TEXTS)),
    "large_string": written(pa.array(TEXTS, pa.large_string())),
    "list of string": written(pa.array([[text] for text in TEXTS])),
    "string_view": written(views),
    "string_view, cast": written(views.cast(pa.string())),
}
for kind, data in files.items():
    others = sum(text.encode() in data for text in TEXTS) - 1
    print(f"{kind}: {len(data)} bytes, with the text of {others} other rows")
    assert len(data) > 200_000 if kind == "string_view" else len(data) < 2_000
    assert others > 9_000 if kind == "string_view" else others <= 1
PYTHON
