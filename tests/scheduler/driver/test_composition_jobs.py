"""Every combiner and composition in whole jobs, and in what scores their models."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from ps.checkpoint.manifest import CheckpointError
from scheduler import JobConfig, Result, Trainer
from scheduler.job.specs import evaluation_data
from synchromesh.commands.main import main
from worker.data.planning import make_plan
from worker.inference import Predictor

POOLING: dict[str, Any] = {
    "data": {
        "sparse": [
            {"name": "a", "column": "a", "max_norm": 0.1},
            "b",
            {"name": "tags", "column": "tags", "combiner": "max", "max_norm": 0.01},
        ]
    },
    "model": {"type": "dlrm", "bottom_mlp": [8], "top_mlp": [8]},
}
ADAM = {"type": "adam", "learning_rate": 0.01}
MULTI_HASH: dict[str, Any] = {
    "data": {
        "sparse": [
            "a",
            {"name": "b", "column": "b", "max_norm": 1},
            {"name": "tags", "column": "tags", "combiner": "mean"},
            {"name": "again", "column": "tags", "table": "tags", "combiner": "max"},
        ]
    },
    "tables": {
        "a": {"composition": {"type": "multi_hash", "modulus": 5}},
        "b": {
            "admission": {"min_count": 2},
            "composition": {"type": "multi_hash", "modulus": 60, "operation": "concatenate"},
        },
        "tags": {
            "optimizer": ADAM,
            "initializer": {"type": "normal", "mean": 0.2},
            "composition": {"type": "multi_hash", "modulus": 6, "operation": "multiply"},
        },
    },
    "model": {"type": "deepfm", "mlp": [8]},
}
DYNAMIC: dict[str, Any] = {
    "data": {"sparse": ["a", "b", {"name": "tags", "column": "tags", "combiner": "mean"}]},
    "tables": {
        "a": {"composition": {"type": "dynamic_dimension", "min_counts": [10]}},
        "b": {
            "optimizer": ADAM,
            "admission": {"min_count": 2},
            "eviction": {"steps_to_live": 5, "every_steps": 3},
            "composition": {"type": "dynamic_dimension", "min_counts": [5, 20, 50]},
        },
        "tags": {
            "admission": {"type": "bloom", "min_count": 2, "max_elements": 100},
            "composition": {"type": "dynamic_dimension", "min_counts": [200]},
        },
    },
    "model": {"type": "wide_deep", "mlp": [8]},
}
ADAPTIVE: dict[str, Any] = {
    "data": {
        "sparse": [
            {"name": "a", "column": "a", "max_norm": 1},
            "b",
            {"name": "tags", "column": "tags", "combiner": "mean"},
            {"name": "again", "column": "tags", "table": "tags", "combiner": "max"},
        ]
    },
    "tables": {
        "a": {
            "admission": {"type": "probabilistic", "probability": 0.05},
            "composition": {"type": "adaptive", "static_rows": 8192},
        },
        "b": {
            "optimizer": ADAM,
            "admission": {"min_count": 4},
            "eviction": {"steps_to_live": 5, "every_steps": 3},
            "composition": {"type": "adaptive", "static_rows": 4096},
        },
        "tags": {
            "value_dtype": "bfloat16",
            "admission": {"type": "bloom", "min_count": 150, "max_elements": 100},
            "composition": {"type": "adaptive", "static_rows": 4096},
        },
    },
    "model": {"type": "dlrm", "bottom_mlp": [8], "top_mlp": [8]},
}
JOBS = {
    "max_and_max_norm": POOLING,
    "multi_hash": MULTI_HASH,
    "dynamic_dimension": DYNAMIC,
    "adaptive": ADAPTIVE,
}


def config(samples: Path, run: Path, job: dict[str, Any], servers: int) -> JobConfig:
    adagrad = {"type": "adagrad", "learning_rate": 0.05, "initial_accumulator": 0.01}
    return JobConfig.from_dict(
        {
            "seed": 3,
            "tables": job.get("tables", {}),
            "data": {
                "train": str(samples / "train-*.parquet"),
                "eval": str(samples / "test.parquet"),
                "dense": ["d1", "d2"],
                "dense_transform": "log1p",
                "batch_size": 64,
                **job["data"],
            },
            "embedding": {"dim": 8, "optimizer": adagrad},
            "model": {**job["model"], "optimizer": adagrad},
            "training": {"mode": "sync", "global_batch": 256},
            "cluster": {"workers": 2, "servers": servers},
            "run": {"dir": str(run)},
        }
    )


@pytest.fixture(scope="module")
def on_one_server(
    jobs_in_threads: None, samples: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Result]:
    """Returns the result of a job on one server, which is trained once."""

    @cache
    def train(name: str) -> Result:
        return Trainer(config(samples, tmp_path_factory.mktemp(name) / "run", JOBS[name], 1)).fit()

    return train


@pytest.mark.parametrize(
    "name",
    [
        "multi_hash",
        "adaptive",
        pytest.param("dynamic_dimension", marks=pytest.mark.slow),
        pytest.param("max_and_max_norm", marks=pytest.mark.slow),
    ],
)
def test_a_job_gives_the_same_bits_on_any_number_of_servers_and_scores_them_alike(
    on_one_server: Callable[[str], Result],
    samples: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    three = config(samples, tmp_path / "3", JOBS[name], 3)

    result = on_one_server(name)
    other = Trainer(three).fit()

    assert result.metrics["model_digest"] == other.metrics["model_digest"]
    assert result.metrics["eval"]["auc"] > 0.6
    assert other.metrics["eval"] == result.metrics["eval"]
    data = evaluation_data(three)
    plan = make_plan(three.data.eval or [], data)
    expected = result.metrics["eval"]
    scores = Predictor.from_checkpoint(other.checkpoint).evaluate(plan, data)
    assert {**scores, "auc_missing": None, "logloss_missing": None} == expected
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "3")]) == 0
    assert json.loads(capsys.readouterr().out).items() >= expected.items()


def test_blocks_hold_fewer_rows_the_more_often_a_key_must_be_seen(
    jobs_in_threads: None, samples: Path, tmp_path: Path
) -> None:
    tables = Trainer(config(samples, tmp_path / "run", DYNAMIC, 2)).fit().metrics["tables"]

    rows = [tables[name]["rows"] for name in ("b", "b_block1", "b_block2", "b_block3")]
    assert rows[0] > rows[1] > rows[2] > rows[3] > 0
    assert tables["b"]["unadmitted"] > 0
    assert tables["b_block1"]["unadmitted"] == 0
    assert tables["b_block1"]["evicted"] > 0


def test_own_rows_take_over_from_static_ones_in_any_mode(
    jobs_in_threads: None, samples: Path, tmp_path: Path
) -> None:
    job = config(samples, tmp_path / "run", ADAPTIVE, 2).model_dump()
    job["training"]["mode"] = "async"

    result = Trainer(JobConfig.from_dict(job)).fit()

    tables = result.metrics["tables"]
    assert tables["b"]["rows"] > 0
    assert tables["b"]["evicted"] > 0
    assert tables["b_static"]["rows"] > tables["b"]["rows"], "most ids are rare"
    assert (tables["b_static"]["unadmitted"], tables["b_static"]["evicted"]) == (0, 0)
    assert result.metrics["eval"]["auc"] > 0.6


def test_rows_of_other_keys_are_not_taken_over(
    on_one_server: Callable[[str], Result], samples: Path, tmp_path: Path
) -> None:
    trained = on_one_server("multi_hash")
    job = config(samples, tmp_path / "second", MULTI_HASH, 1).model_dump()
    job["run"]["init_from"] = trained.path
    job["tables"]["a"]["composition"]["modulus"] = 7

    message = r"tables.a.composition: the checkpoint has a_quotient \(modulus 5\).*\(modulus 7\)"
    with pytest.raises(CheckpointError, match=message):
        Trainer(JobConfig.from_dict(job)).fit()

    job["tables"]["a"]["composition"] = {**job["tables"]["a"]["composition"], "modulus": 5}
    for other in ({"operation": "multiply"}, None):
        composition = job["tables"]["a"]["composition"]
        job["tables"]["a"]["composition"] = other and {**composition, **other}
        with pytest.raises(CheckpointError, match=r"tables.a.composition: .* by add, the job"):
            Trainer(JobConfig.from_dict(job)).fit()


@pytest.mark.slow
def test_max_norm_and_the_maximum_make_other_models(
    jobs_in_threads: None, samples: Path, tmp_path: Path
) -> None:
    changed = ({}, {"max_norm": 0.01}, {"combiner": "max"})
    digests = set()
    for number, options in enumerate(changed):
        sparse = ["a", {"name": "tags", "column": "tags", **options}]
        job = {**POOLING, "data": {"sparse": sparse}}
        short = config(samples, tmp_path / f"{number}", job, 1)
        digests.add(Trainer(short).fit().metrics["model_digest"])

    assert len(digests) == len(changed)
