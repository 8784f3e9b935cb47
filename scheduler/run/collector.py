"""Removes the checkpoints of a run that are not kept any more, beside what the driver does."""

import threading
from collections.abc import Callable
from pathlib import Path

from runtime.places import Place
from scheduler.run.saved_cuts import remove_superseded


class Collector:
    """Removes them in a thread of its own: much may have to go, and storage may be slow.

    Args:
        run: the run directory.
        keep: how many full ones are kept, with the deltas above them.
        note: tells a person something.

    Attributes:
        damaged: checkpoints that turned out to be; they don't count.
    """

    def __init__(self, run: Path, keep: int, note: Callable[[str], None]) -> None:
        self.damaged: set[Place] = set()
        self._run = run
        self._keep = keep
        self._note = note
        self._thread: threading.Thread | None = None

    def collect(self) -> None:
        """Remove what is not kept now that there is a new one; returns at once.

        Where it still removes what came before, the next call does this too.
        """
        if self._thread is not None and self._thread.is_alive():
            return
        self._thread = threading.Thread(target=self._remove, name="collector", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait until nothing is being removed: as long as this is so, all that is there stays."""
        if self._thread is not None:
            self._thread.join()

    def _remove(self) -> None:
        try:
            remove_superseded(self._run, self._keep, frozenset(self.damaged))
        except OSError as error:
            self._note(
                f"a checkpoint that is not kept any more can't be removed:"
                f" {error.strerror or error}. It is tried again after the next full one"
            )
