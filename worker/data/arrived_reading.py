"""Read the batches of a stream, of which a worker is told the rows with each token."""

import queue
from collections.abc import Iterable
from typing import Literal

from worker.data.arrived import ArrivedPlan, BatchRows
from worker.data.batch import Batch
from worker.data.reading import Reader
from worker.spec import FeatureSpec


class ArrivedReader:
    """Reads batches by id once it was told of their rows; keeps nothing of files that are over.

    `add` may be called by another thread than `read`.

    Args:
        features, on_bad_file, cache_bytes: as of `Reader`.
    """

    def __init__(
        self,
        features: FeatureSpec,
        *,
        on_bad_file: Literal["fail", "skip"] = "fail",
        cache_bytes: int = 1 << 30,
    ) -> None:
        self._plan = ArrivedPlan()
        self._reader = Reader(
            self._plan, features, on_bad_file=on_bad_file, cache_bytes=cache_bytes, once=True
        )
        self._told: queue.SimpleQueue[BatchRows] = queue.SimpleQueue()
        self._oldest_file = 0

    def add(self, batches: Iterable[BatchRows]) -> None:
        """Batches are to be read."""
        for batch in batches:
            self._told.put(batch)

    def read(self, batch_id: int) -> tuple[Batch, int]:
        """Return a batch, and how many of its planned samples were skipped; see `Reader.read`."""
        oldest = self._oldest_file
        while not self._told.empty():
            batch = self._told.get()
            self._plan.add(batch)
            oldest = max(oldest, batch.oldest_file)
        read = self._reader.read(batch_id)
        if oldest > self._oldest_file:
            self._oldest_file = oldest
            self._plan.forget_files(oldest)
            self._reader.forget_files(oldest)
        return read
