"""How many batches a worker may hold: by the shards' buffers, by its share of a step, by slack."""

from scheduler.coordinator.credits import Credits
from scheduler.coordinator.least import Least
from scheduler.coordinator.ledger import Ledger
from scheduler.coordinator.mode_control import ModeControl
from scheduler.coordinator.modes.step_shares import StepShares
from scheduler.coordinator.spec import CoordinatorSpec
from worker.protocol import Finished


class Allowance:
    """Which workers live, how far each of them is, and whether it may be given another batch.

    Args:
        workers: with which the job begins, or goes on.
    """

    def __init__(
        self, spec: CoordinatorSpec, ledger: Ledger, modes: ModeControl, *, workers: int
    ) -> None:
        self._spec = spec
        self._ledger = ledger
        self._modes = modes
        self._credits = Credits(spec, workers)
        self._step_shares = StepShares(spec.group_size)
        # Batches that each live worker ended, counted on from the slowest's when it joined; in a
        # mode without a slack nobody counts.
        self._paces: dict[int, int] = {}
        self._least_pace = Least()

    @property
    def live_workers(self) -> int:
        return len(self._paces)

    @property
    def credits(self) -> int:
        """Most batches that may be leased, or done and not applied on every shard."""
        return self._credits.most(self._modes.rule)

    def grow(self, workers: int) -> None:
        """So many workers are wanted."""
        self._credits.grow(workers)

    def joined(self, worker: int) -> None:
        """A worker lives, which did not before."""
        pace = self._paces[worker] = self._slowest_pace
        self._least_pace.add(pace)

    def left(self, worker: int) -> None:
        """A worker lives no more."""
        self._least_pace.remove(self._paces.pop(worker))

    def ended(self, worker: int, finished: Finished) -> None:
        """A worker has ended a batch of the training data."""
        rule = self._modes.rule
        if rule.slack is not None:  # no running job changes to or from a mode with one
            pace = self._paces[worker]
            self._least_pace.move(pace, pace + 1)
            self._paces[worker] = pace + 1
        if rule.shares_steps:
            self._step_shares.ended(worker, finished.token.step)
        if finished.outcome == "done":
            self._credits.measured(finished.buffer_bytes)

    def formed(self, *, before: int) -> None:
        """Steps before this one are formed."""
        self._step_shares.forget(before=before)

    def has_room(self, worker: int, *, unapplied: int) -> bool:
        """Whether a worker may be given one more batch of the training data.

        Args:
            unapplied: batches of steps that are ordered, and not applied on every shard.
        """
        rule, ledger = self._modes.rule, self._ledger
        in_flight = ledger.num_leased + ledger.num_ended + unapplied
        if in_flight >= self._credits.most(rule) and not self._is_needed_now():
            return False
        if rule.shares_steps and self._has_its_share(worker):
            return False
        return rule.slack is None or not self._is_too_far_ahead(worker)

    def _is_needed_now(self) -> bool:
        """Whether the next token is one that a step waits for, where the buffers are short.

        Batches of a later step or epoch may have taken all credits when these became fewer.
        """
        rule = self._modes.rule
        short = self._credits.are_short(rule)
        return short and self._ledger.lowest_pending_is_among(self._spec.step_batches(rule))

    def _has_its_share(self, worker: int) -> bool:
        """Whether a worker has to leave the rest of the lowest open step to others."""
        step = self._ledger.lowest_pending_step()
        return step is None or self._step_shares.has_all(
            worker,
            step,
            held=sum(batch.step == step for batch in self._ledger.leased_to(worker)),
            workers=self.live_workers,
        )

    def _is_too_far_ahead(self, worker: int) -> bool:
        """Whether a worker, once it has ended all that it holds, had to wait for the slowest.

        The slowest may always go on, and what it leads is held by workers that live.
        """
        slack = self._modes.rule.slack
        if slack is None:
            return False
        ahead = self._paces[worker] + len(self._ledger.leased_to(worker))
        return ahead - self._slowest_pace > slack

    @property
    def _slowest_pace(self) -> int:
        return self._least_pace.value or 0
