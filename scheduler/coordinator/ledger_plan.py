"""What the ledger of a job needs to know of a plan that is complete when the job begins."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scheduler.coordinator.growing_plan import Extension
from worker.data.arrived import BatchRows


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerPlan:
    """Batches in epochs of one length; `scheduler.coordinator.growing_plan` has the other kind.

    Args:
        batches_per_epoch, epochs: batch ids run over all epochs.
        rows_of: planned samples of a batch.
        lanes: batch i of an epoch belongs to lane i mod lanes.
        limit: give out no batch from this id on; None: all.
    """

    batches_per_epoch: int
    epochs: int
    rows_of: Callable[[int], int]
    lanes: int = 1
    limit: int | None = None

    @property
    def total(self) -> int:
        """How many batches there will be."""
        everything = self.batches_per_epoch * self.epochs
        return everything if self.limit is None else min(self.limit, everything)

    @property
    def planned(self) -> int:
        """The batch id from which on nothing is known yet: all of them are known."""
        return self.total

    @property
    def known_from(self) -> int:
        """The first batch id of which the rows are known."""
        return 0

    def epoch_of(self, batch_id: int) -> int:
        """Return the epoch of a batch; no step spans two."""
        return batch_id // self.batches_per_epoch

    def epoch_range(self, epoch: int) -> tuple[int, int]:
        """Return the first batch id of an epoch, and the one after its last."""
        return epoch * self.batches_per_epoch, (epoch + 1) * self.batches_per_epoch

    def lane_of(self, batch_id: int) -> int:
        """Return the lane that a batch belongs to."""
        return batch_id % self.batches_per_epoch % self.lanes

    def arrived(self, batch_id: int) -> float:
        """Return when a batch arrived: long ago."""
        return 0.0

    def rows_of_all(self, intervals: Sequence[tuple[int, int]]) -> int:
        """Return the planned samples of the batches of intervals."""
        return sum(self.rows_of(i) for first, stop in intervals for i in range(first, stop))

    def granted(self, batch_ids: Sequence[int]) -> tuple[BatchRows, ...]:
        """Workers have the plan: they need not be told of the rows of a batch."""
        return ()

    def grow(self, extension: Extension) -> None:
        raise AssertionError("the plan of this job does not grow")

    def state(self) -> None:
        """Who goes on has the plan."""

    def forget(self, *, below: int) -> None:
        """Nothing is kept that could be forgotten."""
