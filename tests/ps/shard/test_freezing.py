"""A shard that is frozen at a step keeps that state beside the one that goes on."""

from typing import Any

import numpy as np
import pytest

from embedding.spec.optimizers import Sgd
from embedding.spec.table import TableSpec
from embedding.table.frozen import FrozenTable
from ps.messages.exchange import Refusal
from ps.messages.records import Freeze, FreezeReply

TABLES = (TableSpec(name="a", dim=2, optimizer=Sgd(learning_rate=1.0), track_usage=True),)


def freeze(job: Any, number: int, step: int, *, changed_only: bool = False, **more: Any) -> Any:
    message = Freeze(9, more.get("epoch", job.epoch), number, step, changed_only)
    return job.send(0, message)


def versions(table: FrozenTable) -> dict[int, int]:
    """Return the version of each row, by key."""
    pieces = list(table.rows(1))
    return {int(p.keys[0]): int(p.version[0]) for p in pieces}


@pytest.fixture
def job(small_job: Any) -> Any:
    job = small_job(TABLES)
    job.train(0, [1, 2])
    return job


def test_what_is_frozen_is_the_state_of_its_step(job: Any) -> None:
    (shard,) = job.shards
    dense = shard.dense.rows.copy()
    assert freeze(job, 1, 1) == FreezeReply(9, 1)
    job.train(1, [2, 3])

    assert shard.step == 2
    assert (shard.frozen.step, shard.frozen.changed_only) == (1, False)
    assert np.array_equal(shard.frozen.dense, dense)
    assert versions(shard.frozen.tables[0]) == {1: 0, 2: 0}
    assert not np.array_equal(shard.dense.rows, dense)


def test_a_freeze_that_comes_again_changes_nothing(job: Any) -> None:
    (shard,) = job.shards
    freeze(job, 1, 1)
    first = shard.frozen
    job.train(1, [2])
    assert freeze(job, 1, 1) == FreezeReply(9, 1)
    assert shard.frozen is first

    assert freeze(job, 2, 2, changed_only=True) == FreezeReply(9, 2)
    assert shard.frozen.step == 2
    assert versions(shard.frozen.tables[0]) == {2: 1}, "what has changed since"
    late = freeze(job, 1, 1)
    assert isinstance(late, Refusal)
    assert late.reason == "superseded"


def test_a_freeze_of_another_step_or_epoch_is_refused(job: Any) -> None:
    for reply, reason, text in (
        (freeze(job, 1, 0), "step", "step 0 is to be frozen, the shard is at 1"),
        (freeze(job, 1, 2), "step", "step 2 is to be frozen"),
        (freeze(job, 1, 1, epoch=job.epoch + 1), "epoch", "recovery epoch"),
    ):
        assert isinstance(reply, Refusal)
        assert reply.reason == reason
        assert text in reply.text
    assert job.shards[0].frozen is None


def test_another_epoch_has_nothing_frozen_and_counts_its_cuts_anew(job: Any) -> None:
    freeze(job, 4, 1)
    job.shards[0].enter(job.epoch + 1, step=1)
    assert job.shards[0].frozen is None

    assert freeze(job, 1, 1, epoch=job.epoch + 1) == FreezeReply(9, 1)
