"""GPUs in a job file: what may be asked for, and of which models."""

from typing import Any

import pytest

from scheduler.job.config import JobConfig
from scheduler.job.errors import ConfigError

TORCH = {"type": "torch", "class": "a:B"}


def config(cluster: dict[str, Any], model: dict[str, Any] = TORCH) -> JobConfig:
    return JobConfig.from_dict(
        {
            "data": {"train": "a/*.parquet", "sparse": ["C1"]},
            "model": model,
            "cluster": cluster,
            "run": {"dir": "x"},
        }
    )


@pytest.mark.parametrize("share", [0, 0.0001, 0.5, 1])
def test_a_worker_has_a_gpu_or_a_share_of_one(share: float) -> None:
    assert config({"worker_gpus": share}).cluster.worker_gpus == share
    assert config({}).cluster.worker_gpus == 0


def test_options_for_gpus_go_with_one() -> None:
    options = {"cuda_graphs": True, "precision": "tf32"}

    assert config({"worker_gpus": 1}, {**TORCH, **options}).model.options.items() >= options.items()
    assert config({}, {**TORCH, "cuda_graphs": False, "precision": "bf16"})


@pytest.mark.parametrize(
    ("cluster", "model", "said"),
    [
        ({"worker_gpus": 2}, TORCH, "cluster.worker_gpus: must be 0, 1 or a share between them"),
        ({"worker_gpus": 2}, TORCH, "a worker computes on one GPU: let there be more workers"),
        ({"worker_gpus": -1}, TORCH, "cluster.worker_gpus: must be 0, 1 or a share between them"),
        ({"worker_gpus": "all"}, TORCH, "cluster.worker_gpus: must be 0, 1 or a share between"),
        ({"worker_gpus": True}, TORCH, "cluster.worker_gpus must be a number, got True"),
        (
            {"worker_gpus": 0.5},
            {"type": "dlrm"},
            "cluster.worker_gpus is 0.5, and a model of type dlrm computes on the CPU",
        ),
        (
            {"worker_gpus": 1},
            {**TORCH, "cuda_graphs": "yes please"},
            "model.cuda_graphs must be true or false, got 'yes please'",
        ),
        ({}, {**TORCH, "cuda_graphs": True}, "model.cuda_graphs: true is for GPUs, and cluster."),
        ({}, {**TORCH, "precision": "tf32"}, "model.precision: tf32 is for GPUs, and cluster."),
        (
            {"resources": {"worker": {"GPU": 1}}},
            TORCH,
            "cluster.resources: worker names GPU, which is no resource of its own: write"
            " cluster.worker_gpus",
        ),
        (
            {"resources": {"server": {"CPU": 1}}},
            TORCH,
            "cluster.resources: server names CPU, which is no resource of its own: write"
            " cluster.server_cpus",
        ),
        ({"resources": {"server": {"GPU": 1}}}, TORCH, "no resource of its own: leave it out"),
    ],
)
def test_mistakes_are_named_with_what_to_write(
    cluster: dict[str, Any], model: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        config(cluster, model)

    assert said in str(caught.value)
