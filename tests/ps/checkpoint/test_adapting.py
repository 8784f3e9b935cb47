"""Tables take rows of a checkpoint that had another optimizer or another dim."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding import EmbeddingVariable, TableEntries, TableSpec
from embedding.spec.admission import CounterAdmission
from embedding.spec.initial_values import Normal
from embedding.spec.optimizers import Adagrad, AdamAsync, Sgd
from ps.checkpoint.adapting import adapted
from ps.checkpoint.manifest import CheckpointError
from ps.checkpoint.read import CheckpointReader
from ps.checkpoint.restore import start_shard_from


def rows(n: int, dim: int, slots: int) -> TableEntries:
    keys = np.arange(n)
    vectors = np.arange(n * dim, dtype=np.float32).reshape(n, dim)
    return TableEntries(
        keys, keys + 1, keys + 2, vectors, -np.arange(n * slots, dtype=np.float32).reshape(n, slots)
    )


def table(**options: Any) -> EmbeddingVariable:
    options = {"initializer": Normal(stddev=1.0), "optimizer": AdamAsync(), **options}
    return EmbeddingVariable(TableSpec(name="t", **options))


def test_a_table_of_the_same_shape_takes_rows_as_they_are() -> None:
    found = rows(3, 2, 4)

    assert adapted(found, table(dim=2).spec, table(dim=2)) is found


def test_vectors_are_cut_with_their_slots() -> None:
    before = rows(4, 3, 6)

    after = adapted(before, table(dim=3).spec, table(dim=2))

    assert after.vectors.tolist() == before.vectors[:, :2].tolist()
    assert after.slots.tolist() == before.slots[:, [0, 1, 3, 4]].tolist()
    assert after.keys is before.keys
    assert after.frequency is before.frequency


@pytest.mark.parametrize("admission", [None, CounterAdmission(min_count=100)])
def test_what_is_new_of_vectors_is_what_their_keys_would_have_started_with(admission: Any) -> None:
    before, wide = rows(4, 2, 2), table(dim=5, admission=admission, optimizer=Adagrad())
    values, fresh = np.empty((4, 5), np.float32), table(dim=5)
    fresh.pull(before.keys, None, values, np.empty(4, np.uint8))

    after = adapted(before, table(dim=2, optimizer=Adagrad()).spec, wide)

    assert after.vectors[:, :2].tolist() == before.vectors.tolist()
    assert after.vectors[:, 2:].tolist() == values[:, 2:].tolist()
    assert after.slots[:, :2].tolist() == before.slots.tolist()
    assert (after.slots[:, 2:] == wide._initial_slots[2:]).all()
    assert (after.vectors[:, 2:] != 0).all()


def test_slots_of_another_optimizer_begin_anew() -> None:
    for optimizer in (Adagrad(), Sgd()):
        other = table(dim=2, optimizer=optimizer)
        after = adapted(rows(3, 2, 4), table(dim=2).spec, other)
        assert after.slots.tolist() == [other._initial_slots.tolist()] * 3


def test_a_chain_is_restored_into_other_tables_where_that_is_asked(
    small_job: Any, cut_job: Any, tmp_path: Path
) -> None:
    for number in range(2):
        cut_job.train(3, evict=True)
        path = cut_job.cut(changed_only=number > 0)
    before = {t.name: t for t in cut_job.tables}
    other = [
        TableSpec(name="adam", dim=20, optimizer=Adagrad()),
        TableSpec(name="plain", dim=1, optimizer=Sgd(), track_usage=False),
        TableSpec(name="counted", dim=2, admission=before["counted"].admission),
    ]
    job = small_job(other, num_shards=3, dense_size=2500, initialize=False)

    with pytest.raises(CheckpointError, match="table adam: the dim is 17 in the checkpoint, 20"):
        start_shard_from(job.shards[0], CheckpointReader(path), recovery_epoch=3)
    for shard in job.shards:
        start_shard_from(shard, CheckpointReader(path), recovery_epoch=3, goes_on=True, adapt=True)

    for number, spec in enumerate(other):
        (at,) = (i for i, t in enumerate(cut_job.tables) if t.name == spec.name)
        old, new = (
            {
                key: vector
                for shard in each.shards
                for entries in [shard.tables[place].export()]
                for key, vector in zip(entries.keys.tolist(), entries.vectors.tolist(), strict=True)
            }
            for each, place in ((cut_job.job, at), (job, number))
        )
        width = min(before[spec.name].dim, spec.dim)
        assert {k: v[:width] for k, v in new.items()} == {k: v[:width] for k, v in old.items()}


@pytest.mark.parametrize("number", [0, 1])
def test_rows_come_back_from_a_checkpoint_of_another_value_dtype(
    small_job: Any, cut_job: Any, number: int
) -> None:
    """Of 16 bits they are the same in float32; of float32 they are rounded to the nearest."""
    cut_job.train(6)
    path = cut_job.cut(changed_only=False)
    wide = [replace(table, value_dtype="float32") for table in cut_job.tables]
    narrow = [replace(table, value_dtype="bfloat16") for table in cut_job.tables]
    job = small_job([wide, narrow][number], num_shards=3, dense_size=2500, initialize=False)

    for shard in job.shards:
        start_shard_from(shard, CheckpointReader(path), recovery_epoch=3, goes_on=True)

    for place, spec in enumerate(cut_job.tables):
        old, new = (
            {
                key: row
                for shard in each.shards
                for rows in [shard.tables[place].export()]
                for key, *row in zip(rows.keys, rows.vectors, rows.slots, strict=True)
            }
            for each in (cut_job.job, job)
        )
        assert old.keys() == new.keys()
        for key, (vector, slots) in old.items():
            assert new[key][1].tobytes() == slots.tobytes()
            if number == 0 or spec.value_dtype == "bfloat16":
                assert new[key][0].tobytes() == vector.tobytes()
            else:
                assert (abs(new[key][0] - vector) <= abs(vector) * 2.0**-8).all()
                assert not (new[key][0].view(np.uint32) & 0xFFFF).any()
