"""A shard whose coordinator is gone: what it knows, and how it comes to where another one is."""

from dataclasses import replace
from typing import Any

import pytest

from embedding.spec.eviction import Eviction
from embedding.spec.optimizers import Sgd
from embedding.spec.table import TableSpec
from ps.messages.exchange import Refusal
from ps.messages.records import ApplyReply, Totals

LIVES = Eviction(steps_to_live=2, every_steps=9)
TABLES = (TableSpec(name="a", dim=2, optimizer=Sgd(learning_rate=1.0), eviction=LIVES),)


def test_a_shard_that_has_left_takes_nothing_and_says_what_it_knows(small_job: Any) -> None:
    job = small_job(TABLES)
    (shard,) = job.shards
    for batch_id, (before, after) in {0: (0, 0), 7: (0, 1), 2: (1, 3), 3: (3, 3)}.items():
        job.train(batch_id, [batch_id], clock=before, totals=Totals(clock=after))
    facts = shard.leave()

    assert (facts.recovery_epoch, facts.step, facts.newest) == (job.epoch, 4, shard.log[-1])
    assert facts.resolved == ((0, 1), (2, 4), (7, 8))
    assert facts.first_steps == ((1, 2, 1, 2), (3, 3, 0, 1)), "1 at 2, 2 and 3 at 3"
    for message in (
        job.pull(0, job.unique([1])),
        job.contribution(0, job.unique([1]), batch_id=9),
    ):
        reply = job.send(0, message)
        assert isinstance(reply, Refusal)
        assert reply.reason == "fenced"
    assert job.apply(0, job.record(4)).reason == "fenced"

    shard.enter(job.epoch + 1, step=shard.step)
    empty = shard.leave()
    assert (empty.step, empty.newest, empty.resolved, empty.first_steps) == (4, None, (), ())


def test_a_pull_that_waits_is_told_that_the_shard_has_left(small_job: Any) -> None:
    job = small_job(TABLES)
    (shard,) = job.shards
    assert shard.handle(replace(job.pull(0, job.unique([1])), at_step=5), "x") == []
    shard.leave()

    ((sender, pull),) = shard.take_ready()
    (out,) = shard.handle(pull, sender)
    assert out.reply.reason == "fenced"


def test_a_shard_catches_up_from_the_log_of_another(small_job: Any) -> None:
    job = small_job(TABLES, num_shards=2)
    for step in range(3):
        job.push(step, [step, 5 + step], [step, 9 + step])
        record = job.record(step, step)
        for shard in range(2 if step == 0 else 1):
            assert isinstance(job.apply(shard, record), ApplyReply)
    ahead, behind = job.shards
    assert (ahead.leave().step, behind.leave().step) == (3, 1)

    log = ahead.log_from(1)
    assert [record.step for record in log] == [1, 2]
    facts = behind.catch_up(log)
    assert (facts.step, facts.newest) == (3, log[-1])
    whole = small_job(TABLES, num_shards=2)
    for step in range(3):
        whole.train(step, [step, 5 + step], [step, 9 + step])
    assert job.digest == whole.digest


def test_records_that_do_not_follow_are_refused(small_job: Any) -> None:
    job = small_job(TABLES)
    with pytest.raises(RuntimeError, match="are missing"):
        job.shards[0].catch_up([job.record(3)])
