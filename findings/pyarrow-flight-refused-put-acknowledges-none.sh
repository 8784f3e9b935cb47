#!/usr/bin/env bash
# pyarrow 26.0.1, Arrow Flight: a DoPut that the server refuses looks acknowledged to who reads the acknowledgements.
# After the server has raised, `reader.read()` returns None, as at the end of a stream that went well, and so it does
# again; writes before it succeed. The server's error comes from `writer.close()` alone.
# What to do: count what was acknowledged, take None before the last one for a failure, and always close the writer.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check pyarrow==26.0.1
cd "$folder"
venv/bin/python - <<'PYTHON'
import pyarrow as pa
import pyarrow.flight as flight


class Receiver(flight.FlightServerBase):
    def do_put(self, context, descriptor, reader, writer):
        for number, _ in enumerate(reader):
            if number == 1:
                raise flight.FlightServerError("the disk is full")
            writer.write(pa.py_buffer(b"has batch 0"))


batch = pa.record_batch({"id": [1, 2, 3]})
with Receiver("grpc://127.0.0.1:0") as server:
    client = flight.connect(f"grpc://127.0.0.1:{server.port}")
    writer, reader = client.do_put(flight.FlightDescriptor.for_path("samples"), batch.schema)
    writer.write_batch(batch)
    heard = [reader.read().to_pybytes()]
    writer.write_batch(batch)
    heard += [reader.read(), reader.read()]
    try:
        writer.close()
        closed = "no error"
    except flight.FlightServerError as error:
        closed = str(error).splitlines()[0]
print(heard, "close:", closed)
assert heard == [b"has batch 0", None, None]
assert "the disk is full" in closed
PYTHON
