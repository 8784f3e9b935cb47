"""Whole jobs on a local Ray: the same bits whatever the topology, every sample once, clear ends."""

import itertools
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray_of_threads import train_in_threads

from scheduler import JobConfig, Result, Trainer, TrainingError
from scheduler.coordinator.coordinator import Coordinator
from scheduler.coordinator.events import Command, Event
from scheduler.errors import RunDirectoryError
from worker.loop import STAGES

pytestmark = pytest.mark.ray

ROWS = 5000


def job(samples: Path, run_dir: Path, **changes: Any) -> JobConfig:
    """A small job with every kind of feature; `changes` override sections key by key."""
    data: dict[str, Any] = {
        "name": "test",
        "seed": 3,
        "data": {
            "train": str(samples / "train-*.parquet"),
            "eval": str(samples / "test.parquet"),
            "dense": ["d1", "d2"],
            "dense_transform": "log1p",
            "sparse": ["a", "b", {"name": "tags", "column": "tags", "combiner": "mean"}],
            "batch_size": 64,
            "epochs": 2,
        },
        "embedding": {"dim": 4, "optimizer": _adagrad(learning_rate=0.05)},
        "tables": {
            "b": {
                "admission": {"type": "counter", "min_count": 2},
                "eviction": {"steps_to_live": 8, "every_steps": 5},
            }
        },
        "model": {
            "type": "dlrm",
            "bottom_mlp": [8],
            "top_mlp": [8],
            "optimizer": _adagrad(learning_rate=0.02),
        },
        "training": {"mode": "sync", "global_batch": 256},
        "cluster": {"workers": 1, "servers": 1},
        "run": {"dir": str(run_dir), "progress_every_seconds": 0.5},
    }
    for section, values in changes.items():
        data[section] = {**data.get(section, {}), **values}
    return JobConfig.from_dict(data)


def _adagrad(learning_rate: float) -> dict[str, Any]:
    return {"type": "adagrad", "learning_rate": learning_rate, "initial_accumulator": 1e-4}


def processes_titled(title: str) -> list[psutil.Process]:
    me = psutil.Process()
    found = []
    for process in me.children(recursive=True):
        try:
            if process.cmdline()[:1] == [title] or " ".join(process.cmdline()).startswith(title):
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill_once_training(run_dir: Path, title: str, *, at_samples: int) -> threading.Thread:
    """Kill one process with a title once the metrics say that training is under way."""

    def wait_and_kill() -> None:
        deadline = time.monotonic() + 150
        while time.monotonic() < deadline:
            metrics = run_dir / "metrics.jsonl"
            lines = metrics.read_text().splitlines() if metrics.exists() else []
            if lines and json.loads(lines[-1])["samples"] >= at_samples:
                os.kill(processes_titled(title)[0].pid, signal.SIGKILL)
                return
            time.sleep(0.02)

    thread = threading.Thread(target=wait_and_kill)
    thread.start()
    return thread


def counts(result: Result) -> tuple[int, int, int]:
    metrics = result.metrics
    return metrics["samples_trained"], metrics["samples_dropped"], metrics["samples_skipped"]


@pytest.fixture(scope="module")
def sync_result(
    ray_cluster: None, samples: Path, tmp_path_factory: pytest.TempPathFactory
) -> Result:
    return Trainer(job(samples, tmp_path_factory.mktemp("sync") / "run")).fit()


def test_every_sample_is_trained_in_every_epoch(sync_result: Result) -> None:
    assert counts(sync_result) == (2 * ROWS, 0, 0)
    # 79 batches an epoch, 4 a step, and steps never span epochs.
    assert sync_result.metrics["global_step"] == 2 * 20


def test_the_run_directory_holds_what_the_readme_says(sync_result: Result) -> None:
    run = Path(sync_result.path)
    names = {path.name for path in run.iterdir()}
    assert {"job.yaml", "metrics.jsonl", "result.json", "checkpoints", "plan.json"} <= names
    assert "failure.json" not in names
    assert json.loads((run / "result.json").read_text()) == sync_result.metrics
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    expected = {"time", "global_step", "samples", "samples_per_second", "train_loss", "mode"}
    assert expected | {"staleness", "rows", "peak_rss_bytes", "wire_bytes"} <= set(line)
    assert {"cpu_seconds", "stage_seconds"} <= set(line)
    assert (Path(sync_result.checkpoint) / "manifest.json").exists()


def test_intervals_and_spans_account_for_every_batch(sync_result: Result) -> None:
    run = Path(sync_result.path)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    spans = [json.loads(line) for line in (run / "batches.jsonl").read_text().splitlines()]

    batches = sync_result.metrics["ledger"]["applied"]
    assert sum(w["batches"] for line in lines for w in line["workers"].values()) == batches
    stale = [line["staleness_of_interval"]["data"] for line in lines]
    assert sum(sum(counts.values()) for counts in stale) == batches
    assert lines[-1]["shard_lag"] == [0]
    assert set(lines[-1]["table_bytes"]) == set(lines[-1]["rows"])
    assert sorted(span["batch"] for span in spans) == list(range(batches))
    assert sum(span["samples"] for span in spans) == 2 * ROWS
    ends = [span["start"] + span["seconds"] for span in spans]
    assert all(a <= b["start"] + 1e-3 for a, b in zip(ends, spans[1:], strict=False))


def test_stages_are_measured_and_no_thread_s_exceed_the_time_that_passed(
    sync_result: Result,
) -> None:
    run = Path(sync_result.path)
    passed = (run / "result.json").stat().st_mtime - (run / "job.yaml").stat().st_mtime

    (worker,) = sync_result.metrics["stage_seconds"]["worker"]
    preparing = worker["read"] + worker["deduplicate"]
    assert 0 < preparing < passed
    assert 0 < sum(worker.values()) - preparing < passed
    assert set(worker) == set(STAGES)
    assert min(worker.values()) > 0

    (server,) = sync_result.metrics["stage_seconds"]["server"]
    assert 0 < sum(server.values()) - server["send"] < passed
    assert all(server[stage] > 0 for stage in ("pull", "push", "apply", "send", "idle"))
    for (seconds,) in sync_result.metrics["cpu_seconds"].values():
        assert 0 < seconds < passed * (os.cpu_count() or 1)


def test_the_moments_of_a_start_come_in_their_order_before_the_first_batch(
    sync_result: Result,
) -> None:
    moments = sync_result.metrics["started_at"]
    assert list(moments) == ["called", "planned", "ray", "servers", "coordinator", "workers"]
    spans = [json.loads(line) for line in (Path(sync_result.path) / "batches.jsonl").open()]
    in_time = [*moments.values(), min(span["start"] + span["seconds"] for span in spans)]
    assert in_time == sorted(in_time)


def test_workers_servers_and_coordinator_are_distinct_processes(sync_result: Result) -> None:
    processes = sync_result.metrics["processes"]
    assert {p["role"] for p in processes} == {"worker", "server", "coordinator"}
    pids = [p["pid"] for p in processes]
    assert len(set(pids)) == len(pids)
    assert os.getpid() not in pids


def test_rows_are_admitted_counted_and_evicted(sync_result: Result) -> None:
    table = sync_result.metrics["tables"]["b"]
    assert table["evicted"] > 0
    assert table["unadmitted"] > 0
    assert table["rows"] > 0


@pytest.mark.parametrize(("workers", "servers"), [(2, 3), (3, 2), (1, 1)])
def test_sync_gives_the_same_bits_on_any_topology(
    sync_result: Result, samples: Path, tmp_path: Path, workers: int, servers: int
) -> None:
    """One in processes, the others in threads: those of test_fault_jobs.py have more of both."""
    config = job(samples, tmp_path / "run", cluster={"workers": workers, "servers": servers})

    result = train_in_threads(config)

    assert result.metrics["model_digest"] == sync_result.metrics["model_digest"]
    assert result.metrics["eval"] == sync_result.metrics["eval"]
    assert counts(result) == (2 * ROWS, 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_killed_worker_is_replaced_and_no_sample_is_lost_or_repeated(
    ray_cluster: None,
    samples: Path,
    tmp_path: Path,
    mode: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def config(name: str) -> JobConfig:
        return job(
            samples,
            tmp_path / name,
            data={"epochs": 12, "batch_size": 64},
            training={"mode": mode},
            cluster={"workers": 2, "servers": 2},
            run={"dir": str(tmp_path / name), "progress_every_seconds": 0.1},
        )

    killer = kill_once_training(tmp_path / "killed", "ray::WorkerActor.run", at_samples=5000)
    killed = Trainer(config("killed")).fit()
    killer.join()

    assert killed.metrics["worker_restarts"] == 1
    told = capfd.readouterr()
    assert (
        "died: The actor died unexpectedly before finishing this task. It is replaced" in told.err
    )
    assert "unexpected system error" not in told.out, "Ray's page about it"
    assert counts(killed) == (12 * ROWS, 0, 0)
    if mode == "sync":
        undisturbed = train_in_threads(config("undisturbed"))
        assert killed.metrics["model_digest"] == undisturbed.metrics["model_digest"]


def test_async_trains_every_sample_once(samples: Path, tmp_path: Path) -> None:
    config = job(
        samples,
        tmp_path / "run",
        training={"mode": "async"},
        cluster={"workers": 2, "servers": 2},
    )

    result = train_in_threads(config)

    assert counts(result) == (2 * ROWS, 0, 0)
    assert result.metrics["global_step"] == 2 * 79
    assert result.metrics["eval"]["samples"] == 1000
    assert result.metrics["eval"]["auc"] > 0.6


def test_a_run_never_replaces_what_it_starts_from(sync_result: Result, samples: Path) -> None:
    for source in (sync_result.path, sync_result.checkpoint):
        run = {"dir": sync_result.path, "init_from": source, "overwrite": True}
        with pytest.raises(RunDirectoryError, match=r"run.init_from .* lies in run.dir"):
            Trainer(job(samples, Path(sync_result.path), run=run)).fit()

    assert (Path(sync_result.checkpoint) / "manifest.json").exists()


def test_a_job_starts_from_a_checkpoint_of_another_topology(
    sync_result: Result, samples: Path, tmp_path: Path
) -> None:
    # So small a learning rate that the scores stay those of the checkpoint.
    still = _adagrad(learning_rate=1e-12)
    config = job(
        samples,
        tmp_path / "run",
        data={"epochs": 1},
        embedding={"dim": 4, "optimizer": still},
        tables={"b": {"admission": {"type": "counter", "min_count": 2}}},
        model={"optimizer": still},
        cluster={"workers": 1, "servers": 3},
        run={"dir": str(tmp_path / "run"), "init_from": sync_result.path},
    )

    result = train_in_threads(config)

    auc = result.metrics["eval"]["auc"]
    assert auc == pytest.approx(sync_result.metrics["eval"]["auc"], abs=0.01)
    assert result.metrics["global_step"] == 40 + 20, "steps go on"


def test_evaluations_during_training_see_one_step_and_cost_no_training_time(
    samples: Path, tmp_path: Path
) -> None:
    config = job(
        samples,
        tmp_path / "run",
        training={"mode": "async", "eval_every_steps": 10},
        cluster={"workers": 2, "servers": 2},
    )

    result = train_in_threads(config)

    evaluations = result.metrics["evaluations"]
    assert [e["clock"] for e in evaluations[:-1]] == [10, 20, 30]
    assert evaluations[-1]["step"] == 2 * 79
    assert counts(result) == (2 * ROWS, 0, 0)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    told = {line["eval_step"]: line["eval_auc"] for line in lines if line["eval_step"] is not None}
    assert told == {e["step"]: e["auc"] for e in evaluations}


def test_training_stops_at_max_samples(samples: Path, tmp_path: Path) -> None:
    config = job(samples, tmp_path / "run", training={"max_samples": 1000})

    result = train_in_threads(config)

    # Whole batches: the first that reach the number.
    assert counts(result) == (1024, 0, 0)


def test_training_stops_after_max_seconds(
    samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that goes on by 1 ms with each event, whatever the machine does meanwhile."""
    handle, events = Coordinator.handle, itertools.count()

    def handle_then(coordinator: Coordinator, event: Event, now: float) -> list[Command]:
        return handle(coordinator, event, next(events) / 1000)

    monkeypatch.setattr(Coordinator, "handle", handle_then)
    config = job(samples, tmp_path / "run", data={"epochs": 10000}, training={"max_seconds": 1.0})

    result = train_in_threads(config)

    assert 0 < result.metrics["samples_trained"] < 10000 * ROWS
    assert result.metrics["train_seconds"] == pytest.approx(1.0, abs=0.5)


def test_a_job_that_the_cluster_can_not_place_says_what_is_missing(
    ray_cluster: None, samples: Path, tmp_path: Path
) -> None:
    config = job(
        samples,
        tmp_path / "run",
        cluster={"resources": {"worker": {"gpu_of_dreams": 1}}, "start_timeout_seconds": 2},
    )

    with pytest.raises(TrainingError, match=r"gpu_of_dreams +1 +0 +0"):
        Trainer(config).fit()
