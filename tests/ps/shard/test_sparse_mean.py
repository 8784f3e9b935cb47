"""What a key's gradient is divided by, held against float64 sums; and what weighs nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding.spec.admission import CounterAdmission
from embedding.spec.initial_values import Constant
from embedding.spec.optimizers import Sgd
from embedding.spec.table import TableSpec
from ps.checkpoint.read import CheckpointReader
from ps.messages.records import Entry
from ps.spec import StoreSpec

LEARNING_RATE = 0.5
TABLE = TableSpec(
    name="t",
    dim=2,
    initializer=Constant(value=0.25),
    optimizer=Sgd(learning_rate=LEARNING_RATE),
)
RARE = TableSpec(name="rare", dim=1, admission=CounterAdmission(min_count=2))
BATCHES = {0: [1, 2, 3], 1: [2, 3, 4], 2: [3, 9], 3: [4, 3]}
SAMPLES = {0: 4, 1: 3, 2: 5, 3: 2}
WEIGHTS = {0: 1.0, 1: 0.5, 2: 0.0, 3: 1.0}
MEANS = ["global", "contributors"]


def job_of(small_job: Any, mean: str, **options: Any) -> Any:
    """A job whose four batches are pushed; batch 2 is going to weigh nothing."""
    job = small_job((TABLE, RARE), sparse_mean=mean, **options)
    for batch_id, keys in BATCHES.items():
        job.push(batch_id, keys, [7], samples=SAMPLES[batch_id])
    return job


def entries(*batch_ids: int) -> list[Entry]:
    return [Entry(batch_id, 0, WEIGHTS[batch_id]) for batch_id in batch_ids]


def vectors(job: Any) -> dict[int, np.ndarray]:
    rows = [shard.tables[0].export() for shard in job.shards]
    return {int(k): v for part in rows for k, v in zip(part.keys, part.vectors, strict=True)}


def expected(job: Any, mean: str, divisor: int) -> dict[int, np.ndarray]:
    """The rows after a step of all batches, summed in float64."""
    sums: dict[int, np.ndarray] = {}
    samples: dict[int, int] = {}
    for batch_id in BATCHES:
        if WEIGHTS[batch_id] == 0:
            continue
        for shard in job.shards:
            part = shard.buffer.get(batch_id, 0)
            n = part.table_sizes[0]
            rows = part.gradients[: 2 * n].reshape(n, 2).astype(np.float64)
            for key, row in zip(part.keys[:n].tolist(), rows, strict=True):
                sums[key] = sums.get(key, 0) + WEIGHTS[batch_id] * row
                samples[key] = samples.get(key, 0) + SAMPLES[batch_id]
    return {
        key: 0.25 - LEARNING_RATE * total / (divisor if mean == "global" else samples[key])
        for key, total in sums.items()
    }


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("num_shards", [1, 3])
def test_gradients_are_divided_as_the_job_says(small_job: Any, mean: str, num_shards: int) -> None:
    job = job_of(small_job, mean, num_shards=num_shards)
    divisor = sum(SAMPLES.values())
    wanted = expected(job, mean, divisor)

    job.step(*entries(0, 1, 2, 3), divisor=divisor)

    got = vectors(job)
    assert sorted(got) == sorted(wanted)
    for key, vector in wanted.items():
        np.testing.assert_allclose(got[key], vector, rtol=1e-6)


@pytest.mark.parametrize("mean", MEANS)
def test_the_model_does_not_depend_on_the_shards(small_job: Any, mean: str) -> None:
    digests = set()
    for num_shards in (1, 2, 5):
        job = job_of(small_job, mean, num_shards=num_shards)
        job.step(*entries(0, 1, 2, 3), divisor=14)
        digests.add(job.digest)

    assert len(digests) == 1


def test_the_choice_changes_the_model(small_job: Any) -> None:
    digests = set()
    for mean in MEANS:
        job = job_of(small_job, mean)
        job.step(*entries(0, 1), divisor=7)
        digests.add(job.digest)

    assert len(digests) == 2


@pytest.mark.parametrize("mean", MEANS)
def test_what_weighs_nothing_changes_nothing(small_job: Any, mean: str) -> None:
    """No row, frequency, version or admission; all but the order of k."""
    job, without = job_of(small_job, mean), job_of(small_job, mean)

    job.step(*entries(0, 2, 3), divisor=11)
    without.step(*entries(0, 3), divisor=11)
    assert job.digest == without.digest
    assert 9 not in vectors(job)

    job.step(Entry(1, 0, 0.0), divisor=3)
    assert job.digest == without.digest
    assert job.shards[0].step == 2
    assert len(job.shards[0].buffer) == 0, "it has had its step"


def test_one_batch_alone_has_the_same_mean_either_way(small_job: Any) -> None:
    digests = set()
    for mean in MEANS:
        job = job_of(small_job, mean)
        job.step(*entries(0), divisor=SAMPLES[0])
        job.step(*entries(3), divisor=SAMPLES[3])
        digests.add(job.digest)

    assert len(digests) == 1


def test_the_choice_is_stored_in_checkpoints(small_job: Any, tmp_path: Path) -> None:
    job = job_of(small_job, "contributors")
    job.write_checkpoint(tmp_path / "full-0")

    assert CheckpointReader(tmp_path / "full-0").store.sparse_mean == "contributors"
    old = {k: v for k, v in job.spec.to_json().items() if k != "sparse_mean"}
    assert StoreSpec.from_json(old).sparse_mean == "global", "what earlier versions did"


def test_another_mean_is_refused(small_job: Any) -> None:
    with pytest.raises(ValueError, match="sparse_mean must be one of"):
        small_job((TABLE,), sparse_mean="median")
