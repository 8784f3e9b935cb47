"""Dense parameters a step ahead: what gba's workers read of a step that is not complete."""

from typing import Any

import numpy as np
import pytest

from embedding.spec.optimizers import Adagrad, Adam, Optimizer, Sgd
from embedding.spec.table import TableSpec
from ps.messages.pull_push import ANY_STEP, PullReply
from ps.messages.records import Totals
from ps.routing import BLOCK_SIZE

TABLES = (TableSpec(name="t", dim=2),)
DENSE_SIZE = BLOCK_SIZE + 7


def training(small_job: Any, mode: str = "gba", optimizer: Optimizer | None = None) -> Any:
    """A job after its step 0, which had two batches."""
    job = small_job(TABLES, dense_size=DENSE_SIZE, dense_optimizer=optimizer or Adagrad())
    for batch_id in (0, 1):
        job.push(batch_id, [1])
    job.step(0, 1, totals=Totals(mode=mode))
    return job


def pulled(job: Any, *, for_step: int, **changes: Any) -> PullReply:
    reply = job.send(0, job.pull(0, job.unique([1]), for_step=for_step, **changes))
    assert isinstance(reply, PullReply)
    return reply


@pytest.mark.parametrize(
    "optimizer", [Adagrad(learning_rate=0.1), Adam(learning_rate=0.1), Sgd(learning_rate=0.1)]
)
def test_what_is_read_is_what_a_step_of_the_held_batches_makes(
    small_job: Any, optimizer: Optimizer
) -> None:
    job = training(small_job, optimizer=optimizer)
    before = job.shards[0].dense.rows.copy()
    for batch_id in (2, 3):
        job.push(batch_id, [1, 5])

    ahead = pulled(job, for_step=2)

    assert ahead.ahead
    assert ahead.step == 1
    assert job.shards[0].dense.rows.tobytes() == before.tobytes(), "nothing changes"
    # The numbers of the step that was last, as those of the next are not known.
    scalars = job.shards[0].log[-1].scalars
    job.step(2, 3, scalars=scalars)
    np.testing.assert_allclose(ahead.dense, job.shards[0].dense.vector, rtol=1e-5, atol=1e-7)


def test_half_a_step_is_taken_for_the_mean_of_the_whole(small_job: Any) -> None:
    job = training(small_job, optimizer=Sgd(learning_rate=0.1))
    now = job.shards[0].dense.vector
    job.push(2, [1])
    held = job.shards[0].buffer.get(2, 0)

    moved = pulled(job, for_step=2).dense - now

    np.testing.assert_allclose(moved, -0.1 * held.dense / held.samples, rtol=1e-3, atol=1e-6)


def test_it_is_not_read_for_the_step_that_comes_next_nor_by_who_wants_a_step(
    small_job: Any,
) -> None:
    job = training(small_job)
    job.push(2, [1])
    now = job.shards[0].dense.vector.tobytes()

    for reply in (
        pulled(job, for_step=1),
        pulled(job, for_step=ANY_STEP),
        pulled(job, for_step=1, at_step=1),
    ):
        assert not reply.ahead
        assert reply.dense.tobytes() == now


@pytest.mark.parametrize("mode", ["sync", "async", "ssp", "backup"])
def test_no_other_mode_looks_ahead(small_job: Any, mode: str) -> None:
    job = training(small_job, mode)
    job.push(2, [1])

    assert not pulled(job, for_step=5).ahead


def test_there_is_nothing_to_see_before_the_first_step_and_without_a_batch(small_job: Any) -> None:
    new = small_job(TABLES, dense_size=DENSE_SIZE)
    new.push(0, [1])

    assert not pulled(new, for_step=1).ahead
    assert not pulled(training(small_job), for_step=2).ahead


def test_parameters_of_no_step_are_sent_to_who_has_those_of_the_step(small_job: Any) -> None:
    job = training(small_job)
    job.push(2, [1])
    has_them = {"dense_step": 1, "dense_epoch": job.epoch}

    assert pulled(job, for_step=2, **has_them).dense.size == DENSE_SIZE
    assert not pulled(job, for_step=1, **has_them).dense.size


def test_the_latest_of_two_attempts_counts_once(small_job: Any) -> None:
    job, other = training(small_job), training(small_job)
    for attempt in (0, 1):
        job.push(2, [1], attempt=attempt)
    other.push(2, [1])

    assert pulled(job, for_step=2).dense.tobytes() == pulled(other, for_step=2).dense.tobytes()


def test_a_sum_that_is_not_finite_leaves_its_block(small_job: Any) -> None:
    job = training(small_job)
    huge = np.zeros(DENSE_SIZE, np.float32)
    huge[0] = 3e38
    for batch_id in (2, 3):
        job.push(batch_id, [1], dense=huge)

    ahead = pulled(job, for_step=2)

    assert np.isfinite(ahead.dense).all()
    assert ahead.dense[0] == job.shards[0].dense.vector[0]
    assert job.shards[0].dense.num_non_finite == 0
