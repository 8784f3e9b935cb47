"""Which rows a job's batches and steps have, by `data.order`."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scheduler import JobConfig
from scheduler.driver.resolved import JobSpecs, resolve


@pytest.fixture
def specs_of(tmp_path: Path) -> Any:
    """Of a job over 830 rows in row groups of 90, M = 4 and B = 20."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"label": [0] * 830, "u": range(830)}), path, row_group_size=90)

    def make(*, max_samples: int | None = None, **data: Any) -> JobSpecs:
        job = {
            "data": {"train": str(path), "sparse": ["u"], "batch_size": 20, "epochs": 2, **data},
            "model": {"type": "wide_deep", "mlp": []},
            "training": {"global_batch": 80, "max_samples": max_samples},
            "run": {"dir": "no run"},
        }
        return resolve(JobConfig.from_dict(job))

    return make


def trained(specs: JobSpecs) -> list[list[int]]:
    """The rows of each batch that is given out, in the order of batch ids."""
    batches = []
    for batch_id in range(specs.coordinator.plan.total):
        starts = [(90 * piece.row_group, piece) for piece in specs.plan.pieces(batch_id)]
        batches.append([at + row for at, p in starts for row in range(p.start, p.stop)])
    return batches


def test_sequential_batches_follow_the_rows_whatever_the_global_batch(specs_of: Any) -> None:
    batches = trained(specs_of(order="sequential"))

    assert [row for batch in batches for row in batch] == [*range(830), *range(830)]
    assert [len(batch) for batch in batches[:42]] == [20] * 41 + [10]


def test_in_sequence_max_samples_are_the_first_rows(specs_of: Any) -> None:
    batches = trained(specs_of(order="sequential", max_samples=160))

    assert [row for batch in batches for row in batch] == list(range(160))


def test_by_default_a_step_has_rows_of_each_lane(specs_of: Any) -> None:
    batches = trained(specs_of(max_samples=160))

    assert [batch[0] for batch in batches] == [0, 220, 430, 630, 20, 240, 450, 650]
