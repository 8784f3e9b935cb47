"""Frames: a msgpack header of scalars and the raw bytes of the arrays. No pickle.

    frame  = magic (4) | header bytes (u32) | body bytes (u64) | header | body
    body   = the arrays of the message, each padded to 8 bytes; or its zstandard compression

Sizes are checked against limits before anything is allocated. All numbers are little-endian.
"""

import dataclasses
import struct
from typing import Any, get_origin, get_type_hints

import msgpack
import numpy as np
import numpy.typing as npt
import zstandard

from ps.messages import (
    Apply,
    ApplyReply,
    Contribution,
    Entry,
    Message,
    Pull,
    PullReply,
    PushReply,
    Record,
    Refusal,
)

PREFIX = struct.Struct("<4sIQ")
MAGIC = b"SMF1"
MAX_HEADER_BYTES = 1 << 20
MAX_BODY_BYTES = 1 << 30

_KINDS: tuple[type, ...] = (Pull, PullReply, Contribution, PushReply, Apply, ApplyReply, Refusal)
_CODE = {kind: code for code, kind in enumerate(_KINDS)}


def _array_fields(kind: type) -> tuple[tuple[str, np.dtype[Any]], ...]:
    hints = get_type_hints(kind)
    found = []
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if get_origin(hint) is np.ndarray:
            found.append((field.name, np.dtype(hint.__args__[1].__args__[0])))
    return tuple(found)


_ARRAYS = {kind: _array_fields(kind) for kind in _KINDS}
_SCALARS = {
    kind: tuple(
        f.name
        for f in dataclasses.fields(kind)
        if f.name not in dict(_ARRAYS[kind]) and f.name != "records"
    )
    for kind in _KINDS
}


def array_names(kind: type) -> tuple[str, ...]:
    """Return the names of a message's arrays, in the order of the body."""
    return tuple(name for name, _ in _ARRAYS[kind])


def array_sizes(header: "Header") -> tuple[int, ...]:
    """Return the bytes of each array of a frame, without padding."""
    return tuple(
        n * dtype.itemsize
        for n, (_, dtype) in zip(header.lengths, _ARRAYS[header.kind], strict=True)
    )


class WireError(ConnectionError):
    """A frame that is not one of ours, or is larger than the limits."""


@dataclasses.dataclass(slots=True)
class Header:
    """A decoded frame header: which message, its scalars, and how long each array is."""

    kind: type
    scalars: dict[str, Any]
    lengths: tuple[int, ...]
    body_bytes: int
    compressed: bool

    @property
    def arrays_bytes(self) -> int:
        return sum(
            _padded(n * dtype.itemsize)
            for n, (_, dtype) in zip(self.lengths, _ARRAYS[self.kind], strict=True)
        )


def _padded(nbytes: int) -> int:
    return -(-nbytes // 8) * 8


def encode(message: Message, *, compress: bool = False) -> list[bytes | memoryview]:
    """Return the buffers of a frame, to be sent one after another; arrays are not copied."""
    kind = type(message)
    scalars = [getattr(message, name) for name in _SCALARS[kind]]
    lengths, body = [], []
    for name, dtype in _ARRAYS[kind]:
        array = np.ascontiguousarray(getattr(message, name), dtype)
        lengths.append(array.size)
        if array.nbytes:
            body.append(memoryview(array).cast("B"))
            padding = _padded(array.nbytes) - array.nbytes
            if padding:
                body.append(memoryview(bytes(padding)))
    if isinstance(message, Apply):
        scalars.append([_record_to_list(record) for record in message.records])
    if compress and body:
        body = [memoryview(zstandard.ZstdCompressor(level=1).compress(b"".join(body)))]
    header = msgpack.packb([_CODE[kind], bool(compress and body), lengths, scalars])
    if len(header) > MAX_HEADER_BYTES:
        raise WireError(f"a frame header of {len(header)} bytes is over {MAX_HEADER_BYTES}")
    size = sum(len(part) for part in body)
    return [PREFIX.pack(MAGIC, len(header), size) + header, *body]


def decode_prefix(prefix: bytes | bytearray | memoryview) -> tuple[int, int]:
    """Return (header bytes, body bytes) of a frame; raises WireError over the limits."""
    magic, header_bytes, body_bytes = PREFIX.unpack(prefix)
    if magic != MAGIC:
        raise WireError(f"not a frame: it starts with {magic!r}, expected {MAGIC!r}")
    if header_bytes > MAX_HEADER_BYTES or body_bytes > MAX_BODY_BYTES:
        raise WireError(f"a frame of {header_bytes} + {body_bytes} bytes is over the limit")
    return header_bytes, body_bytes


def decode_header(data: bytes | memoryview, body_bytes: int) -> Header:
    """Decode and check a header; raises WireError where it does not fit its message."""
    try:
        code, compressed, lengths, scalars = msgpack.unpackb(data, use_list=False)
        kind = _KINDS[code]
        names = _SCALARS[kind] + (("records",) if kind is Apply else ())
        values = dict(zip(names, scalars, strict=True))
        if len(lengths) != len(_ARRAYS[kind]):
            raise ValueError("wrong number of arrays")
        if any(not isinstance(n, int) or not 0 <= n <= MAX_BODY_BYTES for n in lengths):
            raise ValueError("an array's length is out of range")
        if kind is Apply:
            values["records"] = tuple(_record_from_list(record) for record in values["records"])
    except (ValueError, TypeError, IndexError, msgpack.UnpackException) as error:
        raise WireError(f"a frame header that can't be read: {error}") from error
    header = Header(kind, values, lengths, body_bytes, bool(compressed))
    if header.arrays_bytes > MAX_BODY_BYTES:
        raise WireError(f"arrays of {header.arrays_bytes} bytes are over the limit")
    if not header.compressed and header.arrays_bytes != body_bytes:
        raise WireError(f"a body of {body_bytes} bytes, its header says {header.arrays_bytes}")
    return header


def decode_body(header: Header, body: npt.NDArray[np.uint8]) -> Message:
    """Return the message; its arrays are views of `body`, uint8[body bytes]."""
    if header.compressed:
        size = header.arrays_bytes
        try:
            plain = zstandard.ZstdDecompressor().decompress(body.data, max_output_size=size)
        except zstandard.ZstdError as error:
            raise WireError(f"a body that can't be decompressed: {error}") from error
        if len(plain) != size:
            raise WireError(f"a body of {len(plain)} bytes, its header says {size}")
        body = np.frombuffer(bytearray(plain), np.uint8)
    arrays = {}
    start = 0
    for n, (name, dtype) in zip(header.lengths, _ARRAYS[header.kind], strict=True):
        nbytes = n * dtype.itemsize
        arrays[name] = body[start : start + nbytes].view(dtype)
        start += _padded(nbytes)
    return header.kind(**header.scalars, **arrays)


_RECORD_FIELDS = tuple(f.name for f in dataclasses.fields(Record))


def _record_to_list(record: Record) -> list[Any]:
    fields = {name: getattr(record, name) for name in _RECORD_FIELDS}
    fields["entries"] = [(e.batch_id, e.attempt, e.weight) for e in record.entries]
    return list(fields.values())


def _record_from_list(values: tuple[Any, ...]) -> Record:
    fields = dict(zip(_RECORD_FIELDS, values, strict=True))
    fields["entries"] = tuple(Entry(*entry) for entry in fields["entries"])
    return Record(**fields)
