"""Frames over stream sockets: sending, receiving in place, and the handshake.

Both ends prove that they know the job's secret before any frame is read (HMAC-SHA256 over the
other's nonce), so nothing else on the machine or network can feed a shard.
"""

import hashlib
import hmac
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ps.messages import Message
from ps.wire import (
    PREFIX,
    Header,
    WireError,
    array_names,
    decode_body,
    decode_header,
    decode_prefix,
    encode,
)

NONCE_BYTES = 32
HANDSHAKE_TIMEOUT_SECONDS = 10.0
_SOCKET_BUFFER_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Address:
    """Where a process of the job listens.

    Args:
        node_id: the node it runs on; peers on the same node use the local socket.
        path: of its local (Unix) socket.
        host, port: of its network socket, where it was asked to open one.
    """

    node_id: str
    path: str
    host: str | None = None
    port: int | None = None


def connect(address: Address, *, node_id: str, secret: bytes) -> socket.socket:
    """Connect to a process and prove the secret; raises OSError where that fails.

    From then on the socket blocks without a timeout: who is busy is not lost.
    """
    if address.node_id == node_id:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    elif address.host is not None and address.port is not None:
        sock = socket.create_connection((address.host, address.port), HANDSHAKE_TIMEOUT_SECONDS)
    else:
        raise ConnectionError(f"the process on node {address.node_id} has no network socket")
    try:
        sock.settimeout(HANDSHAKE_TIMEOUT_SECONDS)
        if address.node_id == node_id:
            sock.connect(address.path)
        prove_as_client(sock, secret)
        tune(sock)
    except BaseException:
        sock.close()
        raise
    return sock


def tune(sock: socket.socket) -> None:
    """Make a socket fit for frames, once both ends are known."""
    sock.settimeout(None)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BUFFER_BYTES)
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _proof(secret: bytes, role: bytes, nonce: bytes) -> bytes:
    return hmac.new(secret, role + nonce, hashlib.sha256).digest()


def prove_as_client(sock: socket.socket, secret: bytes) -> None:
    """Answer the server's nonce and check its answer to ours."""
    theirs = receive_exactly(sock, NONCE_BYTES)
    ours = os.urandom(NONCE_BYTES)
    sock.sendall(_proof(secret, b"client", theirs) + ours)
    answer = receive_exactly(sock, hashlib.sha256().digest_size)
    if not hmac.compare_digest(answer, _proof(secret, b"server", ours)):
        raise WireError("the other end does not know the job's secret")


def prove_as_server(sock: socket.socket, secret: bytes) -> None:
    """Send a nonce, check the client's answer and answer its nonce; raises WireError."""
    ours = os.urandom(NONCE_BYTES)
    sock.sendall(ours)
    answer = receive_exactly(sock, hashlib.sha256().digest_size + NONCE_BYTES)
    proof, theirs = answer[:-NONCE_BYTES], answer[-NONCE_BYTES:]
    if not hmac.compare_digest(proof, _proof(secret, b"client", ours)):
        raise WireError("a client does not know the job's secret")
    sock.sendall(_proof(secret, b"server", theirs))


def receive_exactly(sock: socket.socket, nbytes: int) -> bytes:
    """Receive a small number of bytes; raises ConnectionError where the peer is gone."""
    data = bytearray(nbytes)
    receive_into(sock, memoryview(data))
    return bytes(data)


def receive_into(sock: socket.socket, view: memoryview) -> None:
    """Fill a buffer from the socket."""
    while view.nbytes:
        received = sock.recv_into(view)
        if received == 0:
            raise ConnectionError("the peer closed the connection")
        view = view[received:]


def send(
    sock: socket.socket,
    message: Message,
    *,
    compress: bool = False,
    when_full: Callable[[], None] | None = None,
    when_stalled: Callable[[], None] | None = None,
) -> int:
    """Send a message as one frame without copying its arrays; return the bytes sent.

    Args:
        when_full: called, again and again, while the socket takes no more; it waits until it may
            do so. Without it the call itself waits.
        when_stalled: called each time that the socket has taken nothing for as long as its
            SO_SNDTIMEO says, where it has one; it may raise OSError to end the waiting.
    """
    buffers = [memoryview(part) for part in encode(message, compress=compress)]
    total = sum(part.nbytes for part in buffers)
    flags = 0 if when_full is None else socket.MSG_DONTWAIT
    while buffers:
        try:
            sent = sock.sendmsg(buffers, (), flags)
        except BlockingIOError:
            wait = when_full or when_stalled
            assert wait is not None, "a socket without a timeout waits by itself"
            wait()
            continue
        while buffers and sent >= buffers[0].nbytes:
            sent -= buffers.pop(0).nbytes
        if sent:
            buffers[0] = buffers[0][sent:]
    return total


def receive_header(sock: socket.socket) -> tuple[Header, int]:
    """Receive the head of a frame; return it with the bytes of the whole frame."""
    header_bytes, body_bytes = decode_prefix(receive_exactly(sock, PREFIX.size))
    header = decode_header(receive_exactly(sock, header_bytes), body_bytes)
    return header, PREFIX.size + header_bytes + body_bytes


Places = Callable[[Header], list[npt.NDArray[np.uint8]] | None]


def receive(sock: socket.socket, places: Places | None = None) -> tuple[Message, int]:
    """Receive one message; return it with the bytes received.

    Args:
        places: may name, for a header, where the bytes of each array are to be written: uint8
            views, in order, of exactly the right sizes. The arrays of the message are then empty.
    """
    header, total = receive_header(sock)
    targets = places(header) if places is not None else None
    if targets is None:
        body = np.empty(header.body_bytes, np.uint8)
        receive_into(sock, body.data)
        return decode_body(header, body), total
    if header.compressed:
        body = np.empty(header.body_bytes, np.uint8)
        receive_into(sock, body.data)
        _scatter(decode_body(header, body), header, targets)
    else:
        padding = bytearray(8)
        for target in targets:
            receive_into(sock, target.data)
            receive_into(sock, memoryview(padding)[: -target.nbytes % 8])
    empty = Header(header.kind, header.scalars, (0,) * len(header.lengths), 0, False)
    return decode_body(empty, np.empty(0, np.uint8)), total


def _scatter(message: Message, header: Header, targets: list[npt.NDArray[np.uint8]]) -> None:
    for name, target in zip(array_names(header.kind), targets, strict=True):
        target[:] = getattr(message, name).view(np.uint8)
