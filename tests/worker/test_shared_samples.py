"""What runs of samples share is computed once for each run, and no bit differs."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from served_jobs import JOBS, SavedModel, some_samples

from worker.data.columns import columns_from_table
from worker.data.shared import SharedBatch, joined, of_one_run
from worker.inference import Predictor

DLRM_OF_KEYS = {
    "data": {"dense": [], "sparse": ["a", "b", {"name": "tags", "column": "tags"}]},
    "tables": {},
    "model": {"type": "dlrm", "bottom_mlp": [8], "top_mlp": [20]},
}
SHARED = [
    *[(True, True, False), (True, False, False), (False, True, True), (False, False, True)],
    (False, False, False),
]


def batch_of(job: SavedModel, samples: dict[str, pa.Array]) -> object:
    table = pa.table({**samples, "label": [0.0] * len(samples["a"])})
    found = columns_from_table(table, job.features, where=("none", None))
    return found.batch(0, table.num_rows)


def some_runs(
    job: SavedModel, rng: np.random.Generator, shared: tuple[bool, ...], *, dense: bool
) -> SharedBatch:
    parts = []
    for size in (40, 1, 7, 30):
        batch = batch_of(job, some_samples(rng, size))
        one = batch_of(job, some_samples(rng, 1))
        if dense:
            batch.dense[:] = one.dense
        context = [bags if alike else None for bags, alike in zip(one.sparse, shared, strict=True)]
        parts.append(of_one_run(context, batch, dense=dense))
    return joined(parts)


@pytest.mark.parametrize("name", [*JOBS, "no dense"])
def test_predictions_of_samples_that_share_columns_are_those_of_each_alone(
    name: str, tmp_path: Path
) -> None:
    job = SavedModel("plain", tmp_path, **DLRM_OF_KEYS) if name == "no dense" else None
    job = job or SavedModel(name, tmp_path)
    job.train(3)
    predictor = Predictor(
        model=job.model,
        features=job.features,
        tables={table.spec.name: table for table in job.shard.tables},
        dense=job.shard.dense.rows[0, : job.spec.dense_size],
    )
    rng = np.random.default_rng(1)
    for shared in SHARED:
        for dense in (True, False):
            batch = some_runs(job, rng, shared, dense=dense)
            assert (batch.num_samples, batch.num_runs) == (78, 4)

            logits = predictor.logits(batch)

            np.testing.assert_array_equal(logits, predictor.logits(batch.expanded()))


def test_a_batch_is_expanded_where_runs_are_short(tmp_path: Path) -> None:
    job = SavedModel("plain", tmp_path)
    rng = np.random.default_rng(1)
    one, samples = some_samples(rng, 1), some_samples(rng, 3)
    context = batch_of(job, one).sparse
    batch = of_one_run([context[0], None, context[2]], batch_of(job, samples), dense=False)

    expanded = batch.expanded()

    samples |= {"a": pa.concat_arrays([one["a"]] * 3), "tags": pa.concat_arrays([one["tags"]] * 3)}
    for found, expected in zip(expanded.sparse, batch_of(job, samples).sparse, strict=True):
        np.testing.assert_array_equal(found.keys, expected.keys)
        if expected.offsets is not None:
            np.testing.assert_array_equal(found.offsets, expected.offsets)
