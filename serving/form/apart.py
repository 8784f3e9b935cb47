"""Make a base in a process of its own, so that it takes nothing from who answers requests.

    python -m serving.form.apart CHECKPOINT FORMS ROWS

Prints a line of JSON: the folder of the form, or what went wrong.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import get_args

from ps.checkpoint.file_parts import CheckpointRemovedError
from ps.checkpoint.manifest import CheckpointError
from ps.checkpoint.read import CheckpointReader
from runtime.places import place_of
from runtime.strict_json import json_text
from serving.errors import ServingError
from serving.form.making import make_base
from serving.rows.quantized import RowsAs

_NICE = 10


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
        command = [sys.executable, "-m", "serving.form.apart", checkpoint, str(folder), rows]
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


def main(checkpoint: str, folder: str, rows: str) -> None:
    """Make a base and print what became of it."""
    kind = next((each for each in get_args(RowsAs) if each == rows), None)
    assert kind is not None, f"unknown way of keeping rows {rows!r}"
    try:
        made = make_base(CheckpointReader(place_of(checkpoint)), Path(folder), kind)
    except CheckpointRemovedError as error:
        print(json_text({"kind": "removed", "error": str(error)}))
    except CheckpointError as error:
        print(json_text({"kind": "checkpoint", "error": str(error)}))
    except ServingError as error:
        print(json_text({"kind": "serving", "error": str(error)}))
    else:
        print(json_text({"made": str(made)}))


if __name__ == "__main__":
    with contextlib.suppress(OSError, AttributeError):
        os.nice(_NICE)
    main(*sys.argv[1:])
