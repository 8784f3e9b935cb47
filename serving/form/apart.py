"""Bases made in a process of their own, so that they take nothing from who answers requests."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

from ps.checkpoint.errors import CheckpointError, CheckpointRemovedError
from serving.errors import ServingError
from serving.rows.quantized import RowsAs


class BasesApart:
    """Starts the processes, and ends those that still work when it is closed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._working: set[subprocess.Popen[bytes]] = set()
        self._closed = False

    def make(self, checkpoint: str, folder: Path, rows: RowsAs) -> Path:
        """As `make_base`.

        Args:
            checkpoint: a folder or URL.
            folder: below which the form is written.
            rows: how vectors are kept.

        Raises:
            CheckpointError: the checkpoint is damaged.
            ServingError: the place can't be written, the process has died, or it was ended.
        """
        command = [sys.executable, "-m", "serving.form", checkpoint, str(folder), rows]
        with self._lock:
            if self._closed:
                raise ServingError("the server is stopping")
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
            self._working.add(process)
        said, _ = process.communicate()
        with self._lock:
            self._working.discard(process)
        try:
            found = json.loads(said)
        except ValueError as error:
            code = process.returncode
            raise ServingError(f"the process that makes a base ended with {code}") from error
        if "made" in found:
            return Path(found["made"])
        kinds = {"removed": CheckpointRemovedError, "checkpoint": CheckpointError}
        raise kinds.get(found["kind"], ServingError)(found["error"])

    def close(self) -> None:
        """End what is being made."""
        with self._lock:
            self._closed = True
            for process in self._working:
                process.terminate()
