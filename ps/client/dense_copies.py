"""A client's copies of the dense parameters: kept while a pull needs them, then used again."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ps.routing import Routing
from runtime.free_list import FreeList


@dataclass(slots=True, eq=False)
class DenseCopy:
    """Dense parameters.

    Args:
        values: float32[dense parameters].
        steps: int64[shards], the step of each shard's part; -1 where there is none.
        recovery_epoch: whose steps these are.
        users: how many keep it: pulls that asked with it or got it, and the client.
    """

    values: npt.NDArray[np.float32]
    steps: npt.NDArray[np.int64]
    recovery_epoch: int
    users: int = 1


class DenseCopies:
    """The copy of the last answer, with which the next pull asks, and older ones still in use."""

    def __init__(self, routing: Routing) -> None:
        self._routing = routing
        self._free = FreeList(np.float32)
        self._latest = self._of_no_step(0)

    def new(self, steps: npt.NDArray[np.int64], recovery_epoch: int) -> DenseCopy:
        """Return a copy of arbitrary values, for the caller."""
        return DenseCopy(self._free.take(self._routing.dense_size), steps, recovery_epoch)

    def latest(self, recovery_epoch: int) -> DenseCopy:
        """Return the copy of the last answer, for one more user.

        One of another recovery epoch is forgotten: there a step of its number is another one.
        """
        if self._latest.recovery_epoch != recovery_epoch:
            self.drop(self._latest)
            self._latest = self._of_no_step(recovery_epoch)
        self._latest.users += 1
        return self._latest

    def completed(
        self, held: DenseCopy, received: DenseCopy | None, ahead: Collection[int] = ()
    ) -> DenseCopy:
        """Take the parts that did not change from what was held, and keep all for later pulls.

        Args:
            held: what the pull asked with, whose user it no longer is.
            received: with the parts that have changed; None where none has.
            ahead: the shards whose parts are of no step, see `PullReply`.

        Returns:
            The pull's own.
        """
        if received is None:
            received = held
        else:
            for shard in np.flatnonzero(received.steps == held.steps).tolist():
                if shard not in ahead:
                    part = slice(*self._routing.dense_range(shard))
                    received.values[part] = held.values[part]
            if ahead:
                received.steps = received.steps.copy()  # these are the pull's own, too
                received.steps[list(ahead)] = -1
            self.drop(held)
        received.users += 1
        self.drop(self._latest)
        self._latest = received
        return received

    def _of_no_step(self, recovery_epoch: int) -> DenseCopy:
        return self.new(np.full(self._routing.num_shards, -1), recovery_epoch)

    def drop(self, copy: DenseCopy) -> None:
        """Say that one user less needs a copy."""
        copy.users -= 1
        if copy.users == 0:
            self._free.give(copy.values)
