"""What wakes a thread that waits on sockets."""

import contextlib
import socket
import threading


class Wake:
    """A pair of sockets: the one becomes readable when another thread writes to the other.

    Attributes:
        sock: what the waiting thread waits on, to be read.
    """

    def __init__(self) -> None:
        self.sock, self._writer = socket.socketpair()
        self.sock.setblocking(False)
        self._writer.setblocking(False)  # where it is full, a wake-up is under way anyway
        self._guard = threading.Lock()  # nothing is sent on a descriptor that is closed meanwhile

    def set(self) -> None:
        """Wake the thread, or let its next wait end at once; any thread may call it."""
        with self._guard, contextlib.suppress(OSError):
            self._writer.send(b"x")

    def clear(self) -> None:
        """Forget the wake-ups so far."""
        with contextlib.suppress(BlockingIOError):
            while self.sock.recv(4096):
                pass

    def close(self) -> None:
        """Close both ends; `set` does nothing from then on."""
        with self._guard:
            self._writer.close()
            self.sock.close()
