"""The socket shell of a shard: one thread a connection, one lock around the state machine."""

import contextlib
import logging
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Hashable

from ps.messages import Message, Request
from ps.shard import Outgoing, Shard
from ps.sockets import HANDSHAKE_TIMEOUT_SECONDS, prove_as_server, receive, send, tune
from ps.wire import WireError

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 8192


class _Connection:
    """A peer; replies may come from any connection's thread, so sending has a lock."""

    def __init__(self, number: int, sock: socket.socket) -> None:
        self.number = number
        self.sock = sock
        self._sending = threading.Lock()

    def send(self, message: Message, *, compress: bool) -> int:
        with self._sending:
            return send(self.sock, message, compress=compress)


class DataPlane:
    """Serves one shard on a local socket, and on a network socket once asked to.

    Args:
        shard: the state machine.
        lock: held around every use of the shard, by others too.
        secret: what a peer must prove to know.
        compress: whether replies are compressed.
        on_error: called with an exception that nobody else would see.
    """

    def __init__(
        self,
        shard: Shard,
        *,
        lock: threading.Lock,
        secret: bytes,
        compress: bool = False,
        on_error: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.shard = shard
        self.lock = lock
        self.bytes_sent = 0
        self.bytes_received = 0
        self._secret = secret
        self._compress = compress
        self._on_error = on_error
        self._connections: dict[Hashable, _Connection] = {}
        self._next_number = 0
        self._listeners: list[socket.socket] = []
        self._closing = False
        # Only this user may enter the directory, so only this user can reach the local socket.
        self._directory = tempfile.mkdtemp(prefix="synchromesh-", dir=_short_directory())
        self.path = os.path.join(self._directory, f"shard-{shard.index}")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(self.path)
        self._listen(listener)
        self._network: tuple[str, int] | None = None

    def open_network(self, host: str) -> tuple[str, int]:
        """Listen on an address of this node too, for peers on other nodes; idempotent."""
        if self._network is None:
            listener = socket.create_server((host, 0))
            self._network = (host, listener.getsockname()[1])
            self._listen(listener)
        return self._network

    def close(self) -> None:
        """Stop listening and drop all connections."""
        self._closing = True
        for sock in [*self._listeners, *(c.sock for c in list(self._connections.values()))]:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _listen(self, listener: socket.socket) -> None:
        listener.listen(128)
        self._listeners.append(listener)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while not self._closing:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            if len(self._connections) >= MAX_CONNECTIONS:
                sock.close()
                continue
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            sock.settimeout(HANDSHAKE_TIMEOUT_SECONDS)
            prove_as_server(sock, self._secret)
            sock.settimeout(None)
            tune(sock)
        except OSError as error:
            logger.warning("shard %d refused a connection: %s", self.shard.index, error)
            sock.close()
            return
        with self.lock:
            connection = _Connection(self._next_number, sock)
            self._next_number += 1
            self._connections[connection.number] = connection
        try:
            while True:
                message, nbytes = receive(sock)
                if not isinstance(message, Request):
                    raise WireError(f"a {type(message).__name__} is no request")
                with self.lock:
                    self.bytes_received += nbytes
                    outgoing = self.shard.handle(message, connection.number)
                self._deliver(outgoing)
        except OSError:
            pass  # the peer is gone; it resends what it still wants on a new connection
        except Exception as error:
            logger.exception("shard %d failed at a message", self.shard.index)
            if self._on_error is not None:
                self._on_error(error)
        finally:
            self._drop(connection)

    def _deliver(self, outgoing: list[Outgoing]) -> None:
        for out in outgoing:
            connection = self._connections.get(out.to)
            if connection is None:
                continue
            try:
                sent = connection.send(out.reply, compress=self._compress)
            except OSError:
                self._drop(connection)
            else:
                with self.lock:
                    self.bytes_sent += sent

    def _drop(self, connection: _Connection) -> None:
        with self.lock:
            self._connections.pop(connection.number, None)
            self.shard.disconnect(connection.number)
        with contextlib.suppress(OSError):
            connection.sock.shutdown(socket.SHUT_RDWR)
        connection.sock.close()


def _short_directory() -> str | None:
    """A Unix socket's path is limited to about 100 bytes; temporary folders can be longer."""
    return None if len(tempfile.gettempdir()) < 60 else "/tmp"
