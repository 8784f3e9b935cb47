"""`synchromesh data`: what it prints and writes."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from command_here import run_here

CRITEO_LINE = "\t".join(["1", *map(str, range(13)), *["a1"] * 26]) + "\n"


def test_make_criteo_like_prints_one_json_line_and_writes_about_json(tmp_path: Path) -> None:
    done = run_here("data", "criteo-like", "--rows", 500, "--files", 3, "--out", tmp_path / "d")

    assert (done.returncode, done.stderr) == (0, "")
    line = json.loads(done.stdout)
    about = json.loads((tmp_path / "d/about.json").read_text())
    assert line["best_auc"] == about["best_auc"]
    assert (line["rows"], line["test_rows"], line["seed"]) == (500, 50, 7)
    assert len(list((tmp_path / "d/train").iterdir())) == 3
    assert pq.read_table(tmp_path / "d/test").num_rows == 50


def test_convert_criteo_writes_splits(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(CRITEO_LINE * 10)

    done = run_here("data", "convert-criteo", tmp_path / "train.txt", "--out", tmp_path / "d")
    whole = run_here(
        "data", "convert-criteo", tmp_path / "train.txt", "--out", tmp_path / "e", "--no-split"
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["rows"] == {"train": 9, "test": 1}
    assert json.loads(whole.stdout)["rows"] == {"train": 10}
    assert pq.read_table(tmp_path / "d/test")["C1"].to_pylist() == [0xA1]


def test_convert_movielens_writes_splits(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n" + "".join(f"1,1,4.0,{i}\n" for i in range(10))
    )
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n1,T,Drama|War\n")

    done = run_here("data", "convert-movielens", tmp_path, "--out", tmp_path / "d")

    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["rows"] == {"train": 8, "valid": 1, "test": 1}
    assert pq.read_table(tmp_path / "d/valid")["genres"].to_pylist() == [["Drama", "War"]]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("criteo-like", ["--rows", "0", "--out", "d"], "rows must be >= 1, got 0"),
        ("criteo-like", ["--rows", "5", "--out", "."], "is not empty"),
        ("convert-criteo", ["bad.txt", "--out", "d"], "bad.txt, line 2"),
        ("convert-criteo", ["bad.txt", "--test-fraction", "1", "--out", "d"], "(0, 1), got 1"),
        ("convert-criteo", ["no.txt", "--out", "d"], "no.txt is not a file"),
        ("convert-movielens", [".", "--out", "d"], "neither ratings.dat"),
        ("convert-movielens", [".", "--rows-per-file", "0", "--out", "d"], "rows_per_file"),
    ],
)
def test_mistakes_exit_2_with_one_line(
    tmp_path: Path, name: str, arguments: list[str], message: str
) -> None:
    (tmp_path / "bad.txt").write_text(CRITEO_LINE + "x\n")
    placed = [str(tmp_path / a) if a in (".", "d") or a.endswith(".txt") else a for a in arguments]

    done = run_here("data", name, *placed)

    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr
    assert not (tmp_path / "d").exists()
