"""The ledger: every batch once, lowest step first, nothing lost."""

import pytest

from ps.messages.pull_push import ANY_STEP
from runtime.intervals import Intervals
from scheduler.coordinator.batches import Status
from scheduler.coordinator.ended import EndedBatches
from scheduler.coordinator.least import Least
from scheduler.coordinator.ledger import Ledger
from scheduler.coordinator.ledger_plan import LedgerPlan
from scheduler.coordinator.ledger_state import LedgerState, Samples, Tallies
from scheduler.coordinator.pending import Pending
from worker.protocol import Finished, Token


def make(
    batches: int = 5, epochs: int = 1, m: int = 2, *, batch_is_step: bool = False, **plan: int
) -> Ledger:
    return Ledger(
        LedgerPlan(
            batches_per_epoch=batches, epochs=epochs, rows_of=lambda batch_id: 10, lanes=m, **plan
        ),
        group_size=m,
        batch_is_step=batch_is_step,
    )


def lease(ledger: Ledger, worker: int = 0) -> Token | None:
    return ledger.lease(worker, step_now=0, at_step=lambda step: ANY_STEP)


def lease_all(ledger: Ledger, worker: int = 0) -> list[Token]:
    return list(iter(lambda: lease(ledger, worker), None))


def done(token: Token, samples: int = 10) -> Finished:
    return Finished(token, "done", samples=samples, reason=None if samples == 10 else "bad_file")


def settle(ledger: Ledger) -> None:
    while (batch := ledger.next_ended()) is not None:
        ledger.resolve(batch, Status.APPLIED)


def test_steps_never_span_epochs() -> None:
    tokens = lease_all(make(batches=3, epochs=2, m=2))

    assert [(t.batch_id, t.step) for t in tokens] == [
        (0, 0), (1, 0), (2, 1), (3, 2), (4, 2), (5, 3),
    ]  # fmt: skip


def test_every_batch_is_a_step_in_async() -> None:
    tokens = lease_all(make(batches=3, epochs=2, m=2, batch_is_step=True))

    assert [t.step for t in tokens] == [0, 1, 2, 3, 4, 5]


def test_a_worker_gets_the_lane_that_it_had() -> None:
    ledger = make(batches=8, m=2)
    first = lease(ledger, worker=7)
    second = lease(ledger, worker=8)
    assert first is not None
    assert second is not None

    # The next group: worker 8 asks first, and still gets its own lane.
    next_of_8, next_of_7 = lease(ledger, worker=8), lease(ledger, worker=7)

    assert next_of_8 is not None
    assert next_of_7 is not None
    assert next_of_8.batch_id % 2 == second.batch_id % 2
    assert next_of_7.batch_id % 2 == first.batch_id % 2


def test_what_is_taken_back_is_given_out_first_with_a_new_attempt() -> None:
    ledger = make(batches=6, m=2)
    lost = lease(ledger, worker=1)
    lease(ledger, worker=2)
    assert lost is not None

    assert ledger.reclaim(ledger.leases_of(1)) == 1
    again = lease(ledger, worker=2)

    assert again is not None
    assert (again.batch_id, again.attempt, again.step) == (lost.batch_id, 1, lost.step)
    assert ledger.tallies.reissued == 1


def test_the_first_completed_attempt_counts_and_later_ones_do_not() -> None:
    ledger = make(batches=1)
    first = lease(ledger, worker=1)
    assert first is not None
    ledger.reclaim(ledger.leases_of(1))
    second = lease(ledger, worker=2)
    assert second is not None

    assert ledger.finish(done(first))
    assert not ledger.finish(done(second))
    settle(ledger)

    assert ledger.samples.applied == 10
    assert ledger.tallies.superseded == 1
    assert ledger.exhausted


def test_an_attempt_that_was_never_given_out_does_not_count() -> None:
    ledger = make(batches=1)
    token = lease(ledger)
    assert token is not None

    forged = Token(token.step, token.batch_id, 5, ANY_STEP)

    assert not ledger.finish(done(forged))
    assert not ledger.finish(done(Token(9, 99, 0, ANY_STEP)))


def test_a_superseded_current_attempt_is_given_out_again() -> None:
    ledger = make(batches=1)
    token = lease(ledger)
    assert token is not None

    assert not ledger.finish(Finished(token, "superseded"))
    again = lease(ledger)

    assert again is not None
    assert again.attempt == 1


def test_short_and_skipped_batches_add_up_to_all_samples() -> None:
    ledger = make(batches=3, m=3)
    a, b, c = lease_all(ledger)
    ledger.finish(done(a))
    ledger.finish(done(b, samples=4))
    ledger.finish(Finished(c, "skipped", 0, 10, "non_finite"))
    settle(ledger)

    assert (ledger.samples.applied, ledger.samples.skipped) == (14, 16)
    assert ledger.samples.skipped_by_reason == {"bad_file": 6, "non_finite": 10}
    assert ledger.samples.total == 30
    assert ledger.low_water == 3


def test_what_ended_is_listed_by_completion_and_by_epoch() -> None:
    ledger = make(batches=3, epochs=2, m=2)
    tokens = lease_all(ledger)
    for number in (4, 2, 0):
        ledger.finish(done(tokens[number]))

    assert [batch.batch_id for batch in ledger.ended_of_epoch()] == [2, 0]
    assert ledger.num_due == 2
    for batch in ledger.ended_of_epoch():
        ledger.resolve(batch, Status.APPLIED)
    assert ledger.num_due == 1, "what the epoch has left"
    ledger.finish(done(tokens[1]))
    settle(ledger)

    assert [batch.batch_id for batch in ledger.ended_of_epoch()] == []
    assert ledger.num_due == 2, "of the next epoch one is resolved, too"


def test_a_batch_is_given_again_at_another_step_and_earlier_attempts_are_void() -> None:
    ledger = make(batches=4, m=2)
    first = lease(ledger, worker=1)
    assert first is not None
    ledger.reclaim(ledger.leases_of(1))
    (batch,) = [b for b in ledger.unresolved() if b.batch_id == first.batch_id]

    ledger.give_again(batch, step=5)
    assert not ledger.finish(done(first)), "its time is over"
    ledger.lease(2, step_now=3, at_step=lambda step: ANY_STEP)
    again = next(t for t in lease_all(ledger) if t.batch_id == first.batch_id)

    assert (again.step, again.attempt) == (5, 1)
    assert ledger.take_discards() == [(first.batch_id, 0)]
    assert ledger.take_discards() == []
    assert ledger.finish(done(again))


def test_an_ended_batch_that_is_given_again_gets_an_attempt_that_nobody_had() -> None:
    ledger = make(batches=1)
    first = lease(ledger, worker=1)
    ledger.reclaim(ledger.leases_of(1))
    second = lease(ledger, worker=2)
    assert first is not None
    assert second is not None
    ledger.finish(done(first))

    ledger.give_again(ledger.unresolved()[0], step=1)
    third = lease(ledger, worker=3)

    assert third is not None
    assert third.attempt == 2
    assert ledger.take_discards() == [(0, 1)], "and so everything before it"
    assert not ledger.finish(done(second))
    assert (ledger.num_leased, ledger.num_ended) == (1, 0)


def test_void_attempts_keep_no_evicted_keys_in_memory() -> None:
    ledger = make(batches=1)
    ledger.lease(1, step_now=3, at_step=lambda step: ANY_STEP)
    (batch,) = ledger.unresolved()

    ledger.give_again(batch, step=9)
    assert ledger.oldest_lease_step is None
    ledger.lease(1, step_now=8, at_step=lambda step: ANY_STEP)

    assert ledger.oldest_lease_step == 8


def test_the_first_step_of_an_epoch_has_the_backup_batches() -> None:
    plan = LedgerPlan(batches_per_epoch=9, epochs=2, rows_of=lambda batch_id: 10)

    tokens = lease_all(Ledger(plan, group_size=4, backup_batches=1))

    steps = [token.step for token in tokens]
    # 9 batches are 3 steps of 4; the last one has what the others leave over.
    assert steps == [0, 0, 0, 0, 0, 1, 1, 1, 1, 3, 3, 3, 3, 3, 4, 4, 4, 4]


def test_the_low_water_mark_waits_for_the_oldest_batch() -> None:
    ledger = make(batches=3, m=3, batch_is_step=True)
    a, b, c = lease_all(ledger)
    for token in (c, b):
        ledger.finish(done(token))
    settle(ledger)
    assert ledger.low_water == 0
    ledger.finish(done(a))
    settle(ledger)

    assert ledger.low_water == 3


@pytest.mark.parametrize("batch_is_step", [False, True])
def test_stopping_completes_what_was_leased_and_gives_out_no_more(batch_is_step: bool) -> None:
    ledger = make(batches=8, m=4, batch_is_step=batch_is_step)
    held = [lease(ledger), lease(ledger)]
    ledger.stop()

    assert lease(ledger) is None
    assert not ledger.exhausted
    for token in held:
        assert token is not None
        ledger.finish(done(token))
    assert ledger.num_due == 2
    settle(ledger)

    assert ledger.exhausted
    assert ledger.samples.total == 20


def test_stopping_still_gives_out_again_what_a_dead_worker_held() -> None:
    ledger = make(batches=8, m=4)
    lease(ledger, worker=1)
    ledger.reclaim(ledger.leases_of(1))
    ledger.stop()

    again = lease(ledger, worker=2)

    assert again is not None
    assert again.attempt == 1
    assert lease(ledger, worker=2) is None


def test_a_limit_ends_the_last_step_early() -> None:
    tokens = lease_all(make(batches=8, m=4, limit=5))

    assert [t.step for t in tokens] == [0, 0, 0, 0, 1]


def test_the_oldest_lease_remembers_attempts_that_may_still_count() -> None:
    ledger = make(batches=2, m=2)
    ledger.lease(1, step_now=3, at_step=lambda step: ANY_STEP)
    ledger.lease(2, step_now=5, at_step=lambda step: ANY_STEP)
    ledger.reclaim(ledger.leases_of(1))
    assert ledger.oldest_lease_step == 3

    ledger.lease(2, step_now=9, at_step=lambda step: ANY_STEP)

    assert ledger.oldest_lease_step == 3


@pytest.mark.parametrize("batch_is_step", [False, True])
def test_nothing_is_kept_of_batches_that_are_resolved(batch_is_step: bool) -> None:
    ledger = make(batches=6, epochs=50, m=2, batch_is_step=batch_is_step)
    while (token := lease(ledger)) is not None:
        ledger.finish(done(token))
        settle(ledger)

    assert ledger.low_water == 300
    assert kept(ledger) == ledger.plan.lanes


@pytest.mark.parametrize("batch_is_step", [False, True])
def test_batches_that_are_resolved_while_one_is_not_take_no_memory(batch_is_step: bool) -> None:
    ledger = make(batches=3000, epochs=2, m=2, batch_is_step=batch_is_step)
    slow = lease(ledger, worker=1)
    assert slow is not None
    step, most = 0, 0
    while (token := ledger.lease(2, step_now=step, at_step=lambda step: ANY_STEP)) is not None:
        ledger.finish(done(token))
        settle(ledger)
        step += 1
        most = max(most, kept(ledger))

    assert (step, ledger.low_water, ledger.num_due) == (5999, 0, 1)
    assert most < 200

    ledger.finish(done(slow))
    settle(ledger)
    assert (ledger.low_water, ledger.exhausted) == (6000, True)
    assert kept(ledger) < 100


def kept(thing: object) -> int:
    """How much the collections of an object and of its parts hold."""
    if isinstance(thing, Intervals):
        return len(thing)
    if not isinstance(thing, Ledger | Pending | EndedBatches | Least):
        return len(thing) if isinstance(thing, dict | list | set) else 0
    return sum(kept(value) for value in vars(thing).values())


def test_discards_beyond_what_a_record_takes_are_kept_for_the_next_one() -> None:
    ledger = Ledger(
        LedgerPlan(batches_per_epoch=5, epochs=1, rows_of=lambda batch_id: 1), group_size=5
    )
    for _ in range(5):
        ledger.lease(0, step_now=0, at_step=lambda step: step)
    for batch in ledger.unresolved():
        ledger.give_again(batch, step=1)

    taken = [ledger.take_discards(2) for _ in range(4)]

    assert taken == [[(0, 0), (1, 0)], [(2, 0), (3, 0)], [(4, 0)], []]


def test_a_ledger_that_goes_on_gives_all_of_a_step_with_backups_their_step_at_once() -> None:
    """The step may be formed before the last of them would be given out."""
    plan = LedgerPlan(batches_per_epoch=20, epochs=1, rows_of=lambda _: 1)
    state = LedgerState(low_water=4, samples=Samples(applied=4), batches=Tallies(applied=4))
    ledger = Ledger(plan, group_size=4, backup_batches=3, first_step=1, state=state)

    assert [(b.batch_id, b.step) for b in ledger.unresolved()] == [(i, 1) for i in range(4, 11)]
