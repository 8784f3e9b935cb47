"""Figures of an interval, from sums since the start of a job."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ps.server.figures import TableFigures
from scheduler.coordinator.state import WorkerFigures

# A line of metrics is for people and charts: of more processes it has the most telling, and sums.
MOST_PROCESSES = 32

Counts = dict[int, int]


class HistogramOfInterval:
    """Differences between one look at a histogram and the next."""

    def __init__(self) -> None:
        self._before: Counts = {}

    def begin_at(self, counts: Counts) -> None:
        """What comes next is counted from here: the job goes on from a state that has these."""
        self._before = dict(counts)

    def since_last(self, counts: Counts) -> dict[str, int]:
        """Return how often each value came since the last call, by value; zeros are left out."""
        new = {value: count - self._before.get(value, 0) for value, count in counts.items()}
        self._before = dict(counts)
        return {str(value): count for value, count in sorted(new.items()) if count > 0}


class NewKeysOfInterval:
    """How many keys came that no server knew, as a share of the samples."""

    def __init__(self) -> None:
        self._before: tuple[int, dict[str, int]] | None = None

    def since_last(
        self, samples: int, tables: Mapping[str, TableFigures]
    ) -> dict[str, float | None]:
        """Return the new keys a sample since the last call, by table.

        None where that is not known: at first, without a sample, and where fewer keys were seen
        than before, as servers went back or began anew, or counters have expired.

        Args:
            samples: that all servers have applied.
        """
        seen = {name: t.rows + t.unadmitted + t.evicted for name, t in tables.items()}
        before, self._before = self._before, (samples, seen)
        if before is None or samples <= before[0]:
            return dict.fromkeys(seen)
        new = {name: count - before[1].get(name, 0) for name, count in seen.items()}
        count = samples - before[0]
        return {name: keys / count if keys >= 0 else None for name, keys in new.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOfInterval:
    """What a line of metrics says of one worker; `batch_seconds` is the mean, None without any."""

    batches: int
    samples: int
    batch_seconds: float | None
    share: float
    lost: bool


class WorkersOfInterval:
    """What each worker did between one look and the next."""

    def __init__(self) -> None:
        self._before: dict[tuple[int, int], WorkerFigures] = {}

    def since_last(self, workers: dict[int, WorkerFigures]) -> dict[int, WorkerOfInterval]:
        """Return the interval's figures, by worker, in their order.

        Args:
            workers: sums since each process began, as `Status.workers` has them; the sums of a
                worker that was replaced start at 0 again, and those of all where the coordinator
                was.
        """
        none = WorkerFigures()
        before = {
            number: self._before.get((number, now.incarnation), none)
            for number, now in workers.items()
        }
        before = {
            number: none if workers[number].samples < sums.samples else sums
            for number, sums in before.items()
        }
        # Processes that are gone are forgotten.
        self._before = {(number, now.incarnation): now for number, now in workers.items()}
        total = sum(now.samples - before[number].samples for number, now in workers.items())
        return {
            number: _of_interval(before[number], now, total)
            for number, now in sorted(workers.items())
        }


def _of_interval(before: WorkerFigures, now: WorkerFigures, total: int) -> WorkerOfInterval:
    done, samples = now.batches - before.batches, now.samples - before.samples
    return WorkerOfInterval(
        batches=done,
        samples=samples,
        batch_seconds=(now.seconds - before.seconds) / done if done else None,
        share=samples / total if total else 0.0,
        lost=now.lost,
    )


def slowest(workers: dict[int, WorkerOfInterval]) -> dict[int, WorkerOfInterval]:
    """Return the workers whose batches took longest, MOST_PROCESSES of them, by number."""
    by_time = sorted(workers, key=lambda number: -(workers[number].batch_seconds or 0.0))
    return {number: workers[number] for number in sorted(by_time[:MOST_PROCESSES])}


def all_together(workers: dict[int, WorkerOfInterval]) -> dict[str, Any]:
    """Return the figures of an interval over all workers; `batch_seconds` are of their means."""
    times = sorted(w.batch_seconds for w in workers.values() if w.batch_seconds is not None)
    return {
        "count": len(workers),
        "lost": sum(worker.lost for worker in workers.values()),
        "batches": sum(worker.batches for worker in workers.values()),
        "samples": sum(worker.samples for worker in workers.values()),
        "batch_seconds": {
            "mean": sum(times) / len(times) if times else None,
            "p50": times[len(times) // 2] if times else None,
            "p99": times[len(times) * 99 // 100] if times else None,
            "max": times[-1] if times else None,
        },
    }


def few(values: list[Any], together: Any) -> list[Any]:
    """Return one value for each process, or, where these are too many, one for all together."""
    return values if len(values) <= MOST_PROCESSES else [together]


def indexed(line: dict[str, Any], role: str, values: list[Any]) -> Iterable[tuple[str, Any]]:
    """Name the values of a line's list for a role: by number, or `all` where `few` made one."""
    if role in line.get("together", ()):
        return [("all", value) for value in values]
    return [(str(number), value) for number, value in enumerate(values)]
