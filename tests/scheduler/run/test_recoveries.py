"""When a job that loses processes goes on, and what that is said to have cost."""

import pytest

from scheduler.errors import TrainingError
from scheduler.run.recoveries import Recoveries, RecoveryFigures

SERVER, OTHER, COORDINATOR = ("server", 0), ("server", 1), ("coordinator", 0)


def fail(
    recoveries: Recoveries,
    step: int,
    *lost: tuple[str, int],
    entering: bool = False,
    now: float = 100.0,
) -> None:
    found = {who: f"{who[0]} {who[1]} died" for who in lost or (SERVER,)}
    recoveries.failed(found, step=step, samples=10 * step, now=now, entering=entering)


def test_a_return_costs_what_is_redone_and_the_time_until_a_step_is_applied() -> None:
    recoveries = Recoveries(-1)
    fail(recoveries, 30, SERVER, COORDINATOR, now=100.0)
    recoveries.goes_back(20, 200)

    assert recoveries.reached(20, trained=False, now=104.0) is None
    found = recoveries.reached(22, trained=False, now=105.5)

    assert found == RecoveryFigures(
        time=100.0, cause="server 0 died; coordinator 0 died", from_step=30, to_step=20,
        redone_steps=10, redone_samples=100, seconds=5.5,
    )  # fmt: skip
    assert recoveries.done == [found]
    assert recoveries.reached(23, trained=False, now=106.0) is None


def test_what_is_lost_on_the_way_back_is_the_same_failure() -> None:
    recoveries = Recoveries(1)
    fail(recoveries, 30)
    for who in (OTHER, COORDINATOR):
        fail(recoveries, 30, who, entering=True, now=103.0)
    recoveries.goes_back(20, 200)

    found = recoveries.reached(21, trained=False, now=110.0)

    assert found is not None
    assert found.seconds == 10.0
    assert found.cause == "server 0 died; then server 1 died; then coordinator 0 died"


def test_a_trained_job_that_only_wrote_or_evaluated_has_nothing_to_redo() -> None:
    recoveries = Recoveries(-1)
    fail(recoveries, 30)
    recoveries.goes_back(30, 300)

    found = recoveries.reached(30, trained=True, now=102.0)

    assert found is not None
    assert (found.redone_steps, found.redone_samples, found.seconds) == (0, 0, 2.0)


def test_a_job_may_fail_as_often_as_it_is_said() -> None:
    recoveries = Recoveries(2)
    for step in (10, 20):
        fail(recoveries, step)
        recoveries.goes_back(0, 0)
        recoveries.reached(step + 1, trained=False, now=101.0)

    with pytest.raises(TrainingError, match=r"died. The job can't go on: it may fail 2 times"):
        fail(recoveries, 30)


def test_three_failures_in_a_row_without_getting_beyond_the_first_ones_step_are_enough() -> None:
    recoveries = Recoveries(-1)
    fail(recoveries, 10)
    recoveries.goes_back(0, 0)
    recoveries.reached(8, trained=False, now=101.0)
    fail(recoveries, 8)
    recoveries.reached(11, trained=False, now=102.0)  # beyond it: the count begins anew
    for step in (12, 9):
        fail(recoveries, step)
        recoveries.goes_back(0, 0)
        recoveries.reached(5, trained=False, now=103.0)

    with pytest.raises(TrainingError) as caught:
        fail(recoveries, 12, COORDINATOR)

    assert "failed 3 times without getting beyond step 12" in str(caught.value)
    assert "step 12: server 0 died; then step 9: server 0 died; then" in str(caught.value)


def test_a_process_that_can_not_be_replaced_is_given_up() -> None:
    recoveries = Recoveries(-1)
    fail(recoveries, 10)
    for _ in range(3):
        fail(recoveries, 10, entering=True)

    with pytest.raises(TrainingError, match="one of its processes was lost 5 times before a step"):
        fail(recoveries, 10, entering=True)


def test_a_move_and_a_loss_that_was_announced_are_no_failures() -> None:
    recoveries = Recoveries(0)
    recoveries.moves("server 1: moved", step=30, samples=300, now=100.0)
    recoveries.goes_back(30, 300)
    move = recoveries.reached(31, trained=False, now=101.0)
    found = {SERVER: "server 0 died"}
    recoveries.failed(found, step=40, samples=400, now=200.0, entering=False, preempted=True)
    recoveries.goes_back(35, 350)
    loss = recoveries.reached(36, trained=False, now=205.0)

    assert move is not None
    assert (move.kind, move.redone_steps, move.redone_samples, move.seconds) == ("move", 0, 0, 1.0)
    assert loss is not None
    assert (loss.kind, loss.redone_steps) == ("preemption", 5)
    with pytest.raises(TrainingError, match="may fail 0 times"):
        fail(recoveries, 50)


def test_what_moves_before_the_first_step_after_a_loss_does_not_hide_it() -> None:
    recoveries = Recoveries(-1)
    fail(recoveries, 30, now=100.0)
    recoveries.goes_back(20, 200)
    recoveries.moves("3 servers are wanted", step=20, samples=200, now=103.0)
    recoveries.goes_back(20, 200)

    found = recoveries.reached(21, trained=False, now=105.0)

    assert found is not None
    assert (found.kind, found.redone_steps, found.seconds) == ("loss", 10, 5.0)
    assert found.cause == "server 0 died; then 3 servers are wanted"


def test_what_dies_while_others_move_is_a_failure() -> None:
    recoveries = Recoveries(0)
    recoveries.moves("server 1: moved", step=30, samples=300, now=100.0)

    with pytest.raises(TrainingError, match="may fail 0 times"):
        fail(recoveries, 30, entering=True)
