"""Our frames between a worker and a shard: over sockets, and with their arrays in shared memory."""

import os
import secrets
import socket
import tempfile
import threading
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from bench.exchanges import EMPTY_PULL, EMPTY_REPLY, AnyMessage, Exchange, blank, produce, read
from bench.server_process import ServerProcess
from bench.shared_memory import SharedMemoryChannel, create_region
from ps.messages.exchange import Message
from ps.messages.pull_push import Contribution, Pull, PullReply, PushReply
from ps.messages.wire import Header, WireError, array_names, array_sizes
from ps.net.sockets import (
    Address,
    connect,
    local_place,
    network_place,
    prove_as_server,
    receive,
    send,
    tune,
)

Kind = Literal["unix", "tcp", "shared_memory", "shared_memory_in_place"]
_NODE = "here"
_CODES: dict[Kind, bytes] = {
    "unix": b"s",
    "tcp": b"s",
    "shared_memory": b"m",
    "shared_memory_in_place": b"i",
}


class Channel(Protocol):
    """One end of a connection; one message each way is under way at a time."""

    sock: socket.socket

    def blank(self, message: AnyMessage) -> AnyMessage:
        """Return a message of the same sizes to be filled and sent."""

    def send(self, message: Message) -> None:
        """Send a message."""

    def receive(self) -> Message:
        """Wait for a message; its arrays last until the next one."""


class SocketChannel:
    """Frames over a socket, as workers and shards send them.

    Args:
        reply: whose arrays the replies to pulls of its sizes are received into.
    """

    def __init__(self, sock: socket.socket, reply: PullReply | None = None) -> None:
        self.sock = sock
        self._reply = reply

    def blank(self, message: AnyMessage) -> AnyMessage:
        return blank(message)

    def send(self, message: Message) -> None:
        send(self.sock, message)

    def receive(self) -> Message:
        placed = False

        def places(header: Header) -> list[npt.NDArray[np.uint8]] | None:
            nonlocal placed
            if self._reply is None or header.kind is not PullReply:
                return None
            names = array_names(PullReply)
            arrays = [getattr(self._reply, name).view(np.uint8) for name in names]
            placed = tuple(array.nbytes for array in arrays) == array_sizes(header)
            return arrays if placed else None

        message, _ = receive(self.sock, places)
        return self._reply if placed and self._reply is not None else message


class FramedTransport:
    """The worker's end, with a server process of its own."""

    def __init__(self, kind: Kind, exchange: Exchange) -> None:
        self._sources = exchange.pull(), exchange.contribution()
        self._directory = tempfile.TemporaryDirectory(prefix="bench-")
        secret = secrets.token_bytes(32)
        path = str(Path(self._directory.name) / "server")
        self._server = ServerProcess(start_server, exchange, path, secret)
        node = "elsewhere" if kind == "tcp" else _NODE
        sock = connect(self._server.address, node_id=node, secret=secret)
        self._channel = self._open(kind, sock, exchange)
        self._pull = self._channel.blank(self._sources[0])
        self._contribution = self._channel.blank(self._sources[1])

    @staticmethod
    def _open(kind: Kind, sock: socket.socket, exchange: Exchange) -> Channel:
        if not kind.startswith("shared_memory"):
            sock.sendall(_CODES[kind])
            return SocketChannel(sock, blank(exchange.reply()))
        # Each array is padded to 8 bytes.
        descriptor = create_region(max(exchange.bytes_of_messages) + 64)
        try:
            socket.send_fds(sock, [_CODES[kind]], [descriptor])
            in_place = kind == "shared_memory_in_place"
            return SharedMemoryChannel(sock, descriptor, first=True, in_place=in_place)
        finally:
            os.close(descriptor)

    def pull(self) -> PullReply:
        """Ask for rows and dense parameters; the reply lasts until the next call."""
        produce(self._sources[0], self._pull)
        self._channel.send(self._pull)
        reply = self._channel.receive()
        assert isinstance(reply, PullReply), f"a {type(reply).__name__} answered a pull"
        read(reply)
        return reply

    def push(self) -> None:
        """Send gradients and wait for the acknowledgement."""
        produce(self._sources[1], self._contribution)
        self._channel.send(self._contribution)
        reply = self._channel.receive()
        assert isinstance(reply, PushReply), f"a {type(reply).__name__} answered a push"

    def call(self) -> None:
        """Call with nothing in it."""
        self._channel.send(EMPTY_PULL)
        self._channel.receive()

    def server_cpu_seconds(self) -> float:
        return self._server.cpu_seconds()

    def close(self) -> None:
        self._channel.sock.close()
        self._server.close()
        self._directory.cleanup()


def start_server(exchange: Exchange, path: str, secret: bytes) -> Address:
    """Answer pulls with the exchange's rows, in a thread for each connection."""
    local = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    local.bind(path)
    network = socket.create_server(("127.0.0.1", 0))
    for listener in (local, network):
        listener.listen()
        threading.Thread(target=_accept, args=(listener, exchange, secret), daemon=True).start()
    return Address(_NODE, path, *network.getsockname())


def _accept(listener: socket.socket, exchange: Exchange, secret: bytes) -> None:
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=_serve, args=(sock, exchange, secret), daemon=True).start()


def _serve(sock: socket.socket, exchange: Exchange, secret: bytes) -> None:
    try:
        own = sock.getsockname()
        local = sock.family == socket.AF_UNIX
        prove_as_server(sock, secret, local_place("", own) if local else network_place("", *own))
        tune(sock)
        answer(_accepted_channel(sock), exchange)
    except ConnectionError:
        sock.close()  # the peer is gone


def _accepted_channel(sock: socket.socket) -> Channel:
    code, descriptors, _, _ = socket.recv_fds(sock, 1, 1)
    try:
        if code == _CODES["unix"]:
            return SocketChannel(sock)
        if not descriptors:
            raise WireError("shared memory was announced, and no descriptor came")
        in_place = code == _CODES["shared_memory_in_place"]
        return SharedMemoryChannel(sock, descriptors[0], first=False, in_place=in_place)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def answer(channel: Channel, exchange: Exchange) -> None:
    """Answer pulls and pushes until the peer is gone, which raises ConnectionError."""
    source = exchange.reply()
    reply = channel.blank(source)
    while True:
        request = channel.receive()
        read(request)
        if isinstance(request, Pull) and request.keys.size:
            produce(source, reply)
            channel.send(reply)
        elif isinstance(request, Contribution):
            channel.send(PushReply(request.request_id))
        else:
            channel.send(EMPTY_REPLY)
