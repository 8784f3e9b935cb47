"""A copy of a shard that begins with a cut and is given what came since."""

from typing import Any

import pytest

from embedding.spec.eviction import Eviction
from embedding.spec.table import TableSpec
from ps.messages.exchange import Refusal
from ps.messages.records import Apply, Entry, Freeze, FreezeReply, TableEviction
from ps.shard.journal import Journal
from ps.shard.shard import Shard

TABLES = (TableSpec(name="a", dim=2, eviction=Eviction(steps_to_live=2, every_steps=9)),)
MANY_BYTES = 1 << 20


def freeze(job: Any, number: int) -> None:
    step = job.shards[0].step
    assert isinstance(job.send(0, Freeze(9, job.epoch, number, step, False)), FreezeReply)


def copy_of(job: Any, *, evicted: bool = True) -> Shard:
    """Return a shard with the state of the newest cut, as a checkpoint would give it."""
    (shard,) = job.shards
    copy = Shard(job.spec, 0)
    tables = copy.empty_tables()
    for table, frozen in zip(tables, shard.frozen.tables, strict=True):
        for rows in frozen.rows(100):
            table.import_rows(rows)
    copy.dense.restore(shard.frozen.dense)
    copy.enter(job.epoch, step=shard.frozen.step, tables=tables)
    known = shard.copy_from(shard.frozen.step)
    if evicted:
        copy.take_evicted(known)
    return copy


def pass_on(journal: Journal, copy: Shard) -> None:
    for applied in journal.first(len(journal)):
        record = Apply(0, applied.record.recovery_epoch, (applied.record,))
        for message in (*applied.contributions, record):
            (out,) = copy.handle(message, "shard")
            assert not isinstance(out.reply, Refusal), out.reply
    journal.drop(len(journal))


def trained_with_a_late_gradient(job: Any) -> None:
    """The gradient of key 1 was pulled before step 1 evicted it; the cut comes in between."""
    (shard,) = job.shards
    job.train(0, [1, 2])
    job.push(5, [1, 7])
    job.train(1, [3], evict=(TableEviction(0, min_version=1),))
    shard.keep_journal(MANY_BYTES)
    freeze(job, 1)


@pytest.mark.parametrize("evicted", [True, False])
def test_a_copy_is_what_the_shard_is_where_it_knows_what_was_evicted(
    small_job: Any, evicted: bool
) -> None:
    job = small_job(TABLES)
    (shard,) = job.shards
    trained_with_a_late_gradient(job)
    copy = copy_of(job, evicted=evicted)
    job.step(5)
    job.push(8, [3, 4])
    job.step(Entry(8, 0, 0.0))  # what weighs nothing is named, too
    job.train(9, [1, 4])
    pass_on(shard.journal, copy)

    assert copy.step == shard.step == 5
    right = job.digest
    job.shards[0] = copy
    assert (job.digest == right) is evicted
    assert copy.counts.gradients_of_evicted_keys == int(evicted)


def test_a_journal_begins_anew_with_each_cut_until_a_copy_has_begun(small_job: Any) -> None:
    job = small_job(TABLES)
    (shard,) = job.shards
    shard.keep_journal(MANY_BYTES)
    with pytest.raises(RuntimeError, match="keeps nothing from step 0 on"):
        shard.copy_from(0)
    freeze(job, 1)
    job.train(0, [1])
    freeze(job, 2)
    with pytest.raises(RuntimeError, match="keeps nothing from step 0 on"):
        shard.copy_from(0)
    shard.copy_from(1)
    job.train(1, [2])
    freeze(job, 3)

    assert (shard.journal.begins, len(shard.journal)) == (1, 1)
    shard.enter(job.epoch + 1, step=shard.step)
    assert shard.journal is None


def test_a_journal_that_grows_too_large_is_over(small_job: Any) -> None:
    job = small_job(TABLES)
    (shard,) = job.shards
    shard.keep_journal(50)
    freeze(job, 1)
    job.train(0, [1, 2, 3])

    assert (shard.journal.is_over, len(shard.journal), shard.journal.nbytes) == (True, 0, 0)
    job.train(1, [1])
    assert len(shard.journal) == 0
    with pytest.raises(RuntimeError, match=r"grown beyond 50 bytes \(cluster.buffer_bytes\)"):
        shard.copy_from(0)
