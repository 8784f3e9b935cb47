"""A job on tables: trained, evaluated and predicted by the commands."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from command_here import run_here
from deltalake import DeltaTable, write_deltalake

pytestmark = pytest.mark.writers


def test_a_table_is_trained_evaluated_and_predicted_as_its_log_says(
    jobs_in_threads: None, tmp_path: Path
) -> None:
    rows = pa.table(
        {
            "label": [n % 2 for n in range(300)],
            "x": range(300),
            "day": [f"0{n % 2}" for n in range(300)],
        }
    )
    write_deltalake(tmp_path / "t", rows, partition_by=["day"])
    DeltaTable(tmp_path / "t").delete("x < 200")
    job = {
        "data": {
            "train": "delta://t",
            "eval": "delta://t@0",
            "sparse": ["x", "day"],
            "batch_size": 50,
        },
        "embedding": {"dim": 4},
        "model": {"type": "deepfm", "mlp": [8]},
        "run": {"dir": "run"},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))

    trained = run_here("train", "job.yaml", cwd=tmp_path)

    assert trained.returncode == 0, trained.stderr
    result = json.loads(trained.stdout)
    assert result["samples_trained"] == 100
    assert result["eval"]["samples"] == 300
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["tables"] == [f"delta://{tmp_path}/t@1"]

    scored = run_here("evaluate", tmp_path / "run", "--data", f"delta://{tmp_path}/t")
    assert json.loads(scored.stdout)["samples"] == 100, scored.stderr

    out = tmp_path / "out.parquet"
    columns = ("--columns", "x,day")
    done = run_here("predict", tmp_path / "run", f"delta://{tmp_path}/t", out, *columns)
    assert done.returncode == 0, done.stderr
    predicted = pq.read_table(out)
    assert predicted.schema.field("day").type == pa.string()
    assert sorted(predicted["x"].to_pylist()) == list(range(200, 300))
    assert all(row["day"] == f"0{row['x'] % 2}" for row in predicted.to_pylist())
