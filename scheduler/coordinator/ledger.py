"""The ledger: every batch of the plan, exactly once applied, dropped or skipped.

A plain state machine. It gives out tokens lowest step first, takes back what a dead or forgetful
worker held, counts the first completed attempt of a batch, and keeps only the batches that are
not resolved yet, so a long job costs no more memory than a short one.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from types import MappingProxyType

from ps.messages.pull_push import ANY_STEP, MAX_DISCARDS
from runtime.intervals import Intervals
from scheduler.coordinator.batches import Batch, Status
from scheduler.coordinator.ended import EndedBatches, count
from scheduler.coordinator.growing_plan import GrowingPlan
from scheduler.coordinator.least import Least
from scheduler.coordinator.ledger_plan import LedgerPlan
from scheduler.coordinator.ledger_state import LedgerState, Samples, Tallies
from scheduler.coordinator.pending import Pending
from worker.protocol import Finished, Token, TokenKind

# Looked up once, see `batches`.
_PENDING, _LEASED, _DONE = Status.PENDING, Status.LEASED, Status.DONE
_DROPPED, _SKIPPED = Status.DROPPED, Status.SKIPPED

# Whose samples are held against the plan where a ledger goes on: it takes two seconds.
MOST_COUNTED_AGAIN = 1_000_000

_NOTHING: Mapping[int, Batch] = MappingProxyType({})


class Ledger:
    """Batches, leases and counts.

    Args:
        plan: the batches; one that grows is the ledger's own, and forgets what is resolved.
        group_size: M, batches of one global batch; groups never span epochs.
        batch_is_step: whether every batch is a step of its own (async) or every group is one.
        backup_batches: batches that the first group of an epoch has more.
        first_step: the one that comes next.
        kind: of the tokens.
        state: to go on from; None: it begins.

    Raises:
        ValueError: the state is of another plan.
    """

    def __init__(
        self,
        plan: LedgerPlan | GrowingPlan,
        *,
        group_size: int,
        batch_is_step: bool = False,
        backup_batches: int = 0,
        first_step: int = 0,
        kind: TokenKind = "train",
        state: LedgerState | None = None,
    ) -> None:
        self.plan = plan
        self.group_size = group_size
        self.samples = Samples()
        self.tallies = Tallies()
        self.low_water = 0
        self._batch_is_step = batch_is_step
        self._kind: TokenKind = kind
        self._given_limit: int | None = None
        self._batches: dict[int, Batch] = {}
        self._backup_batches = backup_batches
        self._pending = Pending(self._window)
        self._ended = EndedBatches()
        # The latest attempt of each batch that became void: earlier ones are void too.
        self._discards: dict[int, int] = {}
        self._next_fresh = 0
        # Where the steps of the epoch that is given out begin: (j0, k0).
        self._anchor = (0, first_step)
        self.num_leased = 0
        self._leases: dict[int, dict[int, Batch]] = {}
        # Of the batches of which an attempt may count: `leased_at_step`.
        self._lease_steps = Least()
        self._resolved_above = Intervals()
        # How many batches they are, and how many of an epoch.
        self._num_resolved_above = 0
        self._resolved_of: dict[int, int] = {}
        self._planned_resolved = 0
        if state is not None:
            self._go_on_from(state, first_step)

    # Going on ---------------------------------------------------------------------------------

    def state(self) -> LedgerState:
        """Return what another ledger needs to go on from the steps that were made until now."""
        return LedgerState(
            low_water=self.low_water,
            resolved=tuple(self._resolved_above),
            limit=self.limit,
            samples=self.samples.copy(),
            batches=replace(self.tallies),
        )

    def _go_on_from(self, state: LedgerState, step: int) -> None:
        """Take over what is resolved; line up the batches that are not, from `step` on."""
        plan, self._given_limit = self.plan, state.limit
        if state.end > self._available:
            raise ValueError(
                f"batches below {state.end} are resolved, the plan has {self._available}"
            )
        plan.forget(below=state.low_water)
        if plan.known_from > state.low_water:
            raise ValueError(
                f"batch {state.low_water} is not resolved, the plan begins with {plan.known_from}"
            )
        self.samples, self.tallies = state.samples.copy(), replace(state.batches)
        self.low_water = state.low_water
        self._resolved_above = Intervals(state.resolved)
        for first, stop in state.resolved:
            self._num_resolved_above += stop - first
            for epoch in range(plan.epoch_of(first), plan.epoch_of(stop - 1) + 1):
                begin, end = plan.epoch_range(epoch)
                count(self._resolved_of, epoch, min(stop, end) - max(first, begin))
        self._planned_resolved = self.samples.total
        if isinstance(plan, LedgerPlan) and state.num_resolved <= MOST_COUNTED_AGAIN:
            planned = plan.rows_of_all([(0, state.low_water), *state.resolved])
            if planned != self.samples.total:
                raise ValueError(
                    f"the resolved batches have {planned} samples in this plan,"
                    f" {self.samples.total} were counted"
                )
        self._next_fresh = state.end
        for batch_id in range(state.low_water, state.end):
            if batch_id not in self._resolved_above:
                self._open(batch_id, step, plan.epoch_of(batch_id))
        backup = self._backup_batches
        # Of a step with backups all have their step before it may be formed, by the first M.
        first_group = self.group_size + backup if backup else 0
        epoch_end = min(plan.epoch_range(self._open_epoch)[1], self._available)
        while len(self._batches) < first_group and self._next_fresh < epoch_end:
            self._open(self._next_fresh, step, self._open_epoch)
            self._next_fresh += 1
        self.line_up(
            step=step,
            batch_is_step=self._batch_is_step,
            goes_first=lambda _: False,
            backup_batches=backup,
        )

    # Leases -----------------------------------------------------------------------------------

    def lease(
        self, worker: int, *, step_now: int, at_step: Callable[[int], int], mode_epoch: int = 0
    ) -> Token | None:
        """Give a worker the best token there is: lowest step first, then its own lane.

        Args:
            step_now: the step that every shard has reached.
            at_step: maps a token's step to the step that its pull must read.
        """
        self._fill()
        batch = self._pending.take(worker)
        if batch is None:
            return None
        batch_id, step, attempt = batch.batch_id, batch.step, batch.attempt
        # A first attempt that was taken back may still be the one that counts.
        if not batch.may_count:
            batch.leased_at_step = step_now
            self._lease_steps.add(step_now)
        batch.status, batch.worker = _LEASED, worker
        held = self._leases.get(worker)
        if held is None:
            held = self._leases[worker] = {}
        held[batch_id] = batch
        pull_step = batch.pull_step = at_step(step)
        self.num_leased += 1
        self.tallies.leased += 1
        return Token(step, batch_id, attempt, pull_step, mode_epoch, self._kind)

    def lowest_pending_step(self) -> int | None:
        """Return the step of the next token that would be leased."""
        self._fill()
        return self._pending.lowest_step

    def has_pending(self, *, before: int | None = None) -> bool:
        """Return whether a batch waits for a worker that was given a step before this one."""
        lowest = self._pending.lowest_step
        return lowest is not None and (before is None or lowest < before)

    def lowest_pending_is_among(self, count: int) -> bool:
        """Return whether the lowest pending batch is one of so many unresolved ones, the lowest."""
        lowest = min((batch.batch_id for batch in self._pending), default=None)
        if lowest is None:
            return False
        if lowest - self.low_water - self._num_resolved_above >= count:
            return False  # so many at least are lower, without counting them
        return sum(batch_id < lowest for batch_id in self._batches) < count

    def leases_of(self, worker: int) -> set[tuple[TokenKind, int, int]]:
        """Return the identities of the tokens that a worker should be holding."""
        return {(self._kind, b.batch_id, b.attempt) for b in self.leased_to(worker)}

    def holds_just(self, worker: int, held: Sequence[tuple[TokenKind, int, int]]) -> bool:
        """Return whether these are the tokens that a worker should be holding, all of them."""
        leases = self._leases.get(worker, _NOTHING)
        if len(leases) != len(held):
            return False
        for kind, batch_id, attempt in held:
            batch = leases.get(batch_id)
            if batch is None or batch.attempt != attempt or kind != self._kind:
                return False
        return len(held) < 2 or len({batch_id for _, batch_id, _ in held}) == len(held)

    def leased_to(self, worker: int) -> Collection[Batch]:
        return self._leases.get(worker, _NOTHING).values()

    def lowest_of(self, worker: int) -> Batch | None:
        """Return the batch that a worker trains first of those that it holds."""
        lowest: Batch | None = None
        for batch in self._leases.get(worker, _NOTHING).values():
            if lowest is None or (batch.step, batch.batch_id) < (lowest.step, lowest.batch_id):
                lowest = batch
        return lowest

    def reclaim(self, identities: Iterable[tuple[TokenKind, int, int]]) -> int:
        """Put leased tokens back with a new attempt; return how many."""
        count = 0
        for kind, batch_id, attempt in identities:
            batch = self._batches.get(batch_id)
            if kind != self._kind or batch is None:
                continue
            if batch.status is Status.LEASED and batch.attempt == attempt:
                self._end_lease(batch)
                batch.status = Status.PENDING
                batch.attempt += 1
                self._pending.add(batch)
                self.tallies.reissued += 1
                count += 1
        return count

    def give_again(self, batch: Batch, *, step: int) -> None:
        """Give a batch out anew at another step; what was given out of it before is void."""
        if batch.may_count:
            self._lease_steps.remove(batch.leased_at_step)
        if batch.status is Status.PENDING:
            self._pending.remove(batch)
        else:
            if batch.ended:
                self._ended.remove(batch)
            else:
                self._end_lease(batch)
            self.tallies.reissued += 1
            batch.status, batch.result = Status.PENDING, None
            batch.attempt += 1
        batch.pull_step = ANY_STEP
        if batch.attempt > batch.first_valid:
            self._discards[batch.batch_id] = batch.attempt - 1
        batch.first_valid, batch.step = batch.attempt, step
        self._pending.add(batch)

    def line_up(
        self,
        *,
        step: int,
        batch_is_step: bool,
        goes_first: Callable[[Batch], bool],
        backup_batches: int = 0,
    ) -> None:
        """Give every batch that is not resolved its step anew, from `step` on: a new anchor.

        Args:
            step: that comes next.
            batch_is_step: whether every batch is a step of its own from now on.
            goes_first: of an epoch's batches, which ones come before the others; else by id.
            backup_batches: batches that the first step has more from now on.
        """
        self._batch_is_step, self._backup_batches = batch_is_step, backup_batches
        waiting = 0
        for epoch, batches in self._unresolved_by_epoch():
            batches.sort(key=lambda batch: (not goes_first(batch), batch.batch_id))
            for place, batch in enumerate(batches):
                batch.step = step + max(0, place - backup_batches) // self._batches_per_step
            if self._next_fresh >= self.plan.epoch_range(epoch)[1]:
                step += self._steps_of(len(batches))
            else:
                waiting = len(batches)
        self._anchor = (self._next_fresh - waiting, step)
        self._pending.rearrange(self._window)
        self._ended.recount()

    def take_discards(self, most: int = MAX_DISCARDS) -> list[tuple[int, int]]:
        """Return, once, which attempts became void: of each batch the latest one.

        What they and earlier ones pushed is to be discarded.

        Args:
            most: so many at most; the others are kept for the next time.
        """
        discards = list(islice(self._discards.items(), most))
        for batch_id, _ in discards:
            del self._discards[batch_id]
        return discards

    def stop(self) -> None:
        """Give out no further batch; what was ever leased is still completed."""
        given = [
            b.batch_id
            for b in self._batches.values()
            if b.status is not Status.PENDING or b.attempt > 0
        ]
        ends_of_resolved = [self.low_water, *(end for _, end in self._resolved_above)]
        self._given_limit = max([*(batch_id + 1 for batch_id in given), *ends_of_resolved])
        for batch in [b for b in self._pending if b.batch_id >= self._limit]:
            self._pending.remove(batch)
            del self._batches[batch.batch_id]
        self._next_fresh = max(self._limit, self._next_fresh)

    # Results ----------------------------------------------------------------------------------

    def finish(self, finished: Finished) -> bool:
        """Record the end of an attempt; return whether it is the one that counts."""
        token = finished.token
        batch, attempt = self._batches.get(token.batch_id), token.attempt
        if finished.outcome == "superseded":
            current = batch is not None and batch.attempt == attempt
            if batch is not None and current and batch.status is _LEASED:
                self.reclaim([token.identity])
            return False
        if batch is None or batch.ended or not batch.first_valid <= attempt <= batch.attempt:
            self.tallies.superseded += 1
            return False
        if not batch.may_count:
            self._lease_steps.add(batch.leased_at_step)
        if batch.status is _PENDING:
            self._pending.remove(batch)
        else:
            self._end_lease(batch)
        batch.result = finished
        if finished.outcome == "skipped":
            batch.status = _SKIPPED
        else:
            batch.status = _DONE
            self.tallies.done += 1
        self._ended.add(batch)
        return True

    def next_ended(self) -> Batch | None:
        """Return the next batch in the order of completion; it stays until `resolve`."""
        return self._ended.first

    def ended_of_epoch(self) -> list[Batch]:
        """Return the ended batches of the earliest open epoch, in the order of completion."""
        first, stop = self.plan.epoch_range(self._open_epoch)
        return [batch for batch in self._ended if first <= batch.batch_id < stop]

    @property
    def num_ended(self) -> int:
        return len(self._ended)

    @property
    def num_ended_of_epoch(self) -> int:
        """How many batches of the earliest open epoch have ended."""
        return self._ended.of_epoch(self._open_epoch)

    def num_ended_of_step(self, step: int) -> int:
        """Return how many tokens of a step have ended."""
        return self._ended.of_step(step)

    @property
    def num_due(self) -> int:
        """How many batches make the next step: M, or what the earliest open epoch has left.

        Meant for steps of M batches, none of which spans epochs.
        """
        epoch = self._open_epoch
        end = min(self.plan.epoch_range(epoch)[1], self._limit)
        left = end - self.low_water - self._resolved_of.get(epoch, 0)
        return min(self.group_size, left)

    def resolve(self, batch: Batch, status: Status) -> None:
        """Book a batch that a record has applied or dropped, or that was skipped whole."""
        self.resolve_all([(batch, status)])

    def resolve_all(self, resolved: Sequence[tuple[Batch, Status]]) -> None:
        """Book the batches of a step, each with what became of it; see `resolve`."""
        samples, tallies = self.samples, self.tallies
        for batch, status in resolved:
            result = batch.result
            assert result is not None, "only an ended batch can be resolved"
            used = result.samples if batch.status is _DONE else 0
            if status is _DROPPED:
                samples.dropped += used
                tallies.dropped += 1
            elif batch.status is _DONE:
                samples.applied += used
                tallies.applied += 1
            else:
                tallies.skipped += 1
            skipped = batch.planned - used
            if skipped:
                samples.skipped += skipped
                reason = result.reason or "unknown"
                by_reason = samples.skipped_by_reason
                by_reason[reason] = by_reason.get(reason, 0) + skipped
            self._planned_resolved += batch.planned
            self._lease_steps.remove(batch.leased_at_step)
            self._ended.remove(batch)
            del self._batches[batch.batch_id]
            count(self._resolved_of, batch.epoch, 1)
        self._num_resolved_above += len(resolved)
        if len(resolved) == 1:
            self._resolved_above.add(resolved[0][0].batch_id)
        else:
            self._resolved_above.add_all([batch.batch_id for batch, _ in resolved])
        self._raise_low_water()
        self.check()

    def check(self) -> None:
        """Assert that no sample was lost or counted twice."""
        samples, planned = self.samples, self._planned_resolved
        total = samples.applied + samples.dropped + samples.skipped
        assert total == planned, (samples, planned)

    # Questions --------------------------------------------------------------------------------

    @property
    def limit(self) -> int | None:
        """The batch id from which on none is given out, where that is before the plan's end."""
        return self._limit if self._limit < self.plan.total else None

    @property
    def exhausted(self) -> bool:
        """Whether every batch that was or will be given out is resolved."""
        return not self._batches and self._next_fresh >= self._limit

    @property
    def idle(self) -> bool:
        """Whether there is nothing to train until the plan grows."""
        if self._next_fresh < self._available or self._available == self._limit:
            return False
        return not (self.num_leased or len(self._pending))

    def arrived_until(self, now: float) -> float:
        """Return before when all that has arrived is resolved, `now` where nothing is open."""
        if self.low_water >= self.plan.planned:
            return now
        return self.plan.arrived(self.low_water)

    @property
    def oldest_lease_step(self) -> int | None:
        """Return a step before which no attempt that may still count was pulled."""
        return self._lease_steps.value

    def given_out_before(self, step: int) -> list[Batch]:
        """Return what has not ended of which an attempt that may count is older than a step."""
        oldest = self.oldest_lease_step
        if oldest is None or oldest >= step:
            return []
        return [b for b in self.outstanding() if b.may_count and b.leased_at_step < step]

    def unresolved(self) -> list[Batch]:
        """Return the batches that have a step and are not resolved."""
        return list(self._batches.values())

    def outstanding(self) -> list[Batch]:
        """Return the batches that are leased or pending, for messages to people."""
        return [batch for batch in self._batches.values() if not batch.ended]

    # Inside -----------------------------------------------------------------------------------

    def _end_lease(self, batch: Batch) -> None:
        assert batch.worker is not None, "a leased batch has a holder"
        held = self._leases[batch.worker]
        del held[batch.batch_id]
        if not held:
            del self._leases[batch.worker]
        batch.worker = None
        self.num_leased -= 1

    def _raise_low_water(self) -> None:
        """Count what was resolved after the first batch that was not, now that it is."""
        end = self._resolved_above.end_of(self.low_water)
        if end == self.low_water:
            return
        while self.low_water < end:
            epoch = self._open_epoch
            passed = min(end, self.plan.epoch_range(epoch)[1]) - self.low_water
            count(self._resolved_of, epoch, -passed)
            self._num_resolved_above -= passed
            self.low_water += passed
        self._resolved_above.forget(below=end)
        self.plan.forget(below=end)

    @property
    def _limit(self) -> int:
        """The batch id from which on none is given out."""
        total = self.plan.total
        return total if self._given_limit is None else min(self._given_limit, total)

    @property
    def _available(self) -> int:
        """The batch id from which on none can be given out yet."""
        return min(self._limit, self.plan.planned)

    @property
    def _window(self) -> int:
        """Steps within which lanes may decide who gets which token."""
        return self.group_size if self._batch_is_step else 1

    @property
    def _open_epoch(self) -> int:
        """The earliest epoch that is not resolved."""
        return self.plan.epoch_of(self.low_water)

    def _fill(self) -> None:
        """Give the next group of fresh batches their steps once the last one is all leased."""
        if len(self._pending) or self._next_fresh >= self._available:
            return
        first = self._next_fresh
        epoch = self.plan.epoch_of(first)
        begin, epoch_end = self.plan.epoch_range(epoch)
        size = self.group_size
        if first == begin:
            self._anchor = (first, self._anchor[1] + self._steps_of(first - self._anchor[0]))
            size += self._backup_batches
        last = min(first + size, epoch_end, self._available)
        for batch_id in range(first, last):
            self._open(batch_id, self._step_of(batch_id), epoch)
        self._next_fresh = last

    def _open(self, batch_id: int, step: int, epoch: int) -> None:
        plan = self.plan
        batch = Batch(batch_id, step, plan.lane_of(batch_id), plan.rows_of(batch_id), epoch)
        self._batches[batch_id] = batch
        self._pending.add(batch)

    def _unresolved_by_epoch(self) -> list[tuple[int, list[Batch]]]:
        found: dict[int, list[Batch]] = {}
        for _, batch in sorted(self._batches.items()):
            found.setdefault(batch.epoch, []).append(batch)
        return list(found.items())

    def _step_of(self, batch_id: int) -> int:
        """Return the step t of a fresh batch: k0 + floor((j - j0) / M)."""
        batch, step = self._anchor
        beyond_first = batch_id - batch - self._backup_batches
        return step + max(0, beyond_first) // self._batches_per_step

    def _steps_of(self, batches: int) -> int:
        """Return how many steps so many batches of an epoch make."""
        return -(-batches // self._batches_per_step)

    @property
    def _batches_per_step(self) -> int:
        return 1 if self._batch_is_step else self.group_size
