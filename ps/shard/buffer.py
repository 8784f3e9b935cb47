"""The gradient buffer of a shard: contributions that wait for the record that names them."""

from collections.abc import Iterable

from ps.messages.exchange import Refusal
from ps.messages.pull_push import Contribution
from ps.messages.records import Entry, Record
from runtime.intervals import Intervals


class GradientBuffer:
    """Holds contributions by (batch id, attempt); pushing one again changes nothing.

    A batch is resolved once a record has applied or skipped it. A push for a resolved or discarded
    batch, or for one below the low-water mark, is refused as superseded, so a late attempt leaves
    nothing behind. What is remembered for that grows with the batches that are not resolved, not
    with those that are.

    Args:
        max_contributions: the credits that the coordinator may hand out, with room for attempts
            whose worker died.
        max_bytes: limit of the arrays held.
        always: there is room for so many batches beyond the limits, the lowest by id. They are what
            a step is waiting for: where every shard is full of other batches, each of another
            one's, none of them would be on all shards, no step would come and no room be made.
    """

    def __init__(self, *, max_contributions: int, max_bytes: int, always: int = 0) -> None:
        self.max_contributions = max_contributions
        self.max_bytes = max_bytes
        self.always = always
        self.low_water = 0
        self.nbytes = 0
        # By batch, then by attempt.
        self._held: dict[int, dict[int, Contribution]] = {}
        self._num_held = 0
        self._resolved = Intervals()
        # Of batches that are not resolved: the first attempt that is not discarded.
        self._wanted_from: dict[int, int] = {}

    def clear(self) -> None:
        """Forget everything: another history begins."""
        self.low_water = 0
        self.nbytes = 0
        self._num_held = 0
        self._held.clear()
        self._resolved.clear()
        self._wanted_from.clear()

    def __len__(self) -> int:
        return self._num_held

    @property
    def resolved(self) -> list[tuple[int, int]]:
        """The resolved batches, (first, last + 1) of each interval."""
        below = [(0, self.low_water)] if self.low_water else []
        return below + list(self._resolved)

    def add(self, contribution: Contribution) -> Refusal | None:
        """Keep a contribution; return a refusal where it may not be kept."""
        batch_id, attempt = contribution.batch_id, contribution.attempt
        request_id = contribution.request_id
        if self.get(batch_id, attempt) is not None:
            return None
        if self._is_superseded(batch_id, attempt):
            text = f"batch {batch_id}, attempt {attempt}, is no longer wanted"
            return Refusal(request_id, "superseded", text)
        if self._is_full_for(contribution):
            text = (
                f"the gradient buffer holds {len(self)} contributions of {self.nbytes} bytes;"
                f" its limits are {self.max_contributions} and {self.max_bytes}"
                " (cluster.buffer_bytes)"
            )
            return Refusal(request_id, "full", text)
        self._keep(contribution)
        return None

    def _is_full_for(self, contribution: Contribution) -> bool:
        if (
            len(self) < self.max_contributions
            and self.nbytes + contribution.nbytes <= self.max_bytes
        ):
            return False
        lower = sum(batch_id < contribution.batch_id for batch_id in self._held)
        return lower >= self.always

    def get(self, batch_id: int, attempt: int) -> Contribution | None:
        """Return a contribution that is held."""
        return self._held.get(batch_id, {}).get(attempt)

    def waits_for(self, batch_id: int, attempt: int) -> bool:
        """Return whether a contribution is still to come."""
        return self.get(batch_id, attempt) is None and not self._is_superseded(batch_id, attempt)

    def newest_attempts(self) -> list[Contribution]:
        """Return a contribution of each batch that is held; others may be added meanwhile."""
        attempts = [list(attempts.values()) for attempts in list(self._held.values())]
        return [held[-1] for held in attempts if held]

    def missing(self, entries: Iterable[Entry]) -> list[tuple[int, int]]:
        """Return what entries name and the buffer does not hold."""
        named = ((entry.batch_id, entry.attempt) for entry in entries)
        return [identity for identity in named if self.get(*identity) is None]

    def settle(self, record: Record) -> None:
        """Forget what a record has applied, skipped, discarded or put below the low-water mark."""
        for batch_id in (*(entry.batch_id for entry in record.entries), *record.skipped):
            self._resolved.add(batch_id)
            self._forget(batch_id)
        for batch_id, attempt in record.discard:
            if not self._is_resolved(batch_id):
                self._discard(batch_id, attempt)
        if record.low_water > self.low_water:
            self.low_water = record.low_water
            self._resolved.forget(below=self.low_water)
            for batch_id in [b for b in {*self._held, *self._wanted_from} if b < self.low_water]:
                self._forget(batch_id)

    def _is_superseded(self, batch_id: int, attempt: int) -> bool:
        return self._is_resolved(batch_id) or attempt < self._wanted_from.get(batch_id, 0)

    def _is_resolved(self, batch_id: int) -> bool:
        return batch_id < self.low_water or batch_id in self._resolved

    def _discard(self, batch_id: int, attempt: int) -> None:
        """An attempt is not wanted, nor are those before it."""
        wanted_from = self._wanted_from.get(batch_id, 0)
        self._wanted_from[batch_id] = wanted_from = max(wanted_from, attempt + 1)
        self._drop(batch_id, [held for held in self._held.get(batch_id, ()) if held < wanted_from])

    def _forget(self, batch_id: int) -> None:
        """A batch is resolved."""
        self._wanted_from.pop(batch_id, None)
        self._drop(batch_id, list(self._held.get(batch_id, ())))

    def _keep(self, contribution: Contribution) -> None:
        self._held.setdefault(contribution.batch_id, {})[contribution.attempt] = contribution
        self._num_held += 1
        self.nbytes += contribution.nbytes

    def _drop(self, batch_id: int, attempts: list[int]) -> None:
        for attempt in attempts:
            self._num_held -= 1
            self.nbytes -= self._held[batch_id].pop(attempt).nbytes
        if batch_id in self._held and not self._held[batch_id]:
            del self._held[batch_id]
