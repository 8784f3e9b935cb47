"""Whole jobs on a stream, in threads: what arrives is trained once, whoever dies."""

import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray_of_threads import RayOfThreads

from scheduler import JobConfig, Trainer

ROWS, PER_FILE = 1500, 100


def job(stream: Path, run: Path, **sections: Any) -> JobConfig:
    adagrad = {"type": "adagrad", "initial_accumulator": 1e-4}
    data = {
        "stream": {"dir": str(stream), "close_seconds": 0.2, "poll_seconds": 0.02},
        "dense": ["d1", "d2"],
        "sparse": ["a", "b"],
        "batch_size": 64,
    }
    return JobConfig.from_dict(
        {
            "data": {**data, **sections.pop("data", {})},
            "embedding": {"dim": 4, "optimizer": adagrad},
            "model": {"type": "dlrm", "bottom_mlp": [8], "top_mlp": [8], "optimizer": adagrad},
            "training": {
                "mode": "sync",
                "global_batch": 128,
                "online": {"until": {"idle_seconds": 1.0}},
                **sections.pop("training", {}),
            },
            "cluster": {"workers": 2, "servers": 2},
            "run": {"dir": str(run), **sections.pop("run", {})},
            **sections,
        }
    )


@pytest.fixture(scope="module")
def files(samples: Path) -> list[pa.Table]:
    """Tables that arrive, of rows that can be told apart by `id`."""
    table = pq.read_table(samples / "train-0.parquet").slice(0, ROWS)
    table = table.append_column("id", pa.array(range(table.num_rows)))
    return [table.slice(first, PER_FILE) for first in range(0, table.num_rows, PER_FILE)]


def write(files: list[pa.Table], to: Path, *, first: int = 0) -> None:
    to.mkdir(exist_ok=True)
    for number, table in enumerate(files, first):
        partial = to / f".part-{number}.parquet"
        pq.write_table(table, partial, row_group_size=60)
        partial.rename(to / f"part-{number}.parquet")


def test_what_arrives_while_the_job_runs_is_trained_once(
    jobs_in_threads: RayOfThreads, files: list[pa.Table], tmp_path: Path
) -> None:
    stream = tmp_path / "stream"
    write(files[:3], stream)
    more = threading.Timer(1.0, write, (files[3:], stream), {"first": 3})
    more.start()

    metrics = Trainer(job(stream, tmp_path / "run")).fit().metrics

    more.join()
    assert metrics["samples_trained"] == ROWS
