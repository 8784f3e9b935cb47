"""Frames that claim far more than they hold: refused before anything large is allocated."""

import struct
import tracemalloc
from collections.abc import Callable

import msgpack
import numpy as np
import pytest
import zstandard

from ps.messages.wire import (
    MAGIC,
    MAX_HEADER_BYTES,
    PREFIX,
    WireError,
    decode_body,
    decode_header,
    decode_prefix,
)

LITTLE = 8 << 20


def peak_bytes(action: Callable[[], object]) -> int:
    """The most memory that an action had allocated at once."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def decode(frame: bytes) -> None:
    """Decode as a receiver does: prefix, header, body."""
    header_bytes, body_bytes = decode_prefix(frame[: PREFIX.size])
    body_start = PREFIX.size + header_bytes
    header = decode_header(frame[PREFIX.size : body_start], body_bytes)
    decode_body(header, np.frombuffer(bytearray(frame[body_start:]), np.uint8))


def test_nested_lists_that_claim_a_million_items_take_little_memory() -> None:
    claim = b"\xdd" + struct.pack(">I", 1_000_000)
    for depth in (1, 30, 500, 5000):
        data = (claim * depth).ljust(MAX_HEADER_BYTES, b"\0")

        def refuse(data: bytes = data) -> None:
            with pytest.raises(WireError):
                decode_header(data, 0)

        assert peak_bytes(refuse) < LITTLE


@pytest.mark.parametrize(
    "data",
    [
        b"\xdf" + struct.pack(">I", 2**32 - 1),  # a map
        b"\xc6" + struct.pack(">I", 2**32 - 1),  # bytes
        b"\xdb" + struct.pack(">I", 2**32 - 1),  # text
        b"\xc9" + struct.pack(">I", 2**32 - 1) + b"\x01",  # an extension
        b"\x81\x01\x02",
        b"\xd6\xff\0\0\0\0",  # a time
        b"\x94\x00\xc2\x92\x03\x03\xc4\x01x",
        b"\xc1",
        b"\x91" * 100_000,
    ],
)
def test_containers_that_no_header_has_are_refused(data: bytes) -> None:
    def refuse() -> None:
        with pytest.raises(WireError):
            decode_header(data, 0)

    assert peak_bytes(refuse) < LITTLE


def compressed_reply(claimed: int, body: bytes) -> bytes:
    """A frame whose header claims so many bytes of values for this compressed body."""
    header = msgpack.packb([1, True, [claimed // 4, 0, 0], [1, 2, False]])
    return PREFIX.pack(MAGIC, len(header), len(body)) + header + body


ZEROS = zstandard.ZstdCompressor().compress(bytes(64 << 20))
UNSIZED = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(64 << 20))
HUGE_CLAIM = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 1 << 50) + b"\x01\0\0"


@pytest.mark.parametrize(
    ("claimed", "body"),
    [
        (8, ZEROS),  # more than its header says
        (1 << 20, ZEROS),
        (8, UNSIZED),
        (64 << 20, UNSIZED),  # of a size that can't be known
        (8, HUGE_CLAIM),
        (1 << 28, zstandard.ZstdCompressor().compress(bytes(8))),  # less
        (8, b""),
        (8, b"no zstandard"),
        (8, zstandard.ZstdCompressor().compress(bytes(8))[:-2]),
        (8, zstandard.ZstdCompressor().compress(bytes(8)) * 2),
        (8, zstandard.ZstdCompressor().compress(bytes(8)) + b"more"),
    ],
)
def test_a_compressed_body_of_another_size_is_refused_before_it_is_unpacked(
    claimed: int, body: bytes
) -> None:
    frame = compressed_reply(claimed, body)

    def refuse() -> None:
        with pytest.raises(WireError):
            decode(frame)

    assert peak_bytes(refuse) < LITTLE
