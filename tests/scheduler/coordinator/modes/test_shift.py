"""What a change of mode keeps, what it voids, and that it loses and repeats nothing."""

import pytest

from ps.messages.pull_push import ANY_STEP
from scheduler.coordinator.batches import Status
from scheduler.coordinator.ledger import Ledger
from scheduler.coordinator.ledger_plan import LedgerPlan
from scheduler.coordinator.modes.rules import Mode, rule_of
from scheduler.coordinator.modes.shift import shift
from worker.protocol import Finished, Token

M = 2


class Job:
    """A ledger under a rule, and the step that comes next."""

    def __init__(self, mode: Mode, *, batches: int = 12, epochs: int = 1) -> None:
        plan = LedgerPlan(batches_per_epoch=batches, epochs=epochs, rows_of=lambda _: 10)
        self.rule = rule_of(mode)
        self.ledger = Ledger(plan, group_size=M, batch_is_step=self.rule.batch_is_step)
        self.step = 0
        self.formed: list[list[int]] = []

    def lease(self, worker: int = 0) -> Token:
        token = self.ledger.lease(worker, step_now=self.step, at_step=self.rule.at_step)
        assert token is not None
        return token

    def finish(self, token: Token, *, pull_step: int = 0) -> bool:
        """End an attempt and form the steps that are complete; return whether it counted."""
        end = Finished(token, "done", samples=10, pull_step=pull_step)
        counted = self.ledger.finish(end)
        self.form_steps()
        return counted

    def form_steps(self) -> None:
        while (batches := self.rule.next_step(self.ledger, self.step)) is not None:
            for batch in batches:
                self.ledger.resolve(batch, Status.APPLIED)
            self.formed.append([batch.batch_id for batch in batches])
            self.step += 1

    def shift(self, mode: Mode) -> int:
        self.rule = rule_of(mode)
        voided = shift(self.ledger, self.rule, step=self.step)
        self.form_steps()
        return voided

    def train(self) -> None:
        while (
            token := self.ledger.lease(0, step_now=self.step, at_step=self.rule.at_step)
        ) is not None:
            self.finish(token, pull_step=self.step)


def rest_is_trained_once(job: Job) -> None:
    job.train()
    trained = [batch_id for batches in job.formed for batch_id in batches]
    assert sorted(trained) == list(range(job.ledger.plan.total))
    assert job.ledger.exhausted


def test_to_gba_keeps_what_was_done_and_who_is_late() -> None:
    job = Job("sync")
    late, done = job.lease(0), job.lease(1)
    job.finish(done)

    assert job.shift("gba") == 0

    job.finish(job.lease(1))
    assert job.formed == [[1, 2]], "the late one is not waited for"
    assert job.finish(late)
    rest_is_trained_once(job)


def test_to_gba_gives_out_anew_what_waits_for_a_later_step() -> None:
    job = Job("sync")
    job.lease(0), job.lease(0)
    parked = job.lease(1)
    assert parked.at_step == 1

    assert job.shift("gba") == 1

    again = job.lease(1)
    assert (again.batch_id, again.attempt, again.at_step) == (parked.batch_id, 1, ANY_STEP)
    assert not job.finish(parked), "its first attempt is void"
    assert (parked.batch_id, 0) in job.ledger.take_discards()


def test_to_sync_keeps_what_was_pulled_at_the_step_that_comes_next() -> None:
    job = Job("gba")
    late = job.lease(0)
    job.finish(job.lease(1)), job.finish(job.lease(1))
    assert job.formed == [[1, 2]]
    fresh = job.lease(1)
    job.finish(fresh, pull_step=1)

    assert job.shift("sync") == 1, "the late one has pulled who knows what"

    again = job.lease(1)
    assert (again.batch_id, again.attempt, again.step, again.at_step) == (0, 1, 1, 1)
    job.finish(again, pull_step=1)
    assert job.formed[1] == [0, fresh.batch_id]
    assert not job.finish(late)
    rest_is_trained_once(job)


def test_to_sync_gives_out_anew_what_was_pulled_before() -> None:
    job = Job("gba")
    job.lease(0)
    stale = [job.lease(1), job.lease(1), job.lease(1)]
    job.finish(stale[0]), job.finish(stale[1])
    job.finish(stale[2], pull_step=0)

    assert job.shift("sync") == 2

    assert (stale[2].batch_id, 0) in job.ledger.take_discards()
    assert job.ledger.num_ended == 0
    rest_is_trained_once(job)


def test_to_async_every_batch_is_a_step_at_once() -> None:
    job = Job("gba")
    first, second = job.lease(0), job.lease(1)
    job.finish(first)

    job.shift("async")
    job.finish(second)

    assert job.formed == [[0], [1]]
    third = job.lease(0)
    assert third.step == 2
    job.finish(third)
    rest_is_trained_once(job)


def test_an_epoch_that_is_still_open_comes_before_the_next_one() -> None:
    job = Job("async", batches=4, epochs=3)
    late = job.lease(0)
    for _ in range(4):
        job.finish(job.lease(1))
    assert job.formed[-1] == [4], "the second epoch has begun"

    job.shift("sync")

    token = job.lease(1)
    assert (token.batch_id, token.step) == (0, 4)
    assert job.lease(0).step == 5, "its step has no batch of another epoch"
    assert not job.finish(late)


@pytest.mark.parametrize("before", ["sync", "gba", "async"])
@pytest.mark.parametrize("after", ["sync", "gba", "async"])
@pytest.mark.parametrize("at", range(12))
def test_no_batch_is_lost_or_repeated(before: Mode, after: Mode, at: int) -> None:
    job = Job(before, batches=5, epochs=3)
    held = [job.lease(worker) for worker in range(3)]
    for _ in range(at):
        # One worker is late all the time; the others go on as far as the mode lets them.
        token = held.pop()
        job.finish(token, pull_step=job.step)
        held.append(job.lease(1))

    if after != before:
        job.shift(after)
    for token in held:
        job.finish(token, pull_step=job.step)

    rest_is_trained_once(job)
    assert all(len({batch_id // 5 for batch_id in step}) == 1 for step in job.formed)


def test_data_is_as_late_as_it_was() -> None:
    """A shift at a moment when nothing was late changes no token's step."""
    job = Job("sync")
    tokens = [job.lease(worker) for worker in range(5)]

    job.shift("gba")

    steps = {batch.batch_id: batch.step for batch in job.ledger.unresolved()}
    assert all(steps[token.batch_id] == token.step for token in tokens)
