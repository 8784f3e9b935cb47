"""One thread that speaks with many peers: it receives their frames, and sends what answers them.

A thread for each peer would be woken for each report, and all of them want one lock. Here whatever
has come meanwhile is taken at once.
"""

import contextlib
import logging
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ps.net.listener import Listener, Peer
from ps.net.sockets import SILENT_SECONDS
from ps.net.wake import Wake
from worker.control_wire import PREFIX

logger = logging.getLogger(__name__)

_RECEIVE_BYTES = 1 << 16
# How often it looks for peers that are silent in the midst of a frame.
_LOOK_SECONDS = 2.0

Frame = tuple[int, bytes, bytes]
"""A frame that came: the number of its connection, its magic and its body."""


@dataclass(slots=True, eq=False)
class _Connection:
    """A peer that let us in, or whom we have let in.

    Args:
        peer: None: it was we who connected.
        incoming: the begin of a frame; `heard_at`: when the last bytes came.
        outgoing: what its socket has not taken yet.
    """

    number: int
    sock: socket.socket
    peer: Peer | None
    incoming: bytearray = field(default_factory=bytearray)
    outgoing: bytearray = field(default_factory=bytearray)
    heard_at: float = 0.0


class ControlLoop:
    """Receives and sends frames, in one thread, which calls all that is given here.

    Args:
        name, secret: of the listener.
        limits: the most bytes of a body, by magic; what has another one is no frame.
        received: called with the frames that came at about the same time, and at least as often as
            `pause` says, then perhaps with none.
        pause: returns after how many seconds `received` is to be called without a frame; None: no
            matter.
        gone: called with the number of a connection that has ended, unless it was dropped by
            `drop`.
        on_error: called with an exception that nobody else would see; then it has ended.

    Attributes:
        listener: by which peers find it.
    """

    def __init__(
        self,
        name: str,
        *,
        secret: bytes,
        limits: Mapping[bytes, int],
        received: Callable[[list[Frame]], None],
        on_error: Callable[[Exception], None],
        pause: Callable[[], float | None] = lambda: None,
        gone: Callable[[int], None] = lambda number: None,
    ) -> None:
        self._name = name
        self._limits = limits
        self._received = received
        self._on_error = on_error
        self._pause = pause
        self._gone = gone
        self._wakes = Wake()
        self._closing = self._ended = False
        self._new: deque[Peer] = deque()
        self._connections: dict[int, _Connection] = {}
        self._next_number = 0
        self._looked_at = time.monotonic()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wakes.sock, selectors.EVENT_READ)
        self.listener = Listener(name, secret=secret, serve=self._welcome, hands_over=True)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening and drop all connections; waits for its thread, unless that calls it."""
        self._closing = True
        self.listener.close()
        self._wakes.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=5.0)

    # For those whom it calls ------------------------------------------------------------------

    def add(self, sock: socket.socket) -> int:
        """Speak with a peer to whom we have connected; return the number of the connection."""
        return self._add(sock, None)

    def send(self, number: int, frame: bytes) -> None:
        """Send a frame; to one who is gone, nothing."""
        connection = self._connections.get(number)
        if connection is None:
            return
        if connection.outgoing:
            connection.outgoing += frame
            return
        sent = self._send(connection, frame)
        if sent is not None and sent < len(frame):
            connection.outgoing += memoryview(frame)[sent:]
            both = selectors.EVENT_READ | selectors.EVENT_WRITE
            self._selector.modify(connection.sock, both, connection)

    def drop(self, number: int) -> None:
        """End a connection; of one that has ended, nothing."""
        connection = self._connections.pop(number, None)
        if connection is None:
            return
        self._selector.unregister(connection.sock)
        if connection.peer is not None:
            self.listener.drop(connection.peer)
        connection.sock.close()

    # Inside -----------------------------------------------------------------------------------

    def _welcome(self, peer: Peer) -> None:
        """Take a peer over from the thread that made its handshake."""
        self._new.append(peer)
        self._wakes.set()
        if self._ended:
            self._close_new()

    def _add(self, sock: socket.socket, peer: Peer | None) -> int:
        number = self._next_number
        self._next_number += 1
        sock.setblocking(False)
        connection = _Connection(number, sock, peer, heard_at=time.monotonic())
        self._connections[number] = connection
        self._selector.register(sock, selectors.EVENT_READ, connection)
        return number

    def _run(self) -> None:
        try:
            while not self._closing:
                self._turn()
        except Exception as error:
            self._on_error(error)
        finally:
            self._closing = True
            self.listener.close()
            self._ended = True
            self._close_new()
            for number in list(self._connections):
                self.drop(number)
            self._selector.close()
            self._wakes.close()

    def _close_new(self) -> None:
        """Nobody takes over who has come too late."""
        with contextlib.suppress(IndexError):
            while True:
                self._new.popleft().sock.close()

    def _turn(self) -> None:
        wait = self._pause()
        frames: list[Frame] = []
        for key, mask in self._selector.select(_LOOK_SECONDS if wait is None else max(0.0, wait)):
            connection = key.data
            if connection is None:
                self._wakes.clear()
                while self._new:
                    peer = self._new.popleft()
                    self._add(peer.sock, peer)
                continue
            if mask & selectors.EVENT_WRITE:
                self._send_rest(connection)
            if mask & selectors.EVENT_READ:
                self._receive(connection, frames)
        now = time.monotonic()
        if now - self._looked_at > _LOOK_SECONDS:
            self._drop_the_silent(now)
        if frames or wait is not None:
            self._received(frames)

    def _end(self, connection: _Connection) -> None:
        """A connection has ended by itself."""
        if connection.number in self._connections:
            self.drop(connection.number)
            self._gone(connection.number)

    def _receive(self, connection: _Connection, frames: list[Frame]) -> None:
        try:
            data = connection.sock.recv(_RECEIVE_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._end(connection)
            return
        buffer: bytes | bytearray = data
        if connection.incoming:
            buffer = connection.incoming
            buffer += data
        at, size, number = 0, len(buffer), connection.number
        while size - at >= PREFIX.size:
            magic, nbytes = PREFIX.unpack_from(buffer, at)
            if nbytes > self._limits.get(magic, -1):
                logger.warning(
                    "%s drops a connection: not a frame of ours: it starts with %r and %d bytes",
                    self._name,
                    magic,
                    nbytes,
                )
                self._end(connection)
                return
            begin = at + PREFIX.size
            if size - begin < nbytes:
                break
            at = begin + nbytes
            frames.append((number, magic, bytes(buffer[begin:at])))
        if at < size or connection.incoming:
            connection.incoming = bytearray(buffer[at:]) if at else bytearray(buffer)
            connection.heard_at = time.monotonic()

    def _send(self, connection: _Connection, data: bytes | bytearray) -> int | None:
        """Send what the socket takes; return how many bytes, None: the connection has ended."""
        try:
            return connection.sock.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            self._end(connection)
            return None

    def _send_rest(self, connection: _Connection) -> None:
        sent = self._send(connection, connection.outgoing)
        if sent is None:
            return
        del connection.outgoing[:sent]
        if not connection.outgoing:
            self._selector.modify(connection.sock, selectors.EVENT_READ, connection)

    def _drop_the_silent(self, now: float) -> None:
        """Who says nothing for long in the midst of a frame is lost; between two it may be busy."""
        self._looked_at = now
        for connection in list(self._connections.values()):
            if connection.incoming and now - connection.heard_at > SILENT_SECONDS:
                self._end(connection)
