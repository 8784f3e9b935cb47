"""Rows of 16 bits in whole jobs: as good a model as rows of float32."""

from pathlib import Path
from typing import Any

import pytest

from scheduler import JobConfig, Trainer
from worker.datasets.planted import DENSE_COLUMNS, SPARSE_COLUMNS
from worker.datasets.synthetic import CriteoLike, write_criteo_like

pytestmark = pytest.mark.slow


def train(samples: Path, run: Path, value_dtype: str) -> dict[str, Any]:
    job = {
        "data": {
            "train": str(samples / "train"),
            "eval": str(samples / "test"),
            "dense": list(DENSE_COLUMNS),
            "dense_transform": "log1p",
            "sparse": list(SPARSE_COLUMNS),
        },
        "embedding": {
            "optimizer": {"type": "adagrad", "initial_accumulator": 1e-8},
            "value_dtype": value_dtype,
        },
        "model": {
            "type": "dlrm",
            "bottom_mlp": [64],
            "top_mlp": [64],
            "optimizer": {"type": "adagrad", "learning_rate": 0.01, "initial_accumulator": 1e-4},
        },
        "training": {"mode": "sync"},
        "cluster": {"workers": 2, "servers": 1},
        "run": {"dir": str(run)},
    }
    return Trainer(JobConfig.from_dict(job)).fit().metrics


def test_the_auc_is_within_a_thousandth_of_that_of_float32(
    jobs_in_threads: None, tmp_path: Path
) -> None:
    samples = tmp_path / "samples"
    write_criteo_like(samples, CriteoLike(rows=300_000, test_rows=100_000))

    wide, half, brain = (
        train(samples, tmp_path / dtype, dtype) for dtype in ("float32", "float16", "bfloat16")
    )

    assert wide["eval"]["auc"] > 0.7
    for narrow in (half, brain):
        assert narrow["eval"]["auc"] == pytest.approx(wide["eval"]["auc"], abs=0.001)
        assert narrow["model_digest"] != wide["model_digest"]
        rows = sum(table["rows"] for table in wide["tables"].values())
        saved = sum(
            wide["tables"][name]["bytes"] - table["bytes"]
            for name, table in narrow["tables"].items()
        )
        assert saved == 32 * rows
