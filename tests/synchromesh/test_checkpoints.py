"""Checkpoints as people and programs are shown them."""

import json
import shutil
from pathlib import Path

from click.testing import CliRunner

from synchromesh.checkpoints import as_json, list_checkpoints
from synchromesh.commands.checkpoint import command

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "checkpoint-1"


def test_the_list_says_of_each_checkpoint_its_kind_step_size_and_age(tmp_path: Path) -> None:
    for name in ("full-000000000003", "full-000000000012"):
        shutil.copytree(GOLDEN, tmp_path / "checkpoints" / name)

    found = list_checkpoints(tmp_path)
    shown = CliRunner().invoke(command, ["list", str(tmp_path)])
    as_line = CliRunner().invoke(command, ["list", str(tmp_path), "--json"])

    assert [each.path.name for each in found] == ["full-000000000003", "full-000000000012"]
    assert {(each.kind, each.parent) for each in found} == {("full", None)}
    assert json.loads(as_line.stdout) == [as_json(each) for each in found]
    head, *rows = shown.stdout.splitlines()
    assert head.split() == ["kind", "step", "lies", "on", "size", "age", "checkpoint"]
    assert [row.split()[0] for row in rows] == ["full", "full"]
    assert all(row.split()[-1] == str(each.path) for row, each in zip(rows, found, strict=True))
