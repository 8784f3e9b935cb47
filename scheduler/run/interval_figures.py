"""Figures of an interval, from sums since the start of a job."""

from collections.abc import Iterable
from typing import Any

# A line of metrics is for people and charts: of more processes it has the most telling, and sums.
MOST_PROCESSES = 32

Counts = dict[int, int]


class HistogramOfInterval:
    """Differences between one look at a histogram and the next."""

    def __init__(self) -> None:
        self._before: Counts = {}

    def since_last(self, counts: Counts) -> dict[str, int]:
        """Return how often each value came since the last call, by value; zeros are left out."""
        new = {value: count - self._before.get(value, 0) for value, count in counts.items()}
        self._before = dict(counts)
        return {str(value): count for value, count in sorted(new.items()) if count}


class WorkersOfInterval:
    """What each worker did between one look and the next."""

    def __init__(self) -> None:
        self._before: dict[tuple[int, int], tuple[int, int, float]] = {}

    def since_last(self, workers: dict[int, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Return the interval's figures, by worker.

        Args:
            workers: sums since each process began, as `Status.workers` has them; the sums of a
                worker that was replaced start at 0 again.
        """
        figures: dict[str, dict[str, Any]] = {}
        before, self._before = self._before, {}  # processes that are gone are forgotten
        for number, state in sorted(workers.items()):
            process = number, state["incarnation"]
            batches, samples, seconds = before.get(process, (0, 0, 0.0))
            self._before[process] = state["batches"], state["samples"], state["seconds"]
            done = state["batches"] - batches
            figures[str(number)] = {
                "batches": done,
                "samples": state["samples"] - samples,
                "batch_seconds": (state["seconds"] - seconds) / done if done else None,
                "share": 0.0,
                "lost": state["lost"],
            }
        total = sum(worker["samples"] for worker in figures.values())
        for worker in figures.values():
            worker["share"] = worker["samples"] / total if total else 0.0
        return figures


def slowest(workers: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the workers whose batches took longest, MOST_PROCESSES of them, by number."""
    by_time = sorted(workers, key=lambda number: -(workers[number]["batch_seconds"] or 0.0))
    return {number: workers[number] for number in sorted(by_time[:MOST_PROCESSES], key=int)}


def all_together(workers: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of an interval over all workers; `batch_seconds` are of their means."""
    times = sorted(w["batch_seconds"] for w in workers.values() if w["batch_seconds"] is not None)
    return {
        "count": len(workers),
        "lost": sum(worker["lost"] for worker in workers.values()),
        "batches": sum(worker["batches"] for worker in workers.values()),
        "samples": sum(worker["samples"] for worker in workers.values()),
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
