"""Whole jobs of several tasks: the same bits everywhere, scores by task, predictions by name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray_of_threads import RayOfThreads

from ps.checkpoint.errors import CheckpointError
from scheduler import JobConfig, Result, Trainer
from synchromesh.commands import train
from synchromesh.commands.main import main
from worker.metrics import exact_auc

torch = pytest.importorskip("torch")

LABELS = {"click": "label", "buy": {"column": "bought", "where": "click"}}


@pytest.fixture(scope="module")
def data(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The samples with a second label, null where there is no click, and a user."""
    folder = tmp_path_factory.mktemp("tasks")
    rng = np.random.default_rng(5)
    for path in sorted(samples.glob("*.parquet")):
        table = pq.read_table(path)
        a, click = table["a"].to_numpy(), table["label"].to_numpy()
        bought = (rng.random(len(a)) < 1 / (1 + np.exp(2 - 0.2 * a))).astype(np.int8)
        users = rng.integers(0, 60, len(a))
        table = table.append_column("bought", pa.array(bought, mask=click == 0))
        table = table.append_column("user", pa.array(users, mask=users == 0))
        pq.write_table(table, folder / path.name, row_group_size=500)
    return folder


def job(
    data: Path, run: Path, /, *, workers: int = 1, servers: int = 1, **changes: Any
) -> JobConfig:
    sections: dict[str, Any] = {
        "seed": 3,
        "data": {
            "train": str(data / "train-*.parquet"),
            "eval": str(data / "test.parquet"),
            "labels": LABELS,
            "dense": ["d1", "d2"],
            "dense_transform": "log1p",
            "sparse": ["a", "b", {"column": "tags", "combiner": "mean"}],
            "batch_size": 64,
            "eval_batch_size": 300,
            "eval_group_by": "user",
        },
        "embedding": {"dim": 4},
        "model": {
            "type": "torch",
            "class": "worker.models.torch.mmoe:Mmoe",
            "expert_mlp": [8],
            "tower_mlp": [4],
            "optimizer": {"type": "adam", "learning_rate": 0.01},
        },
        "training": {"mode": "sync", "global_batch": 256},
        "cluster": {"workers": workers, "servers": servers},
        "run": {"dir": str(run)},
    }
    for section, values in changes.items():
        sections[section] = {**sections.get(section, {}), **values}
    return JobConfig.from_dict(sections)


@pytest.fixture(scope="module")
def trained(
    jobs_in_threads: RayOfThreads, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Result:
    return Trainer(job(data, tmp_path_factory.mktemp("tasks") / "run")).fit()


def test_the_bits_and_all_scores_are_the_same_on_any_number_of_processes(
    trained: Result, data: Path, tmp_path: Path
) -> None:
    other = Trainer(job(data, tmp_path / "run", workers=3, servers=2)).fit()

    assert other.metrics["model_digest"] == trained.metrics["model_digest"]
    assert other.metrics["eval"] == trained.metrics["eval"]


def test_each_task_is_learnt_and_scored_over_the_samples_that_count(
    trained: Result, data: Path
) -> None:
    scores = trained.metrics["eval"]
    click, buy = scores["tasks"]["click"], scores["tasks"]["buy"]

    clicks = pq.read_table(data / "test.parquet")["label"].to_numpy()
    assert (click["samples"], buy["samples"]) == (1000, clicks.sum())
    assert click["auc"] > 0.75
    assert buy["auc"] > 0.6
    for name in ("auc", "logloss", "samples", "gauc"):
        assert scores[name] == click[name]


def test_predictions_by_task_have_the_scores_of_the_evaluation(
    trained: Result, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "predictions.parquet"
    columns = "label,bought,user"
    arguments = [trained.path, str(data / "test.parquet"), str(out), "--columns", columns]
    main(["predict", *arguments])
    capsys.readouterr()
    main(["evaluate", trained.path])
    evaluated = json.loads(capsys.readouterr().out)

    table = pq.read_table(out)
    assert table.column_names[-2:] == ["prediction_click", "prediction_buy"]
    for task, label in (("click", "label"), ("buy", "bought")):
        known = table.filter(pa.compute.is_valid(table[label]))
        y, p = known[label].to_numpy(), known[f"prediction_{task}"].to_numpy()
        scores = evaluated["tasks"][task]
        assert scores == trained.metrics["eval"]["tasks"][task]
        assert scores["auc"] == pytest.approx(exact_auc(p, y), abs=1e-4)
        p = p.astype(float)
        loss = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()
        assert scores["logloss"] == pytest.approx(loss, rel=1e-5)
        users = known["user"].to_pylist()
        total = weight = 0
        for user in set(users) - {None}:
            its = np.array([each == user for each in users])
            if 0 < y[its].sum() < its.sum():
                total += its.sum() * exact_auc(p[its], y[its])
                weight += its.sum()
        assert scores["gauc"] == pytest.approx(total / weight, abs=1e-3)
        assert scores["gauc_samples"] == weight


def test_the_metrics_and_the_page_of_a_run_tell_the_tasks(
    trained: Result, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (Path(trained.path) / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert set(last["eval_tasks"]) == {"click", "buy"}

    train._show(trained.metrics, None, trained.path)
    shown = capsys.readouterr().err
    assert "test AUC of click " in shown
    assert "  buy: AUC " in shown

    page = Path(trained.path) / "report.html"
    main(["report", trained.path, "--out", str(page)])
    text = page.read_text()
    assert "AUC of buy" in text
    assert "GAUC of click" in text


def test_a_task_of_weight_0_is_scored_and_changes_nothing_that_is_learnt(
    data: Path, tmp_path: Path, jobs_in_threads: RayOfThreads
) -> None:
    digests = []
    for name, task in (("a", {"column": "label"}), ("b", {"column": "bought", "where": "click"})):
        labels = {"click": "label", "more": {**task, "weight": 0}}
        result = Trainer(job(data, tmp_path / name, data={"labels": labels})).fit()
        digests.append(result.metrics["model_digest"])
        assert result.metrics["eval"]["tasks"]["more"]["samples"] > 0

    assert digests[0] == digests[1]


def test_evaluating_with_the_labels_of_other_tasks_is_refused(
    trained: Result, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["evaluate", trained.path, "data.labels={buy: bought, click: label}"])

    assert "the model's tasks are click, buy" in capsys.readouterr().err
    assert code != 0


def test_windows_of_a_stream_have_the_scores_of_each_task(
    data: Path, tmp_path: Path, jobs_in_threads: RayOfThreads
) -> None:
    stream = {"dir": str(tmp_path / "in"), "close_seconds": 0.1, "poll_seconds": 0.02}
    (tmp_path / "in").mkdir()
    for path in sorted(data.glob("train-*.parquet")):
        pq.write_table(pq.read_table(path), tmp_path / "in" / path.name)
    changes: dict[str, Any] = {
        "data": {"train": None, "stream": stream},
        "training": {"online": {"segment": "a", "until": {"idle_seconds": 0.5}}},
    }

    result = Trainer(job(data, tmp_path / "run", **changes)).fit()

    lines = (Path(result.path) / "metrics.jsonl").read_text().splitlines()
    windows = [window for line in lines for window in json.loads(line)["windows"]]
    tasks = [task for window in windows for task in window["tasks"]]
    samples = {name: sum(t["samples"] for t in tasks if t["name"] == name) for name in LABELS}
    clicks = sum(pq.read_table(each)["label"].to_numpy().sum() for each in data.glob("train-*"))
    assert samples == {"click": 5000, "buy": clicks}
    of_segments = [each["samples"] for window in windows for each in window["segments"]]
    assert sum(of_segments) == 5000, "of the first task"


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({"buy": LABELS["buy"], "click": "label"}, "the tasks are click, buy in the checkpoint"),
        ({"click": "label", "more": LABELS["buy"]}, "the tasks are click, buy in the checkpoint"),
    ],
    ids=["another order", "another name"],
)
def test_a_job_of_other_tasks_does_not_begin_with_their_parameters(
    trained: Result, data: Path, tmp_path: Path, labels: Any, said: str
) -> None:
    config = job(data, tmp_path / "run", data={"labels": labels}, run={"init_from": trained.path})

    with pytest.raises(CheckpointError, match=said):
        Trainer(config).fit()
