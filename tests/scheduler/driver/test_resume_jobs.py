"""A job whose driver is killed, and stopped, goes on when it is started again: the same bits."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray_of_threads import ray_of_threads, train_in_threads
from saved_job import saved_job

from scheduler import JobConfig, Result, Trainer
from scheduler.run.directory import checkpoints_of

pytestmark = pytest.mark.ray

ROWS = 5000


# So that a job is still under way when it is ended.
SLOW = {"kind": "slow", "index": 0, "least_seconds": 0.05}


def job(
    samples: Path, run: Path, *faults: dict[str, Any], servers: int = 1, resume: str = "auto"
) -> dict[str, Any]:
    return saved_job(
        samples,
        run,
        cluster={"servers": servers, "inject": list(faults)},
        checkpoint={"keep": 1},
        run={"resume": resume, "allow_faults": True},
    )


def start(values: dict[str, Any], folder: Path) -> subprocess.Popen[str]:
    (folder / "job.yaml").write_text(yaml.safe_dump(values))
    return subprocess.Popen(
        [sys.executable, "-m", "synchromesh", "train", str(folder / "job.yaml")],
        env={**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(what: Callable[[], bool], driver: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 90
    while not what():
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def newest_step(run: Path) -> int:
    found = checkpoints_of(run)
    return int(found[-1].name.split("-")[1]) if found else 0


@pytest.fixture(scope="module")
def undisturbed(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The same job in threads, before Ray starts: it has the same bits."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    with ray_of_threads():
        return Trainer(JobConfig.from_dict(job(samples, run, servers=2, resume="never"))).fit()


def test_a_job_that_was_killed_and_one_that_was_stopped_end_with_the_undisturbed_model(
    undisturbed: Result, ray_cluster: None, samples: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    killed = start(job(samples, run, SLOW), tmp_path)
    wait_for(lambda: newest_step(run) >= 8, killed)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=30)

    stopped = start(job(samples, run, SLOW), tmp_path)
    wait_for(lambda: newest_step(run) >= 16, stopped)
    stopped.send_signal(signal.SIGTERM)
    began = time.monotonic()
    _, said = stopped.communicate(timeout=30)
    seconds = time.monotonic() - began
    at = newest_step(run)

    last = train_in_threads(JobConfig.from_dict(job(samples, run, servers=2, resume="require")))
    again = Trainer(JobConfig.from_dict(job(samples, run))).fit()

    assert stopped.returncode == 130
    assert f"can go on from step {at}" in said
    assert seconds < 10
    assert last.metrics["model_digest"] == undisturbed.metrics["model_digest"]
    assert last.metrics["samples_trained"] == 2 * ROWS
    assert last.metrics["global_step"] == undisturbed.metrics["global_step"]
    assert last.metrics["evaluations"] == undisturbed.metrics["evaluations"]
    assert again.metrics == json.loads((run / "result.json").read_text()) == last.metrics
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert sum(b["samples"] <= a["samples"] for a, b in itertools.pairwise(lines)) >= 1
    kept = [path.name for path in checkpoints_of(run)]
    assert sum(name.startswith("full") for name in kept) == 1
