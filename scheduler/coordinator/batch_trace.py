"""Who computed which batch from when to when: a bounded record for charts.

The coordinator keeps what its workers report until the driver takes it; the driver writes it to the
run directory. Neither grows with the length of a job.
"""

import json
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from runtime.durable import new_file
from runtime.growing_files import GrowingFile
from runtime.strict_json import json_text
from worker.protocol import Report

# Between two takes of the driver; what comes beyond is not recorded.
MAX_WAITING_SPANS = 4096
MAX_FILE_SPANS = 20_000
WINDOW_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class BatchSpan:
    """One batch that a worker has computed and that every shard holds.

    Args:
        worker: its number.
        batch, attempt, step: of the token.
        start: when the computation began, by the worker's wall clock, seconds since 1970.
        seconds: how long it computed; pulling, pushing and waiting are the gaps between spans.
        samples: in the batch.
    """

    worker: int
    batch: int
    attempt: int
    step: int
    start: float
    seconds: float
    samples: int


class BatchTrace:
    """What was computed since it was last asked; the caller holds a lock.

    Args:
        limit: most spans that wait to be taken.
    """

    def __init__(self, limit: int = MAX_WAITING_SPANS) -> None:
        self._limit = limit
        self._spans: deque[BatchSpan] = deque()
        self._latest: dict[int, float] = {}

    def add(self, report: Report) -> None:
        """Record the training batches that a report says were computed."""
        for finished in report.finished:
            # A worker computes one batch at a time, so what does not start later was told before.
            began_before = finished.started_at <= self._latest.get(report.worker, 0.0)
            if began_before or len(self._spans) >= self._limit:
                continue
            self._latest[report.worker] = finished.started_at
            token = finished.token
            self._spans.append(
                BatchSpan(
                    worker=report.worker,
                    batch=token.batch_id,
                    attempt=token.attempt,
                    step=token.step,
                    start=finished.started_at,
                    seconds=finished.seconds,
                    samples=finished.samples,
                )
            )

    def take(self) -> list[BatchSpan]:
        """Return what was recorded since the last call, in the order of the reports."""
        spans = list(self._spans)
        self._spans.clear()
        return spans


class BatchFile:
    """Spans as JSON lines, bounded: a long job keeps windows that are spread evenly over it.

    Every span of a window of two seconds is kept, or none. Where the file would hold too many
    spans, every second window that is left goes.

    Args:
        path: the file; what it held before is replaced by the first spans.
        limit: most spans that it holds.
        goes_on: whether spans are added to those that are there.
    """

    def __init__(self, path: Path, limit: int = MAX_FILE_SPANS, *, goes_on: bool = False) -> None:
        self._file = GrowingFile(path, goes_on=goes_on)
        self._limit = limit
        self._stride = 1
        self._kept: dict[int, int] = {}
        if self._file.num_bytes:
            self._count()

    def add(self, spans: Iterable[BatchSpan]) -> None:
        """Append those that fall into a window that is kept; raises OSError where it can't."""
        kept = dict(self._kept)
        lines = []
        for span in spans:
            window = _window(span.start)
            # One window never fills the file, however many workers there are.
            full = kept.get(window, 0) >= self._limit // 8
            if window % self._stride == 0 and not full:
                kept[window] = kept.get(window, 0) + 1
                lines.append(json_text(asdict(span)) + "\n")
        if lines:
            self._file.append("".join(lines).encode())
            self._kept = kept
        if sum(self._kept.values()) > self._limit:
            self._thin()

    def _count(self) -> None:
        """Find out what the file holds, and how far apart its windows are; lines may be torn."""
        with open(self._file.path, "rb") as lines:
            for line in lines:
                start = _start_of(line)
                if start is not None:
                    window = _window(start)
                    self._kept[window] = self._kept.get(window, 0) + 1
        # A file that was thinned is at least half full of windows a power of two apart.
        if sum(self._kept.values()) > self._limit // 4:
            while all(window % (2 * self._stride) == 0 for window in self._kept):
                self._stride *= 2

    def _thin(self) -> None:
        stride, kept = self._stride, self._kept
        while sum(kept.values()) > self._limit:
            stride *= 2
            kept = {w: n for w, n in kept.items() if w % stride == 0}
        path = self._file.path
        with open(path, "rb") as before, new_file(path) as after:
            starts = ((line, _start_of(line)) for line in before)
            after.writelines(x for x, at in starts if at is not None and _window(at) in kept)
            num_bytes = after.tell()
        self._stride, self._kept, self._file.num_bytes = stride, kept, num_bytes


def _start_of(line: bytes) -> float | None:
    """Return the start of a span in a file; None where the line can't be read."""
    try:
        return float(json.loads(line)["start"])
    except (ValueError, TypeError, KeyError, OverflowError):
        return None


def _window(start: float) -> int:
    return int(start // WINDOW_SECONDS)
