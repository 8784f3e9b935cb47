"""The commands that read checkpoints, on a run that `train` has made."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from command_here import run_here

from ps.checkpoint.read import CheckpointReader
from scheduler import JobConfig
from scheduler.run.directory import RunDirectory
from synchromesh.commands.main import main
from worker.datasets.synthetic import CriteoLike, write_criteo_like
from worker.metrics import exact_auc, log_loss_sum


def line_of(done: CompletedProcess[str]) -> dict[str, Any]:
    """The one JSON line of a script that succeeded; NaN is none."""
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(done.stdout, parse_constant=refuse)


@pytest.fixture(scope="module")
def run(jobs_in_threads: None, samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an admission rule, dictionary-free keys and lists; read-only."""
    folder = tmp_path_factory.mktemp("scripts")
    job = {
        "data": {
            "train": str(samples / "train-*.parquet"),
            "eval": str(samples / "test.parquet"),
            "dense": ["d1", "d2"],
            "dense_transform": "log1p",
            "sparse": ["a", "b", {"column": "tags", "combiner": "mean"}],
            "batch_size": 128,
        },
        "embedding": {"dim": 4},
        "tables": {"b": {"admission": {"type": "counter", "min_count": 2}, "track_usage": True}},
        "model": {"type": "deepfm", "mlp": [8]},
        "run": {"dir": str(folder / "run")},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    trained = run_here("train", folder / "job.yaml")
    assert trained.returncode == 0, trained.stderr
    return folder / "run"


def checkpoint_of(run: Path) -> Path:
    (found,) = (run / "checkpoints").iterdir()
    return found


# evaluate.py --------------------------------------------------------------------------------------


def test_evaluate_prints_the_scores_of_training(run: Path) -> None:
    result = json.loads((run / "result.json").read_text())

    of_run = line_of(run_here("evaluate", run))
    command = [sys.executable, "-m", "synchromesh", "evaluate", checkpoint_of(run)]
    of_checkpoint = line_of(subprocess.run(command, capture_output=True, text=True, timeout=120))

    expected = {
        **result["eval"],
        "files_skipped": 0,
        "checkpoint": str(checkpoint_of(run)),
        "step": result["global_step"],
    }
    assert of_run == of_checkpoint == expected


def test_evaluate_takes_another_jobs_samples(run: Path, samples: Path, tmp_path: Path) -> None:
    job = yaml.safe_load((run / "job.yaml").read_text())
    table = pq.read_table(samples / "train-2.parquet")
    renamed = table.rename_columns({"label": "clicked"})
    pq.write_table(renamed, tmp_path / "other.parquet")
    job["data"].update(eval=str(tmp_path / "other.parquet"), label="clicked")
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(job))
    train_file = samples / "train-2.parquet"

    other = line_of(run_here("evaluate", run, tmp_path / "other.yaml"))
    overridden = line_of(run_here("evaluate", run, f"data.eval={train_file}"))
    named = line_of(run_here("evaluate", run, "--data", train_file))

    assert other == overridden == named
    assert other["samples"] == table.num_rows


def test_evaluate_needs_no_job_where_the_files_are_named(
    run: Path, samples: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(checkpoint_of(run), tmp_path / "a/b/copy")

    done = run_here("evaluate", copy)
    named = line_of(run_here("evaluate", copy, "--data", samples / "test.parquet"))

    assert (done.returncode, done.stdout) == (2, "")
    assert "name a job file, or files with --data" in done.stderr
    assert named["auc"] == json.loads((run / "result.json").read_text())["eval"]["auc"]


def test_evaluate_shows_the_best_auc_that_the_data_permit(tmp_path: Path, run: Path) -> None:
    about = write_criteo_like(tmp_path / "data", CriteoLike(rows=200, files=1))
    table = pq.read_table(tmp_path / "data/test")
    for name, column in {"d1": "I1", "d2": "I2", "a": "C1", "b": "C2"}.items():
        table = table.append_column(name, table[column])
    table = table.append_column("tags", pa.array([[1]] * table.num_rows))
    pq.write_table(table, tmp_path / "data/test/part-00000.parquet")

    line = line_of(run_here("evaluate", run, f"data.eval={tmp_path}/data/test"))

    assert line["best_auc"] == about["best_auc"]


def test_undefined_scores_are_null_in_the_line_and_in_result_json(
    run: Path, samples: Path, tmp_path: Path
) -> None:
    table = pq.read_table(samples / "test.parquet")
    pq.write_table(table.filter(pa.compute.equal(table["label"], 1)), tmp_path / "ones.parquet")
    config = JobConfig.from_yaml(run / "job.yaml", [f"run.dir={tmp_path / 'run'}"])
    directory = RunDirectory(config, least_checkpoint_bytes=0)

    line = line_of(run_here("evaluate", run, "--data", tmp_path / "ones.parquet"))
    directory.write_result({"eval": {"auc": math.nan, "logloss": 0.5}, "seconds": [math.inf]})

    assert line["auc"] is None
    assert line["logloss"] > 0
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result == {"eval": {"auc": None, "logloss": 0.5}, "seconds": [None]}


# predict.py ---------------------------------------------------------------------------------------


def test_predictions_are_in_order_and_score_as_the_evaluation(
    run: Path, samples: Path, tmp_path: Path
) -> None:
    source = pq.read_table(samples / "test.parquet")
    no_label = tmp_path / "in"
    no_label.mkdir()
    pq.write_table(source.drop(["label"]).slice(0, 450), no_label / "0.parquet", row_group_size=200)
    pq.write_table(source.drop(["label"]).slice(450), no_label / "1.parquet")
    out = tmp_path / "out.parquet"

    line = line_of(run_here("predict", run, f"{no_label}/*.parquet", out, "--columns", "tags,b"))

    table = pq.read_table(out)
    assert table.schema.names == ["tags", "b", "prediction"]
    assert table.schema.field("prediction").type == pa.float32()
    assert table.select(["tags", "b"]).equals(source.select(["tags", "b"]))
    assert (line["rows"], table.num_rows) == (1000, 1000)
    p = table["prediction"].to_numpy()
    labels = source["label"].to_numpy()
    evaluation = json.loads((run / "result.json").read_text())["eval"]
    logits = np.log(p.astype(np.float64) / (1 - p.astype(np.float64))).astype(np.float32)
    assert log_loss_sum(logits, labels.astype(np.float32)) / 1000 == pytest.approx(
        evaluation["logloss"], rel=1e-5
    )
    bound = evaluation["auc_error_bound"]
    assert exact_auc(p, labels) == pytest.approx(evaluation["auc"], abs=bound + 1e-9)


def test_predict_writes_the_prediction_alone_and_an_empty_file_for_no_rows(
    run: Path, samples: Path, tmp_path: Path
) -> None:
    pq.write_table(pq.read_table(samples / "test.parquet").slice(0, 0), tmp_path / "none.parquet")

    line = line_of(run_here("predict", run, tmp_path / "none.parquet", tmp_path / "out.parquet"))

    assert line["rows"] == 0
    assert pq.read_schema(tmp_path / "out.parquet") == pa.schema([("prediction", pa.float32())])


def test_predict_replaces_a_file_only_where_it_is_told(
    run: Path, samples: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.parquet"
    out.write_text("mine")
    arguments = (run, samples / "test.parquet", out)

    refused = run_here("predict", *arguments)
    kept = out.read_text()
    line_of(run_here("predict", *arguments, "--overwrite"))

    assert refused.returncode == 2
    assert "out.parquet exists; use --overwrite" in refused.stderr
    assert kept == "mine"
    assert pq.read_metadata(out).num_rows == 1000


def test_failed_prediction_leaves_nothing(run: Path, samples: Path, tmp_path: Path) -> None:
    table = pq.read_table(samples / "test.parquet")
    infinite = pa.array(np.where(np.arange(1000) == 990, np.inf, 0.0))
    place = table.schema.get_field_index("d2")
    pq.write_table(table.set_column(place, "d2", infinite), tmp_path / "in.parquet")

    done = run_here("predict", run, tmp_path / "in.parquet", tmp_path / "out.parquet")

    assert done.returncode == 2
    assert "column 'd2', row group 0, row 990" in done.stderr
    assert os.listdir(tmp_path) == ["in.parquet"]


# export_embeddings.py -----------------------------------------------------------------------------


def test_export_holds_every_row_of_the_checkpoint(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    reader = CheckpointReader(checkpoint_of(run))

    line = line_of(run_here("export", run, out))

    result = json.loads((run / "result.json").read_text())
    assert line["rows"] == {name: table["rows"] for name, table in result["tables"].items()}
    assert json.loads((out / "export.json").read_text())["tables"] == line["rows"]
    for spec in reader.store.tables:
        table = pq.read_table(out / spec.name)
        assert table.schema.field("vector").type.list_size == spec.dim
        parts = list(reader.rows(spec))
        names = {"key": "keys"}
        if spec.name == "b":
            names |= {"frequency": "frequency", "version": "version"}
        assert set(table.column_names) == {*names, "vector"}
        for name, of in names.items():
            expected = np.concatenate([getattr(part, of) for part in parts])
            assert table[name].to_numpy().tolist() == expected.tolist()
        vectors = table["vector"].combine_chunks().flatten().to_numpy()
        assert vectors.tobytes() == np.concatenate([part.vectors for part in parts]).tobytes()


def test_export_replaces_an_export_and_nothing_else(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    line_of(run_here("export", run, out, "--tables", "a,tags"))

    refused = run_here("export", run, out, "--tables", "b")
    line_of(run_here("export", run, out, "--tables", "b", "--overwrite"))
    (out / "notes.txt").write_text("mine")
    foreign = run_here("export", run, out, "--overwrite")

    assert refused.returncode == foreign.returncode == 2
    assert "is not empty; use --overwrite" in refused.stderr
    assert "'notes.txt', which is not part of an export" in foreign.stderr
    assert sorted(os.listdir(out)) == ["b", "export.json", "notes.txt"]


def test_damaged_file_ends_an_export_without_a_trace(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(checkpoint_of(run), tmp_path / "copy")
    (damaged,) = copy.glob("tables/tags/rows-00000-*")
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)

    done = run_here("export", copy, tmp_path / "out")

    assert done.returncode == 1
    assert f"{damaged} is damaged" in done.stderr
    assert os.listdir(tmp_path) == ["copy"]


# inspect_table.py ---------------------------------------------------------------------------------


def test_inspection_agrees_with_the_result_of_the_run(run: Path) -> None:
    result = json.loads((run / "result.json").read_text())

    tables = line_of(run_here("inspect", run, "--json"))["tables"]
    found = line_of(run_here("inspect", checkpoint_of(run), "b", "--json"))

    assert {t["name"]: t["rows"] for t in tables} == {
        name: table["rows"] for name, table in result["tables"].items()
    }
    assert found["table"] == next(table for table in tables if table["name"] == "b")
    for of in ("rows", "unadmitted"):
        assert sum(one[of] for one in found["frequencies"]) == found["table"][of] > 0
    assert found["step"] == result["global_step"]


def test_inspection_of_a_table_says_where_its_rows_are(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    result = json.loads((run / "result.json").read_text())
    tiers = {"memory_rows": 40, "disk_rows": 60, "memory_hits": 80, "cache_hits": 15}
    tiers |= {"disk_reads": 5, "memory_bytes": 1000, "disk_bytes": 2000, "disk_bytes_written": 0}
    result["tables"]["b"] |= tiers
    (copy / "result.json").write_text(json.dumps(result))

    found = line_of(run_here("inspect", copy, "b", "--json"))["table"]["tiers"]
    shown = run_here("inspect", copy, "b").stdout
    other = run_here("inspect", copy, "a").stdout

    assert found.items() >= tiers.items()
    assert "40 in memory, 60 on disk (2.0 kB); of rows asked for 80.0 % in memory" in shown
    assert "in memory" not in other


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": lambda copy: _flip(_rows_of(copy)),
    "truncated": lambda copy: os.truncate(_rows_of(copy), 20),
    "missing": lambda copy: _rows_of(copy).unlink(),
    "foreign": lambda copy: _rows_of(copy).write_bytes(b"not ours"),
    "manifest": lambda copy: _flip(copy / "manifest.json"),
    "manifest-empty": lambda copy: (copy / "manifest.json").write_text(""),
}


def _rows_of(copy: Path) -> Path:
    (found,) = copy.glob("tables/tags/rows-00000-*")
    return found


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    "command",
    [
        "checkpoint verify COPY",
        "checkpoint diff RUN COPY",
        "checkpoint compact COPY --out OUT",
        "evaluate COPY --data TEST",
        "predict COPY TEST OUT",
        "export COPY OUT",
        "inspect COPY tags",
        "serve COPY --port 0 --forms FORMS",
        "serve COPY --port 0 --forms FORMS --rows int8 --data TEST",
    ],
)
def test_a_damaged_checkpoint_exits_1_in_every_command(
    run: Path, samples: Path, tmp_path: Path, command: str, damage: str
) -> None:
    DAMAGES[damage](copy := shutil.copytree(checkpoint_of(run), tmp_path / "copy"))
    names = {"COPY": copy, "RUN": run, "TEST": samples / "test.parquet"}
    local = {name: tmp_path / name for name in ("OUT", "FORMS")}
    words = [{**names, **local}.get(word, word) for word in command.split()]

    done = run_here(*words)

    assert (done.returncode, done.stdout) == (1, "")
    assert str(copy) in done.stderr
    assert not (tmp_path / "OUT").exists()


def test_beginning_from_a_damaged_checkpoint_exits_1_and_one_that_does_not_fit_2(
    run: Path, tmp_path: Path
) -> None:
    _flip((copy := shutil.copytree(checkpoint_of(run), tmp_path / "copy")) / "manifest.json")
    new = f"run.dir={tmp_path / 'new'}"

    damaged = run_here("train", run / "job.yaml", new, f"run.init_from={copy}")
    checked = run_here("check", run / "job.yaml", new, f"run.init_from={copy}")
    unfit = run_here("train", run / "job.yaml", new, f"run.init_from={run}", "model.type=dlrm")
    nowhere = run_here("train", run / "job.yaml", new, f"run.init_from={tmp_path / 'none'}")

    codes = [done.returncode for done in (damaged, checked, unfit, nowhere)]
    assert codes == [1, 1, 2, 2], unfit.stderr
    assert str(copy) in damaged.stderr


# All of them --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("evaluate", ["NOWHERE"], "neither a checkpoint nor a run directory"),
        ("evaluate", [""], "'' is neither a checkpoint nor a run directory"),
        ("evaluate", ["RUN", "--data", ""], "'': "),
        ("control", ["RUN", "servers", "-1"], "'-1' is neither a number from 1 to 4096 nor auto"),
        ("control", ["RUN", "servers", "5000"], "'5000' is neither a number from 1 to 4096 nor"),
        ("control", ["RUN", "workers", "-1"], "'-1' is neither a number from 1 nor auto"),
        ("evaluate", ["RUN", "NOWHERE.yaml"], "NOWHERE.yaml: No such file"),
        ("evaluate", ["RUN", "data.evl=x"], "did you mean 'eval'?"),
        ("evaluate", ["RUN", "data.eval=null"], "the job has no data.eval"),
        ("evaluate", ["RUN", "--data", "NOWHERE"], "there is no such file"),
        ("evaluate", ["RUN", "data.dense_transform=none"], "got none, expected log1p"),
        ("evaluate", ["RUN", "data.label=tags"], "data.sparse lists 'tags', the label"),
        ("evaluate", ["RUN", "data.dense.0=d3"], "got d3, expected d1"),
        ("predict", ["NOWHERE", "TEST", "OUT"], "neither a checkpoint nor a run directory"),
        ("predict", ["RUN", "NOWHERE", "OUT"], "there is no such file"),
        ("predict", ["RUN", "OTHER", "OUT"], "lacks a column (file '"),
        ("predict", ["RUN", "WRONG", "OUT"], "a dense column has an unusable type"),
        ("predict", ["RUN", "TEXT", "OUT"], "no Parquet file"),
        ("predict", ["RUN", "TEST", "OUT", "--columns", "prediction"], "--columns names 'pred"),
        ("predict", ["RUN", "TEST", "OUT", "--columns", "tag"], "did you mean 'tags'?"),
        ("predict", ["RUN", "TEST", "TEXT/a/out"], "TEXT is not a folder"),
        ("export", ["RUN", "TEXT/out"], "TEXT is not a folder"),
        ("init", ["TEST", "--out", "TEXT/out.yaml"], "TEXT is not a folder"),
        ("init", ["TEST", "--out", "/proc/x.yaml"], "/proc/x.yaml can't be written: nothing can"),
        ("report", ["RUN", "--out", "TEXT/out.html"], "TEXT is not a folder"),
        ("predict", ["RUN", "TEST", "s3://bucket/out"], "must be a local file"),
        ("predict", ["RUN", "COPY", "COPY", "--overwrite"], "is a file of INPUT"),
        ("export", ["NOWHERE", "OUT"], "neither a checkpoint nor a run directory"),
        ("export", ["RUN", "TEXT"], "is not a folder"),
        ("export", ["RUN", "OUT", "--tables", "tag"], "did you mean 'tags'?"),
        ("inspect", ["NOWHERE"], "neither a checkpoint nor a run directory"),
        ("inspect", ["RUN", "tag"], "did you mean 'tags'?"),
    ],
)
def test_mistakes_exit_2_with_one_line(
    run: Path,
    samples: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # this process keeps its own
    places = {"RUN": str(run), "TEST": str(samples / "test.parquet")}
    test = pq.read_table(samples / "test.parquet").slice(0, 50)
    pq.write_table(test.drop(["d2"]), tmp_path / "OTHER")
    text = pa.array(["x"] * 50)
    pq.write_table(
        test.set_column(test.schema.get_field_index("d1"), "d1", text), tmp_path / "WRONG"
    )
    pq.write_table(test, tmp_path / "COPY")
    (tmp_path / "TEXT").write_text("label,d1")
    before = sorted(os.listdir(tmp_path))
    local = ("NOWHERE", "OTHER", "WRONG", "TEXT", "COPY", "OUT")
    placed = [places.get(a) or (str(tmp_path / a) if a.startswith(local) else a) for a in arguments]

    code = main([name, *placed])

    shown = capsys.readouterr()
    assert (code, shown.out) == (2, "")
    assert len(shown.err.splitlines()) == 1
    assert message in shown.err
    assert sorted(os.listdir(tmp_path)) == before
    assert pq.read_metadata(tmp_path / "COPY").num_rows == 50


def test_a_copy_that_cant_be_written_names_its_place_and_exits_2(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    done = run_here("checkpoint", "compact", run, "--out", tmp_path / "file/full")

    assert done.returncode == 2
    assert f"{tmp_path}/file/full can't be written: {tmp_path}/file is not a folder" in done.stderr
    assert ".partial" not in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        "init TEST --out NEW/sub/out",
        "report RUN --out NEW/sub/out",
        "predict RUN TEST NEW/sub/out",
        "export RUN NEW/sub/out",
        "checkpoint compact RUN --out NEW/sub/out",
    ],
)
def test_folders_above_an_output_are_made(
    run: Path, samples: Path, tmp_path: Path, command: str
) -> None:
    places = {"RUN": str(run), "TEST": str(samples / "test.parquet"), "NEW": str(tmp_path / "new")}
    for name, place in places.items():
        command = command.replace(name, place)

    done = run_here(*command.split())

    assert done.returncode == 0, done.stderr
    assert os.listdir(tmp_path / "new/sub") == ["out"]


@pytest.mark.parametrize("name", ["evaluate", "predict", "export", "inspect"])
def test_help_says_what_it_takes(name: str) -> None:
    done = run_here(name, "--help")

    assert done.returncode == 0
    assert "CHECKPOINT_OR_RUN" in done.stdout
