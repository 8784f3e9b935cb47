"""A thread that waits for batches which a device computes, so that another need not."""

import queue
import threading
from collections.abc import Callable

from worker.step.computing import Beginning


class Awaiting:
    """Waits for one batch after another, and says of each that it has ended.

    Args:
        wait: waits for a batch.
        ended: is called, in this thread, when one has ended; also where waiting for it failed.
        failed: is given what failed, before.
    """

    def __init__(
        self,
        wait: Callable[[Beginning], None],
        *,
        ended: Callable[[], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._wait, self._ended, self._failed = wait, ended, failed
        self._batches: queue.SimpleQueue[Beginning | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def add(self, batch: Beginning) -> None:
        """Wait for a batch; the thread is started with the first."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        self._batches.put(batch)

    def close(self) -> None:
        """Wait until all batches have ended: their device writes to memory of this process."""
        self._batches.put(None)
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while (batch := self._batches.get()) is not None:
            try:
                self._wait(batch)
            except BaseException as error:
                self._failed(error)
            self._ended()
