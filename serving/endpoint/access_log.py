"""One line of JSON for each request."""

import queue
import threading
from typing import IO, Any

from runtime.strict_json import json_text

_MOST_WAITING = 10_000


class AccessLog:
    """Writes lines in a thread, so that no request waits for a disk; lines too many are left out.

    Args:
        file: to which lines are written; it is flushed when nothing waits.
    """

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue(_MOST_WAITING)
        self._thread = threading.Thread(target=self._run, name="access log", daemon=True)
        self._thread.start()
        self.left_out = 0

    def write(self, line: dict[str, Any]) -> None:
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self.left_out += 1

    def close(self) -> None:
        self._lines.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            self._file.write(json_text(line) + "\n")
            if self._lines.empty():
                self._file.flush()
        self._file.flush()
