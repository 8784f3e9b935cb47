"""A job makes Ray's autoscaler add nodes and remove them, and trains meanwhile."""

import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from autoscaling_ray import AutoscalingRay, autoscaling_ray, node_type
from command_here import run_here
from held_end import hold_the_end

from scheduler import JobConfig, Result, Trainer

EPOCHS = 10
LATE_STEP = 1500  # of 1,570; a batch is a step
# Nodes are processes, and a machine with other work to do starts them in half a minute.
LIMIT_SECONDS = 240.0


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[AutoscalingRay]:
    """A head, from none to three nodes for workers, and up to two for servers."""
    import ray

    ray.shutdown()
    types = {
        "ps": node_type(2, cpus=1, role="ps"),
        "worker": node_type(3, cpus=1, role="worker"),
    }
    with (
        tempfile.TemporaryDirectory(prefix="sm-") as folder,
        autoscaling_ray(Path(folder), types) as cluster,
    ):
        for name, value in {**cluster.environment, "RAY_ADDRESS": cluster.address}.items():
            monkeypatch.setenv(name, value)
        cluster.join("test")
        yield cluster
        ray.shutdown()


@dataclass
class Watched:
    """A job in a thread, and what is seen of it and of its cluster."""

    cluster: AutoscalingRay
    config: JobConfig
    timeline: list[dict[str, Any]] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.began = time.monotonic()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        self.results.append(Trainer(self.config).fit())

    def look(self) -> dict[str, Any]:
        """Return how things are now; what has changed is kept."""
        nodes = self.cluster.nodes()
        path = Path(self.config.run.dir) / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        line = json.loads(lines[-1]) if lines else {}
        up = line.get("all_workers", {})
        seen = {
            "worker nodes": nodes.get("worker", 0),
            "server nodes": nodes.get("ps", 0),
            "wanted": line.get("workers_wanted", 0),
            "at work": up.get("count", 0) - up.get("lost", 0),
            "servers": line.get("servers", 0),
        }
        if not self.timeline or any(self.timeline[-1][name] != seen[name] for name in seen):
            self.timeline.append(
                {
                    "seconds": round(time.monotonic() - self.began, 1),
                    **seen,
                    "samples": line.get("samples", 0),
                }
            )
        return self.timeline[-1]

    def until(self, condition: Callable[[dict[str, Any]], bool]) -> None:
        """Look until something is so."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while not condition(self.look()):
            late = time.monotonic() > deadline
            assert not late, f"it never came to that: {self.timeline}\n{self.cluster.log()}"
            time.sleep(0.25)

    def control(self, *command: str) -> None:
        done = run_here("control", self.config.run.dir, *command)
        assert done.returncode == 0, done.stderr


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_adds_nodes_and_gives_them_back_and_trains_every_sample_once(
    cluster: AutoscalingRay, samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers as the policy decides, servers as somebody asks; the job waits for it at its end."""
    ended = threading.Event()
    hold_the_end(monkeypatch, ended.is_set, at_step=lambda: LATE_STEP)
    config = JobConfig.from_dict(
        {
            "seed": 3,
            "data": {
                "train": str(samples / "train-*.parquet"),
                "dense": ["d1", "d2"],
                "sparse": ["a", "b"],
                "batch_size": 32,
                "epochs": EPOCHS,
            },
            "embedding": {"dim": 4},
            "model": {"type": "dlrm", "bottom_mlp": [8], "top_mlp": [8]},
            "training": {"global_batch": 64, "mode": "async"},
            "cluster": {
                "workers": 1,
                "max_workers": 3,
                "servers": 1,
                "autoscale": True,
                "scaling": {"window_seconds": 2, "windows": 2, "hold_seconds": 20},
                "resources": {
                    "server": {"ps": 1},
                    "worker": {"worker": 1},
                    "coordinator": {"coordinator": 1},
                },
                "labels": {"server": {"role": "ps"}, "worker": {"role": "worker"}},
                "start_timeout_seconds": LIMIT_SECONDS,
                # What takes no processor pays, however few there are of them.
                "inject": [{"kind": "slow", "index": [0, 1, 2], "least_seconds": 0.3}],
            },
            "run": {
                "dir": str(tmp_path / "run"),
                "progress_every_seconds": 1,
                "allow_faults": True,
            },
        }
    )
    assert cluster.nodes() == {"head": 1}

    job = Watched(cluster, config)
    job.until(lambda seen: seen["worker nodes"] == 1 and seen["at work"] == 1)
    job.until(lambda seen: seen["worker nodes"] == 3 and seen["at work"] == 3)
    grown = job.look()
    job.control("servers", "2")
    job.until(lambda seen: seen["server nodes"] == 2 and seen["servers"] == 2)
    spread = job.look()
    job.control("servers", "1")
    job.until(lambda seen: seen["server nodes"] == 1 and seen["servers"] == 1)
    job.control("workers", "1")
    job.until(lambda seen: seen["worker nodes"] == 1)
    shrunk = job.look()
    ended.set()
    job.until(lambda seen: bool(job.results))
    job.until(lambda seen: seen["worker nodes"] == seen["server nodes"] == 0)

    print(json.dumps({"timeline": job.timeline}), flush=True)
    metrics = job.results[0].metrics
    assert metrics["samples_trained"] == 5000 * EPOCHS
    assert (metrics["samples_dropped"], metrics["samples_skipped"]) == (0, 0)
    assert metrics["ledger"]["applied"] == metrics["global_step"]
    assert [recovery["kind"] for recovery in metrics["recoveries"]] == ["move", "move"]
    assert [(m["before"], m["after"]) for m in metrics["server_moves"]] == [(1, 2), (2, 1)]
    assert metrics["redone_steps"] == 0
    assert 0 < grown["samples"] <= spread["samples"] <= shrunk["samples"] < 5000 * EPOCHS
    decisions = [(d["before"], d["after"], d["cause"]) for d in metrics["scalings"]]
    assert decisions[:2] == [(1, 2, "gain"), (2, 3, "gain")]
    assert metrics["scalings"][0]["realised"] > 1.3 * metrics["scalings"][0]["rate"]
    assert os.environ["RAY_ADDRESS"] == cluster.address
