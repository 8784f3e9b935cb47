"""scripts/train.py with input that it must refuse: exit 2 and a line that names the mistake."""

import json
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from command_here import run_here

ROOT = Path(__file__).resolve().parents[3]

Refuse = Callable[..., str]


@pytest.fixture
def job(samples: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "data": {
            "train": str(samples / "train-*.parquet"),
            "dense": ["d1", "d2"],
            "sparse": ["a", "b"],
            "batch_size": 64,
        },
        "embedding": {"dim": 4},
        "model": {"type": "dlrm", "bottom_mlp": [8], "top_mlp": [8]},
        "training": {"mode": "sync", "global_batch": 128},
        "cluster": {"workers": 1, "servers": 1},
        "run": {"dir": str(tmp_path / "run")},
    }


@pytest.fixture
def refuse(
    job: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Refuse:
    """Run the script on the job with overrides; assert exit 2 and return what it said."""

    def run(*overrides: str) -> str:
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump(job))
        script = str(ROOT / "scripts" / "train.py")
        monkeypatch.setattr(sys, "argv", [script, str(path), *overrides])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(script, run_name="__main__")
        out, err = capsys.readouterr()
        assert end.value.code == 2, err
        assert out == ""
        assert "Traceback" not in err
        assert not (tmp_path / "run" / "checkpoints").exists()
        return err

    return run


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.batchsize=3", "unknown key data.batchsize; did you mean 'batch_size'?"),
        ("trainin.mode=sync", "unknown key trainin; did you mean 'training'?"),
        ("training.global_batch=100", "multiple of data.batch_size (64), got 100"),
        ("cluster.workers=0", "cluster.workers: input should be greater than 0, got 0"),
        ("cluster.servers=0", "cluster.servers: input should be greater than 0, got 0"),
        ("model.type=dlmr", "model.type"),
        ("model.bottom_mpl=[3]", "did you mean 'bottom_mlp'?"),
        ("embedding.optimizer={type: adagard}", "did you mean 'adagrad'?"),
        ("embedding.optimizer={type: adagrad, learning_rate: -1}", "learning_rate must be > 0"),
        ("tables.aa.dim=4", "tables.aa: no feature uses this table; did you mean 'a'?"),
        ("data.train=/no/such/file.parquet", "/no/such/file.parquet"),
        ("data.dense=[d1, d3]", "'d3'"),
        ("data.label=missing", "'missing'"),
        ("data.dense=[d1, tags]", "'tags'"),
        ("cluster.buffer_bytes=1000", "cluster.buffer_bytes is 1000"),
        ("run.init_from=/no/such/run", "/no/such/run"),
        ("nonsense", "key.path=value"),
    ],
)
def test_a_wrong_field_is_named(refuse: Refuse, override: str, said: str) -> None:
    assert said in refuse(override)


def test_an_empty_glob_is_named(refuse: Refuse, tmp_path: Path) -> None:
    pattern = str(tmp_path / "nothing-*.parquet")
    assert pattern in refuse(f"data.train={pattern}")


def test_a_corrupt_footer_is_named(refuse: Refuse, samples: Path, tmp_path: Path) -> None:
    whole = (samples / "train-0.parquet").read_bytes()
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(whole[: len(whole) // 2])

    assert "broken.parquet" in refuse(f"data.train={broken}")


def test_files_that_disagree_on_a_type_are_named(
    refuse: Refuse, samples: Path, tmp_path: Path
) -> None:
    table = pq.read_table(samples / "train-0.parquet")
    other = table.set_column(
        table.schema.get_field_index("a"), "a", pa.array(["x"] * table.num_rows)
    )
    pq.write_table(table, tmp_path / "one.parquet")
    pq.write_table(other, tmp_path / "two.parquet")

    text = refuse(f"data.train=[{tmp_path}/one.parquet, {tmp_path}/two.parquet]")

    assert "one.parquet" in text
    assert "two.parquet" in text
    assert "'a'" in text


def test_files_without_any_sample_are_refused(
    refuse: Refuse, samples: Path, tmp_path: Path
) -> None:
    table = pq.read_table(samples / "train-0.parquet").slice(0, 0)
    pq.write_table(table, tmp_path / "empty.parquet")

    assert "no sample" in refuse(f"data.train={tmp_path}/empty.parquet")


def test_an_existing_run_directory_is_refused_and_left_alone(
    refuse: Refuse, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious.txt").write_text("mine")

    for option in ("run.overwrite=false", "run.overwrite=true"):
        assert "not a run directory" in refuse(option)
    assert (tmp_path / "run" / "precious.txt").read_text() == "mine"


def test_a_full_disk_is_refused(refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    full = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)

    assert "MiB free" in refuse()


def test_relative_paths_are_refused_inside_a_ray_job(
    refuse: Refuse, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert "SYNCHROMESH_ROOT" in refuse("run.dir=runs/x")
    monkeypatch.setenv("SYNCHROMESH_ROOT", str(tmp_path))
    assert str(tmp_path / "data/none.parquet") in refuse("data.train=data/none.parquet")


def test_a_job_file_that_is_not_there_or_not_yaml_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("a: [")
    for name in ("none.yaml", "bad.yaml"):
        done = run_here("train", tmp_path / name)
        assert done.returncode == 2
        assert name in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("bad", ["label", "null label", "row group"])
def test_what_is_found_while_running_ends_the_job_with_exit_1_and_is_named(
    jobs_in_threads: None, job: dict[str, Any], samples: Path, tmp_path: Path, bad: str
) -> None:
    path = tmp_path / "bad.parquet"
    table = pq.read_table(samples / "train-0.parquet")
    labels = np.zeros(table.num_rows, np.int8)
    labels[1500] = 2 if bad == "label" else 0
    mask = np.arange(table.num_rows) == (1500 if bad == "null label" else -1)
    pq.write_table(
        table.set_column(0, "label", pa.array(labels, mask=mask)), path, row_group_size=700
    )
    if bad == "row group":
        metadata = pq.read_metadata(path).row_group(2).column(0)
        data = bytearray(path.read_bytes())
        start = metadata.dictionary_page_offset or metadata.data_page_offset
        data[start : start + 40] = b"\xff" * 40
        path.write_bytes(data)
    job["data"]["train"] = str(path)
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))

    done = run_here("train", tmp_path / "job.yaml")

    assert done.returncode == 1, done.stderr
    last = [line for line in done.stderr.splitlines() if line.startswith("error: ")][-1]
    assert "bad.parquet" in last
    assert "row group 2" in last
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_bad_row_group_is_skipped_counted_and_reported(
    jobs_in_threads: None, job: dict[str, Any], samples: Path, tmp_path: Path
) -> None:
    path = tmp_path / "bad.parquet"
    table = pq.read_table(samples / "train-0.parquet")
    pq.write_table(table, path, row_group_size=700)
    metadata = pq.read_metadata(path).row_group(1).column(0)
    data = bytearray(path.read_bytes())
    start = metadata.dictionary_page_offset or metadata.data_page_offset
    data[start : start + 40] = b"\xff" * 40
    path.write_bytes(data)
    (tmp_path / "cut.parquet").write_bytes(data[:-9])
    job["data"] |= {"train": str(tmp_path / "*.parquet"), "on_bad_file": "skip"}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))

    done = run_here("train", tmp_path / "job.yaml")

    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["samples_trained"] == 1300
    assert result["samples_skipped"] == 700
    assert result["skipped_by_reason"] == {"bad_file": 700}
    # What nobody can count is told as files.
    assert result["skipped_files"] == {"train": [str(tmp_path / "cut.parquet")], "eval": []}
    assert json.loads(done.stdout)["files_skipped"] == 1
    assert "left out 1 file of data.train" in done.stderr
