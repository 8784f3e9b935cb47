"""Whole jobs that have every optimizer among them."""

import json
from pathlib import Path
from typing import Any

import pytest

from embedding.spec.optimizers import OPTIMIZERS
from ps.checkpoint.read import CheckpointReader
from scheduler import JobConfig, Trainer

WARM = {"type": "cosine", "warmup_steps": 3, "decay_steps": 40, "end_factor": 0.1}
# For each job the optimizers of three tables and of the model.
JOBS: list[list[dict[str, Any]]] = [
    [
        {"type": "sgd", "momentum": 0.9, "nesterov": True, "clip_norm": 1},
        {"type": "adagrad_decay", "decay_steps": 5, "l2_regularization": 0.001},
        {"type": "rowwise_adam", "learning_rate": 0.01, "schedule": WARM},
        {"type": "adamw", "learning_rate": 0.01, "schedule": WARM, "clip_value": 0.5},
    ],
    [
        {"type": "adagrad_decay_v2", "decay_steps": 5, "catch_up": "one_period"},
        {"type": "ftrl", "l1": 0.0001},
        {"type": "rowwise_adagrad"},
        {"type": "rmsprop", "learning_rate": 0.01, "momentum": 0.5},
    ],
    [
        {"type": "adam", "learning_rate": 0.01},
        {"type": "adam_async", "learning_rate": 0.001, "apply_sparse_rmsprop": True},
        {"type": "adagrad"},
        {"type": "ftrl", "learning_rate": 0.2},
    ],
]


def job(samples: Path, run: Path, optimizers: list[dict[str, Any]]) -> JobConfig:
    tables = dict(zip(("a", "b", "tags"), optimizers, strict=False))
    return JobConfig.from_dict(
        {
            "seed": 3,
            "data": {
                "train": str(samples / "train-*.parquet"),
                "dense": ["d1", "d2"],
                "dense_transform": "log1p",
                "sparse": ["a", "b", {"column": "tags", "combiner": "mean"}],
                "batch_size": 64,
            },
            "embedding": {"dim": 4},
            "tables": {name: {"optimizer": optimizer} for name, optimizer in tables.items()},
            "model": {
                "type": "dlrm",
                "bottom_mlp": [8],
                "top_mlp": [8],
                "optimizer": optimizers[-1],
            },
            "training": {"mode": "sync", "global_batch": 128},
            "cluster": {"workers": 2, "servers": 2},
            "run": {"dir": str(run), "progress_every_seconds": 0.2},
        }
    )


def test_the_jobs_have_every_optimizer() -> None:
    assert {optimizer["type"] for job in JOBS for optimizer in job} == set(OPTIMIZERS)


@pytest.mark.parametrize("optimizers", JOBS, ids=["first", "second", "third"])
def test_a_job_learns_with_them(
    jobs_in_threads: None, samples: Path, tmp_path: Path, optimizers: list[dict[str, Any]]
) -> None:
    result = Trainer(job(samples, tmp_path / "run", optimizers)).fit()

    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert result.metrics["samples_trained"] == last["samples"] == 5000
    assert 0 < result.metrics["train_loss"] < 0.7
    names = {"embedding", "model", "tables.a", "tables.b", "tables.tags"}
    assert set(last["learning_rate"]) == names
    assert len(CheckpointReader(result.checkpoint).dense_vector()) > 0
