"""Every optimizer inside shards: the same bits for any number of them, kept by checkpoints."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from embedding.optimizers.rule import step_scalars
from embedding.spec.admission import CounterAdmission
from embedding.spec.optimizers import (
    OPTIMIZERS,
    Adagrad,
    AdagradDecay,
    AdagradDecayV2,
    AdamAsync,
    AdamW,
    Ftrl,
    Optimizer,
    RmsProp,
    Sgd,
)
from embedding.spec.table import TableSpec
from ps.checkpoint.manifest import CheckpointError
from ps.checkpoint.read import CheckpointReader
from ps.checkpoint.restore import start_shard_from
from ps.server import warmup
from ps.spec import StoreSpec

EXAMPLES: dict[str, Optimizer] = {
    **{kind: spec() for kind, spec in OPTIMIZERS.items()},
    "momentum": Sgd(momentum=0.9),
    "nesterov": Sgd(momentum=0.9, nesterov=True),
    "adagrad_decay": AdagradDecay(decay_steps=2),
    "adagrad_decay_v2": AdagradDecayV2(decay_steps=2, catch_up="one_period"),
    "adam_async_rmsprop": AdamAsync(apply_sparse_rmsprop=True),
    "adamw_corrected": AdamW(weight_decay=0.1, decay_scaling="corrected"),
    "rmsprop_momentum": RmsProp(momentum=0.5),
    "ftrl_row": Ftrl(l1=0.01, l2=0.01),
    "ftrl_coordinate": Ftrl(l1=0.01, l2_shrinkage=0.1, lasso="coordinate"),
    "regularised": Adagrad(l2_regularization=0.1, clip_value=0.5),
}
each_optimizer = pytest.mark.parametrize("optimizer", EXAMPLES.values(), ids=EXAMPLES.keys())


def tables(optimizer: Optimizer) -> tuple[TableSpec, ...]:
    return (
        TableSpec(name="all", dim=5, optimizer=optimizer),
        TableSpec(
            name="rare",
            dim=1,
            optimizer=replace(optimizer, clip_norm=0.5),
            admission=CounterAdmission(min_count=2),
        ),
    )


def trained(small_job: Any, optimizer: Optimizer, num_shards: int, *, steps: int = 6) -> Any:
    """Steps of two batches, at a clock that goes twice as slowly."""
    job = small_job(
        tables(optimizer), num_shards=num_shards, dense_size=3000, dense_optimizer=optimizer
    )
    go_on(job, range(steps), start=0)
    return job


def go_on(job: Any, steps: range, *, start: int) -> None:
    rng = np.random.default_rng(start)
    for step in steps:
        for batch in (2 * step, 2 * step + 1):
            job.push(batch, rng.integers(0, 60, 30).tolist(), rng.integers(0, 9, 12).tolist())
        scalars = tuple(
            step_scalars(o, learning_rate=0.05, step=step, clock=step // 2)
            for o in job.spec.optimizers
        )
        job.step(2 * step, 2 * step + 1, scalars=scalars, low_water=2 * step + 2)


@each_optimizer
def test_any_number_of_shards_trains_the_same_model(small_job: Any, optimizer: Optimizer) -> None:
    one, three = (trained(small_job, optimizer, num_shards) for num_shards in (1, 3))

    assert one.digest == three.digest
    assert len(one.shards[0].tables[0]) > 40
    untrained = trained(small_job, optimizer, 1, steps=0).shards[0].dense.vector
    assert np.isfinite(one.shards[0].dense.vector).all()
    assert (one.shards[0].dense.vector != untrained).all()


@each_optimizer
def test_a_checkpoint_keeps_vectors_and_slots_on_any_number_of_shards(
    small_job: Any, tmp_path: Path, optimizer: Optimizer
) -> None:
    job = trained(small_job, optimizer, 3)
    reader = CheckpointReader(job.write_checkpoint(tmp_path))
    digests = set()
    for num_shards in (1, 2):
        again = small_job(
            tables(optimizer), num_shards=num_shards, dense_size=3000, dense_optimizer=optimizer,
            initialize=False,
        )  # fmt: skip
        for shard in again.shards:
            start_shard_from(shard, reader, recovery_epoch=again.epoch)
        go_on(again, range(2), start=9)
        digests.add(again.digest)

    assert len(digests) == 1
    assert reader.store == job.spec
    for spec, table in zip(job.spec.tables, job.shards[0].tables, strict=True):
        kept = {
            key: (vector.tobytes(), slots.tobytes())
            for part in reader.rows(spec)
            for key, vector, slots in zip(part.keys, part.vectors, part.slots, strict=True)
        }
        rows = table.export()
        assert len(rows.keys) > 0
        for key, vector, slots in zip(rows.keys, rows.vectors, rows.slots, strict=True):
            assert kept[key] == (vector.tobytes(), slots.tobytes())
    np.testing.assert_array_equal(
        reader.dense_rows(), np.vstack([shard.dense.rows for shard in job.shards])
    )


def test_a_slot_of_one_number_a_row_is_a_column_of_one_number(
    small_job: Any, tmp_path: Path
) -> None:
    job = trained(small_job, AdagradDecayV2(), 1)
    job.write_checkpoint(tmp_path)

    with pa.ipc.open_file(tmp_path / "tables/all/rows-00000-of-00001.arrow") as reader:
        fields = {f.name: f.type for f in reader.schema}

    assert list(fields)[3:] == ["vector", "slot_accumulator", "slot_decay_period"]
    assert [fields[name].list_size for name in list(fields)[3:]] == [5, 5, 1]


@pytest.mark.parametrize("kind", [AdagradDecay, AdagradDecayV2])
def test_a_new_job_counts_decay_periods_anew(small_job: Any, tmp_path: Path, kind: Any) -> None:
    optimizer = kind(decay_steps=1)
    job = trained(small_job, optimizer, 1)
    again = small_job(
        tables(optimizer), dense_size=3000, dense_optimizer=optimizer, initialize=False
    )

    start_shard_from(
        again.shards[0], CheckpointReader(job.write_checkpoint(tmp_path)), recovery_epoch=3
    )

    before, after = (j.shards[0].tables[0].export() for j in (job, again))
    assert (before.slots[:, 5:] > 0).any()
    assert (after.slots[:, 5:] == 0).all()
    assert after.slots[:, :5].tobytes() == before.slots[:, :5].tobytes()
    assert (job.shards[0].dense.rows[:, 2048:] > 0).all()
    assert (again.shards[0].dense.rows[:, 2048:] == 0).all()


def test_an_optimizer_with_other_slots_is_refused(small_job: Any, tmp_path: Path) -> None:
    job = trained(small_job, Sgd(), 1)
    reader = CheckpointReader(job.write_checkpoint(tmp_path))
    other = small_job(tables(Sgd(momentum=0.9)), dense_size=3000, initialize=False)

    with pytest.raises(
        CheckpointError, match=r"table all: the optimizer is sgd in .* sgd with momentum in"
    ):
        start_shard_from(other.shards[0], reader, recovery_epoch=3)


@each_optimizer
def test_training_through_shards_learns(small_job: Any, optimizer: Optimizer) -> None:
    """Rows and dense parameters are pulled, and pushed back towards a target."""
    job = small_job(
        [TableSpec(name="t", dim=4, optimizer=optimizer)],
        num_shards=3,
        dense_size=2100,
        dense_optimizer=optimizer,
    )
    keys, target = range(50), np.float32(0.3)
    unique = job.unique(keys)
    errors = []
    for step in range(80):
        replies = [job.send(s, job.pull(s, unique)) for s in range(3)]
        values = np.concatenate([reply.values for reply in replies]) - target
        errors.append(float(np.mean(values**2)))
        dense = [reply.dense - target for reply in replies]
        errors_dense = float(np.mean(np.concatenate(dense) ** 2))
        for s in range(3):
            message = job.contribution(
                s, unique, gradients=4 * values, dense=4 * dense[s], batch_id=step
            )
            job.send(s, message)
        scalars = tuple(
            step_scalars(o, learning_rate=0.05, step=step, clock=step) for o in job.spec.optimizers
        )
        job.step(step, scalars=scalars, low_water=step + 1)
        if step == 0:
            first_dense = errors_dense

    assert errors[-1] < 0.5 * errors[0]
    assert errors_dense < first_dense


@each_optimizer
def test_gradients_of_one_key_count_as_their_sum(small_job: Any, optimizer: Optimizer) -> None:
    """Two batches with gradient .1 for a key are one with .2."""
    models = []
    for parts in ([0.2], [0.1, 0.1]):
        job = small_job([TableSpec(name="t", dim=3, optimizer=optimizer)], dense_size=0)
        unique = job.unique([1])
        for step in range(3):
            batches = [10 * step + i for i in range(len(parts))]
            for batch, g in zip(batches, parts, strict=True):
                gradients = np.full(3, g, np.float32)
                job.send(0, job.contribution(0, unique, gradients=gradients, batch_id=batch))
            job.step(*batches, divisor=4)
        rows = job.shards[0].tables[0].export()
        models.append((rows.vectors.tobytes(), rows.slots.tobytes()))

    assert models[0] == models[1]


def test_every_kernel_of_a_job_is_warmed_up_without_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warmup, "gc", SimpleNamespace(collect=lambda: 0))  # it takes longest
    for optimizer in EXAMPLES.values():
        store = StoreSpec(
            tables=tables(optimizer), dense_size=10, dense_optimizer=optimizer, num_shards=2
        )
        warmup.warm_up(store)


def test_dense_row_norms_can_not_be_clipped(small_job: Any) -> None:
    with pytest.raises(ValueError, match="clip_norm"):
        small_job([], dense_optimizer=Adagrad(clip_norm=1.0))
