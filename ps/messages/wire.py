"""Frames: a msgpack header of scalars and the raw bytes of the arrays. No pickle.

    frame  = magic (4) | header bytes (u32) | body bytes (u64) | header | body
    body   = the arrays of the message, each padded to 8 bytes; or its zstandard compression

Sizes are checked against limits before anything is allocated. All numbers are little-endian.
"""

import dataclasses
import struct
from collections.abc import Sequence
from typing import Any, get_type_hints

import msgpack
import numpy as np
import numpy.typing as npt
import zstandard

from ps.messages.exchange import Message, Refusal
from ps.messages.following import AwaitNewest, FetchPiece, Newest, Piece
from ps.messages.pull_push import (
    MAX_STEP_BATCHES,
    Contribution,
    Prefetch,
    Pull,
    PullReply,
    PushReply,
)
from ps.messages.records import (
    Apply,
    ApplyReply,
    DenseNorm,
    DenseNormReply,
    Freeze,
    FreezeReply,
    Record,
)
from runtime.typed import array_dtype, decoder_of, field_values

PREFIX = struct.Struct("<4sIQ")
MAGIC = b"SMF1"
MAX_HEADER_BYTES = 4 << 20
MAX_BODY_BYTES = 1 << 30
# Of each list in a header: so that no length in it makes much memory. An entry takes at most 28
# bytes, so those of a step fit the header.
_MAX_ITEMS = MAX_STEP_BATCHES
# Of records in one message; a larger record goes alone.
_MAX_APPLY_BYTES = 1 << 20

# What is allocated for a header at first: the default of 256 KiB would be for every message.
_HEADER_BUFFER_BYTES = 1 << 12

_KINDS: tuple[type, ...] = (
    Pull,
    PullReply,
    Contribution,
    PushReply,
    Apply,
    ApplyReply,
    Refusal,
    DenseNorm,
    DenseNormReply,
    Freeze,
    FreezeReply,
    AwaitNewest,
    Newest,
    FetchPiece,
    Piece,
    Prefetch,
)
_CODE = {kind: code for code, kind in enumerate(_KINDS)}


def _array_fields(kind: type) -> tuple[tuple[str, np.dtype[Any]], ...]:
    hints = get_type_hints(kind)
    dtypes = [(field.name, array_dtype(hints[field.name])) for field in dataclasses.fields(kind)]
    return tuple((name, dtype) for name, dtype in dtypes if dtype is not None)


_ARRAYS = {kind: _array_fields(kind) for kind in _KINDS}
_SCALARS = {
    kind: {
        name: decoder_of(hint)
        for name, hint in get_type_hints(kind).items()
        if name not in dict(_ARRAYS[kind])
    }
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


class MessageTooLargeError(ValueError):
    """A message over the limits of a frame: sending it again would not help."""


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
    """Return the buffers of a frame, to be sent one after another; arrays are not copied.

    Raises:
        MessageTooLargeError: the message is over the limits of a frame.
    """
    kind = type(message)
    if isinstance(message, Apply):
        header = _apply_header(message)
        _check_size(kind, "header", len(header), MAX_HEADER_BYTES)
        return [PREFIX.pack(MAGIC, len(header), 0) + header]
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
    _check_size(kind, "arrays", sum(part.nbytes for part in body), MAX_BODY_BYTES)
    if compress and body:
        body = [memoryview(zstandard.ZstdCompressor(level=1).compress(b"".join(body)))]
    fields = [_CODE[kind], bool(compress and body), lengths, scalars]
    header = msgpack.packb(fields, default=field_values, buf_size=_HEADER_BUFFER_BYTES)
    _check_size(kind, "header", len(header), MAX_HEADER_BYTES)
    size = sum(len(part) for part in body)
    return [PREFIX.pack(MAGIC, len(header), size) + header, *body]


# What comes before the scalars of an `Apply`, in the header that `encode` makes of any message.
_APPLY_BEGINS = b"\x94" + b"".join(map(msgpack.packb, (_CODE[Apply], False, []))) + b"\x93"
# The records that were packed last, and their bytes: every copy of every shard is sent the same.
_packed_last: tuple[tuple[Record, ...], bytes] = ((), b"\x90")


def _apply_header(message: Apply) -> bytes:
    """Return the header of records; for the same records it packs them once."""
    global _packed_last
    records, packed = _packed_last
    if records is not message.records:
        packed = msgpack.packb(message.records, default=field_values, buf_size=_HEADER_BUFFER_BYTES)
        _packed_last = message.records, packed
    numbers = b"".join(
        msgpack.packb(number, buf_size=_HEADER_BUFFER_BYTES)
        for number in (message.request_id, message.recovery_epoch)
    )
    return _APPLY_BEGINS + numbers + packed


def in_messages(records: Sequence[Record]) -> list[tuple[Record, ...]]:
    """Divide records, in order, into what one message may hold of them."""
    messages: list[list[Record]] = []
    room = 0
    for record in records:
        nbytes = _most_bytes(record)
        if nbytes > room or not messages:
            messages.append([])
            room = _MAX_APPLY_BYTES
        messages[-1].append(record)
        room -= nbytes
    return [tuple(message) for message in messages]


def _most_bytes(record: Record) -> int:
    """Return how many bytes of a header a record takes at most."""
    scalars = 5 * len(record.scalars) + 9 * sum(map(len, record.scalars))
    lists = 28 * len(record.entries) + 19 * len(record.discard) + 64 * len(record.evict)
    lists += 9 * len(record.skipped)
    reasons = 0
    for reason, _ in record.totals.skipped:
        reasons += 15 + len(reason.encode())
    return 280 + scalars + lists + reasons


def _check_size(kind: type, what: str, nbytes: int, limit: int) -> None:
    if nbytes > limit:
        raise MessageTooLargeError(
            f"the {what} of a {kind.__name__} would take {nbytes} bytes, a frame holds {limit}."
            " Use smaller batches or more shards"
        )


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
        code, compressed, lengths, scalars = msgpack.unpackb(
            data, max_array_len=_MAX_ITEMS, max_map_len=0, max_ext_len=0, max_bin_len=0
        )
        if type(code) is not int or not 0 <= code < len(_KINDS) or type(compressed) is not bool:
            raise ValueError("it is of no known kind")
        kind = _KINDS[code]
        if len(lengths) != len(_ARRAYS[kind]):
            raise ValueError("wrong number of arrays")
        if any(type(n) is not int or not 0 <= n <= MAX_BODY_BYTES for n in lengths):
            raise ValueError("an array's length is out of range")
        values = _typed(kind, scalars)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise WireError(f"a frame header that can't be read: {error}") from error
    header = Header(kind, values, tuple(lengths), body_bytes, compressed)
    if header.arrays_bytes > MAX_BODY_BYTES:
        raise WireError(f"arrays of {header.arrays_bytes} bytes are over the limit")
    fits = body_bytes == header.arrays_bytes
    if header.compressed:
        fits = body_bytes <= _compressed_bound(header.arrays_bytes)
    if not fits:
        raise WireError(f"a body of {body_bytes} bytes, its header says {header.arrays_bytes}")
    return header


def _typed(kind: type, scalars: list[Any]) -> dict[str, Any]:
    values = {}
    for (name, decode), value in zip(_SCALARS[kind].items(), scalars, strict=True):
        try:
            values[name] = decode(value)
        except ValueError as error:
            raise ValueError(f"{kind.__name__}.{name}: {error}") from error
    return values


def _compressed_bound(nbytes: int) -> int:
    """Return how many bytes zstandard makes of so many at most (ZSTD_COMPRESSBOUND)."""
    return nbytes + (nbytes >> 8) + max(0, (128 << 10) - nbytes >> 11)


def decode_body(header: Header, body: npt.NDArray[np.uint8]) -> Message:
    """Return the message; its arrays are views of `body`, uint8[body bytes]."""
    if header.compressed:
        size = header.arrays_bytes
        try:
            # The frame's own word, checked first: it is what the decompressor allocates.
            if zstandard.frame_content_size(body.data) != size:
                raise WireError(f"a compressed body that is not of {size} bytes")
            # Of several frames it would give the first, and drop the others without a word.
            plain = zstandard.ZstdDecompressor().decompress(body.data, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise WireError(f"a body that can't be decompressed: {error}") from error
        body = np.frombuffer(bytearray(plain), np.uint8)
    arrays = {}
    start = 0
    for n, (name, dtype) in zip(header.lengths, _ARRAYS[header.kind], strict=True):
        nbytes = n * dtype.itemsize
        arrays[name] = body[start : start + nbytes].view(dtype)
        start += _padded(nbytes)
    return header.kind(**header.scalars, **arrays)
