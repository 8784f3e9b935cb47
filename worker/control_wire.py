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
_PREFIX = struct.Struct("<4sI")
_MAGIC = b"SMC1"

_decode_report = decoder_of(Report)
_decode_grant = decoder_of(Grant)


def send_message(sock: socket.socket, message: Report | Grant) -> None:
    """Send a frame; ValueError where it would be over the limit, OSError where the peer is gone."""
    body = msgpack.packb(message, default=_plain)
    if len(body) > MAX_BYTES:
        raise ValueError(
            f"a {type(message).__name__} would take {len(body)} bytes, a frame holds {MAX_BYTES}."
            " Use smaller batches"
        )
    sock.sendall(_PREFIX.pack(_MAGIC, len(body)) + body)


def receive_report(sock: socket.socket) -> Report:
    """Receive a report; raises WireError for what is none, OSError where the peer is gone."""
    return _receive(sock, _decode_report, max_text_bytes=_MAX_TEXT_BYTES)


def receive_grant(sock: socket.socket) -> Grant:
    """Receive a grant; raises as `receive_report`."""
    return _receive(sock, _decode_grant, max_text_bytes=_MAX_MASK_BYTES)


def _plain(value: Any) -> list[Any] | bytes:
    return value.tobytes() if isinstance(value, np.ndarray) else field_values(value)


def _receive(sock: socket.socket, decode: Decoder, *, max_text_bytes: int) -> Any:
    magic, nbytes = _PREFIX.unpack(receive_exactly(sock, _PREFIX.size))
    if magic != _MAGIC or nbytes > MAX_BYTES:
        raise WireError(f"not a frame of ours: it starts with {magic!r} and {nbytes} bytes")
    body = receive_exactly(sock, nbytes)
    try:
        fields = msgpack.unpackb(
            body,
            strict_map_key=True,
            max_array_len=MAX_TOKENS,
            max_map_len=_MAX_STAGES,
            max_str_len=max_text_bytes,
            max_ext_len=0,
        )
        return decode(fields)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise WireError(f"a frame that can't be read: {error}") from error
