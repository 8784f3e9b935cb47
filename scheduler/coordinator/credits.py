"""How many batches may be in flight: what the shards' buffers hold of them."""

from scheduler.coordinator.modes.rules import ModeRule
from scheduler.coordinator.spec import CoordinatorSpec


class Credits:
    """The most batches that are leased, or done and not applied everywhere.

    What a batch takes is estimated before the first one is trained, and measured with each. A step
    always has its batches, however large they are: shards take those beyond their limit.

    They don't fall when workers leave: what is done already could take all of fewer, and what it
    waits for could not be given out.

    Args:
        workers: with which the job begins, or goes on.
    """

    def __init__(self, spec: CoordinatorSpec, workers: int) -> None:
        self._spec = spec
        self._largest = 0
        self._workers = max(spec.workers, workers)  # the most that there were

    def measured(self, buffer_bytes: int) -> None:
        """Note what a batch took in the buffer of a shard, where it took most."""
        self._largest = max(self._largest, buffer_bytes)

    def most(self, rule: ModeRule) -> int:
        """Return how many there are of them."""
        wanted, fits = self._spec.credits(self._workers, rule), self._fits
        return wanted if fits is None else max(self._spec.step_batches(rule), min(wanted, fits))

    def grow(self, workers: int) -> None:
        """So many workers are wanted."""
        self._workers = max(self._workers, workers)

    def are_short(self, rule: ModeRule) -> bool:
        """Whether the buffers, and not the number of workers, bound what is in flight."""
        fits = self._fits
        return fits is not None and fits < self._spec.credits(self._workers, rule)

    @property
    def _fits(self) -> int | None:
        """Batches that a buffer holds, as far as it is known; None: any number."""
        if self._spec.buffer_bytes is None or self._largest == 0:
            return None
        return self._spec.buffer_bytes // self._largest
