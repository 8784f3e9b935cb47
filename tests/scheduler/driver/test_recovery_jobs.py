"""Whole jobs that lose servers and coordinators, in threads: who is lost lives on unseen."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from held_back import hold_back
from killed_actors import disturbed
from ray_of_threads import RayOfThreads

import scheduler.driver.standbys as standbys
from ps.checkpoint.read import CheckpointReader
from ps.server.server import ShardServer
from scheduler import JobConfig, Trainer, TrainingError
from scheduler.driver.launch import Launcher
from scheduler.driver.processes import Processes
from scheduler.run.directory import checkpoints_of
from simulation.cuts import snapshot_of

EPOCHS, ROWS = 3, 3000
LAST_STEP = 72
CUTS = {"every_steps": 4, "every_seconds": None, "full_every": 3}


def job(samples: Path, run: Path, mode: str, **sections: Any) -> JobConfig:
    adagrad = {"type": "adagrad", "initial_accumulator": 1e-4}
    return JobConfig.from_dict(
        {
            "seed": 3,
            "data": {
                "train": str(samples / "train-[12].parquet"),
                "eval": str(samples / "test.parquet"),
                "dense": ["d1", "d2"],
                "sparse": ["a", "b"],
                "batch_size": 64,
                "epochs": EPOCHS,
            },
            "embedding": {"dim": 4, "optimizer": adagrad},
            "model": {"type": "dlrm", "bottom_mlp": [8], "top_mlp": [8], "optimizer": adagrad},
            "training": {"mode": mode, "global_batch": 128, "eval_every_steps": 15},
            "cluster": {"workers": 2, "servers": 2},
            "run": {"dir": str(run)},
            **sections,
        }
    )


@pytest.fixture(scope="module")
def calm(
    samples: Path, tmp_path_factory: pytest.TempPathFactory, jobs_in_threads: RayOfThreads
) -> dict[str, Any]:
    """What the job in sync comes to where nobody dies."""
    return Trainer(job(samples, tmp_path_factory.mktemp("calm") / "run", "sync")).fit().metrics


def test_jobs_go_on_from_their_cuts_and_in_sync_the_model_is_the_undisturbed_one(
    jobs_in_threads: RayOfThreads, calm: dict[str, Any], samples: Path, tmp_path: Path
) -> None:
    began = time.time()
    with disturbed(
        jobs_in_threads,
        ("server", 1, 10),
        ("coordinator", 0, 20),
        ("server", 0, 30),
        ("coordinator", 0, 42),
        ("server", 1, LAST_STEP),  # as the job is trained: its end is done again
    ):
        config = job(samples, tmp_path / "killed", "sync", checkpoint=CUTS)
        killed = Trainer(config).fit().metrics

    assert killed["model_digest"] == calm["model_digest"]
    assert killed["samples_trained"] == EPOCHS * ROWS
    assert killed["train_loss"] == calm["train_loss"], "a record has the sum"
    causes = "; ".join(each["cause"] for each in killed["recoveries"])
    assert [causes.count(name) for name in ("server", "coordinator")] == [3, 2]
    assert 0 < killed["redone_steps"] < LAST_STEP
    assert sum(each["to_step"] > 0 for each in killed["recoveries"]) >= 2, "they found cuts"
    scores = [[e["auc"] for e in each["evaluations"]] for each in (calm, killed)]
    assert scores[0] == scores[1]
    assert killed["eval"] == calm["eval"]
    cuts = [CheckpointReader(path).manifest for path in checkpoints_of(tmp_path / "killed")]
    taken = [began, *(cut.job["taken"] for cut in cuts), time.time()]
    assert taken == sorted(taken), "when each cut was taken, as the clock of all has it"
    for cut in cuts:
        epochs, begins = zip(*cut.training["histories"], strict=True)
        assert epochs[-1] == cut.recovery_epoch
        assert sorted(set(epochs)) == list(epochs)
        assert sorted(set(begins)) == list(begins)
        assert begins[-1] <= cut.step


def test_a_standby_takes_the_place_of_its_server_and_no_step_is_lost(
    jobs_in_threads: RayOfThreads,
    calm: dict[str, Any],
    samples: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who is lost lives on: two servers of one index are there, and one of them is listened to."""
    monkeypatch.setattr(standbys, "FIRST_PAUSE_SECONDS", 0.0)
    cluster = {"workers": 2, "servers": 2, "standby": 1}
    create, of_jobs = Launcher.create, list[Processes]()

    def create_and_keep(*args: Any) -> Processes:
        of_jobs.append(create(*args))
        return of_jobs[-1]

    def are_made() -> bool:
        return set(of_jobs[-1].standbys) == {0, 1}

    monkeypatch.setattr(Launcher, "create", create_and_keep)
    hold_back(monkeypatch, lambda: not are_made())
    with disturbed(
        jobs_in_threads,
        ("server", 0, 6),  # of server 0
        ("server", 0, 30),  # of server 0 again: what took its place
        met=are_made,
    ) as killer:
        config = job(samples, tmp_path / "killed", "sync", cluster=cluster)
        killed = Trainer(config).fit().metrics
        held = [handle.instance for handle in jobs_in_threads.handles]
        shards = [each._shard for each in held if isinstance(each, ShardServer)]
        gone = [handle.instance._shard for handle in killer.killed]

    said = capsys.readouterr().err
    assert killed["model_digest"] == calm["model_digest"]
    assert killed["redone_steps"] == 0, said
    assert [each["promoted"] for each in killed["recoveries"]] == [[0], [0]], said
    assert said.count("server 0 has a standby") >= 1
    assert said.count("their standbys are on one node") == 1
    of_the_end = [s for s in shards if s not in gone and s.step == killed["global_step"]]
    copies = {index: [s for s in of_the_end if s.index == index] for index in (0, 1)}
    assert len(copies[1]) == 2, said
    for one, *others in copies.values():
        for other in others:
            first, second = (snapshot_of(s.tables, s.dense.rows) for s in (one, other))
            assert first == second
    assert all(shard.recovery_epoch < copies[0][0].recovery_epoch for shard in gone)


@pytest.mark.parametrize(
    ("role", "named"), [("server", "server 0"), ("coordinator", "the coordinator")]
)
def test_a_dead_server_or_coordinator_ends_a_job_that_may_not_fail_with_its_name(
    jobs_in_threads: RayOfThreads, samples: Path, tmp_path: Path, role: str, named: str
) -> None:
    cluster = {"workers": 2, "servers": 2, "max_failures": 0}
    config = job(samples, tmp_path / "run", "sync", cluster=cluster)
    metrics = tmp_path / "run" / "metrics.jsonl"

    def is_evaluated() -> bool:
        return metrics.exists() and '"eval_step": 15' in metrics.read_text()

    failed = rf"{named}.*\(pid \d+\) died.*job can't go on: it may fail 0 times"
    with (
        disturbed(jobs_in_threads, (role, 0, 35), met=is_evaluated),
        pytest.raises(TrainingError, match=failed),
    ):
        Trainer(config).fit()

    failure = json.loads((tmp_path / "run" / "failure.json").read_text())
    assert named in failure["error"]
    assert failure["samples"]["applied"] >= 2000
    # Those that the driver had heard of.
    clocks = [evaluation["clock"] for evaluation in failure["evaluations"]]
    assert clocks
    assert clocks == [15 * (i + 1) for i in range(len(clocks))]
    assert not (tmp_path / "run" / "result.json").exists()


def test_every_sample_is_counted_once_where_workers_wait_for_nobody(
    jobs_in_threads: RayOfThreads, samples: Path, tmp_path: Path
) -> None:
    with disturbed(jobs_in_threads, ("server", 0, 12), ("coordinator", 0, 25)):
        config = job(samples, tmp_path / "run", "gba", checkpoint=CUTS)
        result = Trainer(config).fit()

    metrics = result.metrics
    ended = [metrics[f"samples_{how}"] for how in ("trained", "dropped", "skipped")]
    assert sum(ended) == EPOCHS * ROWS
    assert metrics["recoveries"]
    kept = [p.name for p in sorted((tmp_path / "run" / "checkpoints").iterdir())]
    assert any(name.startswith("delta-") for name in kept)
    assert CheckpointReader(result.checkpoint).manifest.recovery_epoch == 2


def test_a_cut_that_can_not_be_written_is_told_and_the_next_one_is_full(
    jobs_in_threads: RayOfThreads,
    samples: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write, failed = ShardServer.write_cut, threading.Event()

    def write_cut(server: ShardServer, directory: str, step: int, **options: Any) -> Any:
        if options["changed_only"] and not failed.is_set():
            failed.set()
            raise OSError(28, "No space left on device")
        return write(server, directory, step, **options)

    monkeypatch.setattr(ShardServer, "write_cut", write_cut)
    config = job(samples, tmp_path / "run", "sync", checkpoint={**CUTS, "full_every": 1000})

    with disturbed(jobs_in_threads):
        metrics = Trainer(config).fit().metrics

    assert metrics["samples_trained"] == EPOCHS * ROWS
    said = capsys.readouterr().err
    assert "the delta checkpoint of step" in said
    assert "could not be written: [Errno 28] No space left on device" in said
    cuts = sorted((tmp_path / "run" / "checkpoints").iterdir(), key=lambda path: path.name[-12:])
    kinds = [path.name.split("-")[0] for path in cuts]
    assert kinds[:3] == ["full", "full", "delta"], "nothing of what failed is left"
    assert [CheckpointReader(path).manifest.kind for path in cuts] == kinds


@pytest.mark.usefixtures("jobs_in_threads")
def test_a_cut_that_may_take_days_is_written_at_once_when_the_job_ends(
    samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ps.checkpoint.pace.LEAST_RATE", 1e-3)
    monkeypatch.setattr("scheduler.driver.cuts.SHARE_OF_INTERVAL", 1e6)

    Trainer(job(samples, tmp_path / "run", "sync", checkpoint=CUTS)).fit()

    kept = [CheckpointReader(path) for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert 4 in {reader.manifest.step for reader in kept}, "the only one before that of the end"
