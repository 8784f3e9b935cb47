"""Optimizers in the job file."""

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from embedding.spec.optimizers import OPTIMIZERS, Adam, AdamW, Ftrl
from scheduler import ConfigError, JobConfig
from scheduler.job.specs import model_spec, store_spec


def job(**sections: Any) -> dict[str, Any]:
    return {
        "data": {"train": "a/*.parquet", "dense": ["x"], "sparse": ["C1", "C2"]},
        "run": {"dir": "runs/x"},
        **sections,
        "model": {"type": "deepfm", "mlp": [8], **sections.get("model", {})},
    }


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_optimizer_can_be_that_of_tables_and_of_the_model(kind: str) -> None:
    optimizer = {"type": kind, "learning_rate": 0.5, "clip_value": 2}
    config = JobConfig.from_dict(
        job(embedding={"optimizer": optimizer}, model={"optimizer": optimizer})
    )

    store = store_spec(config, model_spec(config))

    expected = OPTIMIZERS[kind](learning_rate=0.5, clip_value=2.0)
    assert {table.optimizer for table in store.tables} == {expected}
    # Dense parameters are updated in every step: their accumulator need not start so near 0.
    dense = {"initial_accumulator": 1e-4} if "adagrad" in kind else {}
    assert store.dense_optimizer == replace(expected, **dense)
    assert JobConfig.from_dict(yaml.safe_load(config.to_yaml())) == config


def test_a_table_has_its_own_optimizer() -> None:
    tables = {"C2": {"optimizer": {"type": "ftrl", "l1": 0.5, "clip_norm": 3.0}}}
    config = JobConfig.from_dict(job(tables=tables, embedding={"optimizer": {"type": "adamw"}}))

    found = {t.name: t.optimizer for t in store_spec(config, model_spec(config)).tables}

    assert (found["C1"], found["C2"]) == (AdamW(), Ftrl(l1=0.5, clip_norm=3.0))
    assert config.model.optimizer == Adam()


def test_first_order_weights_have_an_optimizer_of_their_own_unless_their_table_has_one() -> None:
    embedding = {"optimizer": {"type": "adamw"}, "first_order_optimizer": {"type": "ftrl"}}
    tables = {"C2_linear": {"optimizer": {"type": "adam"}}}
    config = JobConfig.from_dict(
        job(embedding=embedding, tables=tables, model={"type": "deepfm", "mlp": []})
    )

    found = {t.name: t.optimizer for t in store_spec(config, model_spec(config)).tables}

    assert (found["C1"], found["C1_linear"], found["C2_linear"]) == (AdamW(), Ftrl(), Adam())
    assert JobConfig.from_dict(yaml.safe_load(config.to_yaml())) == config
    dlrm = {**job(embedding=embedding), "model": {"type": "dlrm"}}
    with pytest.raises(ConfigError, match=r"first_order_optimizer: a model of type dlrm has no"):
        model_spec(JobConfig.from_dict(dlrm))


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        ({"type": "adamax"}, "embedding.optimizer.type must be one of"),
        ({"type": "adam_w"}, "did you mean 'adamw'?"),
        ({"learning_rate": 0.1}, "embedding.optimizer.type is required: one of sgd, adagrad, "),
        (
            {"type": "ftrl", "l1": -1},
            "embedding.optimizer: l1 must be >= 0, got -1",
        ),
        (
            {"type": "adagrad_decay", "catch_up": "all"},
            "embedding.optimizer.catch_up: input should be 'all_periods' or 'one_period'",
        ),
        (
            {"type": "adamw", "wieght_decay": 1},
            "unknown key embedding.optimizer.wieght_decay; did you mean 'weight_decay'?",
        ),
        ({"type": "sgd", "momentum": "much"}, "embedding.optimizer.momentum must be a number"),
        (
            {"type": "sgd", "schedule": {"type": "cosine"}},
            "embedding.optimizer.schedule: decay_steps is required for cosine",
        ),
        (
            {"type": "sgd", "schedule": {"type": "linear"}},
            "embedding.optimizer.schedule.type: input should be 'constant', 'polynomial',",
        ),
        (
            {"type": "sgd", "schedule": {"warm_up_steps": 3}},
            "unknown key embedding.optimizer.schedule.warm_up_steps; did you mean 'warmup_steps'?",
        ),
        (
            {"type": "ftrl", "schedule": {"warmup_steps": 3}},
            "embedding.optimizer: ftrl takes no schedule",
        ),
        ({"type": "sgd", "clip_norm": 0}, "embedding.optimizer: clip_norm must be > 0, got 0"),
    ],
)
def test_mistakes_are_named_with_their_field(optimizer: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        JobConfig.from_dict(job(embedding={"optimizer": optimizer}))

    assert said in str(caught.value)


def test_the_norm_of_rows_can_be_clipped_in_tables_only() -> None:
    optimizer = {"type": "adam", "clip_norm": 1.0}
    JobConfig.from_dict(job(embedding={"optimizer": optimizer}))

    said = r"model\.optimizer: clip_norm .* use clip_value .* or model\.clip_global_norm"
    with pytest.raises(ConfigError, match=said):
        JobConfig.from_dict(job(model={"optimizer": optimizer}))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_norm_of_the_whole_dense_gradient_can_be_clipped_with_every_optimizer(
    kind: str,
) -> None:
    model = {"optimizer": {"type": kind}, "clip_global_norm": 2}
    config = JobConfig.from_dict(job(model=model))

    spec = model_spec(config)

    assert store_spec(config, spec).dense_clip_norm == 2.0
    assert "clip_global_norm" not in spec.options
    assert JobConfig.from_dict(yaml.safe_load(config.to_yaml())) == config


def test_the_norm_of_the_dense_gradient_is_not_clipped_by_default() -> None:
    config = JobConfig.from_dict(job())

    assert store_spec(config, model_spec(config)).dense_clip_norm is None


@pytest.mark.parametrize("limit", [0, -1.5, float("inf"), float("nan"), "much"])
def test_a_limit_of_the_norm_that_can_not_be_is_refused(limit: Any) -> None:
    with pytest.raises(ConfigError, match=r"model\.clip_global_norm"):
        JobConfig.from_dict(job(model={"clip_global_norm": limit}))


def yaml_blocks() -> list[str]:
    text = (Path(__file__).resolve().parents[3] / "docs" / "embedding.md").read_text()
    return re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("block", yaml_blocks())
def test_the_examples_of_the_page_are_legal(block: str) -> None:
    sections = yaml.safe_load(block)
    sections["data"] = {"train": "a", "dense": ["x"], "sparse": ["user_id", "C2"]}

    config = JobConfig.from_dict(job(**sections))

    store_spec(config, model_spec(config))


def test_the_page_names_every_type_and_option() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "embedding.md").read_text()
    for kind, spec in OPTIMIZERS.items():
        assert f"| `{kind}` |" in text
        for field in fields(spec):
            assert field.name == "type" or f"`{field.name}" in text, (kind, field.name)
