"""The driver's part of having servers equally busy, see `scheduler.scaling.balance`."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ps.routing import Routing
from scheduler.coordinator.status import Status
from scheduler.job.config import ClusterConfig
from scheduler.scaling.balance import BalancePolicy, Rebalancing, described

# The latest decisions that are kept.
MOST_DECISIONS = 1000


class Rebalancer:
    """Shows the policy what each bucket is asked for, and has those move that it decides.

    Args:
        cluster: of the job.
        loads: asks the servers for their buckets' loads, which is done once a window.
        order: has buckets move.
        note: tells a person something.
        clock: seconds of any steady clock.

    Attributes:
        done: what was decided, with what came of it.
    """

    def __init__(
        self,
        cluster: ClusterConfig,
        *,
        loads: Callable[[], Sequence[npt.NDArray[np.int64]]],
        order: Callable[[npt.NDArray[np.uint16]], None],
        note: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.done: dict[int, Rebalancing] = {}
        self._is_on = cluster.rebalance == "auto"
        self._seconds = cluster.scaling.window_seconds
        self._policy = BalancePolicy(cluster.scaling)
        self._loads = loads
        self._order = order
        self._note = note
        self._clock = clock
        self._news: dict[int, Rebalancing] = {}
        self._before: Sequence[npt.NDArray[np.int64]] | None = None
        self._due = 0.0

    @property
    def skew(self) -> float | None:
        """The load of the busiest server over the mean in the last window; None: not measured."""
        return self._policy.skew

    def begin_epoch(self) -> None:
        """The job is in another recovery epoch: what was measured is of no use."""
        self._before = None
        self._policy.restarted()

    def look(self, status: Status, routing: Routing, *, busy: bool) -> None:
        """See how the load is; at the end of a window, decide.

        Args:
            routing: by which the job goes.
            busy: whether buckets are about to move.
        """
        now = self._clock()
        if not self._is_on or status.trained or busy or status.paused or status.evaluating:
            self._before = None
            return
        if self._before is not None and now < self._due:
            return
        before, self._before = self._before, self._loads()
        self._due = now + self._seconds
        if before is None or len(before) != len(self._before):
            return
        window = sum(
            (after - was for was, after in zip(before, self._before, strict=True)),
            start=np.zeros_like(before[0]),
        )
        decisions, buckets = self._policy.look(now, routing.buckets, window, routing.num_shards)
        for decision in decisions:
            known = self.done.get(decision.number)
            decision = replace(decision, time=time.time() if known is None else known.time)
            self.done[decision.number] = self._news[decision.number] = decision
            while len(self.done) > MOST_DECISIONS:
                del self.done[next(iter(self.done))]
            self._note(described(decision))
        if buckets is not None:
            self._order(buckets)

    def news(self) -> list[dict[str, Any]]:
        """Return what is new or better known since the last call."""
        news, self._news = self._news, {}
        return [asdict(decision) for decision in news.values()]

    def all(self) -> list[dict[str, Any]]:
        """Return the latest decisions, in their order."""
        return [asdict(decision) for decision in self.done.values()]
