"""A small job of each mode: every sample accounted for, and something learned."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from held_back import hold_back
from ray_of_threads import Handle, RayOfThreads

from ps.checkpoint.read import CheckpointReader
from scheduler import JobConfig, Result, Trainer
from scheduler.coordinator.status import Status
from scheduler.driver.supervisor import Supervisor

ROWS = 5000
BATCHES = math.ceil(ROWS / 64)
EPOCHS = 3
LOST_EPOCHS = 2
JOBS: dict[str, dict[str, Any]] = {
    "gba": {"mode": "gba", "begin_in_sync": False},
    "gba-tight": {
        "mode": "gba",
        "begin_in_sync": False,
        "staleness_bound": 0,
        "sparse_mean": "contributors",
    },
    "gba-again": {
        "mode": "gba",
        "begin_in_sync": False,
        "staleness_bound": 0,
        "on_stale": "reissue",
    },
    "ssp": {"mode": "ssp", "ssp_slack": 1},
    "backup": {"mode": "backup", "backup_batches": 2},
}


def job(samples: Path, run: Path, training: dict[str, Any], **data: Any) -> JobConfig:
    adagrad = {"type": "adagrad", "learning_rate": 0.05, "initial_accumulator": 1e-4}
    return JobConfig.from_dict(
        {
            "seed": 3,
            "data": {
                "train": str(samples / "train-*.parquet"),
                "eval": str(samples / "test.parquet"),
                "dense": ["d1", "d2"],
                "dense_transform": "log1p",
                "sparse": ["a", "b", {"column": "tags", "combiner": "mean"}],
                "batch_size": 64,
                "epochs": EPOCHS,
                **data,
            },
            "embedding": {"dim": 4, "optimizer": adagrad},
            "model": {
                "type": "dlrm", "bottom_mlp": [8], "top_mlp": [8],
                "optimizer": {**adagrad, "learning_rate": 0.02},
            },
            "training": {"global_batch": 256, **training},
            "cluster": {"workers": 3, "servers": 2},
            "run": {"dir": str(run), "progress_every_seconds": 0.1},
        }
    )  # fmt: skip


def counts(result: Result) -> tuple[int, int, int]:
    metrics = result.metrics
    return metrics["samples_trained"], metrics["samples_dropped"], metrics["samples_skipped"]


@pytest.mark.parametrize(
    "name",
    [
        "gba",
        "backup",
        pytest.param("gba-tight", marks=pytest.mark.slow),
        pytest.param("gba-again", marks=pytest.mark.slow),
        pytest.param("ssp", marks=pytest.mark.slow),
    ],
)
def test_a_job_of_each_mode_accounts_for_every_sample(
    jobs_in_threads: None, samples: Path, tmp_path: Path, name: str
) -> None:
    training = JOBS[name]
    result = Trainer(job(samples, tmp_path / "run", training)).fit()

    metrics, ledger = result.metrics, result.metrics["ledger"]
    trained, dropped, skipped = counts(result)
    assert (trained + dropped, skipped) == (EPOCHS * ROWS, 0)
    assert ledger["applied"] + ledger["dropped"] == EPOCHS * BATCHES
    assert (dropped == 0) == (ledger["dropped"] == 0)
    if name != "gba-tight":
        assert dropped == 0 or metrics["staleness"]["data"]["max"] > 6
    of_batches = training["mode"] == "ssp"
    steps = BATCHES if of_batches else math.ceil(BATCHES / 4)
    assert metrics["global_step"] == EPOCHS * steps
    assert metrics["mode"] == training["mode"]
    (in_one,) = metrics["mode_history"]
    assert (in_one["mode"], in_one["from_step"]) == (training["mode"], 0)
    assert in_one["samples"] == metrics["samples_trained"]
    assert metrics["reissued_batches"] == ledger["reissued"]
    if training["mode"] == "backup":
        assert metrics["staleness"]["parameter"]["max"] == 0
        assert metrics["staleness"]["data"]["max"] == 0
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["mode"] == training["mode"]
    assert line["batches_dropped"] <= ledger["dropped"]
    assert metrics["eval"]["auc"] > 0.6
    store = CheckpointReader(Path(result.checkpoint)).store
    assert store.sparse_mean == training.get("sparse_mean", "global")


def test_a_lone_worker_in_async_trains_what_it_trains_in_sync(
    jobs_in_threads: None, samples: Path, tmp_path: Path
) -> None:
    digests = []
    for mode in ("async", "sync"):
        config = job(samples, tmp_path / mode, {"mode": mode, "global_batch": 64}, epochs=1)
        alone = config.cluster.model_copy(update={"workers": 1})
        metrics = Trainer(config.model_copy(update={"cluster": alone})).fit().metrics
        assert metrics["staleness"]["parameter"]["max"] == 0
        digests.append(metrics["model_digest"])

    assert digests[0] == digests[1]


@pytest.mark.parametrize("name", ["gba-again", pytest.param("ssp", marks=pytest.mark.slow)])
def test_a_worker_may_be_lost_in_each_mode(
    jobs_in_threads: RayOfThreads,
    samples: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    config = job(samples, tmp_path / "run", JOBS[name], epochs=LOST_EPOCHS)
    poll, lost = Supervisor.poll, list[Handle]()

    def poll_and_lose(self: Supervisor) -> Status:
        """Lose a worker once the first samples are trained."""
        status = poll(self)
        if not lost and status.samples.applied >= 640:
            lost.append(jobs_in_threads.workers()[0])
            jobs_in_threads.kill(lost[0])
        return status

    monkeypatch.setattr(Supervisor, "poll", poll_and_lose)
    # Until there is another in its place.
    hold_back(monkeypatch, lambda: not lost or len(jobs_in_threads.workers()) < 3, growth=0.01)

    result = Trainer(config).fit()

    assert result.metrics["worker_restarts"] == 1
    assert counts(result) == (LOST_EPOCHS * ROWS, 0, 0)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [({}, [("sync", 0), ("gba", 20)]), ({"begin_in_sync": False}, [("gba", 0)])],
)
def test_a_job_of_gba_begins_with_a_few_steps_of_sync(
    jobs_in_threads: None,
    samples: Path,
    tmp_path: Path,
    given: dict[str, bool],
    wanted: list[tuple[str, int]],
) -> None:
    config = job(samples, tmp_path / "run", {"mode": "gba", **given}, epochs=2)

    metrics = Trainer(config).fit().metrics

    assert [(each["mode"], each["from_step"]) for each in metrics["mode_history"]] == wanted
    assert metrics["samples_trained"] == 2 * ROWS
