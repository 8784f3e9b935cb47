"""Reports and grants on a socket: frames of a length and msgpack. No pickle.

    frame = magic (4) | bytes (u32) | the message's fields, as `runtime.typed` has them

A frame's length is checked before anything is allocated, and so are those of its lists: tokens that
a worker holds or is granted, and stages that it measures.
"""

import socket
import struct
from typing import Any

import msgpack
import numpy as np

from ps.messages.wire import WireError
from ps.net.sockets import receive_exactly
from runtime.typed import Decoder, decoder_of, field_values
from worker.protocol import MAX_TOKENS, Grant, Report

MAX_BYTES = 16 << 20
# The longest texts of a grant say which rows of a file are kept.
_MAX_STAGES, _MAX_TEXT_BYTES, _MAX_MASK_BYTES = 256, 256, 1 << 20
PREFIX = struct.Struct("<4sI")
MAGIC = b"SMC1"
# Of a frame with many reports, or their grants, see `worker.control_bundles`.
MANY_MAGIC = b"SMM1"

_decode_report = decoder_of(Report)
_decode_grant = decoder_of(Grant)


def frame_of(message: Report | Grant) -> bytes:
    """Return the frame of a message; raises ValueError where it would be over the limit."""
    body = msgpack.packb(message, default=plain)
    if len(body) > MAX_BYTES:
        raise ValueError(
            f"a {type(message).__name__} would take {len(body)} bytes, a frame holds {MAX_BYTES}."
            " Use smaller batches"
        )
    return framed(MAGIC, body)


def framed(magic: bytes, body: bytes) -> bytes:
    """Return a frame."""
    return PREFIX.pack(magic, len(body)) + body


def send_message(sock: socket.socket, message: Report | Grant) -> None:
    """Send a frame; ValueError where it would be over the limit, OSError where the peer is gone."""
    sock.sendall(frame_of(message))


def receive_report(sock: socket.socket) -> Report:
    """Receive a report; raises WireError for what is none, OSError where the peer is gone."""
    return report_in(_receive(sock))


def report_in(body: bytes) -> Report:
    """Return the report in the body of a frame; raises WireError for what is none."""
    report: Report = _decoded(body, _decode_report, max_text_bytes=_MAX_TEXT_BYTES)
    return report


def receive_grant(sock: socket.socket) -> Grant:
    """Receive a grant; raises as `receive_report`."""
    grant: Grant = _decoded(_receive(sock), _decode_grant, max_text_bytes=_MAX_MASK_BYTES)
    return grant


def plain(value: Any) -> list[Any] | bytes:
    """Return what msgpack takes of a message's dataclass or array."""
    return value.tobytes() if isinstance(value, np.ndarray) else field_values(value)


def _receive(sock: socket.socket) -> bytes:
    magic, nbytes = PREFIX.unpack(receive_exactly(sock, PREFIX.size))
    if magic != MAGIC or nbytes > MAX_BYTES:
        raise WireError(f"not a frame of ours: it starts with {magic!r} and {nbytes} bytes")
    return receive_exactly(sock, nbytes)


def unpacked(body: bytes, *, max_text_bytes: int) -> Any:
    """Return what msgpack finds in a body, whose lists and maps are bounded.

    Raises:
        ValueError, TypeError, msgpack.UnpackException: it is not to be read.
    """
    return msgpack.unpackb(
        body,
        strict_map_key=True,
        max_array_len=MAX_TOKENS,
        max_map_len=_MAX_STAGES,
        max_str_len=max_text_bytes,
        max_ext_len=0,
    )


def _decoded(body: bytes, decode: Decoder, *, max_text_bytes: int) -> Any:
    try:
        return decode(unpacked(body, max_text_bytes=max_text_bytes))
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise WireError(f"a frame that can't be read: {error}") from error
