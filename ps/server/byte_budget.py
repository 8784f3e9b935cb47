"""Bytes that several threads may hold at once: who wants more waits for its turn."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class ByteBudget:
    """Hands out bytes, in the order in which they are asked for.

    Args:
        limit: of all that are held at once; only what is larger by itself is held alone.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._guard = threading.Lock()
        self._held = 0
        self._waiting: deque[tuple[int, threading.Event]] = deque()

    @property
    def is_short(self) -> bool:
        """Whether anyone waits."""
        return bool(self._waiting)

    @contextmanager
    def hold(self, nbytes: int) -> Iterator[None]:
        """Wait until so many bytes may be held, and hold them."""
        turn = None
        with self._guard:
            if self._waiting or not self._fits(nbytes):
                turn = threading.Event()
                self._waiting.append((nbytes, turn))
            else:
                self._held += nbytes
        if turn is not None:
            turn.wait()
        try:
            yield
        finally:
            with self._guard:
                self._held -= nbytes
                while self._waiting and self._fits(self._waiting[0][0]):
                    wanted, turn = self._waiting.popleft()
                    self._held += wanted
                    turn.set()

    def _fits(self, nbytes: int) -> bool:
        return self._held == 0 or self._held + nbytes <= self.limit
