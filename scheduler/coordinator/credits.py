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
        self._known: tuple[ModeRule, int] | None = None  # what there are most in a mode
        self._workers = max(spec.workers, workers)  # the most that there were

    def measured(self, buffer_bytes: int) -> None:
        """Note what a batch took in the buffer of a shard, where it took most."""
        if buffer_bytes > self._largest:
            self._largest, self._known = buffer_bytes, None

    def most(self, rule: ModeRule) -> int:
        """Return how many there are of them."""
        if self._known is not None and self._known[0] is rule:
            return self._known[1]
        wanted, fits = self._spec.credits(self._workers, rule), self._fits
        if fits is not None:
            wanted = max(self._spec.step_batches(rule), min(wanted, fits))
        self._known = rule, wanted
        return wanted

    def grow(self, workers: int) -> None:
        """So many workers are wanted."""
        self._workers, self._known = max(self._workers, workers), None

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
