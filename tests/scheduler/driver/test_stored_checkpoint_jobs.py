"""A job whose checkpoints lie in a store: trained, looked at, gone on with and started from."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faulty_store
import pytest
from command_here import run_here
from saved_job import saved_job

from scheduler import JobConfig, Result, RunDirectoryError, Trainer
from scheduler.job.errors import ConfigError
from scheduler.run.directory import checkpoints_of

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
    assert folders == {"run.json", *(path.name for path in stored)}, "the others left nothing"
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
