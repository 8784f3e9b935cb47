"""The batches that wait for nothing but their step, counted so that asking costs nothing."""

from collections.abc import Callable, Iterator

from scheduler.coordinator.batches import Batch


class EndedBatches:
    """Ended batches in the order of completion, and how many there are of an epoch or a step.

    Args:
        epoch_of: maps a batch id to its epoch.
    """

    def __init__(self, epoch_of: Callable[[int], int]) -> None:
        self._epoch_of = epoch_of
        self._batches: dict[int, Batch] = {}
        self._of_epoch: dict[int, int] = {}
        self._of_step: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches.values())

    def of_epoch(self, epoch: int) -> int:
        """How many there are of an epoch."""
        return self._of_epoch.get(epoch, 0)

    def of_step(self, step: int) -> int:
        """How many tokens of a step there are."""
        return self._of_step.get(step, 0)

    def add(self, batch: Batch) -> None:
        """A batch has ended."""
        self._batches[batch.batch_id] = batch
        self._count(batch, 1)

    def remove(self, batch: Batch) -> None:
        """A batch is used, or given out again; its step is still the one that it ended with."""
        del self._batches[batch.batch_id]
        self._count(batch, -1)

    def recount(self) -> None:
        """Batches have got other steps."""
        self._of_epoch.clear()
        self._of_step.clear()
        for batch in self:
            self._count(batch, 1)

    def _count(self, batch: Batch, by: int) -> None:
        count(self._of_epoch, self._epoch_of(batch.batch_id), by)
        count(self._of_step, batch.step, by)


def count(counts: dict[int, int], key: int, by: int) -> None:
    """Change a count by a number; what is 0 is not kept."""
    counts[key] = counts.get(key, 0) + by
    if counts[key] == 0:
        del counts[key]
