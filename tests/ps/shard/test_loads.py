"""How much of the traffic goes to each bucket."""

from typing import Any

import numpy as np

from embedding import Adagrad, TableSpec
from embedding.kernels.mixing import NUM_BUCKETS, buckets_of
from ps.shard.loads import EVERY

TABLES = (
    TableSpec(name="wide", dim=6, optimizer=Adagrad()),
    TableSpec(name="narrow", dim=1),
)


def test_keys_of_some_steps_count_for_all_of_them_by_their_bytes(small_job: Any) -> None:
    job = small_job(TABLES, num_shards=2, counts_loads=True)
    wide, narrow = np.arange(300), np.arange(100, 150)

    for step in range(EVERY + 1):
        job.train(step, wide, narrow)

    expected = np.zeros(NUM_BUCKETS, np.int64)
    np.add.at(expected, buckets_of(wide), 26 + 8 * 6)
    np.add.at(expected, buckets_of(narrow), 26 + 8 * 1)
    counted = [shard.loads.values for shard in job.shards]
    assert np.array_equal(sum(counted), 2 * EVERY * expected), "steps 0 and 8"
    for shard, values in zip(job.shards, counted, strict=True):
        assert not values[job.spec.routing.buckets != shard.index].any()


def test_a_shard_that_begins_another_epoch_counts_on(small_job: Any) -> None:
    job = small_job(TABLES, num_shards=1, counts_loads=True)
    job.train(0, np.arange(10), np.arange(10))
    before = job.shards[0].loads.values.copy()

    job.shards[0].leave()
    job.shards[0].enter(job.epoch + 1, step=1)

    assert np.array_equal(job.shards[0].loads.values, before)
    assert before.any()


def test_a_shard_of_which_nobody_asks_it_counts_nothing(small_job: Any) -> None:
    job = small_job(TABLES, num_shards=1)

    job.train(0, np.arange(10), np.arange(10))

    assert job.shards[0].loads is None
