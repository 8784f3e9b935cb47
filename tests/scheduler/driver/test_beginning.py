"""A job that starts from a checkpoint has its features, or says how they differ."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ps.checkpoint.manifest import CheckpointError
from ps.checkpoint.read import CheckpointReader
from ps.checkpoint.sealed_json import sealed_text, unsealed
from scheduler import ConfigError, JobConfig, Result, Trainer
from scheduler.driver.resolved import JobSpecs, resolve
from scheduler.job.model import ModelConfig
from worker.data.planning import make_plan
from worker.errors import DataError
from worker.inference import Predictor
from worker.spec import DataSpec

ROWS = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One data set twice: `u` and `v` are integers, or text of them."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(3)
    u = rng.integers(0, 9, ROWS)
    columns: dict[str, Any] = {"label": u % 2, "u": u, "v": u + 1, "none": pa.nulls(ROWS)}
    columns |= {name: rng.normal(size=ROWS) for name in ("x1", "x2", "x3")}
    pq.write_table(pa.table(columns), folder / "ints.parquet")
    columns["u"], columns["v"] = u.astype(str), (u + 1).astype(str)
    pq.write_table(pa.table(columns), folder / "text.parquet")
    return folder


def job(folder: Path, run: dict[str, Any], **data: Any) -> JobConfig:
    data = {"dense": ["x1", "x2"], "sparse": ["u", "v"], "train": "ints.parquet", **data}
    for key in {"train", "eval"} & set(data):
        data[key] = str(folder / data[key])
    return JobConfig.from_dict(
        {
            "data": {"batch_size": 16, **data},
            "embedding": {"dim": 4},
            "model": {"type": "deepfm", "mlp": [5]},
            "training": {"mode": "sync"},
            "cluster": {"workers": 1, "servers": 1},
            "run": run,
        }
    )


@pytest.fixture(scope="module")
def day1(jobs_in_threads: None, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    run = {"dir": str(tmp_path_factory.mktemp("day1") / "run")}
    return Trainer(job(folder, run, epochs=3)).fit()


def next_day(folder: Path, day1: Result, said: dict[str, Any] | None = None, **data: Any) -> Any:
    run = {"dir": str(folder / "no run"), "init_from": day1.path, "init_features": said or {}}
    return resolve(job(folder, run, **data))


@pytest.mark.parametrize(
    ("data", "text", "said"),
    [
        (
            {"dense": ["x2", "x1"]},
            "data.dense has the order x2, x1, it was x1, x2",
            {"moved": True},
        ),
        (
            {"sparse": ["v", "u"]},
            "data.sparse has the order v, u, it was u, v",
            {"moved": True},
        ),
        ({"dense": ["x1", "x2", "x3"]}, "dense feature 'x3' is new", {"added": ["x3"]}),
        ({"dense": ["x1"]}, "dense feature 'x2' is gone", {"removed": ["x2"]}),
        (
            {"sparse": [{"column": "u", "name": "user"}, "v"]},
            "sparse feature 'user' is new; sparse feature 'u' is gone",
            {"added": ["user"], "removed": ["u"]},
        ),
        (
            {"dense_transform": "log1p"},
            "data.dense_transform is 'log1p', it was 'none'",
            {"changed": ["dense_transform"]},
        ),
        (
            {"sparse": [{"column": "u", "combiner": "mean", "pad": 0}, "v"]},
            "combiner of sparse feature 'u' is 'mean', it was 'sum'; pad of sparse feature 'u' is"
            " 0, it was None",
            {"changed": ["u"]},
        ),
        (
            {"sparse": ["u", {"column": "u", "name": "v"}]},
            "column of sparse feature 'v' is 'u', it was 'v'",
            {"changed": ["v"]},
        ),
    ],
)
def test_other_features_are_refused_unless_the_job_says_so(
    folder: Path, day1: Result, data: dict[str, Any], text: str, said: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError) as caught:
        next_day(folder, day1, **data)
    assert text in str(caught.value)
    shown = ", ".join(
        f"{how}: true" if names is True else f"{how}: [{', '.join(names)}]"
        for how, names in said.items()
    )
    assert str(caught.value).endswith(f"say run.init_features: {{{shown}}}")

    specs: JobSpecs = next_day(folder, day1, said, **data)
    assert specs.beginning.dense_sources is not None


@pytest.mark.parametrize(
    ("tables", "text", "said"),
    [
        (
            {"u": {"optimizer": {"type": "sgd"}}},
            "table u: the optimizer is sgd, it was adagrad: its slots begin anew",
            {"optimizer": ["u"]},
        ),
        (
            {"u": {"dim": 2}, "v": {"dim": 2}},
            "table u: the dim is 2, it was 4: vectors are cut; table v: the dim is 2, it was 4:"
            " vectors are cut",
            {"dim": ["u", "v"]},
        ),
    ],
)
def test_other_tables_are_refused_unless_the_job_says_so(
    folder: Path,
    day1: Result,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    tables: dict[str, Any],
    text: str,
    said: dict[str, list[str]],
) -> None:
    run = {"dir": str(folder / "no run"), "init_from": day1.path}
    config = job(folder, run).model_dump(mode="json") | {"tables": tables}
    with pytest.raises(ConfigError) as caught:
        resolve(JobConfig.from_dict(config))
    assert text in str(caught.value)
    ((how, names),) = said.items()
    assert str(caught.value).endswith(f"say run.init_tables: {{{how}: [{', '.join(names)}]}}")

    config["run"]["init_tables"] = said
    specs = resolve(JobConfig.from_dict(config))

    assert specs.beginning.adapts
    assert (specs.beginning.dense_sources is None) == (how == "optimizer")
    assert all(part in caplog.text for part in text.split("; "))
    config["run"]["dir"] = str(tmp_path / "run")
    result = Trainer(JobConfig.from_dict(config)).fit()
    first, second = (CheckpointReader(str(r.checkpoint)) for r in (day1, result))
    assert second.manifest.step > first.manifest.step


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ({"type": "wide_deep", "mlp": [5]}, "model.type is deepfm in the checkpoint, wide_deep in"),
        ({"type": "deepfm", "mlp": [6]}, r"parameter mlp.0.weight is \[10, 5\] in .*, \[10, 6\]"),
        ({"type": "deepfm", "mlp": [2, 2, 8]}, r"mlp.0.weight is \[10, 5\] in .*, \[10, 2\] in"),
        ({"type": "deepfm", "mlp": [5, 5]}, r"parameter mlp.1.weight is \[5, 1\] in .*, \[5, 5\]"),
    ],
)
def test_another_model_is_refused_be_its_parameters_as_many(
    folder: Path, day1: Result, model: dict[str, Any], text: str
) -> None:
    """mlp [5] has as many as [2, 2, 8] and as wide_deep."""
    run = {"dir": str(folder / "no run"), "init_from": day1.path}
    config = job(folder, run).model_copy(update={"model": ModelConfig.model_validate(model)})

    with pytest.raises(CheckpointError, match=text):
        resolve(config)


def test_what_was_said_of_an_earlier_job_does_no_harm(folder: Path, day1: Result) -> None:
    said = {"added": ["x2"], "removed": ["gone"], "changed": ["u"], "moved": True}

    assert next_day(folder, day1, said).beginning.dense_sources is None


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, {}),
        # A new feature on an old table, an old one of another column.
        ({"sparse": ["u", {"column": "v", "name": "w", "table": "v"}]}, ["v", "w"]),
        ({"sparse": [{"column": "v", "name": "u"}, "v"]}, ["u"]),
    ],
)
def test_a_table_takes_keys_of_the_type_that_its_rows_were_trained_for(
    folder: Path, day1: Result, data: dict[str, Any], said: Any
) -> None:
    changes = dict.fromkeys(("added", "removed", "changed"), said) if said else {}
    with pytest.raises(DataError, match=r"got string, expected integer as in .*full-"):
        next_day(folder, day1, changes, train="text.parquet", **data)


def test_a_table_of_another_name_may_have_keys_of_another_type(folder: Path, day1: Result) -> None:
    sparse = [{"column": name, "table": f"{name}_text"} for name in "uv"]
    said = {"changed": ["u", "v"]}

    specs = next_day(folder, day1, said, train="text.parquet", sparse=sparse)

    assert specs.contract.keys == {"u": "string", "v": "string"}


def test_evaluation_data_have_the_keys_of_training_and_of_the_checkpoint(
    folder: Path, day1: Result
) -> None:
    with pytest.raises(DataError, match=r"text.parquet.*expected integer as in '.*ints.parquet'"):
        resolve(job(folder, {"dir": "no run"}, eval="text.parquet"))
    nulls = folder / "nulls.parquet"
    table = pq.read_table(folder / "ints.parquet")
    for number, name in ((1, "u"), (2, "v")):
        table = table.set_column(number, name, pa.nulls(ROWS))
    pq.write_table(table, nulls)

    specs = next_day(folder, day1, train="nulls.parquet")
    assert specs.contract.keys == {"u": "integer", "v": "integer"}, "as the checkpoint says"
    with pytest.raises(DataError, match="expected integer as in the checkpoint"):
        next_day(folder, day1, train="nulls.parquet", eval="text.parquet")


def test_a_loaded_model_refuses_to_be_evaluated_on_other_keys(folder: Path, day1: Result) -> None:
    predictor = Predictor.from_checkpoint(day1.checkpoint)
    data = DataSpec(features=predictor.features, batch_size=16)

    scores = predictor.evaluate(make_plan([str(folder / "ints.parquet")], data), data)
    assert scores["samples"] == ROWS
    with pytest.raises(DataError, match="got string, expected integer as in the checkpoint"):
        predictor.evaluate(make_plan([str(folder / "text.parquet")], data), data)


def test_a_checkpoint_without_a_contract_is_taken_with_a_warning(
    folder: Path, day1: Result, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = Path(day1.checkpoint) / "manifest.json"
    whole = manifest.read_text()
    data = unsealed(json.loads(whole))
    del data["model"]["contract"]
    manifest.write_text(sealed_text(data)[0])
    try:
        with caplog.at_level(logging.WARNING):
            next_day(folder, day1)
    finally:
        manifest.write_text(whole)
    assert "does not say which types its columns had" in caplog.text


def test_dense_weights_follow_the_names_of_features_through_a_job(
    folder: Path, day1: Result, tmp_path: Path
) -> None:
    """A learning rate of next to nothing, so that the model stays what it was."""
    run = {"dir": str(tmp_path / "day2"), "init_from": day1.path, "init_features": {"moved": True}}
    changed = job(folder, run, dense=["x2", "x1"], sparse=["v", "u"], eval="ints.parquet")
    still = {"type": "adagrad", "learning_rate": 1e-12}
    values = changed.model_dump(mode="json")
    values["embedding"]["optimizer"] = still
    values["model"]["optimizer"] = {"type": "adam", "learning_rate": 1e-12}
    day2 = Trainer(JobConfig.from_dict(values)).fit()

    predictor = Predictor.from_checkpoint(day1.checkpoint)
    data = DataSpec(features=predictor.features, batch_size=16)
    before = predictor.evaluate(make_plan([str(folder / "ints.parquet")], data), data)
    assert day2.metrics["eval"]["logloss"] == pytest.approx(before["logloss"], rel=1e-6)
    a, b = (CheckpointReader(run.checkpoint).dense_vector() for run in (day1, day2))
    assert (a != b).any()
    np.testing.assert_allclose(np.sort(a), np.sort(b), rtol=1e-6)
