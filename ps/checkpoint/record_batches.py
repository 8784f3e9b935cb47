"""Arrow messages to record batches, whose sizes are held against what was said of their rows first.

Arrow allocates whatever a compressed buffer says that it becomes, so that is looked at before.
"""

import struct
from collections.abc import Iterator

import pyarrow as pa

from embedding.arrow import check_no_nulls

MAX_BATCH_BYTES = 1 << 31
"""Of the columns of a batch, not compressed."""

_I32, _U16, _U32, _I64 = (struct.Struct(f"<{letter}") for letter in "iHIq")
_HEADER, _LENGTH, _BUFFERS, _COMPRESSION = 2, 0, 2, 3  # places of fields in Arrow's tables
_OF_DICTIONARY = 1  # place of the batch in a dictionary's table
_BUFFER_BYTES = 16  # offset and length, int64


def batches_of(
    data: pa.Buffer, schema: pa.Schema, *, rows: int | None = None, max_bytes: int = MAX_BATCH_BYTES
) -> Iterator[pa.RecordBatch]:
    """Yield the batches of messages, in whose memory they lie where nothing is compressed.

    Args:
        schema: their columns.
        rows: that each must have; None: any number.
        max_bytes: that the columns of one may take.

    Raises:
        ValueError: there are others, or nulls, or columns would take more.
        pyarrow.ArrowException: they are no messages.
    """
    for message in pa.ipc.MessageReader.open_stream(pa.BufferReader(data)):
        if message.type == "record batch":
            _check(message, schema, rows, max_bytes)
            batch = pa.ipc.read_record_batch(message, schema)
            batch.validate(full=any(pa.types.is_string(kind) for kind in schema.types))
            check_no_nulls(batch)
            yield batch


def inflated_bytes(message: pa.Message) -> tuple[int, int]:
    """Return the rows that a record batch or dictionary says it has, and the bytes they take.

    Raises:
        ValueError: its head is damaged.
    """
    try:
        header = _Table.root(memoryview(message.metadata)).table(_HEADER)
        if message.type == "dictionary":
            header = header.table(_OF_DICTIONARY)
        size = 0 if message.body is None else message.body.size
        rows = header.int64(_LENGTH)
        return rows, _inflated(header, message.body) if header.has(_COMPRESSION) else size
    except (struct.error, IndexError) as error:
        raise ValueError(f"the head of a batch is damaged: {error}") from error


def _check(message: pa.Message, schema: pa.Schema, rows: int | None, max_bytes: int) -> None:
    metadata = memoryview(message.metadata)
    try:
        header = _Table.root(metadata).table(_HEADER)
        length, compressed = header.int64(_LENGTH), header.has(_COMPRESSION)
        found = _inflated(header, message.body) if compressed else 0
    except (struct.error, IndexError) as error:
        raise ValueError(f"the head of a batch is damaged: {error}") from error
    if rows is not None and length != rows:
        raise ValueError(f"the list of parts says {rows} rows, the file has {length} there")
    # With a bit for each value that may be null, and what aligns buffers.
    limit = max_bytes if rows is None else min(max_bytes, 2 * rows * _row_bytes(schema) + 4096)
    if found > limit:
        raise ValueError(
            f"{length} rows that take {found} bytes once they are not compressed any more, at most"
            f" {limit} were expected"
        )


def _inflated(header: "_Table", body: pa.Buffer | None) -> int:
    """Return the bytes that the compressed buffers of a batch say that they become."""
    data = memoryview(body) if body is not None else memoryview(b"")
    total = 0
    for at in header.structs(_BUFFERS, _BUFFER_BYTES):
        offset, length = (_I64.unpack_from(header.data, at + i)[0] for i in (0, 8))
        if length == 0:
            continue
        if offset < 0 or length < 0:
            raise ValueError(f"a buffer of {length} bytes from {offset} on")
        (said,) = _I64.unpack_from(data, offset)
        if said < -1:
            raise ValueError(f"a compressed buffer of {said} bytes")
        total += length if said == -1 else said  # -1: it is not compressed
    return total


def _row_bytes(schema: pa.Schema) -> int:
    return sum(
        kind.list_size * kind.value_type.bit_width // 8
        if pa.types.is_fixed_size_list(kind)
        else kind.bit_width // 8
        for kind in schema.types
    )


class _Table:
    """A table of a FlatBuffer, which Arrow has verified.

    Source: FlatBuffers' internals, flatbuffers.dev; the tables are those of Arrow's Message.fbs.
    """

    def __init__(self, data: memoryview, position: int) -> None:
        self.data, self._position = data, position
        self._fields = position - _I32.unpack_from(data, position)[0]
        self._size = _U16.unpack_from(data, self._fields)[0]

    @classmethod
    def root(cls, data: memoryview) -> "_Table":
        return cls(data, _U32.unpack_from(data, 0)[0])

    def _at(self, field: int) -> int:
        """Return where a field is, 0 where it is left out."""
        entry = 4 + 2 * field
        if entry >= self._size:
            return 0
        offset = int(_U16.unpack_from(self.data, self._fields + entry)[0])
        return self._position + offset if offset else 0

    def has(self, field: int) -> bool:
        return self._at(field) != 0

    def int64(self, field: int) -> int:
        at = self._at(field)
        return int(_I64.unpack_from(self.data, at)[0]) if at else 0

    def table(self, field: int) -> "_Table":
        at = self._at(field)
        if not at:
            raise IndexError(f"field {field} is missing")
        return _Table(self.data, at + _U32.unpack_from(self.data, at)[0])

    def structs(self, field: int, size: int) -> range:
        """Return where each struct of a vector is."""
        at = self._at(field)
        if not at:
            return range(0)
        at += _U32.unpack_from(self.data, at)[0]
        return range(at + 4, at + 4 + size * _U32.unpack_from(self.data, at)[0], size)
