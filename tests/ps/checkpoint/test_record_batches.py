"""What a batch says that it becomes is held against its rows before anything is allocated."""

import struct

import numpy as np
import pyarrow as pa
import pytest

from ps.checkpoint.record_batches import batches_of

SCHEMA = pa.schema([("key", pa.int64()), ("vector", pa.list_(pa.float32(), 4))])


def messages(rows: int, compression: str | None, schema: pa.Schema = SCHEMA) -> bytes:
    keys = pa.array(np.arange(rows))
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(4 * rows, np.float32)), 4)
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, schema, options=options) as writer:
        writer.write_batch(pa.record_batch([keys, vectors], schema=schema))
    return bytes(sink.getvalue())


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
@pytest.mark.parametrize("rows", [1, 1000])
def test_batches_come_back_whatever_compresses_them(compression: str | None, rows: int) -> None:
    data = messages(rows, compression)

    (batch,) = batches_of(pa.py_buffer(data), SCHEMA, rows=rows)

    assert batch.column(0).to_pylist() == list(range(rows))


def test_another_number_of_rows_than_listed_is_refused_before_it_is_decompressed() -> None:
    data = messages(1000, "zstd")

    before = pa.total_allocated_bytes()
    with pytest.raises(ValueError, match="says 10 rows, the file has 1000"):
        next(batches_of(pa.py_buffer(data), SCHEMA, rows=10))

    assert pa.total_allocated_bytes() == before


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_a_buffer_that_says_it_becomes_huge_is_refused_before_it_is_allocated(
    compression: str,
) -> None:
    data = messages(1000, compression)
    said = struct.pack("<q", 8000)
    assert data.count(said) == 1, "the length of the keys stands before them"
    forged = data.replace(said, struct.pack("<q", 1 << 40))

    with pytest.raises(ValueError, match=f"take {(1 << 40) + 16000} bytes.* at most 52096"):
        next(batches_of(pa.py_buffer(forged), SCHEMA, rows=1000))


def test_what_takes_more_than_any_batch_may_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 1000 were expected"):
        next(batches_of(pa.py_buffer(messages(1000, "zstd")), SCHEMA, max_bytes=1000))


def test_nulls_are_refused() -> None:
    sink = pa.BufferOutputStream()
    schema = pa.schema([("key", pa.int64())])
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.record_batch([pa.array([1, None])], schema=schema))

    with pytest.raises(ValueError, match="column 'key' has 1 nulls"):
        next(batches_of(sink.getvalue(), schema))
