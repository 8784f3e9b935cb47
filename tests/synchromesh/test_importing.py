"""Rows from elsewhere in a checkpoint: in their place, and refused by name where they don't fit."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from ps.checkpoint.read import CheckpointReader
from runtime.places import place_of
from synchromesh.commands.checkpoint import command

RUNNER = CliRunner(env={"COLUMNS": "300"})
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "checkpoint-1"


def rows_of(path: str | Path, table: str) -> dict[int, tuple[list[float], list[float]]]:
    reader = CheckpointReader(place_of(str(path)))
    (spec,) = (spec for spec in reader.store.tables if spec.name == table)
    return {
        key: (vector, slots)
        for part in reader.rows(spec)
        for key, vector, slots in zip(
            part.keys.tolist(), part.vectors.tolist(), part.slots.tolist(), strict=True
        )
    }


def write(path: Path, keys: Any, vectors: Any) -> Path:
    pq.write_table(pa.table({"key": keys, "vector": vectors}), path)
    return path


def run(*arguments: object) -> Any:
    return RUNNER.invoke(command, list(map(str, arguments)))


def test_rows_of_a_file_take_the_place_of_those_with_their_keys(tmp_path: Path) -> None:
    before = rows_of(GOLDEN, "tags")
    known = next(iter(before))
    file = write(tmp_path / "rows.parquet", [known, -5, 2**62], np.eye(3, 4).tolist())

    done = run("import-rows", GOLDEN, f"tags={file}", "--out", tmp_path / "new", "--json")

    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["rows"] == {"tags": 3}
    after = rows_of(tmp_path / "new", "tags")
    vectors = {key: vector for key, (vector, _) in after.items()}
    assert [vectors.pop(key) for key in (known, -5, 2**62)] == np.eye(3, 4).tolist()
    assert vectors == {key: vector for key, (vector, _) in before.items() if key != known}
    assert after[-5][1] == after[2**62][1]
    assert len(set(after[-5][1])) == 1, "slots begin as those of a new row"
    assert rows_of(tmp_path / "new", "a") == rows_of(GOLDEN, "a")
    assert run("verify", tmp_path / "new").exit_code == 0


ONE = [[0.0, 1.0, 2.0, 3.0]]


@pytest.mark.parametrize(
    ("table", "keys", "vectors", "said"),
    [
        ("tag", [1], ONE, "the checkpoint has no table 'tag'; did you mean 'tags'"),
        ("a", [1], ONE, "table 'a' keeps bfloat16"),
        ("b", [1], ONE, "table 'b' is a part of a composition"),
        ("tags", ["1"], ONE, "column 'key' holds string, and feature 'tags' .* integer"),
        ("tags", [None, 1], ONE * 2, "column 'key', row 0, is null"),
        ("tags", [7, 8, 7], ONE * 3, "rows 0 and 2 have the same key"),
        ("tags", [[1]], ONE, "column 'key' is list<"),
        ("tags", [1], [[1.0, 2.0]], "row 0, has 2 values, and table 'tags' dim 4"),
        ("tags", [1, 2], [ONE[0], None], "row 1, is null"),
        ("tags", [1], [[0.0, 1.0, float("nan"), 3.0]], "row 0, is not finite"),
        ("tags", [1], [[0.0, 1.0, None, 3.0]], "row 0, is not finite"),
        ("tags", [1], [0.5], "column 'vector' is double, expected lists of numbers"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(
    tmp_path: Path, table: str, keys: Any, vectors: Any, said: str
) -> None:
    file = write(tmp_path / "rows.parquet", keys, vectors)

    done = run("import-rows", GOLDEN, f"{table}={file}", "--out", tmp_path / "new")

    assert done.exit_code != 0
    told = done.stderr + str(done.exception or "")
    assert re.search(said, told), told
    assert [each.name for each in tmp_path.iterdir()] == ["rows.parquet"]


def test_a_file_without_the_columns_and_a_table_without_a_file_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1], "vector": ONE}), tmp_path / "rows.parquet")
    for given, said in (
        (f"tags={tmp_path / 'rows.parquet'}", "has no column 'key'; its columns are id, vector"),
        ("tags", "name a file for each table, once: TABLE=FILE"),
    ):
        done = run("import-rows", GOLDEN, given, "--out", tmp_path / "new")
        assert said in done.stderr + str(done.exception or "")
