"""Whole jobs whose workers report by relays, in threads."""

from pathlib import Path
from typing import Any

import pytest
from ray_of_threads import RayOfThreads

from scheduler import JobConfig, Trainer
from scheduler.job.config import ClusterConfig
from worker.relay.server import RelayServer

ROWS = 3000


def job(samples: Path, run: Path, *, relays: int) -> JobConfig:
    adagrad = {"type": "adagrad", "initial_accumulator": 1e-4}
    return JobConfig.from_dict(
        {
            "seed": 3,
            "data": {
                "train": str(samples / "train-[12].parquet"),
                "eval": str(samples / "test.parquet"),
                "dense": ["d1", "d2"],
                "sparse": ["a", "b"],
                "batch_size": 64,
                "epochs": 2,
            },
            "embedding": {"dim": 4, "optimizer": adagrad},
            "model": {"type": "dlrm", "bottom_mlp": [8], "top_mlp": [8], "optimizer": adagrad},
            "training": {"mode": "sync", "global_batch": 128},
            "cluster": {"workers": 3, "servers": 2, "relays": relays},
            "run": {"dir": str(run)},
        }
    )


def test_a_job_whose_relays_fail_under_way_trains_the_same_model_and_starts_nothing_anew(
    jobs_in_threads: RayOfThreads, samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = Trainer(job(samples, tmp_path / "calm", relays=0)).fit().metrics
    answered: dict[int, int] = {}
    answer = RelayServer._answer

    def answer_some(relay: RelayServer, body: bytes) -> None:
        number = answered[id(relay)] = answered.get(id(relay), 0) + 1
        if number == 10:
            raise RuntimeError("it fails")
        answer(relay, body)

    monkeypatch.setattr(RelayServer, "_answer", answer_some)

    metrics: dict[str, Any] = Trainer(job(samples, tmp_path / "run", relays=2)).fit().metrics

    assert sorted(answered.values()) == [10, 10]
    assert metrics["eval"] == calm["eval"]
    assert metrics["global_step"] == calm["global_step"]
    assert metrics["worker_restarts"] == 0


@pytest.mark.parametrize(
    ("cluster", "relays"),
    [
        ({}, 0),
        ({"workers": 255}, 0),
        ({"workers": 256}, 1),
        ({"workers": 8, "max_workers": 1024}, 2),
        ({"workers": 4096}, 8),
        ({"workers": 4096, "relays": 0}, 0),
        ({"workers": 2, "relays": 3}, 3),
    ],
)
def test_a_job_of_many_workers_has_relays(cluster: dict[str, Any], relays: int) -> None:
    assert ClusterConfig(**cluster).num_relays == relays
