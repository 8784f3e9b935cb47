"""Whole jobs whose samples have weights: the same bits everywhere, and scores that are weighted."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from ray_of_threads import RayOfThreads

from scheduler import JobConfig, Result, Trainer
from scheduler.views.report.page import page_of
from scheduler.views.report.reading import read_run
from synchromesh.commands.main import main
from synchromesh.prediction import predict

ADAM = {"type": "adam", "learning_rate": 0.01}


@pytest.fixture(scope="module")
def weighed(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The samples with weights `w`, of which some are 0, and `one`, all 1."""
    folder = tmp_path_factory.mktemp("weighed")
    rng = np.random.default_rng(4)
    for path in samples.glob("*.parquet"):
        table = pq.read_table(path)
        weights = rng.integers(0, 4, table.num_rows).astype(np.float64)
        table = table.append_column("w", pa.array(weights))
        table = table.append_column("one", pa.array(np.ones(table.num_rows)))
        pq.write_table(table, folder / path.name, row_group_size=700)
    return folder


def job(data: Path, run: Path, /, weight: str | None, servers: int = 1, **data_: Any) -> JobConfig:
    return JobConfig.from_dict(
        {
            "seed": 3,
            "data": {
                "train": str(data / "train-*.parquet"),
                "eval": str(data / "test.parquet"),
                "weight": weight,
                "dense": ["d1", "d2"],
                "dense_transform": "log1p",
                "sparse": ["a", "b", {"column": "tags", "combiner": "mean"}],
                "batch_size": 64,
                **data_,
            },
            "embedding": {"dim": 4, "optimizer": ADAM},
            "tables": {"b": {"admission": {"min_count": 2}}},
            "model": {"type": "dlrm", "bottom_mlp": [8], "top_mlp": [8], "optimizer": ADAM},
            "training": {"mode": "sync", "global_batch": 256},
            "cluster": {"workers": 1 + servers // 2, "servers": servers},
            "run": {"dir": str(run)},
        }
    )


@pytest.fixture(scope="module")
def trained(
    jobs_in_threads: RayOfThreads, weighed: Path, tmp_path_factory: pytest.TempPathFactory
) -> Result:
    return Trainer(job(weighed, tmp_path_factory.mktemp("w") / "run", "w")).fit()


def line_of(capsys: pytest.CaptureFixture[str], *command: object) -> dict[str, Any]:
    capsys.readouterr()
    assert main([str(each) for each in command]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_bits_of_a_job_with_weights_are_the_same_on_any_number_of_processes(
    trained: Result, weighed: Path, tmp_path: Path
) -> None:
    other = Trainer(job(weighed, tmp_path / "run", "w", servers=3)).fit()

    assert other.metrics["model_digest"] == trained.metrics["model_digest"]
    assert other.metrics["eval"] == trained.metrics["eval"]
    assert trained.metrics["eval"]["auc"] > 0.6


def test_weights_of_1_change_no_bit_and_others_do(
    trained: Result, weighed: Path, tmp_path: Path
) -> None:
    plain = Trainer(job(weighed, tmp_path / "plain", None)).fit()
    ones = Trainer(job(weighed, tmp_path / "ones", "one")).fit()

    assert ones.metrics["model_digest"] == plain.metrics["model_digest"]
    assert ones.metrics["eval"] == plain.metrics["eval"]
    assert trained.metrics["model_digest"] != plain.metrics["model_digest"]


def test_a_stream_in_which_positives_come_twice_is_learnt_as_if_they_did_not(
    jobs_in_threads: RayOfThreads, samples: Path, tmp_path: Path
) -> None:
    """Each sample comes as a negative, and those that are none come again."""
    table = pq.read_table(samples / "train-0.parquet")
    label = table.column_names.index("label")
    negatives = table.set_column(label, "label", pa.array(np.zeros(table.num_rows, np.int8)))
    positives = table.filter(pc.equal(table["label"], 1))
    twice = pa.concat_tables([negatives, positives])
    order = np.random.default_rng(2).permutation(twice.num_rows)
    pq.write_table(twice.take(order), tmp_path / "train-twice.parquet")
    config = job(tmp_path, tmp_path / "run", None, epochs=6, eval=None).model_dump()

    means = {}
    for loss in ("log_loss", "fake_negative_weighting"):
        config["training"]["loss"] = loss
        config["run"]["dir"] = str(tmp_path / loss)
        Trainer(JobConfig.from_dict(config)).fit()
        predict(tmp_path / loss, str(samples / "train-0.parquet"), tmp_path / f"{loss}.parquet")
        predicted = pq.read_table(tmp_path / f"{loss}.parquet")["prediction"].to_numpy()
        means[loss] = float(predicted.mean())

    rate = float(np.mean(table["label"].to_numpy()))
    assert means["fake_negative_weighting"] == pytest.approx(rate, rel=0.06)
    assert means["log_loss"] < 0.85 * rate


def test_evaluations_count_a_sample_as_often_as_it_weighs(
    trained: Result, weighed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pq.read_table(weighed / "test.parquet")
    times = table["w"].to_numpy().astype(int)
    repeated = table.take(np.repeat(np.arange(table.num_rows), times)).drop_columns("w")
    pq.write_table(repeated, tmp_path / "repeated.parquet")

    own = line_of(capsys, "evaluate", trained.path)
    data = ["--data", tmp_path / "repeated.parquet", "data.weight=null"]
    expected = line_of(capsys, "evaluate", trained.path, *data)

    assert own.items() >= trained.metrics["eval"].items()
    assert (own["samples"], expected["samples"]) == (1000, times.sum())
    assert own["auc"] == expected["auc"]
    assert own["logloss"] == pytest.approx(expected["logloss"], rel=1e-6)


def test_predictions_need_no_weight(
    trained: Result, samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.parquet"

    line = line_of(capsys, "predict", trained.path, samples / "test.parquet", out)

    assert line["rows"] == pq.read_table(out).num_rows == 1000


def test_a_stream_of_samples_with_weights_has_weighted_windows(
    jobs_in_threads: RayOfThreads, weighed: Path, tmp_path: Path
) -> None:
    table = pq.read_table(weighed / "train-0.parquet").slice(0, 400)
    weights = table["w"].to_numpy().copy()
    weights[7] = -1.0
    table = table.set_column(table.column_names.index("w"), "w", pa.array(weights))
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in" / "part-0.parquet")
    config = job(weighed, tmp_path / "run", "w").model_dump(exclude_unset=True)
    config["data"] |= {"train": None, "stream": {"dir": str(tmp_path / "in")}, "eval": None}
    config["data"]["on_bad_record"] = "quarantine"
    config["training"]["online"] = {
        "window_seconds": 3600,
        "until": {"idle_seconds": 0.5},
        "segment": {"column": "a", "most": 2},
    }

    result = Trainer(JobConfig.from_dict(config)).fit()

    assert result.metrics["samples_trained"] == 399
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    windows = [window for line in lines for window in json.loads(line)["windows"]]
    assert sum(window["samples"] for window in windows) == 399
    assert sum(window["weight"] for window in windows) == weights.sum() + 1
    assert pq.read_table(tmp_path / "run" / "quarantine")["_row"].to_pylist() == [7]
    segments = [segment for window in windows for segment in window["segments"]]
    values = {segment["value"] for segment in segments}
    assert len(values) == 3
    kept = np.delete(table["a"].to_numpy(), 7)
    for value in values - {None}:
        told = sum(segment["samples"] for segment in segments if segment["value"] == value)
        assert told == np.count_nonzero(kept == int(value))
    for name in ("samples", "weight"):
        told = sum(segment[name] for segment in segments)
        assert told == sum(window[name] for window in windows)
    page = page_of(read_run(tmp_path / "run"))
    assert "AUC before training, by window" in page
    assert all(f"= {value}" in page for value in values - {None})
