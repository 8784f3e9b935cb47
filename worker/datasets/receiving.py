"""What producers send becomes files of a folder: each batch once, and on the disk before it counts.

A producer numbers its batches from 1. A file and the number of its last batch become known
together: the file is written under a name that nobody reads, then the number and that name are, and
only then the file gets its own name. Whoever starts again finishes what was begun.
"""

import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from runtime.durable import flush_directory, make_folder, new_file, write_text
from runtime.strict_json import json_text

STATE_FOLDER = ".receive"
PRODUCER_NAMES = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SUFFIX = ".parquet"


class ReceiveError(ValueError):
    """What a producer sends can't be taken; the text is meant for whoever runs it."""


@dataclass(slots=True)
class _Known:
    """Of a producer: the last of its batches that is on the disk, and the file that has it."""

    last: int = 0
    file: str = ""


class Spool:
    """The files of all producers in one folder.

    Args:
        folder: local folder, whose files a job on a stream trains.
        clock: nanoseconds since 1970.

    Raises:
        OSError: it can't be written.
        ReceiveError: what was known of a producer is damaged.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], int] = time.time_ns) -> None:
        self._folder = folder
        self._states = folder / STATE_FOLDER
        self._clock = clock
        self._known: dict[str, _Known] = {}
        self._lock = threading.Lock()
        self._last_ns = 0
        make_folder(self._states)

    def last(self, producer: str) -> int:
        """Return the last batch of a producer that is on the disk, 0 where none is.

        Raises:
            ReceiveError: it has no name that a file can have, or what was known is damaged.
            OSError: what was begun can't be finished.
        """
        if not PRODUCER_NAMES.fullmatch(producer):
            raise ReceiveError(
                "a producer's name must be of 1 to 64 letters, digits, '.', '_' and '-', got"
                f" {producer[:80]!r}"
            )
        if producer not in self._known:
            self._known[producer] = self._recovered(producer)
        return self._known[producer].last

    def write(self, producer: str, table: pa.Table, last: int) -> Path:
        """Put rows onto the disk, and the number of the last batch that they are of; return where.

        Raises:
            OSError: it can't be done; nothing counts then.
        """
        with self._lock:  # names rise
            self._last_ns = max(self._last_ns + 1, self._clock())
            at = self._last_ns
        folder = f"{datetime.fromtimestamp(at / 1e9, UTC):%Y-%m-%d/%H}"
        name = f"{folder}/part-{at:019d}-{producer}{_SUFFIX}"
        begun = self._begun(producer, last)
        self._known.pop(producer, None)  # where it fails half-way, the disk is looked at again
        with new_file(begun) as sink:
            pq.write_table(table, sink)
        write_text(self._state(producer), json_text({"last": last, "file": name}) + "\n")
        path = self._finish(begun, name)
        self._known[producer] = _Known(last, name)
        return path

    def _finish(self, begun: Path, name: str) -> Path:
        path = self._folder / name
        make_folder(path.parent)
        begun.rename(path)
        flush_directory(path.parent)
        flush_directory(self._states)
        return path

    def _recovered(self, producer: str) -> _Known:
        known = _Known()
        state = self._state(producer)
        if state.exists():
            try:
                found: dict[str, Any] = json.loads(state.read_text())
                known = _Known(int(found["last"]), str(found["file"]))
            except (ValueError, KeyError, TypeError) as error:
                raise ReceiveError(
                    f"{state} is damaged ({error}): it says which batches of {producer!r} were"
                    " taken. Restore it, or give the producer another name"
                ) from error
        keeps = self._begun(producer, known.last)
        if keeps.exists():
            self._finish(keeps, known.file)
        for left in self._states.glob(f"{producer}-*{_SUFFIX}"):
            if left.stem.removeprefix(f"{producer}-").isdecimal():
                left.unlink()  # written by who did not come to say so
        return known

    def _begun(self, producer: str, last: int) -> Path:
        return self._states / f"{producer}-{last:019d}{_SUFFIX}"

    def _state(self, producer: str) -> Path:
        return self._states / f"{producer}.json"


class Inbox:
    """The batches of one stream of one producer, until they are on the disk. Used by two threads.

    Args:
        spool: where they go.
        producer: whose.
        acknowledge: is told the number up to which all are on the disk.
        most_bytes, most_rows: that wait; who adds more has them written first, and so is slowed.
    """

    def __init__(
        self,
        spool: Spool,
        producer: str,
        acknowledge: Callable[[int], None],
        *,
        most_bytes: int = 64 << 20,
        most_rows: int = 1 << 18,
    ) -> None:
        self._spool = spool
        self._producer = producer
        self._acknowledge = acknowledge
        self._most_bytes, self._most_rows = most_bytes, most_rows
        self._lock = threading.Lock()
        self._waiting: list[pa.RecordBatch] = []
        self._bytes = self._rows = 0
        self._last = spool.last(producer)
        self._over: Exception | None = None

    @property
    def last(self) -> int:
        """The last batch that has come."""
        return self._last

    @property
    def waits(self) -> bool:
        """Whether something has come that is not on the disk."""
        return bool(self._waiting)

    def add(self, number: int, batch: pa.RecordBatch) -> None:
        """A batch has come; one that was taken before is acknowledged again.

        Raises:
            ReceiveError: it does not follow what has come, or another stream has taken over.
            OSError: what waits can't be written.
        """
        with self._lock:
            self._check()
            if number > self._last + 1:
                raise ReceiveError(
                    f"batch {number} of {self._producer!r} came after batch {self._last}: begin"
                    " with the one after that which was acknowledged"
                )
            if not batch.num_rows:
                raise ReceiveError(f"batch {number} of {self._producer!r} has no rows")
            if number == self._last + 1:
                self._last = number
                self._waiting.append(batch)
                self._bytes += batch.nbytes
                self._rows += batch.num_rows
            is_full = self._bytes >= self._most_bytes or self._rows >= self._most_rows
            if self._waiting and not is_full:
                return
        self.flush()

    def flush(self) -> None:
        """Put what waits onto the disk and acknowledge it.

        Raises:
            OSError: it can't be done.
        """
        with self._lock:
            self._check()
            if self._waiting:
                table = pa.Table.from_batches(self._waiting)
                self._spool.write(self._producer, table, self._last)
                self._waiting, self._bytes, self._rows = [], 0, 0
            self._acknowledge(self._last)

    def close(self, why: Exception) -> None:
        """Take nothing more; whoever adds something hears why. What waits here is sent again."""
        with self._lock:
            self._over = self._over or why
            self._waiting = []

    def _check(self) -> None:
        if self._over is not None:
            raise self._over
