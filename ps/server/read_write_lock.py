"""A lock for readers side by side or one writer, in turns: none of them starves."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class ReadWriteLock:
    """Many threads hold it shared, or one exclusively. Not reentrant.

    A reader that comes while a writer waits lets it go first; when a writer ends, the readers that
    wait then go before the next writer. Writers go in the order in which they came. Whoever leaves
    hands the lock over, so nobody who comes later gets in between.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()  # of what follows, held for a moment only
        self._readers = 0
        self._writing = False
        self._waiting_readers: list[threading.Event] = []
        self._waiting_writers: deque[threading.Event] = deque()

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Hold the lock with other readers."""
        with self._guard:
            turn = None
            if self._writing or self._waiting_writers:
                turn = threading.Event()
                self._waiting_readers.append(turn)
            else:
                self._readers += 1
        if turn is not None:
            turn.wait()
        try:
            yield
        finally:
            with self._guard:
                self._readers -= 1
                if self._readers == 0:
                    self._admit_writer()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the lock alone."""
        with self._guard:
            turn = None
            if self._writing or self._readers:
                turn = threading.Event()
                self._waiting_writers.append(turn)
            else:
                self._writing = True
        if turn is not None:
            turn.wait()
        try:
            yield
        finally:
            with self._guard:
                self._writing = False
                readers, self._waiting_readers = self._waiting_readers, []
                self._readers = len(readers)
                for reader in readers:
                    reader.set()
                if not readers:
                    self._admit_writer()

    def _admit_writer(self) -> None:
        if self._waiting_writers:
            self._writing = True
            self._waiting_writers.popleft().set()
