#!/usr/bin/env bash
# zstandard 0.25.0 (python-zstandard): `decompress` gives the first frame of data that has several, and drops the others without
# a word. Data of several frames are valid Zstandard: `cat a.zst b.zst`, appended logs and pzstd make them, and `zstd -d`,
# pyarrow, fsspec and the package's own stream_reader read all of them, as gzip.decompress does with its members.
# Expected: all data, or an error. Half a file of samples or rows is read as if it were whole.
# What to do: stream_reader(...).read(); or decompress(..., allow_extra_data=False), which refuses what it would drop.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check zstandard==0.25.0 pyarrow==26.0.1
"$folder/venv/bin/python" - <<'PYTHON'
import gzip
import io

import pyarrow as pa
import zstandard

parts = (b"first ", b"second")
data = b"".join(map(zstandard.ZstdCompressor().compress, parts))
found = {
    "decompress": zstandard.decompress(data),
    "ZstdDecompressor": zstandard.ZstdDecompressor().decompress(data),
    "stream_reader": zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)).read(),
    "pyarrow": pa.input_stream(pa.py_buffer(data), compression="zstd").read(),
    "gzip's own": gzip.decompress(b"".join(map(gzip.compress, parts))),
}
print(found)
assert found.pop("decompress") == found.pop("ZstdDecompressor") == parts[0]
assert set(found.values()) == {b"".join(parts)}
try:
    zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    raise AssertionError("it is taken")
except zstandard.ZstdError as error:
    print("allow_extra_data=False:", error)
PYTHON
