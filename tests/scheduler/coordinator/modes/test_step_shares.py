"""Which tokens of a step a worker leaves to others."""

from scheduler.coordinator.modes.step_shares import StepShares


def test_a_worker_holds_one_token_of_a_step_and_leaves_the_others() -> None:
    shares = StepShares(group_size=4)

    assert not shares.has_all(0, 7, held=0, workers=4)
    assert shares.has_all(0, 7, held=1, workers=4)


def test_where_a_step_has_more_batches_than_workers_those_ahead_prepare_one_more() -> None:
    shares = StepShares(group_size=8)
    shares.ended(0, 7)
    shares.ended(1, 7)

    assert not shares.has_all(0, 7, held=1, workers=3)
    assert shares.has_all(0, 7, held=2, workers=3)
    assert shares.has_all(2, 7, held=1, workers=3), "it has ended none"


def test_who_is_behind_gets_no_second_token() -> None:
    shares = StepShares(group_size=8)
    for worker in (0, 0, 0, 1, 1, 1, 2):
        shares.ended(worker, 7)

    assert not shares.has_all(0, 7, held=1, workers=3)
    assert shares.has_all(2, 7, held=1, workers=3)


def test_a_lone_worker_has_nobody_to_leave_tokens_to() -> None:
    assert not StepShares(group_size=1).has_all(0, 0, held=5, workers=1)


def test_steps_that_are_formed_are_forgotten() -> None:
    shares = StepShares(group_size=8)
    shares.ended(0, 7)
    shares.forget(before=8)

    assert shares.has_all(0, 7, held=1, workers=2)
