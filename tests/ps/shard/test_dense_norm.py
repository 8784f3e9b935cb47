"""The norm of the dense gradient: measured by blocks, and what its factor does to a step."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from embedding.spec.optimizers import Adagrad, Optimizer, Sgd
from embedding.spec.table import TableSpec
from ps.messages.exchange import Refusal
from ps.messages.records import ApplyReply, DenseNorm, DenseNormReply, Entry
from ps.routing import BLOCK_SIZE
from ps.spec import StoreSpec

TABLES = (TableSpec(name="t", dim=2, optimizer=Sgd(learning_rate=1.0)),)
DENSE_SIZE = 4000  # four blocks, the last one padded
ENTRIES = (Entry(0, 0, 1.0), Entry(1, 0, 0.0), Entry(2, 0, 0.3))
DIVISOR = 12


def pushed_job(small_job: Any, num_shards: int = 1, optimizer: Optimizer | None = None) -> Any:
    """Three batches wait in the buffers."""
    job = small_job(
        TABLES, num_shards=num_shards, dense_size=DENSE_SIZE, dense_optimizer=optimizer or Sgd()
    )
    for batch_id in range(3):
        job.push(batch_id, [1, 2 + batch_id])
    return job


def measure(job: Any, **changes: Any) -> list[Any]:
    """Every shard's answer."""
    fields: dict[str, Any] = {
        "request_id": 8,
        "recovery_epoch": job.epoch,
        "step": 0,
        "entries": ENTRIES,
        "divisor": DIVISOR,
    }
    message = DenseNorm(**{**fields, **changes})
    return [job.send(shard, message) for shard in range(len(job.shards))]


def gradient(job: Any) -> np.ndarray:
    """The mean dense gradient of the entries, float32 as NumPy does it."""
    total = np.zeros(DENSE_SIZE, np.float32)
    for entry in ENTRIES:
        parts = [shard.buffer.get(entry.batch_id, entry.attempt).dense for shard in job.shards]
        total += np.float32(entry.weight) * np.concatenate(parts)
    return total * np.float32(1 / DIVISOR)


def dense_of(job: Any) -> np.ndarray:
    return np.concatenate([shard.dense.vector for shard in job.shards])


def test_a_block_gives_the_sum_of_its_squares(small_job: Any) -> None:
    job = pushed_job(small_job)
    expected = np.zeros(4 * BLOCK_SIZE)
    expected[:DENSE_SIZE] = gradient(job).astype(np.float64) ** 2

    (reply,) = measure(job)

    assert isinstance(reply, DenseNormReply)
    assert (reply.request_id, reply.sums.dtype, reply.sums.shape) == (8, np.float64, (4,))
    np.testing.assert_allclose(reply.sums, expected.reshape(4, -1).sum(axis=1), rtol=1e-13)


def test_blocks_have_the_same_bits_on_any_number_of_shards(small_job: Any) -> None:
    found = {
        np.concatenate([r.sums for r in measure(pushed_job(small_job, num_shards))]).tobytes()
        for num_shards in (1, 2, 3, 7)
    }

    assert len(found) == 1


def test_measuring_changes_nothing_and_may_be_repeated_at_any_step(small_job: Any) -> None:
    job = pushed_job(small_job, 2)
    before = job.state

    first = measure(job)

    assert job.state == before
    job.step()
    again = measure(job)
    assert [r.sums.tobytes() for r in again] == [r.sums.tobytes() for r in first]


def test_a_step_is_the_same_after_others_were_measured(small_job: Any) -> None:
    digests = []
    for measured in (False, True):
        job = pushed_job(small_job)
        if measured:
            measure(job)
            measure(job, entries=ENTRIES[2:], divisor=4)
        job.step(*ENTRIES, divisor=DIVISOR, dense_factor=0.5)
        digests.append(job.digest)

    assert digests[0] == digests[1]


def test_a_sum_that_overflows_is_not_finite_in_its_block_alone(small_job: Any) -> None:
    job = small_job(TABLES, dense_size=DENSE_SIZE)
    dense = np.ones(DENSE_SIZE, np.float32)
    dense[BLOCK_SIZE] = 3e38
    for batch_id in range(2):
        job.send(0, job.contribution(0, job.unique([1]), batch_id=batch_id, dense=dense))

    (reply,) = measure(job, entries=(Entry(0, 0, 1.0), Entry(1, 0, 1.0)))

    assert np.isinf(reply.sums).tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"entries": (Entry(9, 0, 1.0),)}, "missing"),
        ({"entries": (Entry(0, 1, 1.0),)}, "missing"),
        ({"entries": (*ENTRIES, Entry(9, 0, 0.0))}, "missing"),
        ({"entries": ENTRIES[:1] * 2}, "malformed"),
        ({"entries": (Entry(0, 0, float("nan")),)}, "malformed"),
        ({"entries": (Entry(0, 0, -1.0),)}, "malformed"),
        ({"divisor": 0}, "malformed"),
        ({"divisor": -4}, "malformed"),
        ({"recovery_epoch": 1}, "epoch"),
    ],
    ids=str,
)
def test_what_can_not_be_measured_is_refused(
    small_job: Any, changes: dict[str, Any], reason: str
) -> None:
    job = pushed_job(small_job)
    before = job.state

    (reply,) = measure(job, **changes)

    assert isinstance(reply, Refusal)
    assert reply.reason == reason
    assert job.state == before


def test_what_was_applied_is_no_longer_measured(small_job: Any) -> None:
    job = pushed_job(small_job)
    job.step(*ENTRIES, divisor=DIVISOR)

    assert measure(job)[0].reason == "missing"


def test_the_factor_multiplies_the_dense_gradient_and_no_table(small_job: Any) -> None:
    whole, clipped = (pushed_job(small_job, 2, Sgd(learning_rate=1.0)) for _ in range(2))
    before, g = dense_of(clipped), gradient(clipped)

    whole.step(*ENTRIES, divisor=DIVISOR)
    clipped.step(*ENTRIES, divisor=DIVISOR, dense_factor=0.1)

    np.testing.assert_allclose(dense_of(clipped), before - 0.1 * g, rtol=0, atol=1e-6)
    assert not np.array_equal(dense_of(clipped), dense_of(whole))
    for one, other in zip(whole.shards, clipped.shards, strict=True):
        rows, others = one.tables[0].export(), other.tables[0].export()
        assert rows.vectors.tobytes() == others.vectors.tobytes()


def test_the_whole_gradient_is_clipped_before_its_values(small_job: Any) -> None:
    """A factor that brings every value below `clip_value` leaves it nothing to do."""
    job = pushed_job(small_job, optimizer=Sgd(learning_rate=1.0, clip_value=0.05))
    before, g = dense_of(job), gradient(job)
    assert 0.05 < np.abs(g).max() < 5

    job.step(*ENTRIES, divisor=DIVISOR, dense_factor=0.01)

    np.testing.assert_allclose(dense_of(job), before - 0.01 * g, rtol=0, atol=1e-6)


def test_regularisation_is_not_clipped(small_job: Any) -> None:
    job = pushed_job(small_job, optimizer=Sgd(learning_rate=1.0, l2_regularization=0.5))
    before = dense_of(job)

    job.step(*ENTRIES, divisor=DIVISOR, dense_factor=0.0)

    np.testing.assert_array_equal(dense_of(job), before - np.float32(0.5) * before)


@pytest.mark.parametrize("factor", [-0.1, 1.5, float("nan"), float("inf")])
def test_a_factor_out_of_range_is_refused(small_job: Any, factor: float) -> None:
    job = pushed_job(small_job)
    before = job.state

    record = job.record(0, *ENTRIES, divisor=DIVISOR, dense_factor=factor)
    reply = job.apply(0, record)

    assert (reply.reason, job.state) == ("malformed", before)
    assert "dense factor" in reply.text
    assert isinstance(job.apply(0, replace(record, dense_factor=1.0)), ApplyReply)


def test_a_measurement_crosses_the_sockets(small_job: Any, serve: Callable[..., Any]) -> None:
    job = pushed_job(small_job, 3)
    client = serve(job).client()
    expected = [reply.sums.tobytes() for reply in measure(job)]

    norm = client.start_dense_norm(0, ENTRIES, DIVISOR)
    while not norm.done:
        client.poll(1.0)

    assert [norm.replies[s].sums.tobytes() for s in range(3)] == expected


# What a checkpoint says of it ---------------------------------------------------------------------


def store(**changes: Any) -> StoreSpec:
    fields = {"tables": TABLES, "dense_size": 9, "dense_optimizer": Adagrad(), "num_shards": 2}
    return StoreSpec(**{**fields, **changes})


@pytest.mark.parametrize("limit", [None, 0.1, 3.0])
def test_the_limit_is_kept_in_json(limit: float | None) -> None:
    spec = store(dense_clip_norm=limit)

    assert StoreSpec.from_json(spec.to_json()) == spec


def test_a_checkpoint_of_an_earlier_version_has_no_limit() -> None:
    data = store().to_json()
    del data["dense_clip_norm"]

    assert StoreSpec.from_json(data) == store()


@pytest.mark.parametrize("limit", [0.0, -1.0, float("inf"), float("nan")])
def test_a_limit_that_can_not_be_is_refused(limit: float) -> None:
    with pytest.raises(ValueError, match="dense_clip_norm must be > 0 and finite"):
        store(dense_clip_norm=limit)
