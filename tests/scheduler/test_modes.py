"""Which batches make the next step, and what a pull has to read."""

import pytest

from ps.messages import ANY_STEP
from scheduler.ledger import Ledger, LedgerPlan, Status
from scheduler.modes import RULES, Mode
from worker.protocol import Finished, Token


def ledger_of(mode: Mode, *, batches: int, group_size: int) -> Ledger:
    rule = RULES[mode]
    plan = LedgerPlan(batches_per_epoch=batches, epochs=2, rows_of=lambda batch_id: 4)
    return Ledger(plan, group_size=group_size, batch_is_step=rule.batch_is_step)


def lease(ledger: Ledger, mode: Mode) -> Token:
    token = ledger.lease(0, step_now=0, at_step=RULES[mode].at_step)
    assert token is not None
    return token


def next_step(ledger: Ledger, mode: Mode, step: int) -> list[int] | None:
    """Return the ids of the next step's batches and resolve them."""
    batches = RULES[mode].next_step(ledger, step)
    for batch in batches or []:
        ledger.resolve(batch, Status.APPLIED)
    return None if batches is None else [batch.batch_id for batch in batches]


@pytest.mark.parametrize("mode", list(RULES))
def test_a_rule_has_the_name_of_its_mode(mode: Mode) -> None:
    assert RULES[mode].name == mode


def test_a_synchronous_pull_reads_the_step_of_its_token() -> None:
    ledger = ledger_of("sync", batches=4, group_size=2)

    tokens = [lease(ledger, "sync") for _ in range(4)]

    assert [token.at_step for token in tokens] == [token.step for token in tokens] == [0, 0, 1, 1]


def test_an_asynchronous_pull_reads_any_step() -> None:
    ledger = ledger_of("async", batches=4, group_size=2)

    assert {lease(ledger, "async").at_step for _ in range(4)} == {ANY_STEP}


def test_a_synchronous_step_waits_for_all_and_goes_by_batch_id() -> None:
    ledger = ledger_of("sync", batches=3, group_size=3)
    first, second, third = (lease(ledger, "sync") for _ in range(3))

    for token in (third, first):
        ledger.finish(Finished(token, "done", 4))
        assert next_step(ledger, "sync", 0) is None
    ledger.finish(Finished(second, "done", 4))

    assert next_step(ledger, "sync", 0) == [0, 1, 2]


def test_a_synchronous_step_takes_no_batch_of_a_later_one() -> None:
    ledger = ledger_of("sync", batches=4, group_size=2)
    tokens = [lease(ledger, "sync") for _ in range(4)]

    # What can't be read ends without waiting for its step.
    for token in tokens[2:]:
        ledger.finish(Finished(token, "skipped", 0, 4, "bad_file"))

    assert next_step(ledger, "sync", 0) is None
    assert ledger.is_complete(1)


def test_a_synchronous_step_at_the_end_of_an_epoch_is_short() -> None:
    ledger = ledger_of("sync", batches=3, group_size=2)
    tokens = [lease(ledger, "sync") for _ in range(6)]
    for token in tokens:
        ledger.finish(Finished(token, "done", 4))

    assert [next_step(ledger, "sync", k) for k in range(4)] == [[0, 1], [2], [3, 4], [5]]


def test_a_synchronous_step_closes_where_training_was_stopped() -> None:
    ledger = ledger_of("sync", batches=8, group_size=4)
    tokens = [lease(ledger, "sync") for _ in range(2)]
    ledger.stop()
    for token in tokens:
        ledger.finish(Finished(token, "done", 4))

    assert next_step(ledger, "sync", 0) == [0, 1]
    assert ledger.exhausted


def test_asynchronous_steps_go_by_completion() -> None:
    ledger = ledger_of("async", batches=3, group_size=2)
    tokens = [lease(ledger, "async") for _ in range(3)]
    for token in reversed(tokens):
        ledger.finish(Finished(token, "done", 4))

    steps = [next_step(ledger, "async", k) for k in range(4)]

    assert steps == [[2], [1], [0], None]
