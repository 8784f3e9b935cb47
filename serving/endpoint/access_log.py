"""One line of JSON for each request."""

import queue
import threading
import time
from typing import IO, Any

from runtime.strict_json import json_text
from serving.calls import Answer

_MOST_WAITING = 10_000
_MOST_PATH = 200


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

    def write(self, answer: Answer, *, client: str, method: str, path: str, began: float) -> None:
        """Write the line of a request that is answered now.

        Args:
            client: its address.
            path: what it asked for; the beginning is kept.
            began: when it came, by `time.monotonic`.
        """
        line: dict[str, Any] = {
            "time": round(time.time(), 3),
            "client": client,
            "method": method,
            "path": path[:_MOST_PATH],
            "status": answer.status,
            "bytes": len(answer.body),
            "milliseconds": round(1000 * (time.monotonic() - began), 3),
        }
        if answer.rows:
            line |= {"rows": answer.rows, "step": answer.step}
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
