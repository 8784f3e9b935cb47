"""Whole jobs that clip the norm of the dense gradient."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ps.checkpoint.read import CheckpointReader
from scheduler import JobConfig, Result, Trainer
from scheduler.job.specs import model_spec
from worker.models import build_model, initial_parameters

BATCH, ROWS, RATE, LIMIT = 64, 5000, 0.5, 0.001


def job(samples: Path, run: Path, *, mode: str, limit: float | None, servers: int) -> JobConfig:
    return JobConfig.from_dict(
        {
            "seed": 3,
            "data": {
                "train": str(samples / "train-*.parquet"),
                "dense": ["d1", "d2"],
                "dense_transform": "log1p",
                "sparse": ["a", "b"],
                "batch_size": BATCH,
            },
            "embedding": {"dim": 4},
            # More than a block of parameters, so that every server holds some.
            "model": {
                "type": "dlrm",
                "bottom_mlp": [64],
                "top_mlp": [128, 32],
                "optimizer": {"type": "sgd", "learning_rate": RATE},
                "clip_global_norm": limit,
            },
            "training": {"mode": mode, "global_batch": 4 * BATCH},
            "cluster": {"workers": 2, "servers": servers},
            "run": {"dir": str(run)},
        }
    )


def trained(config: JobConfig) -> tuple[Result, float]:
    """The result, and how far the dense parameters are from where they started."""
    result = Trainer(config).fit()
    spec = model_spec(config)
    initial = initial_parameters(build_model(spec), spec.seed)
    reader = CheckpointReader(result.checkpoint)
    assert reader.store.dense_clip_norm == config.model.clip_global_norm
    final = reader.dense_vector()
    return result, float(np.linalg.norm(final.astype(np.float64) - initial))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_no_step_moves_the_parameters_further_than_the_limit(
    jobs_in_threads: None, samples: Path, tmp_path: Path, mode: str
) -> None:
    """SGD moves by its rate times the gradient, so that a job has a longest way to go."""
    options: dict[str, Any] = {"mode": mode, "servers": 2}
    free, way = trained(job(samples, tmp_path / "free", limit=None, **options))
    clipped, short_way = trained(job(samples, tmp_path / "clipped", limit=LIMIT, **options))

    steps = clipped.metrics["global_step"]
    assert steps == free.metrics["global_step"] == {"sync": 20, "async": 79}[mode]
    assert clipped.metrics["samples_trained"] == ROWS
    assert 0 < short_way <= steps * RATE * LIMIT * 1.0001 < way


def test_a_clipped_model_has_the_same_bits_on_any_number_of_servers(
    jobs_in_threads: None, samples: Path, tmp_path: Path
) -> None:
    digests = {
        Trainer(job(samples, tmp_path / str(servers), mode="sync", limit=LIMIT, servers=servers))
        .fit()
        .metrics["model_digest"]
        for servers in (1, 3)
    }

    assert len(digests) == 1
