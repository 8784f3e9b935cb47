"""How long synchronous steps take, from how long each worker takes for a batch."""

import heapq
from collections import deque
from collections.abc import Sequence
from itertools import pairwise

from scheduler.coordinator.modes.step_shares import StepShares

# No two batches take the same time. Without this, workers whose times are multiples of one another
# would end at the same moment for ever, and the order of a tie would decide who gets which token.
_SPREAD = 0.04
_GOLDEN = 0.618033988749895


def sync_step_seconds(batch_seconds: Sequence[float], *, group_size: int, depth: int) -> float:
    """Return the mean time of a step of `sync` once leases have settled.

    Tokens are leased as the coordinator does: lowest step first, to whoever begins a batch and so
    has room for another. A worker keeps the tokens it has; none begins a batch of a step before the
    one before it is complete. Reading, pulls and applies take no time.

    Args:
        batch_seconds: of each worker, > 0; at least one.
        group_size: M, batches of a step.
        depth: tokens that a worker holds beside the batch that it computes, >= 1.

    It is within 15 % of the coordinator where M is at least the number of workers, and of the right
    order where it is below. It takes time in proportion to M + workers x depth.
    """
    settling = -(-len(batch_seconds) * (depth + 1) // group_size) + 1
    measured = 4 * -(-len(batch_seconds) // group_size)
    fleet = _Fleet(batch_seconds, group_size, depth)
    ends = fleet.ends_of_steps(settling + measured)
    lengths = [after - before for before, after in pairwise(ends)]
    return sum(lengths[-measured:]) / measured


class _Fleet:
    """Workers that begin, wait and lease."""

    def __init__(self, batch_seconds: Sequence[float], group_size: int, depth: int) -> None:
        workers = len(batch_seconds)
        self._seconds = batch_seconds
        self._group_size = group_size
        self._depth = depth
        self._shares = StepShares(group_size)
        self._credits = workers * depth + 2 * group_size
        self._begun = self._leased = 0
        self._step = 0
        self._now = 0.0
        # Steps of the tokens that a worker has not begun, lowest first.
        self._held: list[deque[int]] = [deque() for _ in range(workers)]
        self._computing = [False] * workers
        self._ends: list[tuple[float, int]] = []
        self._waiting: dict[int, list[int]] = {}
        # Those that were refused a token, in the order in which they ask again.
        self._short: deque[int] = deque()
        self._is_short = [False] * workers

    def ends_of_steps(self, steps: int) -> list[float]:
        """Return when each of the first steps ended."""
        for worker in range(len(self._seconds)):
            self._lease(worker)
            self._begin(worker)
        self._serve_short()
        ends: list[float] = []
        ended = 0
        while len(ends) < steps:
            self._now, worker = heapq.heappop(self._ends)
            self._computing[worker] = False
            self._shares.ended(worker, self._step)
            ended += 1
            opened = ended % self._group_size == 0
            if opened:
                ends.append(self._now)
                self._step += 1
                self._shares.forget(before=self._step)
            before = self._leased
            self._lease(worker)
            self._begin(worker)
            if opened:
                for waiting in self._waiting.pop(self._step, ()):
                    self._begin(waiting)
            if opened or self._leased // self._group_size > before // self._group_size:
                self._serve_short()
        return ends

    def _serve_short(self) -> None:
        """Let those ask again that were refused, until none gets anything."""
        before = -1
        while self._leased > before:
            before = self._leased
            for _ in range(len(self._short)):
                if self._credits_used:
                    return
                worker = self._short.popleft()
                self._is_short[worker] = False
                idle = not (self._held[worker] or self._computing[worker])
                self._lease(worker)
                if idle:
                    self._begin(worker)

    def _begin(self, worker: int) -> None:
        held = self._held[worker]
        if not held or self._computing[worker]:
            return
        if held[0] > self._step:
            self._waiting.setdefault(held[0], []).append(worker)
            return
        held.popleft()
        self._computing[worker] = True
        self._begun += 1
        spread = 1 + _SPREAD * (self._begun * _GOLDEN % 1 - 0.5)
        heapq.heappush(self._ends, (self._now + self._seconds[worker] * spread, worker))
        self._lease(worker)

    def _lease(self, worker: int) -> None:
        held = self._held[worker]
        while len(held) < self._depth:
            step = self._leased // self._group_size
            same = held.count(step) + (self._computing[worker] and step == self._step)
            full = self._shares.has_all(worker, step, held=same, workers=len(self._seconds))
            if full or self._credits_used:
                if not self._is_short[worker]:
                    self._short.append(worker)
                    self._is_short[worker] = True
                return
            held.append(step)
            self._leased += 1

    @property
    def _credits_used(self) -> bool:
        return self._leased - self._step * self._group_size >= self._credits
