"""A run goes on only with the job that it is of."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from scheduler import ConfigError, JobConfig
from scheduler.run.same_job import check_same_job, differences

JOB: dict[str, Any] = {
    "data": {"train": "/a/*.parquet", "dense": ["x"], "sparse": ["C1", {"column": "C2"}]},
    "model": {"type": "deepfm", "mlp": [8]},
    "run": {"dir": "/runs/x"},
}


def job(*overrides: str) -> JobConfig:
    values: dict[str, Any] = {**JOB, "data": {**JOB["data"]}, "run": {**JOB["run"]}}
    for path, value in (override.split("=") for override in overrides):
        section, _, key = path.partition(".")
        values[section] = (
            {**values.get(section, {}), key: yaml.safe_load(value)}
            if key
            else yaml.safe_load(value)
        )
    return JobConfig.from_dict(values)


@pytest.mark.parametrize(
    "override",
    [
        "name='tomorrow'",
        "cluster.servers=7",
        "cluster.worker_threads=2",
        "checkpoint.every_steps=10",
        "run.dir='/elsewhere'",
        "run.resume='auto'",
        "run.tensorboard=True",
        "data.cache_bytes=1000",
        "training.mixed_cpus=True",
    ],
)
def test_processes_places_and_what_is_shown_may_be_others(override: str) -> None:
    assert differences(job(), job(override)) == []


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("seed=1", "seed is 1, it was 0"),
        ("model.mlp=[16]", "model.mlp is [16], it was [8]"),
        ("training.mode='sync'", "training.mode is 'sync', it was 'async'"),
        ("cluster.workers=3", "training.global_batch is 6144, it was 4096"),
        ("data.sparse=['C1', 'C3']", "data.sparse.1.column is 'C3', it was 'C2'"),
        ("data.eval='/b'", "data.eval is ['/b'], it was not given"),
        ("tables={'C1': {'dim': 4}}", "tables.C1.dim is 4, it was not given"),
        ("run.init_from='/o'", "run.init_from is '/o', it was not given"),
    ],
)
def test_what_decides_the_model_or_the_data_is_named_with_both_values(
    override: str, text: str
) -> None:
    assert text in differences(job(), job(override))


def test_a_job_without_a_global_batch_goes_on_with_other_workers_if_it_is_told_the_one_it_had(
    tmp_path: Path,
) -> None:
    (tmp_path / "job.yaml").write_text(job().to_yaml())

    with pytest.raises(ConfigError, match=r"holds another job: training.global_batch is 6144"):
        check_same_job(tmp_path / "job.yaml", job("cluster.workers=3"))
    check_same_job(tmp_path / "job.yaml", job("cluster.workers=3", "training.global_batch=4096"))


def test_of_many_fields_and_long_values_no_more_is_told_than_one_can_read(tmp_path: Path) -> None:
    columns = str([f"a_column_with_a_long_name_{number}" for number in range(400)])
    (tmp_path / "job.yaml").write_text(job("data.sparse=['C1']", "data.dense=['x']").to_yaml())
    another = ("seed=1", "name='n'", "model.mlp=[1]", "training.mode='sync'", "embedding.dim=4")

    with pytest.raises(ConfigError, match=r"\.\.\., it was \['x'\].*and \d+ more fields") as error:
        check_same_job(tmp_path / "job.yaml", job(f"data.dense={columns}", *another, "model.x=1"))

    assert len(str(error.value)) < 700


def test_a_damaged_job_file_of_a_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("data: {")

    with pytest.raises(
        ConfigError, match=r"run.resume: the job of the run can't be read.*job.yaml"
    ):
        check_same_job(tmp_path / "job.yaml", job())
