"""The batches that wait for nothing but their step, counted so that asking costs nothing."""

from collections.abc import Iterator

from scheduler.coordinator.batches import Batch


class EndedBatches:
    """Ended batches in the order of completion, and how many there are of an epoch or a step."""

    def __init__(self) -> None:
        self._batches: dict[int, Batch] = {}
        self._of_epoch: dict[int, int] = {}
        self._of_step: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches.values())

    @property
    def first(self) -> Batch | None:
        """The one that ended first."""
        return next(iter(self._batches.values()), None)

    def of_epoch(self, epoch: int) -> int:
        """How many there are of an epoch."""
        return self._of_epoch.get(epoch, 0)

    def of_step(self, step: int) -> int:
        """How many tokens of a step there are."""
        return self._of_step.get(step, 0)

    def add(self, batch: Batch) -> None:
        """A batch has ended."""
        self._batches[batch.batch_id] = batch
        epoch, step = batch.epoch, batch.step
        self._of_epoch[epoch] = self._of_epoch.get(epoch, 0) + 1
        self._of_step[step] = self._of_step.get(step, 0) + 1

    def remove(self, batch: Batch) -> None:
        """A batch is used, or given out again; its step is still the one that it ended with."""
        del self._batches[batch.batch_id]
        count(self._of_epoch, batch.epoch, -1)
        count(self._of_step, batch.step, -1)

    def recount(self) -> None:
        """Batches have got other steps."""
        self._of_epoch.clear()
        self._of_step.clear()
        for batch in self:
            count(self._of_epoch, batch.epoch, 1)
            count(self._of_step, batch.step, 1)


def count(counts: dict[int, int], key: int, by: int) -> None:
    """Change a count by a number; what is 0 is not kept."""
    new = counts.get(key, 0) + by
    if new:
        counts[key] = new
    else:
        del counts[key]
