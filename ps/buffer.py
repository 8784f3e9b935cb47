"""The gradient buffer of a shard: contributions that wait for the record that names them."""

from collections.abc import Iterable

from ps.messages import Contribution, Entry, Record, Refusal


class GradientBuffer:
    """Holds contributions by (batch id, attempt); pushing one again changes nothing.

    A batch is resolved once a record has applied it. A push for a resolved or discarded batch, or
    for one below the low-water mark, is refused as superseded, so a late attempt leaves nothing
    behind.

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
        self._held: dict[tuple[int, int], Contribution] = {}
        self._resolved: set[int] = set()
        self._discarded: set[tuple[int, int]] = set()

    def clear(self) -> None:
        """Forget everything: another history begins."""
        self.low_water = 0
        self.nbytes = 0
        self._held.clear()
        self._resolved.clear()
        self._discarded.clear()

    def __len__(self) -> int:
        return len(self._held)

    def add(self, contribution: Contribution) -> Refusal | None:
        """Keep a contribution; return a refusal where it may not be kept."""
        identity = (contribution.batch_id, contribution.attempt)
        request_id = contribution.request_id
        if identity in self._held:
            return None
        if self._is_superseded(identity):
            text = f"batch {identity[0]}, attempt {identity[1]}, is no longer wanted"
            return Refusal(request_id, "superseded", text)
        if self._is_full_for(contribution):
            text = (
                f"the gradient buffer holds {len(self._held)} contributions of {self.nbytes} bytes;"
                f" its limits are {self.max_contributions} and {self.max_bytes}"
                " (cluster.buffer_bytes)"
            )
            return Refusal(request_id, "full", text)
        self._held[identity] = contribution
        self.nbytes += contribution.nbytes
        return None

    def _is_full_for(self, contribution: Contribution) -> bool:
        if (
            len(self._held) < self.max_contributions
            and self.nbytes + contribution.nbytes <= self.max_bytes
        ):
            return False
        lower = {batch_id for batch_id, _ in self._held if batch_id < contribution.batch_id}
        return len(lower) >= self.always

    def get(self, batch_id: int, attempt: int) -> Contribution | None:
        """Return a contribution that is held."""
        return self._held.get((batch_id, attempt))

    def missing(self, entries: Iterable[Entry]) -> list[tuple[int, int]]:
        """Return what entries name and the buffer does not hold."""
        named = ((entry.batch_id, entry.attempt) for entry in entries)
        return [identity for identity in named if identity not in self._held]

    def settle(self, record: Record) -> None:
        """Forget what a record has applied, discarded or put below the low-water mark."""
        self._resolved.update(entry.batch_id for entry in record.entries)
        self._discarded.update(record.discard)
        if record.low_water > self.low_water:
            self.low_water = record.low_water
            self._resolved = {b for b in self._resolved if b >= self.low_water}
            self._discarded = {d for d in self._discarded if d[0] >= self.low_water}
        self._drop(identity for identity in list(self._held) if self._is_superseded(identity))

    def _is_superseded(self, identity: tuple[int, int]) -> bool:
        return (
            identity[0] < self.low_water
            or identity[0] in self._resolved
            or identity in self._discarded
        )

    def _drop(self, identities: Iterable[tuple[int, int]]) -> None:
        for identity in identities:
            self.nbytes -= self._held.pop(identity).nbytes
