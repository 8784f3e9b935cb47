"""Jobs that each go on from the last one's checkpoint: time goes on, as in one longer job."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ps.checkpoint.sealed_json import sealed_text, unsealed
from scheduler import JobConfig, Result, Trainer

DAYS = 3


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of 32 samples; the users of a day never come back."""
    folder = tmp_path_factory.mktemp("days")
    for day in range(DAYS):
        users = np.resize([10 * day, 10 * day + 1], 32)
        table = pa.table({"label": users % 2, "x": np.arange(32.0) % 5, "u": users})
        pq.write_table(table, folder / f"day{day}.parquet")
    return folder


def train(days: Path, out: Path, day: str, **changes: Any) -> Result:
    """Train in steps of 8 samples, so 4 a day."""
    adam = {
        "type": "adam",
        "learning_rate": 0.05,
        "schedule": {"type": "cosine", "warmup_steps": 6, "decay_steps": 5, "end_factor": 0.1},
    }
    job: dict[str, Any] = {
        "data": {
            "train": str(days / f"day{day}.parquet"),
            "dense": ["x"],
            "sparse": ["u"],
            "batch_size": 4,
            "order": "sequential",
        },
        "embedding": {
            "dim": 4,
            "optimizer": adam,
            "eviction": {"steps_to_live": 5, "every_steps": 1},
        },
        "model": {"type": "dlrm", "bottom_mlp": [4], "top_mlp": [4], "optimizer": adam},
        "training": {"mode": "sync", "global_batch": 8},
        "cluster": {"workers": 1, "servers": 1},
        "run": {"dir": str(out)},
    }
    for section, values in changes.items():
        job[section] = {**job[section], **values}
    return Trainer(JobConfig.from_dict(job)).fit()


@pytest.fixture(scope="module")
def first_day(
    jobs_in_threads: None, days: Path, tmp_path_factory: pytest.TempPathFactory
) -> Result:
    return train(days, tmp_path_factory.mktemp("first") / "run", "0")


def test_a_job_for_each_day_gives_the_very_model_of_one_job_over_all_days(
    jobs_in_threads: None, days: Path, tmp_path: Path, first_day: Result
) -> None:
    """Rows live as long, schedules and Adam's bias corrections go on: the same bits."""
    last = first_day
    for day in range(1, DAYS):
        run = {"init_from": last.path}
        last = train(days, tmp_path / str(day), str(day), run=run)
    whole = train(days, tmp_path / "whole", "?")

    assert last.metrics["global_step"] == whole.metrics["global_step"] == 4 * DAYS
    assert Path(last.checkpoint).name == f"full-{4 * DAYS:012d}"
    assert last.metrics["tables"]["u"]["rows"] == 4, "those of the first day are evicted"
    assert last.metrics["model_digest"] == whole.metrics["model_digest"]
    line = json.loads((Path(last.path) / "metrics.jsonl").read_text().splitlines()[-1])
    assert (line["global_step"], line["clock"], line["samples"]) == (12, 12, 32)
    assert last.metrics["mode_history"][0]["from_step"] == 8


def test_what_a_job_plans_counts_from_its_start_and_evaluations_go_by_the_clock(
    jobs_in_threads: None, days: Path, tmp_path: Path, first_day: Result
) -> None:
    result = train(
        days,
        tmp_path / "run",
        "1",
        data={"eval": str(days / "day0.parquet")},
        training={
            "shifts": [{"at": 2, "mode": "gba"}],
            "eval_every_steps": 3,
            "max_samples": 24,
        },
        run={"init_from": first_day.path},
    )

    assert result.metrics["samples_trained"] == 24
    assert [mode["from_step"] for mode in result.metrics["mode_history"]] == [4, 6]
    # At clock 6, a multiple of 3, and at the end.
    assert [each["step"] for each in result.metrics["evaluations"]] == [6, 7]


def test_time_starts_anew_where_the_job_says_so_or_the_checkpoint_does_not_know_it(
    jobs_in_threads: None,
    days: Path,
    tmp_path: Path,
    first_day: Result,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = {"init_from": first_day.path, "init_clock": "anew"}
    anew = train(days, tmp_path / "a", "1", run=run)
    assert anew.metrics["global_step"] == 4
    assert anew.metrics["tables"]["u"]["rows"] == 4, "no row is older than the job"

    manifest = Path(first_day.checkpoint) / "manifest.json"
    whole = manifest.read_text()
    older = {k: v for k, v in unsealed(json.loads(whole)).items() if k != "time"}
    manifest.write_text(sealed_text(older)[0])
    try:
        with caplog.at_level(logging.WARNING):
            old = train(days, tmp_path / "b", "1", run={"init_from": first_day.path})
    finally:
        manifest.write_text(whole)
    assert "did not keep the clock" in caplog.text
    assert old.metrics["model_digest"] == anew.metrics["model_digest"]
