"""A job held against its data: counts that are exact where all rows are read, and estimates."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from embedding.table.rows import memory_of
from embedding.table.tiered_values import PLACE_BYTES
from scheduler.job.config import JobConfig
from synchromesh.checking import check_job, grown
from synchromesh.checking_dense import warnings_of_dense
from synchromesh.checking_labels import LabelCheck
from synchromesh.commands.main import main
from worker.errors import DataError


@pytest.fixture
def job(samples: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "data": {
            "train": f"{samples}/train-*.parquet",
            "dense": ["d1", "d2"],
            "sparse": ["a", "b", {"column": "tags", "combiner": "mean", "table": "a"}],
            "batch_size": 100,
        },
        "embedding": {"dim": 4},
        "model": {"type": "dlrm", "bottom_mlp": [4], "top_mlp": [4]},
        "training": {"global_batch": 200},
        "cluster": {"servers": 2},
        "run": {"dir": str(tmp_path / "run")},
    }


def config_of(job: dict[str, Any], path: Path) -> JobConfig:
    path.write_text(yaml.safe_dump(job))
    return JobConfig.from_yaml(path, [])


def test_figures_of_all_rows_are_exact(job: dict[str, Any], samples: Path, tmp_path: Path) -> None:
    whole = pa.concat_tables([pq.read_table(f) for f in sorted(samples.glob("train-*.parquet"))])

    check = check_job(config_of(job, tmp_path / "job.yaml"))

    assert (check.files, check.rows, check.rows_read, check.batches, check.steps) == (
        3,
        5000,
        5000,
        50,
        25,
    )
    assert check.label_mean == pytest.approx(np.mean(whole["label"].to_numpy()))
    d1, _, a, b, tags = check.columns
    assert d1.null_rate == whole["d1"].null_count / 5000
    assert a.distinct == a.distinct_expected == len(whole["a"].unique().drop_null())
    assert b.distinct == len(whole["b"].unique().drop_null())
    assert tags.keys == pytest.approx(len(whole["tags"].combine_chunks().flatten()) / 5000)
    assert {table.name for table in check.tables} == {"a", "b"}
    shared = {*whole["a"].to_pylist(), *whole["tags"].combine_chunks().flatten().to_pylist()}
    assert check.tables[0].rows == pytest.approx(len(shared - {None}), abs=1)
    # A row of Adagrad is its vector and as many accumulators.
    assert check.tables[1].memory_bytes == memory_of(b.distinct, 8, track_usage=False)
    assert check.refused == check.warnings == []


def test_files_with_what_training_refuses_are_named(
    job: dict[str, Any], samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pq.read_table(samples / "train-0.parquet")
    labels = np.zeros(table.num_rows, np.int8)
    labels[7] = 2
    pq.write_table(table.set_column(0, "label", pa.array(labels)), tmp_path / "wrong.parquet")
    job["data"]["train"] = [f"{samples}/train-0.parquet", str(tmp_path / "wrong.parquet")]
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job))

    code = main(["check", str(path), "--json"])

    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert code == 2
    assert shown.err.startswith("error: training would refuse 1 of 2 files: ")
    assert len(found["refused"]) == 1
    assert "wrong.parquet" in found["refused"][0]
    assert found["rows"] == 4000
    assert not (tmp_path / "run").exists()


def test_data_of_which_no_row_can_be_read_are_named(tmp_path: Path) -> None:
    odd = pa.table({"label": [0, 1], "x": [1.0, float(1 << 53)]})
    pq.write_table(odd, tmp_path / "a.parquet")
    job = {
        "data": {"train": str(tmp_path / "a.parquet"), "sparse": ["x"]},
        "model": {"type": "wide_deep", "mlp": [4]},
        "run": {"dir": str(tmp_path / "run")},
    }

    check = check_job(config_of(job, tmp_path / "job.yaml"))

    assert (check.rows_read, [c.distinct_expected for c in check.columns]) == (0, [0])
    assert "a.parquet" in check.refused[0]


def test_labels_of_one_kind_are_a_warning(
    job: dict[str, Any], samples: Path, tmp_path: Path
) -> None:
    table = pq.read_table(samples / "train-0.parquet")
    zeros = pa.array(np.zeros(table.num_rows, np.int8))
    pq.write_table(table.set_column(0, "label", zeros), tmp_path / "zeros.parquet")
    job["data"]["train"] = str(tmp_path / "zeros.parquet")

    assert check_job(config_of(job, tmp_path / "job.yaml")).warnings == [
        "every label of the 2,000 rows that were read is 0"
    ]


def test_few_servers_for_many_dense_parameters_are_a_warning() -> None:
    (text,) = warnings_of_dense(10_000_000, workers=8, servers=2, batches=8)

    assert "10,000,000 dense parameters" in text
    assert "each of 2 servers takes 160 MB" in text
    assert "(cluster.servers), up to 8," in text
    for fewer in ({"servers": 8}, {"dense_size": 100_000}, {"batches": 1}, {"workers": 2}):
        sizes = {"dense_size": 10_000_000, "workers": 8, "servers": 2, "batches": 8} | fewer
        assert warnings_of_dense(sizes.pop("dense_size"), **sizes) == []


def test_a_job_with_a_large_module_is_told_of_its_servers(
    job: dict[str, Any], tmp_path: Path
) -> None:
    job["model"] = {"type": "wide_deep", "mlp": [4000, 4000]}
    job["cluster"] = {"workers": 4, "servers": 1}

    (text,) = check_job(config_of(job, tmp_path / "job.yaml")).warnings

    assert text.startswith("the model has 16,")


def test_distinct_keys_of_more_rows_are_estimated_by_how_they_grew() -> None:
    saturated = [(n, 100) for n in range(100, 1001, 100)]
    every_row_new = [(n, n) for n in range(100, 1001, 100)]
    root = [(n, round(10 * n**0.5)) for n in range(100, 1001, 100)]

    assert grown(saturated, 1_000_000) == 100
    assert grown(every_row_new, 1_000_000) == 1_000_000
    assert grown(root, 1_000_000) == pytest.approx(10_000, rel=0.05)
    assert grown([(1000, 40)], 1000) == 40
    assert grown([], 1000) == 0


def test_weights_of_samples_are_shown_and_told_of_where_all_are_0(
    job: dict[str, Any], samples: Path, tmp_path: Path
) -> None:
    table = pq.read_table(samples / "train-0.parquet")
    path = tmp_path / "weighed.parquet"
    job["data"].update(train=str(path), weight="w")
    for weights, warned in (([0.5, 3.5] * 1000, False), ([0.0] * 2000, True)):
        pq.write_table(table.append_column("w", pa.array(weights)), path)

        check = check_job(config_of(job, tmp_path / "job.yaml"))

        weight = check.columns[0]
        assert (weight.name, weight.part, weight.null_rate) == ("w", "weight", 0.0)
        assert (weight.minimum, weight.maximum) == (min(weights), max(weights))
        assert weight.mean == pytest.approx(np.mean(weights))
        assert any("every weight" in warning for warning in check.warnings) is warned


def test_samples_whose_labels_come_later_are_read_without(
    job: dict[str, Any], samples: Path, tmp_path: Path
) -> None:
    table = pq.read_table(next(samples.glob("train-*.parquet"))).slice(0, 100)
    for name, part in (
        ("samples", table.drop_columns(["label"]).append_column("id", pa.array(range(100)))),
        ("labels", pa.table({"id": [3], "label": [1]})),
    ):
        (tmp_path / name).mkdir()
        pq.write_table(part, tmp_path / name / "1.parquet")
    labels = {"dir": str(tmp_path / "labels"), "key": "id", "window_seconds": 60}
    data = {**job["data"], "stream": {"dir": str(tmp_path / "samples")}, "label_stream": labels}
    del data["train"]

    check = check_job(config_of({**job, "data": data}, tmp_path / "job.yaml"))

    assert (check.refused, check.rows_read, check.label_mean) == ([], 100, None)
    assert check.warnings == []
    assert check.labels == LabelCheck(rows=1, label_mean=1.0, of_samples=1.0, samples=100)
    pq.write_table(pa.table({"id": ["3"], "label": [1]}), tmp_path / "labels" / "1.parquet")
    with pytest.raises(DataError, match="a key of labels differs between files"):
        check_job(config_of({**job, "data": data}, tmp_path / "job.yaml"))
    pq.write_table(pa.table({"iid": [3], "label": [1]}), tmp_path / "labels" / "1.parquet")
    with pytest.raises(DataError, match=r"lacks a column.*'id'.*but 'iid'"):
        check_job(config_of({**job, "data": data}, tmp_path / "job.yaml"))


@pytest.mark.parametrize(
    ("keys", "warning"),
    [
        ([], "data.label_stream has no labels yet"),
        ([1000, 1001], "none of 2 labels has the key of one of 100 samples that were read"),
        ([3, 4, 1000, 1001], None),
    ],
)
def test_labels_whose_keys_do_not_fit_are_told_of(
    job: dict[str, Any], samples: Path, tmp_path: Path, keys: list[int], warning: str | None
) -> None:
    table = pq.read_table(next(samples.glob("train-*.parquet"))).slice(0, 100)
    table = table.drop_columns(["label"]).append_column("id", pa.array(range(100)))
    for name in ("samples", "labels"):
        (tmp_path / name).mkdir()
    pq.write_table(table, tmp_path / "samples" / "1.parquet")
    if keys:
        found = pa.table({"id": keys, "label": [key % 2 for key in keys]})
        pq.write_table(found, tmp_path / "labels" / "1.parquet")
    labels = {"dir": str(tmp_path / "labels"), "key": "id", "window_seconds": 60}
    data = {**job["data"], "stream": {"dir": str(tmp_path / "samples")}, "label_stream": labels}
    del data["train"]

    check = check_job(config_of({**job, "data": data}, tmp_path / "job.yaml"))

    if warning is None:
        assert check.warnings == []
        assert check.labels == LabelCheck(rows=4, label_mean=0.5, of_samples=0.5, samples=100)
    else:
        assert [warning in each for each in check.warnings] == [True]


def test_values_beyond_a_budget_are_not_counted_as_memory(
    job: dict[str, Any], samples: Path, tmp_path: Path
) -> None:
    job["embedding"], job["cluster"] = {"dim": 256}, {"servers": 1}
    path = tmp_path / "job.yaml"
    (plain,) = [t for t in check_job(config_of(job, path)).tables if t.name == "a"]
    job["tables"] = {
        **job.get("tables", {}), "a": {"tiers": {"memory_bytes": 1 << 16, "path": str(tmp_path)}}
    }  # fmt: skip
    (tiered,) = [t for t in check_job(config_of(job, path)).tables if t.name == "a"]

    saved = 2048 * plain.rows - (1 << 16)
    assert saved > 0
    assert tiered.memory_bytes == plain.memory_bytes - saved + PLACE_BYTES * plain.rows
