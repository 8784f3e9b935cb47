"""Things that have happened, of which a process that runs for weeks remembers the newest."""

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Generic, TypeVar

T = TypeVar("T")

# Of a kind of things that a job may have one of every second, for weeks.
MOST_REMEMBERED = 4096


class Tail(Generic[T]):
    """Things that have happened, the newest of which are remembered.

    Args:
        most: how many.
    """

    def __init__(self, most: int = MOST_REMEMBERED) -> None:
        self._newest: deque[T] = deque(maxlen=most)
        self.count = 0  # of all that ever happened

    def append(self, thing: T) -> None:
        """Another one has happened."""
        self._newest.append(thing)
        self.count += 1

    def since(self, told: int) -> tuple[T, ...]:
        """Return those after the first `told`, as far as they are remembered."""
        skipped = max(0, told - (self.count - len(self._newest)))
        return tuple(islice(self._newest, min(skipped, len(self._newest)), None))

    @property
    def last(self) -> T | None:
        """The newest one; None: nothing has happened."""
        return self._newest[-1] if self._newest else None

    def __iter__(self) -> Iterator[T]:
        """Go through those that are remembered, the oldest first."""
        return iter(self._newest)
