"""Figures of an interval, from sums since the start of a job."""

from typing import Any

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
