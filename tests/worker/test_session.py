"""What a worker does next with the tokens it holds."""

from dataclasses import replace

import numpy as np
import pytest

from ps.messages.pull_push import ANY_STEP
from worker import session as session_module
from worker.protocol import Evaluation, Finished, Grant, SegmentScores, Token
from worker.session import Session


def token(step: int, batch_id: int | None = None, attempt: int = 0) -> Token:
    """A token of synchronous training: its pull waits for its step."""
    return Token(step, step if batch_id is None else batch_id, attempt, at_step=step)


def session_with(*tokens: Token, depth: int = 2, prepared: bool = True) -> Session:
    session = Session(0, 0, depth=depth)
    report = session.report()
    session.granted(Grant(report.sequence, tokens))
    if prepared:
        for each in tokens:
            session.prepared(each)
    return session


def test_the_first_report_asks_for_as_many_tokens_as_it_prepares_ahead() -> None:
    assert Session(3, 1, depth=2).report().want == 2


def test_batches_are_pulled_lowest_step_first_and_one_at_a_time() -> None:
    session = session_with(token(5), token(4))

    assert session.next_pull() == token(4)
    assert session.next_pull() is None


def test_nothing_is_pulled_before_it_is_prepared_or_while_another_waits_to_be_computed() -> None:
    session = session_with(token(4), token(5), prepared=False)
    assert session.next_pull() is None

    session.prepared(token(4))
    session.prepared(token(5))
    assert session.next_pull() == token(4)
    session.pulled(token(4))
    assert session.next_pull() is None
    assert session.next_compute() == token(4)
    assert session.next_pull() == token(5)


def test_a_waiting_pull_leaves_the_slot_to_an_earlier_step() -> None:
    session = session_with(token(9))
    assert session.next_pull() == token(9)
    assert session.report().waiting

    late = token(8, attempt=1)
    session.granted(Grant(session.report().sequence, (late,)))
    assert not session.waiting
    session.prepared(late)

    assert session.next_pull() == late


def test_a_parked_worker_says_so_although_it_has_another_batch_prepared() -> None:
    session = session_with(token(9), token(10))
    session.next_pull()

    report = session.report()

    assert (report.want, report.waiting) == (0, True)


def test_a_pull_that_reads_any_step_is_no_reason_to_take_more() -> None:
    asynchronous = replace(token(9), at_step=ANY_STEP)
    session = session_with(asynchronous, depth=1)
    session.next_pull()

    assert not session.report().waiting


def free_to_read_from(step: int, *steps: int) -> tuple[Session, list[Token]]:
    """A session with prepared tokens that may read any step from this one."""
    tokens = [replace(token(each), at_step=ANY_STEP) for each in steps]
    session = session_with(*tokens)
    session.granted(Grant(session.report().sequence, read_from=step))
    return session, tokens


def test_a_pull_of_any_step_waits_until_the_last_batch_is_in_its_step() -> None:
    session, (first, second) = free_to_read_from(6, 1, 2)
    session.next_pull()
    session.pulled(first)
    session.next_compute()
    assert session.next_pull() is None  # it is being pushed
    session.finished(Finished(first, "done"))
    assert session.next_pull() is None  # nobody knows
    report = session.report()
    assert session.next_pull() is None  # nobody has answered

    session.granted(Grant(report.sequence, read_from=7))

    assert (session.next_pull(), session.read_from) == (second, 7)


def test_a_batch_that_may_be_pulled_is_not_waited_for() -> None:
    session, (first, second) = free_to_read_from(6, 1, 2)
    assert not session.preparing
    session.next_pull()
    session.pulled(first)
    session.next_compute()
    third = replace(token(3), at_step=ANY_STEP)
    session.granted(Grant(session.report().sequence, (third,), read_from=6))

    assert session.next_pull() is None
    assert not session.preparing  # the second one waits for an answer, not for its preparation
    session.granted(Grant(session.report().sequence, revoked=(second.identity,), read_from=6))
    assert session.preparing


@pytest.mark.parametrize(("at_step", "read_from"), [(2, 6), (ANY_STEP, ANY_STEP)])
def test_other_pulls_do_not_wait_for_what_ended(at_step: int, read_from: int) -> None:
    session, (first, _) = free_to_read_from(read_from, 1, 2)
    second = replace(token(2), at_step=at_step)
    session.granted(Grant(session.report().sequence, (second,), read_from=read_from))
    session.prepared(second)
    session.next_pull()
    session.pulled(first)
    session.next_compute()

    assert session.next_pull() == second


def test_one_report_says_what_ended_and_asks_for_a_batch_in_its_place() -> None:
    session, (first, _) = free_to_read_from(6, 1, 2)
    session.next_pull()
    session.pulled(first)
    session.next_compute()
    third = replace(token(3), at_step=ANY_STEP)
    session.granted(Grant(session.report().sequence, (third,), read_from=6))
    assert session.want == 0  # nothing sets the second one free yet
    session.finished(Finished(first, "done"))

    report = session.report()

    assert (report.finished, report.want) == ((Finished(first, "done"),), 1)


def test_what_has_ended_is_said_again_until_it_is_answered() -> None:
    session = session_with(token(1))
    done = Finished(token(1), "done", samples=3)
    session.finished(done)

    first, second = session.report(), session.report()
    assert first.finished == second.finished == (done,)
    session.granted(Grant(first.sequence))
    assert session.report().finished == (done,)
    session.granted(Grant(session.report().sequence))

    assert session.report().finished == ()


def test_an_answer_counts_once() -> None:
    session = Session(0, 0, depth=2)
    grant = Grant(session.report().sequence, (token(1),))
    assert session.granted(grant) == [token(1)]
    session.finished(Finished(token(1), "done"))

    assert session.granted(grant) == []
    assert not session.holds(token(1))


def test_a_revoked_token_is_dropped_in_any_stage() -> None:
    session = session_with(token(1), token(2))
    session.next_pull()

    report = session.report()
    session.granted(Grant(report.sequence, revoked=(token(1).identity,)))
    session.pulled(token(1))
    session.finished(Finished(token(1), "done"))

    assert session.next_compute() is None
    assert session.report().finished == ()
    assert session.next_pull() == token(2)


def test_a_batch_being_pushed_makes_room_for_the_next_one() -> None:
    session = session_with(token(1), token(2))
    assert session.want == 0
    session.next_pull()
    session.pulled(token(1))
    session.next_compute()

    assert session.want == 1
    assert token(1).identity in session.report().held


def test_a_pull_that_no_step_holds_up_makes_room_already() -> None:
    free, bound = session_with(replace(token(1), at_step=ANY_STEP)), session_with(token(1))
    free.next_pull()
    bound.next_pull()

    assert (free.want, bound.want) == (2, 1)


def test_what_is_answered_in_another_recovery_epoch_is_not_taken() -> None:
    session = Session(0, 0, depth=2, recovery_epoch=4)
    report = session.report()
    assert report.recovery_epoch == 4

    for epoch in (3, 5):
        other = Grant(report.sequence, (token(0),), stop=True, recovery_epoch=epoch)
        assert session.granted(other) == []
    assert not session.stopped

    assert session.granted(Grant(report.sequence, (token(0),), recovery_epoch=4)) == [token(0)]


SIX = Evaluation(np.zeros(6, np.int32), np.zeros(6, np.bool_), 0.0)
OF_ONE = SegmentScores(("\u00e4" * 3,), np.zeros(6, np.uint8), np.zeros(2), np.zeros(2))


@pytest.mark.parametrize(
    ("most", "scores"),
    [
        (10, SIX),
        (20, replace(SIX, weights=np.ones(6, np.float32))),
        (40, replace(SIX, groups=np.ones(6, np.int64))),
        (30, replace(SIX, others=(SIX, SIX))),
        (30, replace(SIX, segments=OF_ONE)),
    ],
    ids=["plain", "weights", "groups", "tasks", "names of segments"],
)
def test_scores_that_a_report_has_no_room_for_are_said_in_the_next_one_and_held_until_then(
    monkeypatch: pytest.MonkeyPatch, most: int, scores: Evaluation
) -> None:
    monkeypatch.setattr(session_module, "MAX_SCORES", most)
    tokens = [replace(token(step), kind="eval") for step in (4, 5, 6)]
    session = session_with(*tokens, depth=3)
    ended = [Finished(each, "done", samples=6, evaluation=scores) for each in tokens]
    for each in ended:
        session.finished(each)

    said = []
    while session.has_news:
        report = session.report()
        said.append(report.finished)
        known = {each.token.identity for each in report.finished} | set(report.held)
        assert known == {each.token.identity for each in ended[len(said) - 1 :]}
        session.granted(Grant(report.sequence))

    assert said == [(each,) for each in ended]


def test_no_more_tokens_are_wanted_than_one_report_can_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_module, "MAX_TOKENS", 6)
    tokens = [replace(token(step), at_step=ANY_STEP) for step in range(3)]
    session = session_with(*tokens, depth=8)
    session.finished(Finished(tokens[0], "done"))

    assert session.want == 2, "of 5, 2 are held and 1 has ended"
