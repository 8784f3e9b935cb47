"""Jobs whose gradients, or whose sums, are not finite: they fail or say so."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scheduler import JobConfig, Trainer, TrainingError

# The very overflows that are tested.
pytestmark = pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")

BATCH = 8


def job(folder: Path, huge: list[bool], **training: Any) -> JobConfig:
    """A job of one worker; a batch has dense values beyond all bounds where `huge` says so."""
    path = folder / "train.parquet"
    rows = [each for each in huge for _ in range(BATCH)]
    table = pa.table(
        {
            "label": [float(row % 2) for row in range(len(rows))],
            "d": pa.array([3e38 if each else 1.0 for each in rows], pa.float32()),
            "a": list(range(len(rows))),
        }
    )
    pq.write_table(table, path)
    return JobConfig.from_dict(
        {
            "name": "test",
            "data": {
                "train": str(path), "dense": ["d"], "sparse": ["a"], "batch_size": BATCH,
                "order": "sequential", "epochs": 1,
            },
            "embedding": {"dim": 4},
            "model": {"type": "dlrm", "bottom_mlp": [8], "top_mlp": [8]},
            "training": {"mode": "async", "on_non_finite": "skip", **training},
            "cluster": {"workers": 1, "servers": 1},
            "run": {"dir": str(folder / "run")},
        }
    )  # fmt: skip


def test_a_job_that_only_skips_any_more_fails_with_what_it_skipped(
    jobs_in_threads: None, tmp_path: Path
) -> None:
    config = job(tmp_path, [False] * 4 + [True] * 20, max_consecutive_non_finite=5)

    with pytest.raises(TrainingError, match=r"5 batches in a row .* from batch 4 .* to batch 8 "):
        Trainer(config).fit()

    failure = json.loads((tmp_path / "run" / "failure.json").read_text())
    assert failure["error"].startswith("5 batches in a row were skipped")
    assert failure["samples"]["applied"] == 4 * BATCH


def test_a_job_that_skipped_everything_fails_though_no_limit_was_reached(
    jobs_in_threads: None, tmp_path: Path
) -> None:
    config = job(tmp_path, [True] * 6)

    with pytest.raises(TrainingError, match=r"all 48 samples were skipped \(48 non_finite\)"):
        Trainer(config).fit()


def test_batches_that_are_skipped_here_and_there_are_counted_by_their_reason(
    jobs_in_threads: None, tmp_path: Path
) -> None:
    config = job(tmp_path, [False, True] * 4, max_consecutive_non_finite=2)

    metrics = Trainer(config).fit().metrics

    assert (metrics["samples_trained"], metrics["samples_skipped"]) == (32, 32)
    last = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["skipped_by_reason"] == {"non_finite": 32}
    assert json.loads(last)["dense_non_finite"] == metrics["dense_non_finite"] == 0
