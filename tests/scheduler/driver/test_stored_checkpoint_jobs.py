"""A job whose checkpoints lie in a store: trained, looked at, gone on with and started from."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faulty_store
import pytest
from command_here import run_here
from lost_driver import driver_lost
from saved_job import saved_job

from scheduler import JobConfig, Result, RunDirectoryError, Trainer, TrainingError
from scheduler.coordinator.status import Status
from scheduler.job.errors import ConfigError
from scheduler.run.directory import KEPT_APART, checkpoints_of
from scheduler.run.kept_apart import UNSEEN_EPOCHS

STORE = "faulty://bucket/prefix"


def job(samples: Path, folder: Path, **sections: Any) -> JobConfig:
    changes = {name: dict(values) for name, values in sections.items()}
    changes["checkpoint"] = {"path": STORE, **changes.get("checkpoint", {})}
    changes["data"] = {"epochs": 1, **changes.get("data", {})}
    return JobConfig.from_dict(saved_job(samples, folder, **changes))


def printed(*arguments: str) -> str:
    answer = run_here("checkpoint", *arguments, "--json")
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def asked(*arguments: str) -> Any:
    return json.loads(printed(*arguments))


@pytest.fixture(scope="module", autouse=True)
def store() -> Iterator[None]:
    faulty_store.empty()
    yield
    faulty_store.empty()


@pytest.fixture(scope="module")
def trained(
    jobs_in_threads: None, samples: Path, tmp_path_factory: pytest.TempPathFactory
) -> Result:
    """What a writer left who died is there when the job begins."""
    left = f"{STORE}/full-000000000001-123456789/tables/a/rows".removeprefix("faulty:/")
    faulty_store.FaultyFileSystem().pipe_file(left, b"left")
    run = tmp_path_factory.mktemp("stored") / "run"
    result = Trainer(job(samples, run)).fit()
    assert left not in faulty_store.objects()
    return result


def test_its_checkpoints_are_those_of_a_job_in_a_folder(
    jobs_in_threads: None, samples: Path, tmp_path: Path, trained: Result
) -> None:
    here = Trainer(job(samples, tmp_path / "here", checkpoint={"path": None})).fit()

    assert trained.metrics["model_digest"] == here.metrics["model_digest"]
    assert trained.checkpoint.startswith(f"{STORE}/full-")
    stored = checkpoints_of(trained.path)
    assert sum(path.name.startswith("full-") for path in stored) <= 2, "no more are kept"
    folders = {name.split("/")[3] for name in faulty_store.objects()}
    kept = {"run.json", *KEPT_APART}
    assert folders == {*kept, *(path.name for path in stored)}, "the others left nothing"
    assert not (Path(trained.path) / "checkpoints").exists()


def test_the_command_takes_the_run_the_folder_and_the_checkpoint(
    trained: Result, tmp_path: Path
) -> None:
    lines = {where: printed("list", where) for where in (trained.path, STORE)}
    assert len(set(lines.values())) == 1
    assert trained.checkpoint in lines[STORE]
    assert asked("show", STORE)["checkpoint"] == trained.checkpoint
    assert asked("verify", trained.checkpoint)["verified"]
    out = asked("compact", trained.path, "--out", str(tmp_path / "compacted"))
    assert out["model_digest"] == trained.metrics["model_digest"]
    difference = asked("diff", STORE, out["checkpoint"])
    assert {(t["added"], t["removed"], t["changed"]) for t in difference["tables"]} == {(0, 0, 0)}


def test_a_run_goes_on_from_there_and_nobody_else_takes_the_place(
    jobs_in_threads: None, samples: Path, tmp_path: Path, trained: Result
) -> None:
    before = faulty_store.objects()
    with pytest.raises(RunDirectoryError, match="holds checkpoints of another run"):
        Trainer(job(samples, tmp_path / "other")).fit()
    with pytest.raises(ConfigError, match=r"checkpoint.path is not given, it was 'faulty"):
        Trainer(
            job(samples, Path(trained.path), run={"resume": "auto"}, checkpoint={"path": None})
        ).fit()
    assert faulty_store.objects() == before

    os.unlink(Path(trained.path) / "result.json")
    again = Trainer(job(samples, Path(trained.path), run={"resume": "require"})).fit()

    assert again.metrics["model_digest"] == trained.metrics["model_digest"]


def test_a_job_starts_from_a_url(
    jobs_in_threads: None, samples: Path, tmp_path: Path, trained: Result
) -> None:
    started = Trainer(
        job(
            samples,
            tmp_path / "next",
            checkpoint={"path": None},
            run={"init_from": STORE},
            training={"max_samples": 256},
        )
    ).fit()

    assert started.metrics["global_step"] == trained.metrics["global_step"] + 1


# A run directory that is gone ---------------------------------------------------------------------

LOST = "faulty://bucket/lost"
WANTED = {"checkpoint": {"path": LOST, "keep": 5}}


def bytes_of(place: str) -> dict[str, bytes]:
    name = place.removeprefix("faulty:/")
    store = faulty_store.FaultyFileSystem.store
    return {path: store[path].getvalue() for path in store if path.startswith(f"{name}/")}


@pytest.mark.parametrize("resume", ["auto", "require"])
def test_a_run_whose_directory_is_gone_goes_on_elsewhere_from_the_store_alone(
    jobs_in_threads: None,
    samples: Path,
    tmp_path: Path,
    trained: Result,
    resume: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name in bytes_of(LOST):
        faulty_store.FaultyFileSystem().rm_file(name)
    here, there = tmp_path / "here", tmp_path / "there" / "run"
    with driver_lost(lambda status: status.applied_step >= 10 and bool(checkpoints_of(LOST))):
        Trainer(job(samples, here, run={"resume": "auto"}, **WANTED)).fit()
    shutil.rmtree(here)

    last = Trainer(
        job(samples, there, run={"resume": resume}, cluster={"servers": 2}, **WANTED)
    ).fit()

    assert last.metrics["model_digest"] == trained.metrics["model_digest"]
    assert last.metrics["samples_trained"] == trained.metrics["samples_trained"]
    assert last.metrics["evaluations"] == trained.metrics["evaluations"]
    assert "is taken from faulty://bucket/lost, on which process" in caplog.text
    epoch = json.loads((there / "epoch.json").read_text())["recovery_epoch"]
    assert epoch > UNSEEN_EPOCHS, "nobody knows to which one the process before has come"

    shutil.rmtree(there)
    again = Trainer(job(samples, there, run={"resume": "require"}, **WANTED)).fit()
    assert again.metrics == last.metrics
    assert again.checkpoint == last.checkpoint


def test_a_run_that_cant_be_gone_on_with_from_the_store_leaves_nothing(
    jobs_in_threads: None, samples: Path, tmp_path: Path, trained: Result
) -> None:
    run = tmp_path / "elsewhere"
    before = bytes_of(STORE)

    other = saved_job(
        samples, run, checkpoint={"path": STORE}, data={"epochs": 1}, run={"resume": "auto"}
    )
    with pytest.raises(ConfigError, match=r"holds another job: seed is 4, it was 3"):
        Trainer(JobConfig.from_dict({**other, "seed": 4})).fit()
    assert not run.exists()
    plan = f"{STORE}/plan.json".removeprefix("faulty:/")
    faulty_store.FaultyFileSystem().pipe_file(plan, before[plan][:-9])
    result = f"{STORE}/result.json".removeprefix("faulty:/")
    faulty_store.FaultyFileSystem().rm_file(result)
    with pytest.raises(RunDirectoryError, match=r"plan.json is damaged"):
        Trainer(job(samples, run, run={"resume": "auto"})).fit()
    assert not run.exists()
    with pytest.raises(RunDirectoryError, match=r"run\.resume=auto goes on with a run"):
        Trainer(job(samples, run)).fit()
    assert not run.exists()
    for name in (plan, result):
        faulty_store.FaultyFileSystem().pipe_file(name, before[name])
    assert bytes_of(STORE) == before


def test_a_job_whose_run_somebody_else_goes_on_with_ends_before_it_writes_a_checkpoint(
    jobs_in_threads: None, samples: Path, tmp_path: Path, trained: Result
) -> None:
    place = "faulty://bucket/taken"
    wanted = {"checkpoint": {"path": place}}
    seen: list[int] = []

    def taken_over(status: Status) -> bool:
        if status.applied_step >= 6 and checkpoints_of(place) and not seen:
            seen.append(status.applied_step)
            name = f"{place}/run.json".removeprefix("faulty:/")
            kept = json.loads(bytes_of(place)[name])
            faulty_store.FaultyFileSystem().pipe_file(
                name, json.dumps({**kept, "holder": "another", "host": "over-there"}).encode()
            )
            seen.append(len(checkpoints_of(place)))
        return False

    with (
        pytest.raises(TrainingError, match=r"was gone on with by process \d+ on over-there"),
        driver_lost(taken_over),
    ):
        Trainer(job(samples, tmp_path / "run", **wanted)).fit()

    assert len(checkpoints_of(place)) <= seen[1] + 1, "one may have been on its way"
