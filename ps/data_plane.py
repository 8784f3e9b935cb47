"""The socket shell of a shard: one thread a connection, one lock around the state machine."""

import contextlib
import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Hashable
from pathlib import Path

import psutil

from ps.messages import Apply, Contribution, Message, Pull, Reply, Request
from ps.shard import Outgoing, Shard
from ps.sockets import HANDSHAKE_TIMEOUT_SECONDS, prove_as_server, receive, send, tune
from ps.stage_times import StageTimes
from ps.wire import WireError

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 8192
ACCEPT_PAUSE_SECONDS = 0.2
_PREFIX = "synchromesh-"
_STAGES: dict[type[Request], str] = {Pull: "pull", Contribution: "push", Apply: "apply"}


class _Connection:
    """A peer; replies may come from any connection's thread, so sending has a lock."""

    def __init__(self, number: int, sock: socket.socket) -> None:
        self.number = number
        self.sock = sock
        self._sending = threading.Lock()

    def send(self, message: Message, *, compress: bool) -> int:
        with self._sending:
            return send(self.sock, message, compress=compress)

    def close(self) -> None:
        """Close the socket, waking whoever waits on it."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()


class DataPlane:
    """Serves one shard on a local socket, and on a network socket once asked to.

    Args:
        shard: the state machine.
        lock: held around every use of the shard, by others too.
        secret: what a peer must prove to know.
        compress: whether replies are compressed.
        on_error: called with an exception that nobody else would see.
        dies_at_step: the process kills itself, on purpose, once the shard has reached that step;
            the message that led there is not answered.
    """

    def __init__(
        self,
        shard: Shard,
        *,
        lock: threading.Lock,
        secret: bytes,
        compress: bool = False,
        on_error: Callable[[BaseException], None] | None = None,
        dies_at_step: int | None = None,
    ) -> None:
        self.shard = shard
        self.lock = lock
        self.bytes_sent = 0
        self.bytes_received = 0
        self._times = StageTimes(*_STAGES.values(), "other", "send")
        self._begun_ns = time.perf_counter_ns()
        self._secret = secret
        self._compress = compress
        self._on_error = on_error
        self._dies_at_step = dies_at_step
        # From the moment they are accepted, so that those in the handshake are counted too.
        self._connections: dict[Hashable, _Connection] = {}
        self._guard = threading.Lock()  # of the connections and of what was sent
        self._next_number = 0
        self._listeners: list[socket.socket] = []
        self._closing = False
        # Only this user may enter the directory, so only this user can reach the local socket.
        self._directory = _make_directory()
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

    def stage_seconds(self) -> dict[str, float]:
        """Return the seconds since the start by what the shard did; the lock is held.

        `pull`, `push` (taking a contribution into the buffer), `apply` and `other` messages;
        `idle`: none of them. `send` is the time of writing replies, in any thread, so it overlaps
        the others.
        """
        seconds = self._times.seconds()
        handling = sum(seconds.values()) - seconds["send"]
        elapsed = (time.perf_counter_ns() - self._begun_ns) / 1e9
        return {**seconds, "idle": elapsed - handling}

    def close(self) -> None:
        """Stop listening and drop all connections; their threads end by themselves."""
        with self._guard:
            self._closing = True
            connections = list(self._connections.values())
        for listener in self._listeners:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for connection in connections:
            connection.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _listen(self, listener: socket.socket) -> None:
        listener.listen(128)
        self._listeners.append(listener)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while not self._closing:
            try:
                sock, _ = listener.accept()
            except OSError as error:
                if not self._closing:  # too many open files, or the peer is gone again
                    logger.warning("shard %d can't accept: %s", self.shard.index, error)
                    time.sleep(ACCEPT_PAUSE_SECONDS)
                continue
            connection = self._admit(sock)
            if connection is None:
                sock.close()
            else:
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _admit(self, sock: socket.socket) -> _Connection | None:
        with self._guard:
            if self._closing or len(self._connections) >= MAX_CONNECTIONS:
                return None
            connection = _Connection(self._next_number, sock)
            self._next_number += 1
            self._connections[connection.number] = connection
            return connection

    def _serve(self, connection: _Connection) -> None:
        try:
            if self._handshake(connection.sock):
                while (received := self._receive(connection.sock)) is not None:
                    message, nbytes = received
                    with self.lock:
                        self.bytes_received += nbytes
                        with self._times.measure(_STAGES.get(type(message), "other")):
                            outgoing = self.shard.handle(message, connection.number)
                        self._die_if_due()
                    self._deliver(outgoing, connection)
        except Exception as error:
            self._fail(error)
        finally:
            self._drop(connection)

    def _die_if_due(self) -> None:
        if self._dies_at_step is not None and self.shard.step >= self._dies_at_step:
            os.kill(os.getpid(), signal.SIGKILL)

    def _handshake(self, sock: socket.socket) -> bool:
        try:
            sock.settimeout(HANDSHAKE_TIMEOUT_SECONDS)
            prove_as_server(sock, self._secret)
            tune(sock)
        except OSError as error:
            if not self._closing:
                logger.warning("shard %d refused a connection: %s", self.shard.index, error)
            return False
        return True

    def _receive(self, sock: socket.socket) -> tuple[Request, int] | None:
        """Return the next request; None where the peer is gone or sends what is none."""
        try:
            message, nbytes = receive(sock)
            if not isinstance(message, Request):
                raise WireError(f"a {type(message).__name__} is no request")
        except WireError as error:
            logger.warning("shard %d drops a connection: %s", self.shard.index, error)
            return None
        except OSError:
            return None  # the peer resends what it still wants on a new connection
        return message, nbytes

    def _deliver(self, outgoing: list[Outgoing], own: _Connection) -> None:
        """Send replies; one for another peer gets a thread: that peer may not read for long."""
        for out in outgoing:
            connection = self._connections.get(out.to)
            if connection is own:
                self._send(connection, out.reply)
            elif connection is not None:
                args = (connection, out.reply)
                threading.Thread(target=self._send, args=args, daemon=True).start()

    def _send(self, connection: _Connection, reply: Reply) -> None:
        began = time.perf_counter_ns()
        try:
            sent = connection.send(reply, compress=self._compress)
        except OSError:
            self._drop(connection)
        except Exception as error:
            self._drop(connection)
            self._fail(error)
        else:
            with self._guard:
                self.bytes_sent += sent
                self._times.add("send", time.perf_counter_ns() - began)

    def _fail(self, error: Exception) -> None:
        logger.error("shard %d failed at a message", self.shard.index, exc_info=error)
        if self._on_error is not None:
            self._on_error(error)

    def _drop(self, connection: _Connection) -> None:
        with self._guard:
            self._connections.pop(connection.number, None)
        with self.lock:
            self.shard.disconnect(connection.number)
        connection.close()


def _make_directory() -> str:
    """Make a folder that names its process, and remove those of processes that were killed."""
    parent = Path(tempfile.gettempdir())
    # A Unix socket's path is limited to about 100 bytes; temporary folders can be longer.
    if len(str(parent)) >= 60:
        parent = Path("/tmp")
    for old in parent.glob(f"{_PREFIX}*-*"):
        pid = old.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(old, ignore_errors=True)
    return tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=parent)
