"""A first job file: what columns are taken for, and that the job can be run as it is written."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from scheduler.driver.resolved import resolve
from scheduler.job.config import JobConfig
from synchromesh.guessing import job_for
from worker.errors import DataError

ROWS = 600


@pytest.fixture
def clicks(tmp_path: Path) -> Path:
    rng = np.random.default_rng(3)
    clicked = rng.integers(0, 2, ROWS)
    table = pa.table(
        {
            "row": np.arange(ROWS),
            "seen_at": pa.array(1_600_000_000 + rng.integers(0, 9_999, ROWS)),
            "user_id": rng.integers(0, 100, ROWS),
            "item hash": rng.integers(-(2**62), 2**62, 40)[rng.integers(0, 40, ROWS)],
            "visits": (100 * rng.pareto(1.0, ROWS)).astype(np.int64),
            "price": rng.random(ROWS).astype(np.float32),
            "hour": rng.integers(0, 24, ROWS),
            "city": pa.array([f"c{i}" for i in rng.integers(0, 30, ROWS)]).dictionary_encode(),
            "session": [f"s{i}" for i in range(ROWS)],
            "tags": [[int(t) for t in rng.integers(0, 9, n)] for n in rng.integers(0, 4, ROWS)],
            "tag_weights": [[0.5] * 2] * ROWS,
            "bought": clicked * 3,
            "nothing": pa.nulls(ROWS),
            "one": np.ones(ROWS),
            "clicked": clicked.astype(bool),
            "other_flag": rng.integers(0, 2, ROWS),
        }
    )
    pq.write_table(table, tmp_path / "clicks.parquet")
    return tmp_path / "clicks.parquet"


def test_each_column_is_taken_for_what_it_is(clicks: Path) -> None:
    text = job_for([str(clicks)])
    data = yaml.safe_load(text)["data"]

    assert data["label"] == "clicked"
    assert data["dense"] == ["visits", "price"]
    assert data["dense_transform"] == "log1p"
    assert data["sparse"] == [
        {"column": "user_id"},
        {"column": "item hash", "name": "item_hash"},
        {"column": "hour"},
        {"column": "city"},
        {"column": "tags", "combiner": "mean"},
        {"column": "other_flag"},
    ]
    left = [line.strip() for line in text.splitlines() if "left out:" in line]
    assert [line.split()[3].rstrip(",") for line in left] == [
        "row",
        "seen_at",
        "session",
        "tag_weights",
        "bought",
        "nothing",
        "one",
    ]
    assert "decides the label" in text
    assert "numbers the rows" in text


def test_the_job_is_one_that_training_takes(clicks: Path, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(job_for([str(clicks)], name="my clicks"))

    config = JobConfig.from_yaml(tmp_path / "job.yaml", [f"run.dir={tmp_path}/run"])
    specs = resolve(config)

    assert config.name == "my clicks"
    assert specs.plan.rows_per_epoch == ROWS
    assert len(specs.store.tables) == 6


def test_the_values_of_folders_are_columns_too(clicks: Path) -> None:
    root = clicks.parent / "root"
    for folders in ("day=2026-03-01/country=DE", "day=2026-03-01/country=FR"):
        (root / folders).mkdir(parents=True)
        pq.write_table(pq.read_table(clicks), root / folders / "a.parquet")

    text = job_for([str(root)])

    assert {"column": "country"} in yaml.safe_load(text)["data"]["sparse"]
    assert "# one value for a file, DE in the first" in text
    assert "# left out: day, is a time" in text


def test_the_columns_of_a_table_are_those_that_it_has_now(clicks: Path) -> None:
    deltalake = pytest.importorskip("deltalake")
    place = str(clicks.parent / "table")
    table = pq.read_table(clicks).drop_columns(["nothing"])
    deltalake.write_deltalake(place, table, partition_by=["hour"])

    text = job_for([f"delta://{place}"])

    assert {"column": "hour"} in yaml.safe_load(text)["data"]["sparse"]
    assert "# one value for a file" in text


def test_a_job_without_dense_columns_has_a_model_without_them(tmp_path: Path) -> None:
    table = pa.table({"y": [0, 1] * 50, "q": [f"w{i % 7}" for i in range(100)]})
    pq.write_table(table, tmp_path / "few.parquet")

    job = yaml.safe_load(job_for([str(tmp_path)]))

    assert (job["model"]["type"], job["data"]["dense"]) == ("deepfm", [])


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"a": [1, 2], "b": ["x", "y"]}, "no column holds 0 and 1 alone"),
        ({"label": [0, 1], "price": [0.1, 0.2]}, "no column looks like ids"),
        ({"label": pa.array([], pa.int8())}, "the files hold no sample"),
    ],
)
def test_files_without_label_ids_or_rows_are_refused(
    tmp_path: Path, columns: dict[str, list[object]], said: str
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")

    with pytest.raises(DataError, match=said):
        job_for([str(tmp_path / "a.parquet")])


@pytest.mark.parametrize(
    ("name", "values", "taken"),
    [
        ("sample_weight", [0.5, 0, 3], True),
        ("weight", [1, 10, 1], True),
        ("Weight", [1.0, 0.1, 1.0], True),
        ("weight", [0.5, -1.0, 3], False),
        ("weight", [0.5, None, 3], False),
        ("weight_kg", [0.5, 60, 3], False),
    ],
)
def test_a_column_named_like_weights_that_could_be_some_is_the_weight(
    tmp_path: Path, name: str, values: list[float | None], taken: bool
) -> None:
    labels = [1, 0, 1] * 40
    table = pa.table(
        {"label": labels, "id": np.arange(120) % 7, "d": np.arange(120) / 7, name: values * 40}
    )
    pq.write_table(table, tmp_path / "x.parquet")

    text = job_for([str(tmp_path / "x.parquet")])

    data = yaml.safe_load(text)["data"]
    assert data.get("weight") == (name if taken else None)
    assert name not in data["dense"] or not taken
