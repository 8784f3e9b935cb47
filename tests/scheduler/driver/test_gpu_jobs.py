"""A whole job whose workers have GPUs; run by `make gpu-check`."""

from pathlib import Path
from typing import Any

import pytest

from scheduler import JobConfig, Trainer

torch = pytest.importorskip("torch")

pytestmark = [pytest.mark.gpu, pytest.mark.ray]


def job(data: Path, run: Path, **cluster: Any) -> JobConfig:
    return JobConfig.from_dict(
        {
            "seed": 3,
            "data": {
                "train": str(data / "train-*.parquet"),
                "eval": str(data / "test.parquet"),
                "dense": ["d1", "d2"],
                "dense_transform": "log1p",
                "sparse": ["a", "b", {"column": "tags", "combiner": "mean"}],
                "batch_size": 64,
                "epochs": 2,
            },
            "embedding": {"dim": 4},
            "model": {
                "type": "torch",
                "class": "worker.models.torch.dcn:DcnV2",
                "cuda_graphs": True,
                "optimizer": {"type": "adam", "learning_rate": 0.003},
            },
            "training": {"mode": "sync", "global_batch": 256},
            "cluster": {"servers": 1, **cluster},
            "run": {"dir": str(run)},
        }
    )


def test_two_workers_on_one_gpu_train_the_bits_of_one(samples: Path, tmp_path: Path) -> None:
    alone = Trainer(job(samples, tmp_path / "1", workers=1, worker_gpus=1)).fit().metrics
    two = Trainer(job(samples, tmp_path / "2", workers=2, worker_gpus=0.5)).fit().metrics

    assert two["model_digest"] == alone["model_digest"]
    assert alone["eval"]["auc"] > 0.7
