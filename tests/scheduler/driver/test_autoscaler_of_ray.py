"""A job makes Ray's autoscaler add nodes and remove them, and trains meanwhile."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from autoscaling_ray import AutoscalingRay, autoscaling_ray, node_type
from command_here import run_here

# More than the job trains before it is told to stop: a node takes half a minute to come where the
# machine has other work to do.
EPOCHS = 200
ROWS, BATCH_SIZE = 5000, 32
BATCHES = -(-ROWS // BATCH_SIZE)  # of an epoch
LIMIT_SECONDS = 600.0


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
    """A job that runs, and what is seen of it and of its cluster.

    Args:
        run: its directory.
        log: of its driver.
    """

    cluster: AutoscalingRay
    driver: subprocess.Popen[bytes]
    run: Path
    log: Path
    servers_wanted: int = 1
    timeline: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.began = time.monotonic()

    def look(self) -> dict[str, Any]:
        """Return how things are now; what has changed is kept."""
        nodes = self.cluster.nodes()
        path = self.run / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        line = json.loads(lines[-1]) if lines else {}
        up = line.get("all_workers", {})
        seen = {
            "workers wanted": line.get("workers_wanted", 1),
            "worker nodes": nodes.get("worker", 0),
            "workers": up.get("count", 0) - up.get("lost", 0),
            "servers wanted": self.servers_wanted,
            "server nodes": nodes.get("ps", 0),
            "servers": line.get("servers", 0),
        }
        now = {
            "seconds": round(time.monotonic() - self.began, 1),
            **seen,
            "samples": line.get("samples", 0),
        }
        if not self.timeline or any(self.timeline[-1][name] != seen[name] for name in seen):
            self.timeline.append(now)
        return now

    def until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Look until something is so; return what was seen then."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while not condition(seen := self.look()):
            if time.monotonic() > deadline or self.driver.poll():
                raise AssertionError(
                    f"it never came to that:\n{self.table()}\n{self.log.read_text()[-5000:]}\n"
                    f"{self.cluster.log()}"
                )
            time.sleep(0.25)
        return seen

    def until_it_trains(self) -> dict[str, Any]:
        """Look until more samples are trained than now."""
        samples = self.look()["samples"]
        return self.until(lambda seen: seen["samples"] > samples)

    def control(self, *command: str) -> None:
        done = run_here("control", self.run, *command)
        assert done.returncode == 0, done.stderr

    def want_servers(self, count: int) -> None:
        self.control("servers", str(count))
        self.servers_wanted = count

    def table(self) -> str:
        """Return the timeline as a table, with the samples per second until the next line."""
        names = [name for name in self.timeline[0] if name != "samples"]
        rows = [[*names, "samples/s"], ["---"] * (len(names) + 1)]
        for seen, then in zip(self.timeline, [*self.timeline[1:], self.look()], strict=True):
            seconds = then["seconds"] - seen["seconds"]
            rate = (then["samples"] - seen["samples"]) / seconds if seconds else 0.0
            rows.append([*(str(seen[name]) for name in names), f"{rate:.0f}"])
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)


@contextmanager
def watched(cluster: AutoscalingRay, job: dict[str, Any], folder: Path) -> Iterator[Watched]:
    """Run a job in a process of its own, which ends with the test however that ends."""
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    log = folder / "driver.log"
    command = [sys.executable, "-m", "synchromesh", "train", str(folder / "job.yaml")]
    with open(log, "wb") as file:
        driver = subprocess.Popen(command, env=os.environ, stdout=file, stderr=file)
    try:
        yield Watched(cluster, driver, Path(job["run"]["dir"]), log)
    finally:
        driver.kill()
        driver.wait()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_job_adds_nodes_and_gives_them_back_and_trains_every_sample_once(
    cluster: AutoscalingRay, samples: Path, tmp_path: Path
) -> None:
    """Workers as the policy decides, servers as somebody asks; then it is told to stop."""
    job = {
        "seed": 3,
        "data": {
            "train": str(samples / "train-*.parquet"),
            "dense": ["d1", "d2"],
            "sparse": ["a", "b"],
            "batch_size": BATCH_SIZE,
            "epochs": EPOCHS,
        },
        "embedding": {"dim": 4},
        "model": {"type": "dlrm", "bottom_mlp": [8], "top_mlp": [8]},
        "training": {"global_batch": 2 * BATCH_SIZE, "mode": "async"},
        "cluster": {
            "workers": 1,
            "max_workers": 3,
            "servers": 1,
            "autoscale": True,
            "scaling": {"window_seconds": 3, "windows": 2, "hold_seconds": 20},
            "resources": {
                "server": {"ps": 1},
                "worker": {"worker": 1},
                "coordinator": {"coordinator": 1},
            },
            "labels": {"server": {"role": "ps"}, "worker": {"role": "worker"}},
            "start_timeout_seconds": LIMIT_SECONDS,
            # What takes no processor pays, however few there are of them.
            "inject": [{"kind": "slow", "index": [0, 1, 2], "least_seconds": 0.5}],
        },
        "run": {
            "dir": str(tmp_path / "run"),
            "progress_every_seconds": 1,
            "allow_faults": True,
        },
    }
    assert cluster.nodes() == {"head": 1}

    with watched(cluster, job, tmp_path) as it:
        it.until(lambda seen: seen["worker nodes"] == 1 and seen["workers"] == 1)
        it.until_it_trains()
        it.until(lambda seen: seen["worker nodes"] == 3 and seen["workers"] == 3)
        it.until_it_trains()
        it.want_servers(2)
        it.until(lambda seen: seen["server nodes"] == 2 and seen["servers"] == 2)
        it.until_it_trains()
        it.want_servers(1)
        it.until(lambda seen: seen["server nodes"] == 1 and seen["servers"] == 1)
        it.until_it_trains()
        it.control("workers", "1")
        it.until(lambda seen: seen["worker nodes"] == 1)
        it.until_it_trains()
        it.control("stop")
        it.until(lambda seen: it.driver.poll() == 0)
        it.until(lambda seen: seen["worker nodes"] == seen["server nodes"] == 0)
        print(f"\n{it.table()}", flush=True)

    metrics = json.loads((tmp_path / "run" / "result.json").read_text())
    # Batches are given out in their order, and all that were given out are completed: what is
    # trained are so many epochs, and the first batches of another.
    epochs, batches = divmod(metrics["global_step"], BATCHES)
    assert metrics["samples_trained"] == epochs * ROWS + batches * BATCH_SIZE
    assert metrics["ledger"]["applied"] == metrics["global_step"]
    assert (metrics["samples_dropped"], metrics["samples_skipped"]) == (0, 0)
    assert metrics["redone_steps"] == 0
    assert [recovery["kind"] for recovery in metrics["recoveries"]] == ["move", "move"]
    assert [(m["before"], m["after"]) for m in metrics["server_moves"]] == [(1, 2), (2, 1)]
    paid = [d for d in metrics["scalings"] if d["role"] == "worker" and d["cause"] == "gain"]
    assert {(1, 2), (2, 3)} <= {(d["before"], d["after"]) for d in paid}
    doubled = [d for d in paid if d["after"] == 2 and d["realised"] is not None]
    assert doubled[-1]["realised"] > 1.3 * doubled[-1]["rate"]
