"""Columns as a job file names them."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from scheduler import ConfigError, JobConfig
from scheduler.job.specs import feature_spec, model_spec, store_spec


def job(**data: Any) -> dict[str, Any]:
    return {
        "data": {"train": "a.parquet", "sparse": ["a"], **data},
        "model": {"type": "wide_deep", "mlp": []},
        "run": {"dir": "run"},
    }


def refusal(**data: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        JobConfig.from_dict(job(**data))
    return str(caught.value)


# Inputs and answers


@pytest.mark.parametrize(
    "data",
    [
        {"sparse": ["x", "label"]},
        {"sparse": ["a"], "dense": ["d", "label"]},
        {"sparse": [{"column": "label", "name": "clicks"}]},
        {"sparse": ["clicked"], "label": "clicked"},
    ],
)
def test_the_label_is_no_feature(data: dict[str, Any]) -> None:
    assert f"lists '{data.get('label', 'label')}', the label" in refusal(**data)


def test_the_label_is_no_weight() -> None:
    assert "the label 'label' is given as weights" in refusal(
        sparse=[{"column": "a", "weights": "label"}]
    )


@pytest.mark.parametrize(
    "data",
    [
        {"sparse": [{"column": "a", "weights": "w"}, "w"]},
        {"sparse": [{"column": "a", "weights": "w"}], "dense": ["w"]},
        {"sparse": [{"column": "w", "weights": "w"}]},
    ],
)
def test_a_column_of_weights_is_no_feature(data: dict[str, Any]) -> None:
    assert "lists 'w', which holds the weights of a feature" in refusal(**data)


def test_features_may_share_a_column_of_weights() -> None:
    config = JobConfig.from_dict(job(sparse=[{"column": c, "weights": "w"} for c in ("a", "b")]))

    assert [feature.weights for feature in feature_spec(config).sparse] == ["w", "w"]


# Sequences


def test_keys_that_are_not_pooled_take_no_weights() -> None:
    told = refusal(sparse=[{"column": "a", "combiner": "none", "weights": "w"}])
    assert "combiner none takes no weights; leave weights out or use mean" in told


def test_which_end_is_kept_is_said_where_something_is_cut() -> None:
    told = refusal(sparse=[{"column": "a", "keep": "last"}])
    assert "data.sparse.0: keep is last, and says which keys of a list that max_length" in told

    config = JobConfig.from_dict(
        job(sparse=["a", {"column": "b", "max_length": 2, "keep": "last"}])
    )
    assert [feature.keep for feature in feature_spec(config).sparse] == ["first", "last"]


@pytest.mark.parametrize("kind", ["dlrm", "deepfm", "wide_deep", "linear", "custom"])
def test_models_that_take_one_vector_a_feature_refuse_sequences(kind: str) -> None:
    options = {"class": "json:JSONDecoder"} if kind == "custom" else {}
    sections = job(sparse=["a", {"column": "b", "combiner": "none"}])
    config = JobConfig.from_dict({**sections, "model": {"type": kind, **options}})

    with pytest.raises(ConfigError) as caught:
        model_spec(config)

    assert str(caught.value) == (
        f"model: sparse feature 'b' has combiner none, and a model of type {kind} takes one vector"
        " for each feature: let it be sum, mean, sqrtn or max, or take a model of type torch"
        " (docs/torch.md)"
    )


# Names


@pytest.mark.parametrize(
    ("text", "field", "shown"),
    [
        ("sparse: [a, 1]", "data.sparse.1", "an int, 1"),
        ("sparse: [{column: 2}]", "data.sparse.0.column", "an int, 2"),
        ("sparse: [{column: a, name: 7}]", "data.sparse.0.name", "an int, 7"),
        ("sparse: [{column: a, weights: 3}]", "data.sparse.0.weights", "an int, 3"),
        ("dense: [1.5]", "data.dense.0", "a float, 1.5"),
        ("dense: [yes]", "data.dense.0", "a truth value, True"),
        ("dense: [2026-01-02]", "data.dense.0", "a date, 2026-01-02"),
        ("label: on", "data.label", "a truth value, True"),
    ],
)
def test_a_name_that_yaml_reads_as_something_else_needs_quotes(
    text: str, field: str, shown: str
) -> None:
    told = refusal(**yaml.safe_load(text))

    assert f"{field}" in told
    assert shown in told
    assert 'put it into quotes as the file has it ("1", "on")' in told


def test_a_name_that_is_missing_is_told() -> None:
    assert "data.dense.0: a name is missing" in refusal(dense=[None])


def test_quoted_numbers_are_names(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job()).replace("- a\n", '- "1"\n'))

    config = JobConfig.from_yaml(path)

    assert store_spec(config, model_spec(config)).tables[0].name == "1"


@pytest.mark.parametrize(
    ("column", "advice"), [("C 1", "name: C_1"), ("a/b", "name: a_b"), (".x", "name: x")]
)
def test_a_column_whose_name_no_table_can_have_needs_another_name(column: str, advice: str) -> None:
    told = refusal(sparse=[column])

    assert told.startswith("job: data.sparse.0: column ")
    assert f"{{column: {column!r}, {advice}}}" in told

    named = job(sparse=[{"column": column, "name": "c1"}])
    config = JobConfig.from_dict(named)
    assert store_spec(config, model_spec(config)).tables[0].name == "c1"
    assert feature_spec(config).columns() == ["label", column]


@pytest.mark.parametrize("field", ["name", "table"])
def test_a_name_that_no_table_can_have_is_told(field: str) -> None:
    told = refusal(sparse=[{"column": "a", field: "x y"}])

    assert f"{field} 'x y' is the name of a table" in told
    assert "write x_y" in told


# Padding


@pytest.mark.parametrize("pad", [0, -1, "", "<pad>", 2**64 - 1, None])
def test_padding_goes_into_the_features(pad: int | str | None) -> None:
    config = JobConfig.from_dict(job(sparse=[{"column": "a", "pad": pad}]))

    assert feature_spec(config).sparse[0].pad == pad
    again = JobConfig.from_dict(yaml.safe_load(config.to_yaml()))
    assert again.data.sparse[0].pad == pad


@pytest.mark.parametrize("pad", [True, 0.0, [0], 2**64])
def test_padding_that_is_no_key_is_refused(pad: Any) -> None:
    assert "data.sparse.0.pad" in refusal(sparse=[{"column": "a", "pad": pad}])


# Weights of samples


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"weight": "w", "dense": ["w"]}, "data.dense lists 'w', which data.weight names"),
        ({"weight": "a"}, "data.sparse lists 'a', which data.weight names"),
        ({"weight": "label"}, "the label 'label' is given as weights"),
        ({"weight": "w", "eval_batch_size": 2**20 + 1}, "eval_batch_size may be at most 1048576"),
    ],
)
def test_a_weight_of_samples_is_nothing_else(data: dict[str, Any], said: str) -> None:
    assert said in refusal(**data)


def test_the_weight_is_a_column_that_is_read() -> None:
    features = feature_spec(JobConfig.from_dict(job(weight="w")))

    assert features.columns() == ["label", "w", "a"]
    assert features.inputs().columns() == ["a"]


def test_a_model_whose_training_takes_no_weights_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    takes = "params, dense, pooled, labels, grad_params, grad_pooled"
    (tmp_path / "models_of_weights.py").write_text(
        "class Without:\n"
        "    def __init__(self, spec): self.parameters = ()\n"
        f"    def train(self, {takes}): return 0.0\n"
        "    def predict(self, params, dense, pooled): return dense\n"
        "class With(Without):\n"
        f"    def train(self, {takes}, weights=None): return 0.0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def config(name: str, **data: Any) -> JobConfig:
        model = {"type": "custom", "class": f"models_of_weights:{name}"}
        return JobConfig.from_dict({**job(**data), "model": model})

    model_spec(config("With", weight="w"))
    model_spec(config("Without"))
    with pytest.raises(
        ConfigError, match=r"data\.weight is 'w', and train of model\.class 'models_of"
    ):
        model_spec(config("Without", weight="w"))


def test_a_custom_model_has_a_loss_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models_of_loss.py").write_text(
        "class Own:\n"
        "    def __init__(self, spec): self.parameters = ()\n"
        "    def train(self, *arguments): return 0.0\n"
        "    def predict(self, params, dense, pooled): return dense\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    training = {"loss": "fake_negative_weighting"}
    config = {**job(), "training": training}

    assert model_spec(JobConfig.from_dict(config)).loss == "fake_negative_weighting"
    config["model"] = {"type": "custom", "class": "models_of_loss:Own"}
    with pytest.raises(ConfigError, match="a custom model computes its loss itself"):
        model_spec(JobConfig.from_dict(config))
