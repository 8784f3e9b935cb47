"""A running job that is looked at and changed from outside, by its run directory."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from command_here import run_here
from small_dlrm import small_dlrm

from ps.checkpoint.read import CheckpointReader
from scheduler import JobConfig, Result, Trainer
from scheduler.errors import ControlError
from scheduler.run.control_file import find_job
from scheduler.run.directory import CONTROL_FILE, FAILURE_FILE, JOB_FILE, RESULT_FILE

LIMIT_SECONDS = 240.0  # kernels may have to be compiled first, beside other tests
SLOW = {"kind": "slow", "index": [0, 1], "least_seconds": 0.05}


def job(samples: Path, run: Path, **training: Any) -> JobConfig:
    sections: dict[str, Any] = {
        "data": {"batch_size": 32, "epochs": 2000},
        "training": {"global_batch": 64, **training},
        # Slow, so that there is some of the machine for the processes that come.
        "cluster": {"inject": [SLOW]},
        "run": {"progress_every_seconds": 0.2, "allow_faults": True},
    }
    return JobConfig.from_dict(small_dlrm(samples, run, **sections))


class Running:
    """A job in a thread, and commands beside it."""

    def __init__(self, config: JobConfig) -> None:
        self.path = Path(config.run.dir)
        self.result: Result | None = None
        self._config = config
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def control(self, *command: str, code: int = 0, outside: bool = False) -> str:
        """Return what a command prints; it joins the cluster from outside, or is there already."""
        arguments = ["control", str(self.path), *command]
        if outside:
            program = [sys.executable, "-m", "synchromesh", *arguments]
            done = subprocess.run(program, capture_output=True, text=True, check=False)
        else:
            done = run_here(*arguments)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout if code == 0 else done.stderr

    def wait(self, condition: Any) -> dict[str, Any]:
        """Return the first line of metrics for which a condition holds."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while time.monotonic() < deadline:
            path = self.path / "metrics.jsonl"
            text = path.read_text() if path.exists() else ""
            for whole in text.splitlines(keepends=True):
                if not whole.endswith("\n"):
                    break  # it is being written
                line: dict[str, Any] = json.loads(whole)
                if condition(line):
                    return line
            time.sleep(0.1)
        raise AssertionError("it never came to that")

    def end(self) -> Result:
        self._thread.join(timeout=LIMIT_SECONDS)
        assert self.result is not None, "the job has not ended"
        return self.result

    def _run(self) -> None:
        self.result = Trainer(self._config).fit()


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_running_job_shifts_grows_saves_and_stops(
    samples: Path, tmp_path: Path, ray_cluster: None
) -> None:
    running = Running(job(samples, tmp_path / "run", mode="sync"))
    running.wait(lambda line: line["samples"] > 0)

    assert "mode gba" in running.control("mode", "gba", outside=True)
    running.wait(lambda line: line["mode"] == "gba" and line["shifts"] == [])
    running.control("servers", "3")
    running.wait(lambda line: line["server_moves"])
    running.control("servers", "2")
    running.wait(lambda line: line["server_moves"] and line["server_moves"][0]["after"] == 2)
    running.control("workers", "3")
    running.wait(lambda line: "2" in line["workers"] and line["workers"]["2"]["batches"] > 0)
    checkpoint = running.control("checkpoint").strip()
    too_many = running.control("workers", "17", code=1)
    too_many_servers = running.control("servers", "4097", code=2)
    running.control("mode", "sync")
    running.control("workers", "1")
    status = json.loads(running.control("status", "--json"))
    running.wait(lambda line: line["global_step"] > status["global_step"])
    running.control("stop")
    metrics = running.end().metrics

    assert [entry["mode"] for entry in metrics["mode_history"]] == ["sync", "gba", "sync"]
    assert all(entry["seconds_to_next_step"] > 0 for entry in metrics["mode_history"][1:])
    assert sum(entry["samples"] for entry in metrics["mode_history"]) == metrics["samples_trained"]
    assert "17 workers are wanted, cluster.max_workers is 16" in too_many
    assert "'4097' is neither a number from 1 to 4096 nor auto" in too_many_servers
    moves = [(move["before"], move["after"]) for move in metrics["server_moves"]]
    assert moves == [(2, 3), (3, 2)]
    assert metrics["redone_steps"] == 0
    assert (status["servers"], status["servers_wanted"]) == (2, 2)
    assert status["mode"] == "sync"
    assert status["workers_wanted"] == 1
    assert CheckpointReader(checkpoint).manifest.job["mode"] == "gba"
    assert metrics["worker_restarts"] == 0
    assert metrics["samples_trained"] == metrics["global_step"] * 64 or (
        metrics["samples_trained"] % 5000 != 0
    ), "every sample of a step is counted"
    assert not (running.path / CONTROL_FILE).exists()
    assert "has ended" in running.control("status", code=2)


@pytest.mark.ray
@pytest.mark.slow
def test_a_paused_job_waits_and_goes_on(samples: Path, tmp_path: Path, ray_cluster: None) -> None:
    running = Running(job(samples, tmp_path / "run", mode="async"))
    running.wait(lambda line: line["samples"] > 0)

    assert "async, paused" in running.control("pause")
    time.sleep(0.5)
    before, after = (json.loads(running.control("status", "--json")) for _ in range(2))
    running.control("resume")
    running.wait(lambda line: line["samples"] > after["samples"])
    refused = running.control("mode", "backup", code=2)
    running.control("stop")

    assert after["samples"] == before["samples"] > 0
    assert after["paused"]
    assert "'backup' is not one of 'sync'" in refused
    assert running.end().metrics["samples_trained"] > after["samples"]


@pytest.mark.ray
@pytest.mark.slow
def test_modes_for_comparison_stay_as_they_are(
    samples: Path, tmp_path: Path, ray_cluster: None
) -> None:
    running = Running(job(samples, tmp_path / "run", mode="ssp"))
    running.wait(lambda line: line["samples"] > 0)

    refused = running.control("mode", "sync", code=1)
    running.control("stop")

    assert "mode ssp is for comparison" in refused
    running.end()


@pytest.mark.parametrize(
    ("files", "text"),
    [
        ([], "is not a run directory"),
        ([JOB_FILE], "no job runs in"),
        ([JOB_FILE, RESULT_FILE], "has ended"),
        ([JOB_FILE, FAILURE_FILE], "ended before its end"),
    ],
)
def test_a_run_without_a_running_job_is_told_so(
    files: list[str], text: str, tmp_path: Path
) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")

    with pytest.raises(ControlError, match=text):
        find_job(tmp_path)


def test_a_control_file_that_lacks_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / JOB_FILE).write_text("")
    (tmp_path / CONTROL_FILE).write_text(json.dumps({"namespace": "n"}))

    with pytest.raises(ControlError, match="has no text for auth_mode, coordinator"):
        find_job(tmp_path)
