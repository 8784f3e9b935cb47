"""A shard that fails in the middle of a step is dead: nothing of it is used again."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from embedding.spec.table import TableSpec
from ps.messages.exchange import Refusal
from ps.messages.records import TableEviction

TABLES = (TableSpec(name="a", dim=4), TableSpec(name="b", dim=1))


class OutOfMemory:
    """Raises the first time that it is called, and does what it stands for afterwards."""

    def __init__(self, real: Callable[..., Any]) -> None:
        self._real = real
        self.calls = 0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.calls += 1
        if self.calls == 1:
            raise MemoryError("no room")
        return self._real(*arguments, **named)


PLACES = {
    "tables": lambda shard: (shard._together(), "apply"),
    "rows of tables": lambda shard: (shard._together()._runs[0][1], "_save_frozen"),
    "dense": lambda shard: (shard.dense, "apply"),
    "eviction": lambda shard: (shard.tables[1], "evict"),
    "buffer": lambda shard: (shard.buffer, "settle"),
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_record_that_failed_halfway_is_never_applied_again(
    small_job: Any, place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = small_job(TABLES)
    shard = job.shards[0]
    job.push(0, [1, 2], [3])
    owner, name = place(shard)
    monkeypatch.setattr(owner, name, OutOfMemory(getattr(owner, name)))
    record = job.record(0, 0, evict=(TableEviction(1, 0),))

    with pytest.raises(MemoryError):
        job.apply(0, record)
    after = job.digest, shard.step

    reply = job.apply(0, record)
    assert (type(reply), reply.reason) == (Refusal, "dead")
    assert "step 0 failed halfway: MemoryError('no room')" in reply.text
    assert (job.digest, shard.step) == after


def test_a_dead_shard_refuses_everything_and_can_not_be_entered_again(
    small_job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = small_job(TABLES)
    shard = job.shards[0]
    unique = job.unique([1], [2])
    job.push(0, [1], [2])
    monkeypatch.setattr(shard.dense, "apply", OutOfMemory(shard.dense.apply))
    with pytest.raises(MemoryError):
        job.apply(0, job.record(0, 0))

    for message in (job.pull(0, unique), job.contribution(0, unique, batch_id=1)):
        assert job.send(0, message).reason == "dead"
    with pytest.raises(RuntimeError, match="shard 0 is dead: step 0 failed halfway"):
        shard.initialize(9, dense=np.zeros(3, np.float32))


def test_scalars_that_are_not_finite_are_refused_before_anything_changes(small_job: Any) -> None:
    job = small_job(TABLES)
    job.push(0, [1, 2], [3])
    before = job.state

    reply = job.apply(0, job.record(0, 0, scalars=((float("nan"),),)))

    assert reply.reason == "malformed"
    assert "not finite" in reply.text
    assert job.state == before
    job.step(0)


def test_who_sends_a_record_again_after_a_failure_is_told_that_the_shard_is_dead(
    small_job: Any, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = small_job(TABLES)
    shard = job.shards[0]
    client = serve(job).client()
    unique = job.unique([1], [2])
    job.wait_for(client, job.start_push(client, job.pulled(client, unique), 0))
    monkeypatch.setattr(shard.dense, "apply", OutOfMemory(shard.dense.apply))

    sent = client.start_apply(0, [job.record(0, 0)])
    job.wait_for(client, sent)

    assert sent.refusals[0].reason == "dead"
    assert shard.step == 0


def test_the_first_of_two_tables_that_failed_made_its_step_alone_and_is_not_read_again(
    small_job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = small_job(TABLES)
    job.push(0, [1], [2])
    _, second = job.shards[0]._together()._runs[1]
    monkeypatch.setattr(second, "apply", OutOfMemory(second.apply))

    with pytest.raises(MemoryError):
        job.apply(0, job.record(0, 0))

    assert len(job.shards[0].tables[0]) == 1, "what the record did so far can't be undone"
    assert job.send(0, job.pull(0, job.unique([1], [2]))).reason == "dead"
