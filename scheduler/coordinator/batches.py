"""A batch of the plan on its way from pending to resolved."""

import enum
from dataclasses import dataclass

from ps.messages.pull_push import ANY_STEP
from worker.protocol import Finished


class Status(enum.Enum):
    PENDING = "pending"
    LEASED = "leased"
    DONE = "done"
    SKIPPED = "skipped"
    APPLIED = "applied"
    DROPPED = "dropped"


# Looked up once: a member of an enum takes as long to look up as a call, and batches need many.
_PENDING, _DONE, _SKIPPED = Status.PENDING, Status.DONE, Status.SKIPPED


@dataclass(slots=True)
class Batch:
    """One batch that was given a step and is not resolved.

    Args:
        epoch: of the plan that it is in.
        attempt: the latest one; of a pending batch the one that comes next.
        first_valid: attempts before this one are void: they don't count even if they complete.
        leased_at_step: the step that every shard had reached when the first valid attempt began.
        pull_step: the step that the pull of its latest lease must read, or
            `ps.messages.pull_push.ANY_STEP`.
        times_late: how often a worker was too long at it.
    """

    batch_id: int
    step: int
    lane: int
    planned: int
    epoch: int = 0
    status: Status = Status.PENDING
    attempt: int = 0
    first_valid: int = 0
    worker: int | None = None
    leased_at_step: int = 0
    pull_step: int = ANY_STEP
    times_late: int = 0
    result: Finished | None = None

    @property
    def ended(self) -> bool:
        """Whether it waits for nothing but its step."""
        return self.status is _DONE or self.status is _SKIPPED

    @property
    def may_count(self) -> bool:
        """Whether an attempt of it was given out that is not void."""
        return self.status is not _PENDING or self.attempt > self.first_valid
