"""How fast a cut is written: as slowly as its time allows, until somebody waits for it."""

import threading
import time

SHARE_OF_INTERVAL = 0.25
"""Of the time between two cuts, in which one may be written.

Until it is there a job goes back to the one before; spread further it would take no less in all.
"""

LEAST_RATE = 16 << 20
"""Bytes a second below which nothing is gained: they take a fiftieth of a core."""


class Pace:
    """Spreads a work over some time.

    Args:
        seconds: that it may take, or fewer where it would be slower than `LEAST_RATE` then; 0: it
            goes as fast as it can.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds
        self._hurry = threading.Event()
        self._rate = 0.0
        self._began = 0.0
        self._done = 0

    def begin(self, num_bytes: int) -> None:
        """Begin with a work of about so many bytes."""
        self._began = time.monotonic()
        self._rate = max(num_bytes / self._seconds, LEAST_RATE) if self._seconds > 0 else 0.0

    def did(self, num_bytes: int, *, urgent: bool = False) -> None:
        """Wait until so many bytes more are due.

        Args:
            urgent: that what comes next does not wait.
        """
        self._done += num_bytes
        if self._rate > 0 and not urgent:
            self._hurry.wait(self._began + self._done / self._rate - time.monotonic())

    def hurry(self) -> None:
        """Wait no more; from any thread."""
        self._hurry.set()
