"""Notices that nothing moves any more."""

from collections.abc import Callable, Sequence

from scheduler.events import Command, FailJob, Warn
from scheduler.ledger import Ledger


class StallWatch:
    """Warns after so many seconds without progress, and fails the job after as many again.

    Args:
        limit: in seconds.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._last_progress: float | None = None
        self._warned = False

    def progress(self, now: float) -> None:
        """Something moved, or nothing has to."""
        self._last_progress = now
        self._warned = False

    def waited(self, now: float) -> float:
        """Return the seconds without progress."""
        return 0.0 if self._last_progress is None else now - self._last_progress

    def look(self, now: float, text: Callable[[], str]) -> list[Command]:
        """Return what to do about it.

        Args:
            text: says who waits for whom.
        """
        if self._last_progress is None:
            self.progress(now)
        waited = self.waited(now)
        if waited > 2 * self._limit:
            return [FailJob(text())]
        if waited > self._limit and not self._warned:
            self._warned = True
            return [Warn(text())]
        return []


def who_waits(
    ledger: Ledger, *, waited: float, step: int, shard_steps: Sequence[int], norms: Sequence[int]
) -> str:
    """Say who waits for whom.

    Args:
        ledger: whose batches are given out.
        waited: seconds without progress.
        step: the next one to be ordered.
        shard_steps: that each shard has reached.
        norms: steps whose dense gradient is being measured.
    """
    parts = [f"no step was applied for {waited:.0f} s at global step {min(shard_steps)}"]
    if norms:
        parts.append(f"the norms of steps {list(norms[:8])} are being measured")
    behind = [shard for shard, reached in enumerate(shard_steps) if reached < step]
    if behind:
        parts.append(f"step {step} is ordered, but shards {behind} have not applied it")
    for batch in ledger.outstanding()[:8]:
        holder = "nobody" if batch.worker is None else f"worker {batch.worker}"
        parts.append(
            f"batch {batch.batch_id} (step {batch.step}, attempt {batch.attempt})"
            f" is {batch.status.value}, held by {holder}"
        )
    return "; ".join(parts)
