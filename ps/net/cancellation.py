"""How one thread ends what others do with sockets, whatever they wait for."""

import contextlib
import socket
import threading
import weakref


class CancelledError(Exception):
    """What was going on is not wanted any more: no failure."""


class Cancellation:
    """A mark that any thread may set, once; who works under it ends with CancelledError.

    Sockets that are held by it are shut down then, so that whoever waits on one wakes at once.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._guard = threading.Lock()
        self._socks: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    @property
    def is_set(self) -> bool:
        return self._event.is_set()

    def set(self) -> None:
        """End it all."""
        with self._guard:
            self._event.set()
            for sock in self._socks:
                with contextlib.suppress(OSError):  # closed, or not connected yet
                    sock.shutdown(socket.SHUT_RDWR)

    def check(self) -> None:
        """Raise CancelledError where it is set."""
        if self._event.is_set():
            raise CancelledError

    def hold(self, sock: socket.socket) -> None:
        """Shut a socket down when it is set; raises CancelledError where it is."""
        with self._guard:
            self.check()
            self._socks.add(sock)

    def sleep(self, seconds: float) -> None:
        """Wait so long; raises CancelledError as soon as it is set."""
        if self._event.wait(seconds):
            raise CancelledError
