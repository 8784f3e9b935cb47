"""What a shard does when it is told ahead what will be pulled: it reads, and changes nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding import Adam, TableSpec, Tiers
from embedding.table.tiered_values import TierFigures
from ps.messages.pull_push import MAX_PREFETCHED_KEYS, Prefetch, PullReply
from ps.shard.prefetching import prefetch
from ps.shard.shard import Shard

TABLES = (
    TableSpec(name="a", dim=60, optimizer=Adam()),
    TableSpec(name="memory", dim=2),
    TableSpec(name="b", dim=30, optimizer=Adam()),
)


@pytest.fixture
def job(small_job: Any, tmp_path: Path) -> Any:
    """A shard of which most rows of two tables are on disk."""
    tiers = {name: Tiers(memory_bytes=1 << 16, path=str(tmp_path)) for name in ("a", "b")}
    job = small_job(TABLES, tiers=tiers)
    keys = np.arange(2000).tolist()
    job.train(0, keys, keys, keys)
    return job


def prefetch_of(job: Any, *keys: Any, **changes: Any) -> Prefetch:
    unique = job.unique(*keys)
    fields = {
        "recovery_epoch": job.epoch,
        "routing_version": job.spec.routing.version,
        "batch_id": 9,
        "attempt": 0,
        "table_sizes": tuple(unique.sizes[0].tolist()),
        "keys": unique.keys,
    }
    return Prefetch(**{**fields, **changes})


def figures(shard: Shard) -> TierFigures:
    found = [each for table in shard.tables if (each := table.tiers()) is not None]
    names = TierFigures.__dataclass_fields__
    return TierFigures(**{name: sum(getattr(each, name) for each in found) for name in names})


def prefetched(job: Any, message: Prefetch) -> int:
    shard = job.shards[0]
    before = figures(shard).prefetched
    prefetch(shard, message, 0, message.keys.size)
    return figures(shard).prefetched - before


def test_the_pull_after_it_reads_nothing_from_disk(job: Any) -> None:
    shard, keys = job.shards[0], [3, 700, 5000]
    state = job.state
    message = prefetch_of(job, keys, keys, keys)
    parts = range(0, message.keys.size, 2)  # as a server does
    assert all(prefetch(shard, message, start, start + 2) for start in parts)
    before = figures(shard)

    reply = job.send(0, job.pull(0, job.unique(keys, keys, keys)))

    after = figures(shard)
    assert isinstance(reply, PullReply)
    assert before.prefetched == 4  # two rows of two tables; the others are in memory or nowhere
    assert after.reads == before.reads
    assert after.cached == before.cached + 4
    assert job.state == state
    assert shard.tables[1].tiers() is None


def test_one_that_comes_twice_reads_once(job: Any) -> None:
    message = prefetch_of(job, [3], [3], [700])

    assert prefetched(job, message) == 2
    assert prefetched(job, message) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"recovery_epoch": 2},
        {"routing_version": 1},
        {"batch_id": 0},  # is trained
        {"table_sizes": (1, 1)},
        {"table_sizes": (1, 1, 2)},
        {"table_sizes": (3, 1, -1)},
    ],
)
def test_one_of_another_routing_epoch_or_form_or_of_a_batch_that_is_trained_is_left(
    job: Any, changes: dict[str, Any]
) -> None:
    assert prefetched(job, prefetch_of(job, [3], [3], [3], **changes)) == 0


def test_one_of_too_many_keys_is_left(job: Any) -> None:
    n = MAX_PREFETCHED_KEYS + 1
    keys = np.arange(n)
    assert prefetched(job, prefetch_of(job, [], [], [], table_sizes=(n, 0, 0), keys=keys)) == 0


def test_one_of_a_batch_that_is_pushed_is_left(job: Any) -> None:
    job.push(9, [3], [], [])

    assert prefetched(job, prefetch_of(job, [4], [], [])) == 0
    assert prefetched(job, prefetch_of(job, [4], [], [], attempt=1)) == 1
    assert prefetched(job, prefetch_of(job, [5], [], [], batch_id=-1)) == 1


def test_a_shard_that_is_dead_or_has_no_state_leaves_it(job: Any, small_job: Any) -> None:
    message = prefetch_of(job, [3], [3], [3])
    fenced = small_job(TABLES, initialize=False).shards[0]
    assert not prefetch(fenced, message, 0, 3)

    job.shards[0].dead = "a reason"
    assert prefetched(job, message) == 0


def test_lost_late_and_doubled_ones_leave_the_same_bits(small_job: Any, tmp_path: Path) -> None:
    def trained(**limits: Any) -> Any:
        job = small_job(TABLES, **limits)
        rng, late = np.random.default_rng(3), []
        for step in range(12):
            keys = [np.unique(rng.zipf(1.2, 300) % 900).tolist() for _ in TABLES]
            late.append(prefetch_of(job, *keys, batch_id=-1))
            for number in rng.integers(0, len(late), 2):
                prefetch(job.shards[0], late[number], 0, late[number].keys.size)
            job.train(step, *keys)
        return job

    tiers = {table.name: Tiers(memory_bytes=1 << 16, path=str(tmp_path)) for table in TABLES}
    plain, tiered = trained(), trained(tiers=tiers)

    assert tiered.digest == plain.digest
    assert figures(tiered.shards[0]).prefetched > 100
