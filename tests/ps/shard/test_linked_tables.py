"""Tables that read one another, in shards and from checkpoints."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding.spec.admission import BloomAdmission, CounterAdmission
from embedding.spec.composition import Adaptive, DynamicDimension, compose
from embedding.spec.optimizers import AdamAsync
from embedding.spec.table import TableSpec
from embedding.table.key_maps import map_keys
from ps.checkpoint.read import CheckpointReader
from ps.checkpoint.restore import load_tables, start_shard_from
from ps.client.client import Identity
from ps.messages.records import TableEviction
from ps.server.warmup import warm_up
from ps.spec import StoreSpec

COUNTED = TableSpec(
    name="blocks", dim=6, optimizer=AdamAsync(), admission=CounterAdmission(min_count=2)
)
BLOCKS = compose(COUNTED, DynamicDimension(min_counts=(4, 9)))
SHARED = compose(
    replace(COUNTED, name="own", dim=2, admission=CounterAdmission(min_count=5)),
    Adaptive(static_rows=4096),
)
FILTERED = compose(
    replace(COUNTED, name="bloom", dim=2, admission=BloomAdmission(min_count=5, max_elements=100)),
    Adaptive(static_rows=8192),
)
COMPOSED = (BLOCKS, SHARED, FILTERED)
TABLES = tuple(table for composed in COMPOSED for table in composed.tables)
PARTS = tuple(part for composed in COMPOSED for part in composed.parts)


def keys_by_table(keys: np.ndarray) -> list[list[int]]:
    return [map_keys(part, keys).tolist() for part in PARTS]


def train(job: Any, first: int, last: int) -> None:
    """Steps of batches that were pulled up to two steps before, with evictions now and then."""
    for step in range(first, last):
        rng = np.random.default_rng(step)
        pull_step = max(0, step - 2)
        for batch_id in (2 * step, 2 * step + 1):
            keys = rng.zipf(1.3, 40) * 7919 - 20_000
            job.push(batch_id, *keys_by_table(keys), pull_step=pull_step)
        due = range(3) if step % 4 == 3 else ()
        evict = tuple(TableEviction(table, min_version=step - 1) for table in due)
        evict += (TableEviction(3, min_version=step - 2),) if step % 5 == 4 else ()
        job.step(2 * step, 2 * step + 1, evict=evict, oldest_pull_step=pull_step)


def test_any_number_of_shards_trains_the_same_model(small_job: Any) -> None:
    jobs = [small_job(TABLES, num_shards=num_shards) for num_shards in (1, 2, 3, 7)]
    for job in jobs:
        train(job, 0, 12)

    assert len({job.digest for job in jobs}) == 1
    (shard,) = jobs[0].shards
    rows = {table.spec.name: len(table) for table in shard.tables}
    assert rows["blocks"] > rows["blocks_block1"] > rows["blocks_block2"] > 0
    assert rows["own"] > 0
    assert rows["own_static"] > 0
    assert rows["bloom"] > 0
    assert shard.counts.evicted > 0
    assert shard.counts.gradients_of_evicted_keys > 0


def test_a_job_goes_on_alike_from_a_checkpoint_on_any_number_of_shards(
    small_job: Any, tmp_path: Path
) -> None:
    first = small_job(TABLES, num_shards=2)
    train(first, 0, 4)
    directory = first.write_checkpoint(tmp_path)
    digests = set()
    for num_shards in (1, 3):
        job = small_job(TABLES, num_shards=num_shards, initialize=False)
        for shard in job.shards:
            start_shard_from(shard, CheckpointReader(directory), recovery_epoch=job.epoch)
        train(job, 0, 4)
        digests.add(job.digest)

    assert len(digests) == 1
    assert digests != {first.digest}


@pytest.mark.parametrize("name", ["blocks_block1", "own"])
def test_a_table_is_loaded_with_the_one_that_it_reads(
    small_job: Any, tmp_path: Path, name: str
) -> None:
    job = small_job(TABLES, num_shards=2)
    train(job, 0, 5)
    reader = CheckpointReader(job.write_checkpoint(tmp_path))

    loaded = load_tables(reader, [name])

    table = loaded[name]
    assert sorted(loaded) == sorted([name, table.spec.base])
    keys = np.arange(-20_000, 20_000)
    values = np.empty((2, keys.size, table.spec.dim), np.float32)
    admitted = np.empty((2, keys.size), np.uint8)
    for i, found in enumerate((table, load_tables(reader)[name])):
        found.pull(keys, None, values[i], admitted[i])
    np.testing.assert_array_equal(values[0], values[1])
    np.testing.assert_array_equal(admitted[0], admitted[1])
    assert admitted.any()


def test_the_store_comes_back_from_json() -> None:
    store = StoreSpec(tables=TABLES, dense_size=1, dense_optimizer=AdamAsync(), num_shards=2)

    assert StoreSpec.from_json(store.to_json()) == store


def test_a_store_without_the_table_that_another_reads_is_refused() -> None:
    with pytest.raises(ValueError, match="own reads table own_static, but there is none"):
        StoreSpec(
            tables=(SHARED.tables[0],), dense_size=1, dense_optimizer=AdamAsync(), num_shards=1
        )


def test_a_shard_with_such_tables_warms_up() -> None:
    warm_up(StoreSpec(tables=TABLES, dense_size=1, dense_optimizer=AdamAsync(), num_shards=2))


def test_a_static_row_that_was_not_used_gets_no_row_from_a_push(
    small_job: Any, serve: Callable[[Any], Any]
) -> None:
    job = small_job(SHARED.tables, num_shards=2)
    client = serve(job).client()

    def answered(request: Any) -> Any:
        while not client.poll(5.0):
            pass
        assert not request.refusals
        return request

    keys = [part.tolist() for part in (np.arange(9), map_keys(SHARED.parts[1], np.arange(9)))]
    pulled = answered(client.start_pull(job.unique(*keys), at_step=0))
    unused = np.isin(pulled.unique.keys, keys[1][:4])
    trained = np.where(unused, 0, pulled.admitted).astype(np.uint8)
    answered(
        client.start_push(
            pulled,
            Identity(0, 0, 0, 4),
            gradients=np.zeros_like(pulled.values),
            dense=np.zeros(3, np.float32),
            trained=trained,
        )
    )
    job.step(0)

    rows = np.concatenate([shard.tables[1].export().keys for shard in job.shards])
    assert sorted(rows.tolist()) == sorted(set(keys[1]) - set(keys[1][:4]))
    assert pulled.admitted[unused].all(), "the pull's own bits stay"
