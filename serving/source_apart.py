"""A source in a process of its own, so that it takes nothing from who answers requests.

What is done for a new version, most of it in Python, would share the interpreter with requests.
Both sides talk by lines of JSON, each answered before the next; `source_process.py` is the other.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ps.checkpoint.errors import CheckpointError, CheckpointRemovedError
from runtime.strict_json import json_text
from serving.errors import ServingError
from serving.source import Found, Source

APART_FROM_ROWS = 200_000
"""What is made of a smaller model is made sooner than a process is up."""

_KINDS = {"removed": CheckpointRemovedError, "checkpoint": CheckpointError, "store": OSError}


class SourceApart:
    """As `Source`: starts the process, again where it has died, and asks it.

    Any thread may ask; `base_of` has a process for itself, as it takes long.

    Args:
        source: as which the process begins.
    """

    def __init__(self, source: Source) -> None:
        self.path, self.follows, self.usual_seconds = (
            source.path,
            source.follows,
            source.usual_seconds,
        )
        self._source = source
        self._asking = threading.Lock()
        self._lock = threading.Lock()  # over processes
        self._process: subprocess.Popen[bytes] | None = None
        self._working: set[subprocess.Popen[bytes]] = set()
        self._closed = False

    def find(self, after: tuple[int, int] | None) -> Found:
        found = self._ask({"do": "find", "after": after})
        form, refused = found["form"], found["refused"]
        return Found(
            None if form is None else Path(form),
            found["checkpoint"],
            tuple((checkpoint, reason) for checkpoint, reason in refused),
        )

    def skip(self, checkpoint: str, reason: str) -> None:
        self._source.skip(checkpoint, reason)  # for a process that is started again
        self._ask({"do": "skip", "checkpoint": checkpoint, "reason": reason})

    def remove_forms(self, keep: Collection[str]) -> None:
        self._ask({"do": "remove_forms", "keep": sorted(keep)})

    def base_name(self, version: Any) -> str:
        return self._source.base_name(version)

    def base_of(self, checkpoint: str) -> Path:
        process = self._started()
        try:
            return Path(_asked(process, {"do": "base_of", "checkpoint": checkpoint})["form"])
        finally:
            self._end(process)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._asking:
            if self._process is None or self._process.poll() is not None:
                self._process = self._started()
            return _asked(self._process, request)

    def _started(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._closed:
                raise ServingError("the server is stopping")
            process = subprocess.Popen(
                [sys.executable, "-m", "serving.source_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
            self._working.add(process)
        source = self._source
        first = {
            "do": "begin",
            "path": str(source.path),
            "forms": str(source.forms),
            "follows": source.follows,
            "rows": source.rows,
            "skipped": {place.name: reason for place, reason in source.skipped.items()},
        }
        try:
            _asked(process, first)
        except BaseException:
            self._end(process)
            raise
        return process

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        with self._lock:
            self._working.discard(process)
        process.terminate()
        process.communicate()

    def close(self) -> None:
        """End what is being made."""
        with self._lock:
            self._closed = True
            working = [*self._working]
        for process in working:
            process.terminate()
        for process in working:
            process.wait()


def _asked(process: subprocess.Popen[bytes], request: dict[str, Any]) -> dict[str, Any]:
    assert process.stdin is not None, "a pipe"
    assert process.stdout is not None, "a pipe"
    with contextlib.suppress(OSError):  # it has died, which its answer shows
        process.stdin.write(json_text(request).encode() + b"\n")
        process.stdin.flush()
    said = process.stdout.readline()
    if not said.endswith(b"\n"):
        raise ServingError(f"the process that makes forms ended with {process.wait()}")
    found: dict[str, Any] = json.loads(said)
    if "error" in found:
        raise _KINDS.get(found["kind"], ServingError)(found["error"])
    return found
