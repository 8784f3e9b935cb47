"""Checkpoints as people and programs are shown them."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ps.checkpoint.manifest import MANIFEST
from ps.checkpoint.sealed_json import SEAL, sealed_text
from synchromesh.checkpoints import as_json, list_checkpoints
from synchromesh.commands.checkpoint import command

# Where tests run side by side, their environment says how wide a line is.
RUNNER = CliRunner(env={"COLUMNS": "300"})
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "checkpoint-1"


def test_the_list_says_of_each_checkpoint_its_kind_step_size_and_age(tmp_path: Path) -> None:
    for name in ("full-000000000003", "full-000000000012"):
        shutil.copytree(GOLDEN, tmp_path / "checkpoints" / name)

    found = list_checkpoints(tmp_path, pytest.fail)
    shown = RUNNER.invoke(command, ["list", str(tmp_path)])
    as_line = RUNNER.invoke(command, ["list", str(tmp_path), "--json"])

    assert [each.path.name for each in found] == ["full-000000000003", "full-000000000012"]
    assert {(each.kind, each.parent) for each in found} == {("full", None)}
    assert json.loads(as_line.stdout) == [as_json(each) for each in found]
    head, *rows = shown.stdout.splitlines()
    assert head.split() == ["kind", "step", "lies", "on", "size", "age", "checkpoint"]
    assert [row.split()[0] for row in rows] == ["full", "full"]
    assert all(row.split()[-1] == str(each.path) for row, each in zip(rows, found, strict=True))


CHAIN = GOLDEN.parent / "checkpoint-2"
DELTA = CHAIN / "delta-000000000008"


def test_a_delta_is_verified_shown_compared_and_compacted(tmp_path: Path) -> None:
    def run(*arguments: object) -> str:
        done = RUNNER.invoke(command, list(map(str, arguments)))
        assert done.exit_code == 0, done.output
        return done.stdout

    assert "with 1 that it lies on: step 8, 40 files" in run("verify", DELTA)
    verified = json.loads(run("verify", DELTA, "--json"))
    assert verified["chain"] == [DELTA.name, "full-000000000004"]
    shown = run("show", DELTA)
    assert "delta, step 8" in shown
    assert "training can go on from here" in shown
    details = json.loads(run("show", DELTA, "--json"))
    assert {name: t["rows"] for name, t in details["tables"].items()} == {
        "a": 16, "b": 12, "plain": 18, "tags": 8,
    }  # fmt: skip
    compacted = json.loads(run("compact", DELTA, "--out", tmp_path / "full", "--json"))
    assert compacted["checkpoint"] == str(tmp_path / "full")
    assert "full: step 8, 11 files" in run("verify", tmp_path / "full")
    same = json.loads(run("diff", DELTA, tmp_path / "full", "--json"))
    assert [(t["same"], t["changed"]) for t in same["tables"]] == [
        (16, 0),
        (12, 0),
        (18, 0),
        (8, 0),
    ]
    assert same["dense_norm"] == 0
    text = run("diff", CHAIN / "full-000000000004", DELTA)
    assert text.splitlines()[1].split() == ["a", "2", "7", "14", "0"]


def test_what_is_not_there_exits_2_and_what_is_damaged_1(tmp_path: Path) -> None:
    copy = shutil.copytree(CHAIN, tmp_path / "chain") / DELTA.name
    next((tmp_path / "chain" / "full-000000000004").rglob("rows-*")).write_bytes(b"")
    for name, more in (("verify", []), ("show", []), ("diff", [DELTA]), ("compact", [])):
        for path, code in ((tmp_path / "nowhere", 2), (copy, 1)):
            done = RUNNER.invoke(command, [name, str(path), *map(str, more)])
            assert done.exit_code == code, (name, path, done.output)
            assert done.output.startswith("error: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model["spec"]["options"]["top_mlp"].append(7), "dense parameters, its dlrm"),
        (lambda model: model["spec"]["lookups"][0].pop("dim"), "does not describe a model: spec"),
        (
            lambda model: model["spec"]["lookups"][0].update(dim=3),
            r"reads table '\w+' of dim 3, its",
        ),
    ],
)
def test_a_model_that_does_not_fit_what_lies_there_is_no_verified_checkpoint(
    change: Callable[[Any], Any], message: str, tmp_path: Path
) -> None:
    path = shutil.copytree(GOLDEN, tmp_path / "full-000000000003")
    manifest = json.loads((path / MANIFEST).read_text())
    change(manifest["model"])
    manifest.pop(SEAL, None)
    text, _ = sealed_text(manifest)
    (path / MANIFEST).write_text(text)

    done = RUNNER.invoke(command, ["verify", str(path)])

    assert done.exit_code == 1, done.output
    assert re.search(message, done.output)


def test_the_list_shows_what_is_whole_and_names_what_is_damaged(tmp_path: Path) -> None:
    run = shutil.copytree(CHAIN, tmp_path / "run" / "checkpoints").parent
    shutil.copytree(GOLDEN, run / "checkpoints" / "full-000000000003")
    (run / "checkpoints" / "full-000000000004" / "manifest.json").write_text("{")

    for more in ([], ["--json"]):
        done = RUNNER.invoke(command, ["list", str(run), *more])
        assert done.exit_code == 1, done.output
        assert "full-000000000003" in done.stdout
        assert "delta-000000000008" not in done.stdout
        first, second = done.stderr.splitlines()
        assert first.startswith("error: ")
        assert "full-000000000004/manifest.json is not valid JSON" in first
        assert "delta-000000000008 lies on full-000000000004" in second
