"""Every rule of admission and eviction, and rows of 16 bits, in whole jobs."""

from pathlib import Path
from typing import Any

import pytest

from scheduler import JobConfig, Trainer, TrainingError

TABLES: dict[str, Any] = {
    "a": {
        "initializer": {"type": "glorot_uniform", "fan_in": 20},
        "value_dtype": "bfloat16",
        "admission": {"type": "probabilistic", "probability": 0.05},
        "eviction": {"l2_weight_threshold": 0.5, "every_steps": 7},
    },
    "b": {
        "admission": {"type": "bloom", "min_count": 3, "max_elements": 500},
        "eviction": {"steps_to_live": 6, "l2_weight_threshold": 0.0001, "every_steps": 3},
    },
    "tags": {
        "initializer": {"type": "zeros"},
        "value_dtype": "float16",
        "eviction": {"max_rows": 300_000, "max_bytes": 10**9, "evict_first": "least_recent"},
    },
}


def train(
    samples: Path,
    run: Path,
    servers: int,
    *,
    init_from: str | None = None,
    tables: dict[str, Any] = TABLES,
) -> Any:
    adagrad = {"type": "adagrad", "learning_rate": 0.05, "initial_accumulator": 0.01}
    job = {
        "seed": 3,
        "data": {
            "train": str(samples / "train-*.parquet"),
            "dense": ["d1", "d2"],
            "sparse": ["a", "b", {"name": "tags", "column": "tags"}],
            "batch_size": 64,
        },
        "embedding": {"dim": 4, "optimizer": adagrad},
        "tables": tables,
        "model": {"type": "dlrm", "bottom_mlp": [8], "top_mlp": [8], "optimizer": adagrad},
        "training": {"mode": "sync", "global_batch": 256},
        "cluster": {"workers": 1, "servers": servers},
        "run": {"dir": str(run), "init_from": init_from},
    }
    return Trainer(JobConfig.from_dict(job)).fit()


@pytest.mark.slow
def test_rules_act_alike_on_one_and_three_servers_and_after_a_restart(
    jobs_in_threads: None, samples: Path, tmp_path: Path
) -> None:
    one, three = (train(samples, tmp_path / str(n), n) for n in (1, 3))

    assert one.metrics["model_digest"] == three.metrics["model_digest"]
    tables = one.metrics["tables"]
    assert tables["a"]["evicted"] > 0
    assert tables["b"]["evicted"] > 0
    assert 0 < tables["b"]["rows"] < 500, "most of the ids are too rare"
    assert tables["tags"]["evicted"] == 0, "far below its budget"

    again = {
        train(samples, tmp_path / f"again-{n}", n, init_from=source.path).metrics["model_digest"]
        for n, source in ((3, one), (1, three))
    }
    assert len(again) == 1


def test_tables_without_room_are_refused_in_one_line_before_training(
    jobs_in_threads: None, samples: Path, tmp_path: Path
) -> None:
    bloom = {
        "type": "bloom",
        "min_count": 3,
        "max_elements": 2**40,
        "false_positive_probability": 1e-6,
        "counter_bits": 64,
    }

    with pytest.raises(
        TrainingError, match=r"^Bloom filters need .* \([0-9.]+ TiB\). Lower .*bits$"
    ):
        train(samples, tmp_path / "run", 2, tables={"a": {"admission": bloom}})
