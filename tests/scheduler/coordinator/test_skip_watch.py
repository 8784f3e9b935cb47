"""Jobs that do nothing any more but skip batches: they end with the reason."""

import pytest

from scheduler.coordinator.events import FailJob
from scheduler.coordinator.ledger_state import Samples
from scheduler.coordinator.skip_watch import SkipWatch
from scheduler.driver.finish import check_trained
from scheduler.errors import TrainingError
from worker.protocol import Finished, SkipReason, Token


def done(batch_id: int) -> Finished:
    return Finished(Token(batch_id // 2, batch_id, 0, 0), "done", samples=4, loss_sum=2.0)


def skipped(batch_id: int, reason: SkipReason = "non_finite") -> Finished:
    return Finished(Token(batch_id // 2, batch_id, 0, 0), "skipped", skipped=4, reason=reason)


def failures(watch: SkipWatch, *ends: Finished) -> list[FailJob]:
    return [c for end in ends for c in watch.ended(end) if isinstance(c, FailJob)]


def test_so_many_non_finite_batches_in_a_row_fail_the_job_once() -> None:
    watch = SkipWatch(3)

    assert failures(watch, done(7), skipped(8), skipped(10)) == []
    (failure,) = failures(watch, skipped(9), skipped(11))

    assert failure.text.startswith(
        "3 batches in a row were skipped because their gradients are not finite, from batch 8"
        " (step 4) to batch 9 (step 4); the last one before them that was trained is batch 7"
        " (step 3), with a loss of 0.5 a sample."
    )
    assert "Lower the learning rate" in failure.text
    assert "training.max_consecutive_non_finite (null: no limit)" in failure.text


def test_where_nothing_was_trained_before_it_is_said() -> None:
    (failure,) = failures(SkipWatch(1), skipped(0))

    assert "no batch before them was trained" in failure.text


def test_a_batch_that_was_trained_ends_a_row() -> None:
    ends = [skipped(0), skipped(1), done(2), skipped(3), skipped(4)]

    assert failures(SkipWatch(3), *ends) == []


def test_batches_that_can_not_be_read_neither_make_nor_end_a_row() -> None:
    bad = [skipped(batch_id, "bad_file") for batch_id in range(9)]

    assert failures(SkipWatch(2), *bad) == []
    assert len(failures(SkipWatch(2), skipped(10), *bad, skipped(11))) == 1


def test_without_a_limit_any_number_may_come() -> None:
    assert failures(SkipWatch(None), *map(skipped, range(500))) == []


def test_a_job_that_skipped_all_its_samples_has_not_trained() -> None:
    reasons = {"bad_file": 1000, "non_finite": 24}
    samples = Samples(skipped=1024, skipped_by_reason=reasons)

    with pytest.raises(
        TrainingError,
        match=r"nothing was trained: all 1,024 samples were skipped \(1,000 bad_file,"
        r" 24 non_finite\)\. To train them, run with data.on_bad_file=fail, .*; lower the"
        r" learning rate",
    ):
        check_trained(samples)


@pytest.mark.parametrize(
    "some",
    [Samples(applied=1, skipped=9), Samples(dropped=1, skipped=9), Samples(skipped=0)],
)
def test_a_job_that_trained_something_or_had_nothing_to_train_may_end(
    some: Samples,
) -> None:
    check_trained(some)
