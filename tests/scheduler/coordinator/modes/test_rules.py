"""Which batches make the next step, and what a pull has to read."""

from typing import get_args

import pytest

from ps.messages.pull_push import ANY_STEP
from scheduler.coordinator.batches import Status
from scheduler.coordinator.ledger import Ledger
from scheduler.coordinator.ledger_plan import LedgerPlan
from scheduler.coordinator.modes.rules import Mode, ModeOptions, rule_of
from scheduler.coordinator.modes.stale_weights import Power
from worker.protocol import Finished, Token

MODES: tuple[Mode, ...] = get_args(Mode)
REISSUE = ModeOptions(staleness_bound=1, on_stale="reissue")


def ledger_of(
    mode: Mode, *, batches: int, group_size: int, options: ModeOptions | None = None
) -> Ledger:
    rule = rule_of(mode, options)
    plan = LedgerPlan(batches_per_epoch=batches, epochs=2, rows_of=lambda batch_id: 4)
    return Ledger(
        plan,
        group_size=group_size,
        batch_is_step=rule.batch_is_step,
        backup_batches=rule.backup_batches,
    )


def lease(ledger: Ledger, mode: Mode) -> Token:
    token = ledger.lease(0, step_now=0, at_step=rule_of(mode).at_step)
    assert token is not None
    return token


def finish(ledger: Ledger, *tokens: Token) -> None:
    for token in tokens:
        ledger.finish(Finished(token, "done", 4))


def next_step(
    ledger: Ledger, mode: Mode, step: int, options: ModeOptions | None = None
) -> list[int] | None:
    """Form the next step as the coordinator does; return the ids of its batches."""
    rule = rule_of(mode, options)
    batches = rule.next_step(ledger, step)
    for batch in batches or []:
        ledger.resolve(batch, Status.APPLIED)
    if batches is not None:
        for batch in rule.outdated(ledger, step + 1):
            ledger.give_again(batch, step=step + 1)
    return None if batches is None else [batch.batch_id for batch in batches]


@pytest.mark.parametrize("mode", MODES)
def test_a_rule_has_the_name_of_its_mode(mode: Mode) -> None:
    assert rule_of(mode).name == mode


@pytest.mark.parametrize("mode", ["sync", "async", "ssp", "backup"])
def test_only_gba_weighs_by_staleness(mode: Mode) -> None:
    assert rule_of(mode, ModeOptions(staleness_bound=0)).weight(1000) == 1.0


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
    finish(ledger, *tokens[:2])
    assert [next_step(ledger, "sync", k) for k in (0, 1)] == [[0, 1], [2, 3]]


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


def test_gba_takes_whichever_m_batches_end_first_in_that_order() -> None:
    ledger = ledger_of("gba", batches=6, group_size=2)
    tokens = [lease(ledger, "gba") for _ in range(6)]
    assert [token.step for token in tokens] == [0, 0, 1, 1, 2, 2]
    assert {token.at_step for token in tokens} == {ANY_STEP}

    finish(ledger, tokens[4])
    assert next_step(ledger, "gba", 0) is None
    finish(ledger, tokens[1], tokens[0], tokens[3])

    assert [next_step(ledger, "gba", k) for k in range(3)] == [[4, 1], [0, 3], None]


def test_the_last_gba_step_of_an_epoch_waits_for_all_and_takes_no_batch_of_the_next() -> None:
    ledger = ledger_of("gba", batches=3, group_size=2)
    tokens = [lease(ledger, "gba") for _ in range(6)]

    finish(ledger, tokens[2], tokens[3], tokens[5], tokens[1])
    assert [next_step(ledger, "gba", k) for k in range(2)] == [[2, 1], None]
    finish(ledger, tokens[0])

    assert [next_step(ledger, "gba", k) for k in range(1, 4)] == [[0], [3, 5], None]
    finish(ledger, tokens[4])
    assert next_step(ledger, "gba", 3) == [4]
    assert ledger.exhausted


def test_a_gba_step_counts_batches_that_could_not_be_read() -> None:
    ledger = ledger_of("gba", batches=4, group_size=2)
    tokens = [lease(ledger, "gba") for _ in range(4)]
    ledger.finish(Finished(tokens[3], "skipped", 0, 4, "bad_file"))
    finish(ledger, tokens[0])

    assert next_step(ledger, "gba", 0) == [3, 0]


def test_gba_weighs_by_the_step_of_the_token() -> None:
    rule = rule_of("gba", ModeOptions(staleness_bound=2, stale_weight=Power(base=0.5)))

    assert [rule.weight(s) for s in (-1, 2, 3, 4)] == [1.0, 1.0, 0.5, 0.25]


def test_a_stale_batch_is_given_again_as_soon_as_it_could_only_be_dropped() -> None:
    ledger = ledger_of("gba", batches=8, group_size=2, options=REISSUE)
    tokens = [lease(ledger, "gba") for _ in range(8)]
    late = tokens[0]

    finish(ledger, tokens[1], tokens[2], tokens[3])
    next_step(ledger, "gba", 0, REISSUE)
    finish(ledger, tokens[4])
    assert rule_of("gba", REISSUE).outdated(ledger, 1) == [], "exactly at the bound"
    next_step(ledger, "gba", 1, REISSUE)
    finish(ledger, late)
    again = lease(ledger, "gba")

    assert (again.batch_id, again.attempt, again.step) == (0, 1, 2)
    assert ledger.ended_of_epoch() == [], "the late end does not count"
    finish(ledger, tokens[5], again)
    assert next_step(ledger, "gba", 2, REISSUE) == [5, 0]


def test_a_batch_is_given_again_at_most_once_in_bound_plus_one_steps() -> None:
    """The slowest worker there can be: everything that it is given comes too late."""
    ledger = ledger_of("gba", batches=60, group_size=2, options=REISSUE)
    slow = lease(ledger, "gba")
    for step in range(29):
        finish(ledger, lease(ledger, "gba"), lease(ledger, "gba"))
        assert next_step(ledger, "gba", step, REISSUE) is not None
        if not ledger.leases_of(0):
            finish(ledger, slow)
            slow = lease(ledger, "gba")

    assert ledger.tallies.reissued == 29 // (REISSUE.staleness_bound + 1)
    finish(ledger, lease(ledger, "gba"), slow)
    assert next_step(ledger, "gba", 29, REISSUE) == [59, 0], "no one is left to overtake it"


def test_what_could_not_be_read_is_not_read_again_for_being_late() -> None:
    ledger = ledger_of("gba", batches=8, group_size=2, options=REISSUE)
    tokens = [lease(ledger, "gba") for _ in range(8)]
    ledger.finish(Finished(tokens[0], "skipped", 0, 4, "bad_file"))

    assert [b.batch_id for b in rule_of("gba", REISSUE).outdated(ledger, 2)] == [1]


def test_a_backup_step_takes_the_first_m_in_the_order_of_their_ids() -> None:
    ledger = ledger_of("backup", batches=7, group_size=3)
    tokens = [lease(ledger, "backup") for _ in range(7)]
    assert [token.step for token in tokens] == [0, 0, 0, 0, 1, 1, 1]
    assert [token.at_step for token in tokens] == [token.step for token in tokens]

    finish(ledger, tokens[3], tokens[1])
    assert next_step(ledger, "backup", 0) is None
    finish(ledger, tokens[0])
    assert next_step(ledger, "backup", 0) == [0, 1, 3]
    finish(ledger, tokens[2])
    assert ledger.ended_of_epoch() == [], "it was taken back"
    again = lease(ledger, "backup")
    assert (again.batch_id, again.attempt, again.step, again.at_step) == (2, 1, 1, 1)

    finish(ledger, tokens[6], again, tokens[4], tokens[5])
    assert next_step(ledger, "backup", 1) == [2, 4, 6], "a surplus one is given out once more"
    last = lease(ledger, "backup")
    assert (last.batch_id, last.attempt, last.step) == (5, 1, 2)
    finish(ledger, last)
    assert next_step(ledger, "backup", 2) == [5]
    assert lease(ledger, "backup").step == 3, "the next epoch"
