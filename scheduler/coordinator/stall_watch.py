"""Notices that nothing moves any more."""

from collections.abc import Callable, Mapping, Sequence

from scheduler.coordinator.events import Command, FailJob, Warn
from scheduler.coordinator.ledger import Ledger


class StallWatch:
    """Warns after so many seconds without progress, and fails the job after more of them.

    The time in which no worker lives, as the cluster has no place for one, is not that of a stall:
    it has a limit of its own.

    Args:
        limit: until it warns, in seconds.
        fails_after: until the job fails, where that is more than twice as long.
        place_limit: until it warns without any worker; the job fails after twice as long.
    """

    def __init__(self, limit: float, *, fails_after: float, place_limit: float) -> None:
        self._limits = {
            False: (limit, max(2 * limit, fails_after)),
            True: (place_limit, 2 * place_limit),
        }
        self._placing = True
        self._last_progress: float | None = None
        self._warned = False

    def progress(self, now: float) -> None:
        """Something moved, or nothing has to."""
        self._last_progress = now
        self._warned = False

    def waited(self, now: float) -> float:
        """Return the seconds without progress."""
        return 0.0 if self._last_progress is None else now - self._last_progress

    def look(
        self, now: float, text: Callable[[float], str], *, workers: int, wanted: int
    ) -> list[Command]:
        """Return what to do about it.

        Args:
            text: says at a time who waits for whom.
            workers: that live.
            wanted: workers that there should be.
        """
        placing = workers == 0
        if self._last_progress is None or placing is not self._placing:
            self._placing = placing
            self.progress(now)
        waited, (limit, fails_after) = self.waited(now), self._limits[placing]
        if waited <= limit or (self._warned and waited <= fails_after):
            return []
        self._warned = True
        said = (
            f"waiting for a place for {wanted} workers: none has been up for {waited:.0f} s"
            if placing
            else text(now)
        )
        if waited <= fails_after:
            return [Warn(said)]
        return [
            FailJob(
                f"{said} (the limit is {fails_after:.0f} s: cluster.start_timeout_seconds + 2 x"
                " cluster.stall_seconds)"
            )
            if placing
            else FailJob(said)
        ]


def who_waits(
    ledger: Ledger,
    *,
    waited: float,
    step: int,
    shard_steps: Mapping[str, int],
    norms: Sequence[int],
) -> str:
    """Say who waits for whom.

    Args:
        ledger: whose batches are given out.
        waited: seconds without progress.
        step: the next one to be ordered.
        shard_steps: that each copy of a shard has reached, by its name.
        norms: steps whose dense gradient is being measured.
    """
    first = min(shard_steps.values())
    parts = [f"no step was applied for {waited:.0f} s at global step {first}"]
    if norms:
        parts.append(f"the norms of steps {list(norms[:8])} are being measured")
    behind = [name for name, reached in shard_steps.items() if reached < step]
    if behind:
        parts.append(f"step {step} is ordered, but not applied by {', '.join(behind)}")
    for batch in ledger.outstanding()[:8]:
        holder = "nobody" if batch.worker is None else f"worker {batch.worker}"
        parts.append(
            f"batch {batch.batch_id} (step {batch.step}, attempt {batch.attempt})"
            f" is {batch.status.value}, held by {holder}"
            + (f", too long at {batch.times_late} workers" if batch.times_late else "")
        )
    return "; ".join(parts)
