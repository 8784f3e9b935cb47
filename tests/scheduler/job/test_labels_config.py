"""Labels of several tasks in the job file."""

from typing import Any

import pytest

from scheduler.job.config import JobConfig
from scheduler.job.errors import ConfigError
from scheduler.job.specs import (
    arriving_features,
    evaluation_data,
    feature_spec,
    label_features,
    model_spec,
    training_data,
)
from worker.spec import TaskLabel

LABELS = {
    "click": "clicked",
    "buy": {"column": "bought", "where": "click", "weight": 0.5, "missing": "mask"},
}


LATER = {
    "click": {"column": "clicked", "window_seconds": 600},
    "buy": {"column": "bought", "where": "click"},
}


def job(model: dict[str, Any] | None = None, /, **data: Any) -> dict[str, Any]:
    return {
        "data": {"train": "t.parquet", "sparse": ["a"], "dense": ["d"], **data},
        "model": model or {"type": "torch", "class": "worker.models.torch.mmoe:Mmoe"},
        "run": {"dir": "r"},
    }


def test_a_plain_name_is_a_column_and_the_order_is_that_of_the_file() -> None:
    config = JobConfig.from_dict(job(labels=LABELS))

    assert feature_spec(config).tasks == (
        TaskLabel(name="click", column="clicked"),
        TaskLabel(name="buy", column="bought", where="click", missing="mask"),
    )
    assert feature_spec(config).label is None
    assert feature_spec(config).columns()[:2] == ["clicked", "bought"]
    assert feature_spec(config).inputs().columns() == ["d", "a"]


def test_the_resolved_job_reads_back_the_same_with_one_label_or_several(tmp_path: Any) -> None:
    for data in ({"labels": LABELS}, {"label": "y"}, {}):
        config = JobConfig.from_dict(job(**data))
        (tmp_path / "job.yaml").write_text(config.to_yaml())
        assert JobConfig.from_yaml(tmp_path / "job.yaml") == config


def test_the_model_has_the_names_and_weights_of_the_tasks() -> None:
    pytest.importorskip("torch")

    spec = model_spec(JobConfig.from_dict(job(labels=LABELS)))

    assert (spec.tasks, spec.task_weights) == (("click", "buy"), (1.0, 0.5))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"label": "y", "labels": LABELS}, "data.label is 'y', and data.labels names"),
        ({"labels": {}}, "data.labels"),
        (
            {"labels": {"a b": "x"}},
            "data.labels.a b: 'a b' is no name of a task: letters of",
        ),
        ({"labels": {".ab": "x"}}, "first of them no '.' or '-'; write ab, say"),
        ({"labels": {"ok": "x", "": "y"}}, "'' is no name of a task"),
        ({"labels": {"click": {"column": "c", "weight": -1}}}, "data.labels.click.*weight"),
        ({"labels": {"click": {"column": "c", "weight": 0}}}, "every task weight 0"),
        ({"labels": {"click": {"column": "c", "wher": "x"}}}, "wher"),
        ({"labels": {"click": {"column": "c", "where": "x"}}}, "click.where must name another"),
        ({"labels": {"click": "a"}}, "data.labels.click is 'a', which is a feature"),
        ({"labels": {"click": "d"}}, "data.labels.click is 'd', which is a feature"),
        ({"labels": {"click": "w"}, "weight": "w"}, "data.weight names too"),
        ({"eval_group_by": "u"}, "data.eval_group_by needs data.eval"),
        ({"labels": LATER}, "data.labels.click.window_seconds is for labels that come later"),
        (
            {"labels": LABELS, "eval": "e", "eval_group_by": "u", "eval_batch_size": 300_000},
            "eval_batch_size may be at most 262144 beside data.eval_group_by",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(data: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        JobConfig.from_dict(job(**data))


def job_on_streams(labels: dict[str, Any] | None = None, /, **options: Any) -> dict[str, Any]:
    later = {"dir": "l", "key": "k", "window_seconds": 86400, **options}
    given = job(labels=labels or LATER, stream={"dir": "s"}, label_stream=later)
    del given["data"]["train"]
    return given


def test_labels_that_come_later_are_read_by_column_and_trained_by_task() -> None:
    config = JobConfig.from_dict(job_on_streams())

    assert arriving_features(config).columns() == ["k", "d", "a"]
    assert label_features(config).columns() == ["clicked", "bought", "k"]
    trained = training_data(config).features.tasks
    assert [(task.name, task.where, task.missing) for task in trained] == [
        ("click", None, "mask"),
        ("buy", None, "mask"),
    ]
    assert evaluation_data(config).features.tasks == feature_spec(config).tasks
    assert feature_spec(config).tasks[1].where == "click"


@pytest.mark.parametrize(
    ("labels", "options", "said"),
    [
        (LABELS, {}, "data.labels.buy.missing is mask, .* is a negative once"),
        (None, {"label": "y"}, "data.label_stream.label is 'y', and data.labels names"),
        (None, {"key": "bought"}, "data.label_stream.key is 'bought', a label"),
        (
            {**LATER, "both": {"column": "clicked", "window_seconds": 5}},
            {},
            "data.labels.both.window_seconds is not that of data.labels.click",
        ),
        (
            {"click": {"column": "clicked", "window_seconds": 0}},
            {"remember_seconds": 0},
            "data.labels.click.window_seconds is 0 and",
        ),
    ],
)
def test_labels_that_would_not_find_their_samples_are_refused(
    labels: dict[str, Any] | None, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        JobConfig.from_dict(job_on_streams(labels, **options))


def test_esmm_is_refused_labels_one_by_one() -> None:
    pytest.importorskip("torch")
    given = job_on_streams(tasks="apart")
    model_spec(JobConfig.from_dict(given))
    given["model"]["class"] = "worker.models.torch.esmm:Esmm"

    with pytest.raises(ConfigError, match="tasks is apart, and Esmm learns click and conversion"):
        model_spec(JobConfig.from_dict(given))


def test_models_of_one_logit_and_losses_of_one_label_are_refused() -> None:
    config = JobConfig.from_dict(job({"type": "linear"}, labels=LABELS))
    with pytest.raises(ConfigError, match="a model of type linear has one logit"):
        model_spec(config)

    given = job(labels=LABELS)
    given["training"] = {"loss": "fake_negative_weighting"}
    with pytest.raises(ConfigError, match="fake_negative_weighting is for one label"):
        model_spec(JobConfig.from_dict(given))


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ({"click": "c", "convert": "b"}, "data.labels.convert has no where: click"),
        ({"click": {"column": "c", "where": "buy"}, "buy": "b"}, "data.labels.buy has no where"),
        ({"click": "c", "convert": {"column": "b", "where": "click"}, "both": "b"}, None),
    ],
)
def test_conversions_of_esmm_that_are_of_all_impressions_are_warned_of(
    caplog: pytest.LogCaptureFixture, labels: dict[str, Any], told: str | None
) -> None:
    pytest.importorskip("torch")
    for name in ("mmoe:Mmoe", "esmm:Esmm"):
        model = {"type": "torch", "class": f"worker.models.torch.{name}"}
        model_spec(JobConfig.from_dict(job(model, labels=labels)))
        if name == "mmoe:Mmoe":
            assert not caplog.records

    assert [told in each.getMessage() for each in caplog.records if told] == [True] * bool(told)
    assert bool(caplog.records) == bool(told)


def test_only_an_evaluation_reads_the_groups() -> None:
    config = JobConfig.from_dict(job(eval="e", eval_group_by="user"))

    assert evaluation_data(config).features.columns() == ["label", "user", "d", "a"]
    assert "user" not in feature_spec(config).columns()
