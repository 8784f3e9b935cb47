"""Files that grow while a job runs, for those who watch it: bounded, and none that a job needs."""

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from runtime.strict_json import json_text

METRICS_FILE = "metrics.jsonl"
# Of metrics.jsonl and of TensorBoard's events: the newest files of so many bytes are kept.
MAX_FILE_BYTES = 64 << 20
MAX_FILES = 8

_BYTES_AT_ONCE = 1 << 20
_OLDER = re.compile(r"metrics\.(\d+)\.jsonl")

logger = logging.getLogger(__name__)


class Losses:
    """What could not be written: told once for each file, counted, and borne.

    `note` tells a person; `counts` are the writes that failed, by file.
    """

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.note: Callable[[str], None] = logger.warning

    @contextlib.contextmanager
    def borne(self, name: str) -> Iterator[None]:
        """Let the block write a file, or fail to."""
        try:
            yield
        except OSError as error:
            self.counts[name] = self.counts.get(name, 0) + 1
            if self.counts[name] == 1:
                self.note(
                    f"{name} can't be written: {error.strerror or error}. The job goes on and tries"
                    " again with every interval; what can't be written there is lost"
                )


class GrowingFile:
    """Appends to a file all of what is given, or nothing.

    Args:
        path: what it held before is replaced by the first that is appended.
        goes_on: whether its whole lines stay; one that a killed writer left unfinished goes.
    """

    def __init__(self, path: Path, *, goes_on: bool = False) -> None:
        self.path = path
        self.num_bytes = _whole_lines(path) if goes_on else 0

    def append(self, data: bytes) -> None:
        """Write it, at once visible to who follows the file; raises OSError where it can't be."""
        try:
            with open(self.path, "ab") as file:
                if file.tell() > self.num_bytes:
                    file.truncate(self.num_bytes)  # a part of what failed before
                self.num_bytes = min(self.num_bytes, file.tell())  # somebody may have removed it
                file.write(data)
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(self.path, self.num_bytes)
            raise
        self.num_bytes += len(data)


def _whole_lines(path: Path) -> int:
    """Return up to where a file has whole lines, in bytes; 0 where it is not there."""
    try:
        with open(path, "rb") as file:
            end = file.seek(0, os.SEEK_END)
            while end > 0:
                start = max(0, end - _BYTES_AT_ONCE)
                file.seek(start)
                last = file.read(end - start).rfind(b"\n")
                if last >= 0:
                    return start + last + 1
                end = start
    except FileNotFoundError:
        pass
    return 0


class MetricsFiles:
    """metrics.jsonl, and what it held before as metrics.1.jsonl, metrics.2.jsonl and so on.

    Args:
        folder: where they are.
        max_bytes: of a file; a line is never cut.
        max_files: that are kept, metrics.jsonl among them; the oldest go.
        goes_on: whether lines are added to those that are there.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int = MAX_FILE_BYTES,
        max_files: int = MAX_FILES,
        goes_on: bool = False,
    ) -> None:
        self._file = GrowingFile(folder / METRICS_FILE, goes_on=goes_on)
        self._max_bytes = max_bytes
        self._max_files = max_files
        older = _older_metrics(folder) if goes_on else []
        self._older = [path for _, path in older]
        self._number = older[-1][0] if older else 0

    def add(self, line: dict[str, Any]) -> None:
        """Append a line; raises OSError where it can't be written."""
        data = (json_text(line) + "\n").encode()
        if self._file.num_bytes and self._file.num_bytes + len(data) > self._max_bytes:
            self._begin_another()
        self._file.append(data)

    def _begin_another(self) -> None:
        while len(self._older) >= self._max_files - 1:
            self._older[0].unlink(missing_ok=True)
            del self._older[0]
        path = self._file.path
        older = path.with_name(f"metrics.{self._number + 1}.jsonl")
        with contextlib.suppress(FileNotFoundError):  # somebody may have removed it
            os.replace(path, older)
            self._number += 1
            self._older.append(older)
        self._file = GrowingFile(path)


def metrics_files(run: Path) -> list[Path]:
    """Return the files of metrics in a run directory, the oldest first."""
    newest = run / METRICS_FILE
    return [path for _, path in _older_metrics(run)] + [newest] * newest.exists()


def _older_metrics(run: Path) -> list[tuple[int, Path]]:
    """Return the files that hold what metrics.jsonl held before, with their numbers."""
    found = ((_OLDER.fullmatch(path.name), path) for path in run.iterdir())
    return sorted((int(match[1]), path) for match, path in found if match)


def first_metrics_are_gone(files: list[Path]) -> bool:
    """Whether there were older files than these."""
    return bool(files) and files[0].name not in (METRICS_FILE, "metrics.1.jsonl")


@contextlib.contextmanager
def opened_metrics(run: Path) -> Iterator[tuple[list[Path], list[IO[bytes]]]]:
    """Yield the files of metrics, opened, the oldest first; a job may begin another meanwhile."""
    with contextlib.ExitStack() as stack:
        while True:
            paths = metrics_files(run)
            try:
                files: list[IO[bytes]] = [stack.enter_context(open(path, "rb")) for path in paths]
            except FileNotFoundError:
                continue
            if paths == metrics_files(run):
                yield paths, files
                return
