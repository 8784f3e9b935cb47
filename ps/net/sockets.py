"""Frames over stream sockets: sending, receiving in place, and the handshake.

Both ends prove that they know the job's secret before any frame is read, so nothing else on the
machine or network can feed a shard. What is proved is bound to who speaks to whom: HMAC-SHA256 over
the direction, both nonces, who listens and where, and who connects. So a proof that was made for
one listener is worth nothing to another, whoever passes it on.

    listener: nonce (32)
    client:   proof (32) | nonce (32) | bytes of its name (u8) | its name
    listener: proof (32)
"""

import hashlib
import hmac
import os
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgpack
import numpy as np
import numpy.typing as npt

from ps.messages.exchange import Message
from ps.messages.wire import (
    PREFIX,
    Header,
    WireError,
    array_names,
    decode_body,
    decode_header,
    decode_prefix,
    encode,
)
from ps.net.cancellation import Cancellation

# The name by which the coordinator connects: its words say that it is there.
COORDINATOR = "coordinator"
NONCE_BYTES = 32
PROOF_BYTES = hashlib.sha256().digest_size
# Of the whole handshake, however many bytes trickle in.
HANDSHAKE_TIMEOUT_SECONDS = 10.0
# After so long a node that is silent is lost: one that acknowledges nothing, and one that sends
# nothing in the midst of a frame. Who is only busy between two frames may take any time.
SILENT_SECONDS = 30
_KEEPALIVE_IDLE_SECONDS, _KEEPALIVE_PAUSE_SECONDS, _KEEPALIVE_PROBES = 10, 5, 4
_SOCKET_BUFFER_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Address:
    """Where a process of the job listens.

    Args:
        node_id: the node it runs on; peers on the same node use the local socket.
        path: of its local (Unix) socket.
        host, port: of its network socket, where it was asked to open one.
        name: of who listens there, such as `shard 3`: who connects speaks to nobody else.
    """

    node_id: str
    path: str
    host: str | None = None
    port: int | None = None
    name: str = ""


def local_place(name: str, path: str) -> str:
    """Return how both ends of a local socket call the listener in their proofs."""
    return f"{name} at {path}"


def network_place(name: str, host: str, port: int) -> str:
    """Return how both ends of a network socket call the listener in their proofs."""
    return f"{name} at {host} port {port}"


def connect(
    address: Address,
    *,
    node_id: str,
    secret: bytes,
    name: str = "",
    cancellation: Cancellation | None = None,
) -> socket.socket:
    """Connect to a process and prove the secret; raises OSError where that fails.

    From then on the socket blocks without a timeout between frames: who is busy is not lost.

    Args:
        name: of who connects, such as `worker 3`; at most 255 bytes.
        cancellation: shuts the socket down, while it is made and later.
    """
    deadline = time.monotonic() + HANDSHAKE_TIMEOUT_SECONDS
    if address.node_id == node_id:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    elif address.host is not None and address.port is not None:
        sock = socket.create_connection((address.host, address.port), HANDSHAKE_TIMEOUT_SECONDS)
    else:
        raise ConnectionError(f"the process on node {address.node_id} has no network socket")
    try:
        if cancellation is not None:
            cancellation.hold(sock)
        sock.settimeout(HANDSHAKE_TIMEOUT_SECONDS)
        if address.node_id == node_id:
            sock.connect(address.path)
            place = local_place(address.name, address.path)
        else:
            assert address.host is not None, "it has a network socket"
            assert address.port is not None, "it has a network socket"
            place = network_place(address.name, address.host, address.port)
        prove_as_client(sock, secret, place, name, deadline=deadline)
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
    limit = struct.pack("@ll", SILENT_SECONDS, 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    if sock.family != socket.AF_UNIX:
        tcp = socket.IPPROTO_TCP
        sock.setsockopt(tcp, socket.TCP_NODELAY, 1)
        # What waits is probed, and what was sent and is not acknowledged has a limit.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(tcp, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE_SECONDS)
        sock.setsockopt(tcp, socket.TCP_KEEPINTVL, _KEEPALIVE_PAUSE_SECONDS)
        sock.setsockopt(tcp, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES)
        sock.setsockopt(tcp, socket.TCP_USER_TIMEOUT, SILENT_SECONDS * 1000)


def _proof(
    secret: bytes, direction: str, nonces: tuple[bytes, bytes], ends: tuple[str, str]
) -> bytes:
    """Return a proof; nonces and ends: the listener's and the client's."""
    text = msgpack.packb(["synchromesh handshake 2", direction, *nonces, *ends])
    return hmac.new(secret, text, hashlib.sha256).digest()


class NotProvenError(WireError):
    """One end does not know the secret, or means somebody else: trying again is of no use."""


def prove_as_client(
    sock: socket.socket, secret: bytes, place: str, name: str = "", *, deadline: float | None = None
) -> None:
    """Answer the listener's nonce and check its answer to ours.

    Args:
        place: whom we mean to speak to, as `local_place` or `network_place` has it.
        name: who we are.
        deadline: of the whole handshake, as `time.monotonic()` has it.

    Raises:
        NotProvenError: the listener has seen our proof and gone, or can't prove itself.
        OSError: it is gone, or too slow.
    """
    deadline = _deadline(deadline)
    said = name.encode()
    theirs = _receive_by(sock, NONCE_BYTES, deadline)
    ours = os.urandom(NONCE_BYTES)
    nonces, ends = (theirs, ours), (place, name)
    proof = _proof(secret, "client", nonces, ends)
    sock.sendall(proof + ours + bytes([len(said)]) + said)
    try:
        answer = _receive_by(sock, PROOF_BYTES, deadline)
    except ConnectionError as error:
        raise NotProvenError(
            f"the other end closed the connection when it was shown that we know the secret: it"
            f" has another one, is not {place}, or has ended"
        ) from error
    if not hmac.compare_digest(answer, _proof(secret, "listener", nonces, ends)):
        raise NotProvenError(f"the other end does not know the job's secret, or is not {place}")


def prove_as_server(
    sock: socket.socket, secret: bytes, place: str, *, deadline: float | None = None
) -> str:
    """Send a nonce, check the client's answer and answer its nonce; raises OSError.

    Args:
        place: who and where we are, as `local_place` or `network_place` has it.
        deadline: of the whole handshake, as `time.monotonic()` has it.

    Returns:
        The name that the client gave itself.
    """
    deadline = _deadline(deadline)
    ours = os.urandom(NONCE_BYTES)
    sock.settimeout(max(deadline - time.monotonic(), 0.001))
    sock.sendall(ours)
    answer = _receive_by(sock, PROOF_BYTES + NONCE_BYTES + 1, deadline)
    proof, theirs, length = answer[:PROOF_BYTES], answer[PROOF_BYTES:-1], answer[-1]
    name = _receive_by(sock, length, deadline).decode(errors="replace")
    nonces, ends = (ours, theirs), (place, name)
    if not hmac.compare_digest(proof, _proof(secret, "client", nonces, ends)):
        raise NotProvenError(
            f"a client does not know the secret, or means somebody else than {place}"
        )
    sock.sendall(_proof(secret, "listener", nonces, ends))
    return name


def _deadline(deadline: float | None) -> float:
    return time.monotonic() + HANDSHAKE_TIMEOUT_SECONDS if deadline is None else deadline


def _receive_by(sock: socket.socket, nbytes: int, deadline: float) -> bytes:
    """Receive so many bytes before a point in time, however they trickle in."""
    data = bytearray()
    while len(data) < nbytes:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the handshake took too long")
        sock.settimeout(left)
        part = sock.recv(nbytes - len(data))
        if not part:
            raise ConnectionError("the peer closed the connection in the handshake")
        data += part
    return bytes(data)


def receive_exactly(sock: socket.socket, nbytes: int) -> bytes:
    """Receive a small number of bytes; raises ConnectionError where the peer is gone."""
    data = bytearray(nbytes)
    receive_into(sock, memoryview(data))
    return bytes(data)


def receive_into(sock: socket.socket, view: memoryview) -> None:
    """Fill a buffer from the socket; raises ConnectionError or TimeoutError."""
    while view.nbytes:
        try:
            received = sock.recv_into(view)
        except BlockingIOError:  # by SO_RCVTIMEO, see `tune`
            raise TimeoutError(f"the peer sent nothing for {SILENT_SECONDS} s") from None
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
