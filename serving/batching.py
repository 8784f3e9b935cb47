"""Which requests are computed together, and which are refused: a state machine without a clock."""

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

from serving.errors import OverloadError

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Take(Generic[Item]):
    """Add this one to the open batch."""

    item: Item


@dataclass(frozen=True, slots=True)
class Late(Generic[Item]):
    """Nobody waits for this one any more."""

    item: Item


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing is to be done before something arrives, or so many seconds are over."""

    seconds: float | None


@dataclass(frozen=True, slots=True)
class Close:
    """Compute the open batch."""


@dataclass(slots=True)
class _Waiting(Generic[Item]):
    item: Item
    arrived: float
    deadline: float


class Batcher(Generic[Item]):
    """A queue of requests, and the batch that is being formed of its first ones.

    What waits is taken at once, as far as the batch goes; what has not come yet is waited for until
    the first of the batch has waited `max_delay`. Times are seconds of one clock.

    Args:
        max_batch: samples from which on no further request is added.
        max_delay: seconds that a request may wait for others to come; 0: none.
        max_waiting: requests that may wait.
    """

    def __init__(self, *, max_batch: int, max_delay: float, max_waiting: int) -> None:
        if max_batch < 1 or max_waiting < 1 or not 0 <= max_delay < 60:
            raise ValueError(
                f"max_batch {max_batch} and max_waiting {max_waiting} must be >= 1,"
                f" max_delay {max_delay} in [0, 60)"
            )
        self._max_batch = max_batch
        self._max_delay = max_delay
        self._max_waiting = max_waiting
        self._queue: deque[_Waiting[Item]] = deque()
        self._closes = 0.0

    def __len__(self) -> int:
        return len(self._queue)

    def offer(self, item: Item, now: float, deadline: float) -> None:
        """Let a request wait.

        Raises:
            OverloadError: as many wait as may.
        """
        if len(self._queue) >= self._max_waiting:
            raise OverloadError(f"{len(self._queue)} requests wait, no more may")
        self._queue.append(_Waiting(item, now, deadline))

    def next(self, now: float, samples: int) -> Take[Item] | Late[Item] | Wait | Close:
        """Return what to do now, with so many samples in the open batch."""
        if samples >= self._max_batch:
            return Close()
        if self._queue:
            first = self._queue.popleft()
            if now >= first.deadline:
                return Late(first.item)
            if samples == 0:
                self._closes = first.arrived + self._max_delay
            return Take(first.item)
        if samples == 0:
            return Wait(None)
        return Wait(self._closes - now) if now < self._closes else Close()


def by_load(loads: list[int]) -> list[int]:
    """Return the numbers of the sessions, those with the fewest requests first."""
    return sorted(range(len(loads)), key=loads.__getitem__)
