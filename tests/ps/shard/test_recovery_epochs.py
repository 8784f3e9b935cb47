"""A new recovery epoch is another history: nothing of the one before is left in it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding.spec.optimizers import Sgd
from embedding.spec.table import TableSpec
from ps.checkpoint.manifest import CheckpointError
from ps.checkpoint.read import CheckpointReader
from ps.checkpoint.restore import start_shard_from
from ps.messages.records import TableEviction

TABLES = (TableSpec(name="a", dim=2, optimizer=Sgd(learning_rate=1.0), track_usage=True),)


def in_epoch(job: Any, epoch: int, message: Any) -> Any:
    return job.send(0, replace(message, recovery_epoch=epoch))


def test_a_contribution_of_the_epoch_before_is_not_applied(small_job: Any) -> None:
    job, fresh = small_job(TABLES), small_job(TABLES)
    unique = job.unique([1])
    job.send(0, job.contribution(0, unique, batch_id=0, gradients=np.full(2, 100, np.float32)))
    dense = fresh.shards[0].dense.vector
    for each in (job, fresh):
        each.shards[0].initialize(9, dense=dense)
        message = each.contribution(0, unique, batch_id=0)
        assert type(in_epoch(each, 9, message)).__name__ == "PushReply"
        record = each.record(0, 0, recovery_epoch=9)
        each.apply(0, record, recovery_epoch=9)

    assert job.digest == fresh.digest


def test_batches_that_were_resolved_are_wanted_anew(small_job: Any) -> None:
    job = small_job(TABLES)
    job.train(0, [1], low_water=1)
    job.train(5, [1], discard=((6, 0),))

    job.shards[0].initialize(9, dense=np.zeros(3, np.float32))

    for batch_id in (0, 5, 6):
        message = job.contribution(0, job.unique([1]), batch_id=batch_id)
        assert type(in_epoch(job, 9, message)).__name__ == "PushReply"


def test_evictions_of_the_epoch_before_do_not_hold_back_gradients(small_job: Any) -> None:
    job = small_job(TABLES)
    job.train(0, [1])
    job.step(evict=(TableEviction(0, 1),))
    assert len(job.shards[0].tables[0]) == 0

    job.shards[0].enter(9, step=0)
    in_epoch(job, 9, job.contribution(0, job.unique([1]), batch_id=0, pull_step=0))
    job.apply(0, job.record(0, 0, recovery_epoch=9), recovery_epoch=9)

    assert len(job.shards[0].tables[0]) == 1


def test_dense_parameters_of_the_same_step_of_another_epoch_are_sent(small_job: Any) -> None:
    job = small_job(TABLES)
    job.train(0, [1])
    pull = replace(job.pull(0, job.unique([1])), dense_step=1, dense_epoch=job.epoch)
    assert job.send(0, pull).dense.size == 0

    other = np.arange(3, dtype=np.float32)
    job.shards[0].initialize(9, dense=other, step=1)

    assert in_epoch(job, 9, pull).dense.tolist() == other.tolist()


def test_a_client_that_enters_an_epoch_forgets_its_dense_parameters(
    small_job: Any, serve: Any
) -> None:
    job = small_job(TABLES)
    client = serve(job).client()
    unique = job.unique([1])
    first = job.pulled(client, unique).dense.copy()

    other = np.arange(3, dtype=np.float32)
    job.shards[0].initialize(9, dense=other)
    client.recovery_epoch = 9

    assert first.tolist() != other.tolist()
    assert job.pulled(client, unique).dense.tolist() == other.tolist()


def test_what_was_computed_from_the_epoch_before_is_not_pushed_as_of_this_one(
    small_job: Any, serve: Any
) -> None:
    job = small_job(TABLES)
    client = serve(job).client()
    pulled = job.pulled(client, job.unique([1]))

    job.shards[0].initialize(9, dense=np.zeros(3, np.float32))
    client.recovery_epoch = 9
    push = job.start_push(client, pulled, batch_id=0)
    job.wait_for(client, push)

    assert [refusal.reason for refusal in push.refusals.values()] == ["epoch"]
    assert len(job.shards[0].buffer) == 0


def test_rows_of_the_epoch_before_are_not_in_the_first_state_of_another(small_job: Any) -> None:
    job, fresh = small_job(TABLES), small_job(TABLES)
    job.train(0, [1, 2])
    assert len(job.shards[0].tables[0]) == 2

    for each in (job, fresh):
        each.shards[0].initialize(9, dense=np.zeros(3, np.float32))

    assert len(job.shards[0].tables[0]) == 0
    assert job.digest == fresh.digest


def test_a_used_shard_that_starts_from_a_checkpoint_has_its_rows_and_no_others(
    small_job: Any, tmp_path: Path
) -> None:
    job, saved = small_job(TABLES), small_job(TABLES)
    saved.train(0, [2, 3])
    reader = CheckpointReader(saved.write_checkpoint(tmp_path))
    job.train(0, [1, 2])

    start_shard_from(job.shards[0], reader, recovery_epoch=9, goes_on=True)

    assert sorted(job.shards[0].tables[0].export().keys.tolist()) == [2, 3]
    assert job.digest == saved.digest


def test_a_used_shard_stays_as_it_is_where_a_checkpoint_is_damaged(
    small_job: Any, tmp_path: Path
) -> None:
    job, saved = small_job(TABLES), small_job(TABLES)
    saved.train(0, [2, 3])
    reader = CheckpointReader(saved.write_checkpoint(tmp_path))
    job.train(0, [1, 2])
    before, epoch = job.digest, job.shards[0].recovery_epoch
    (blocks,) = tmp_path.glob("dense/*")
    blocks.write_bytes(b"")

    with pytest.raises(CheckpointError, match="damaged"):
        start_shard_from(job.shards[0], reader, recovery_epoch=9)

    assert (job.digest, job.shards[0].recovery_epoch) == (before, epoch)
