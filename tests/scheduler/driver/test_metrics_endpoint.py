"""What a job exports is found at the endpoint that Prometheus scrapes on every node."""

import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_here import run_here

from scheduler import JobConfig, Trainer
from scheduler.coordinator.exported_figures import coordinator_figures
from scheduler.coordinator.ledger_state import Samples, Tallies
from scheduler.coordinator.staleness import Histogram
from scheduler.coordinator.state import WorkerFigures
from scheduler.coordinator.status import Status


def test_workers_and_shards_have_figures_of_their_own() -> None:
    status = Status(
        mode="sync",
        applied_step=4,
        samples=Samples(applied=80, dropped=1, skipped=2),
        batches=Tallies(reissued=6),
        parameter_staleness=Histogram({1: 2, 3: 1}),
        shard_lag=(0, 1),
        workers={3: WorkerFigures(batches=4, samples=40, seconds=2.0)},
    )

    found = {
        (f.name, f.role, f.index, *f.labels.values()): f.value for f in coordinator_figures(status)
    }

    assert found["global_step", "coordinator", 0] == 4
    assert found["samples", "coordinator", 0, "dropped"] == 1
    assert found["batches", "coordinator", 0, "reissued"] == 6
    assert found["staleness_steps", "coordinator", 0, "parameter", "p99"] == 3
    assert found["shard_lag_steps", "server", 1] == 1
    assert found["batch_seconds", "worker", 3] == 2.0
    assert found["mode", "coordinator", 0, "sync"] == 1.0
    assert found["mode", "coordinator", 0, "gba"] == 0.0
    assert ("eval_auc", "coordinator", 0) not in found


def scraped() -> str:
    import ray

    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.read().decode()
    except (urllib.error.URLError, TimeoutError):
        return ""


def samples_of(text: str, name: str) -> Iterator[dict[str, str]]:
    for line in text.splitlines():
        if line.startswith(f"ray_synchromesh_{name}{{"):
            yield dict(re.findall(r'(\w+)="([^"]*)"', line))


@pytest.mark.ray
def test_a_job_s_figures_can_be_scraped(ray_cluster: None, samples: Path, tmp_path: Path) -> None:
    slow = {"kind": "slow", "index": 0, "least_seconds": 0.05}
    job: dict[str, Any] = {
        "data": {
            "train": str(samples / "train-*.parquet"),
            "sparse": ["a", "b"],
            "batch_size": 64,
            "epochs": 1000,
        },
        "embedding": {"dim": 4},
        "model": {"type": "deepfm", "mlp": [8]},
        "training": {"max_seconds": 60},
        "cluster": {"workers": 1, "servers": 1, "inject": [slow]},
        "run": {
            "dir": str(tmp_path / "watched"),
            "progress_every_seconds": 0.5,
            "allow_faults": True,
        },
    }

    def found(name: str) -> list[dict[str, str]]:
        """Of this job: those before it on the cluster have left theirs."""
        return [s for s in samples_of("\n".join(seen), name) if s["run"] == "watched"]

    names = ("table_rows", "samples_total", "batches_computed_total")
    seen: list[str] = []
    job_of = threading.Thread(target=Trainer(JobConfig.from_dict(job)).fit)
    job_of.start()
    while job_of.is_alive() and not all(map(found, names)):
        seen.append(scraped())
        job_of.join(0.3)
    run_here("control", tmp_path / "watched", "stop")
    job_of.join()

    tables = {(s["role"], s["index"], s["table"]) for s in found("table_rows")}
    assert tables >= {("server", "0", "a"), ("server", "0", "b")}
    assert "applied" in {s["outcome"] for s in found("samples_total")}
    assert {s["role"] for s in found("batches_computed_total")} == {"worker"}
