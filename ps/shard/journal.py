"""What a shard keeps for another copy of it that is being made: all that came after a cut."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from ps.messages.pull_push import Contribution
from ps.messages.records import Record
from ps.shard.evicted_keys import EvictedRuns


@dataclass(frozen=True, slots=True)
class Applied:
    """A record that was applied, and the contributions that it names."""

    record: Record
    contributions: tuple[Contribution, ...]

    @property
    def nbytes(self) -> int:
        return sum(contribution.nbytes for contribution in self.contributions)


class Journal:
    """The records since a cut, in their order, each with its contributions.

    Whoever has the state of the cut and handles these is what the shard is.

    Args:
        begins: the step of the cut.
        evicted: the evicted keys that the shard remembered at the cut, by table.
        max_bytes: most of the contributions that are kept; with more it is over and holds nothing.
    """

    def __init__(self, begins: int, evicted: Sequence[EvictedRuns], *, max_bytes: int) -> None:
        self.begins = begins
        self.evicted = tuple(evicted)
        self.max_bytes = max_bytes
        self.nbytes = 0
        self.is_over = False
        self._entries: deque[Applied] = deque()

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, record: Record, contributions: Sequence[Contribution]) -> None:
        """A record is applied."""
        if self.is_over:
            return
        applied = Applied(record, tuple(contributions))
        self._entries.append(applied)
        self.nbytes += applied.nbytes
        if self.nbytes > self.max_bytes:
            self.is_over = True
            self.drop(len(self._entries))

    def first(self, count: int) -> list[Applied]:
        """Return the oldest so many that are kept."""
        return [self._entries[at] for at in range(min(count, len(self._entries)))]

    def drop(self, count: int) -> None:
        """Forget the oldest so many: the other copy has applied them."""
        for _ in range(min(count, len(self._entries))):
            self.nbytes -= self._entries.popleft().nbytes
