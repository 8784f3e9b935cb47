"""Faults in jobs that really run: how they are drawn, how files are damaged, and the verdict."""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from chaos import kinds_of, table
from ray_of_threads import train_in_threads

from injection.doing import damage
from injection.draw import FIRST, KINDS, LAST, draw_run
from injection.verdict import abandoned_folders, wrong_with_result, wrong_with_run
from scheduler import JobConfig
from scheduler.run.directory import checkpoints_of

LOCAL = [name for name, kind in KINDS.items() if kind.place == "local"]
RESULT: dict[str, Any] = {
    "samples_trained": 90,
    "samples_dropped": 6,
    "samples_skipped": 4,
    "model_digest": "ab",
    "global_step": 9,
    "train_loss": 0.5,
    "eval": {"auc": 0.75},
}


def test_a_run_depends_on_seed_and_number_alone() -> None:
    runs = [draw_run(7, number, kinds=LOCAL, modes=["sync", "gba"]) for number in range(40)]

    assert runs == [draw_run(7, n, kinds=LOCAL, modes=["sync", "gba"]) for n in range(40)]
    assert runs != [draw_run(8, n, kinds=LOCAL, modes=["sync", "gba"]) for n in range(40)]
    assert [run.mode for run in runs[:3]] == ["sync", "gba", "sync"]
    assert {fault.kind for run in runs for fault in run.faults} == set(LOCAL)
    for run in runs:
        moments = [fault.at for fault in run.faults]
        assert moments == sorted(moments)
        assert all(FIRST <= moment <= LAST for moment in moments)


def test_a_run_has_faults_of_one_place() -> None:
    runs = [draw_run(1, number, kinds=list(KINDS), modes=["sync"]) for number in range(60)]
    places = {run.place for run in runs}

    assert places == {"local", "nodes"}
    for run in runs:
        kinds = {KINDS[fault.kind].place for fault in run.faults}
        assert run.place == "nodes" or kinds == {"local"}


def test_kinds_are_named_one_by_one_or_by_their_place() -> None:
    assert kinds_of("disk_full,local")[:2] == ["disk_full", "worker_killed"]
    assert set(kinds_of("all")) == set(KINDS)
    with pytest.raises(argparse.ArgumentTypeError, match="'serverkilled'"):
        kinds_of("serverkilled")


@pytest.mark.parametrize("how", ["flip", "truncate", "remove"])
def test_a_damaged_file_is_another_one(tmp_path: Path, how: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(range(100)))

    damage(file, how, pick=17)

    assert file.exists() == (how != "remove")
    if how == "flip":
        different = [a for a, b in zip(file.read_bytes(), range(100), strict=True) if a != b]
        assert len(different) == 1
    if how == "truncate":
        assert file.read_bytes() == bytes(range(50))


def test_samples_have_to_add_up_in_every_mode_and_bits_are_the_same_in_sync() -> None:
    other = {**RESULT, "model_digest": "cd"}
    fewer = {**RESULT, "samples_skipped": 3}

    assert wrong_with_result(RESULT, RESULT, mode="sync", samples=100) == []
    assert wrong_with_result(other, RESULT, mode="gba", samples=100) == []
    (digest,) = wrong_with_result(other, RESULT, mode="sync", samples=100)
    assert "model_digest is cd" in digest
    (sum_of_samples,) = wrong_with_result(fewer, RESULT, mode="async", samples=100)
    assert "99 in all, not 100" in sum_of_samples


def test_what_a_run_leaves_and_damaged_checkpoints_are_found(samples: Path, tmp_path: Path) -> None:
    config = {
        "data": {
            "train": str(samples / "train-0.parquet"),
            "sparse": ["a", "b"],
            "batch_size": 500,
        },
        "model": {"type": "dlrm", "bottom_mlp": [4], "top_mlp": [4]},
        "run": {"dir": str(tmp_path / "run")},
    }
    train_in_threads(JobConfig.from_dict(config))
    run = tmp_path / "run"
    assert wrong_with_run(run, damaged=()) == []

    (run / "checkpoints" / ".partial-full-9-ab").mkdir()
    (run / "control.json").write_text("{}")
    (checkpoint,) = checkpoints_of(run)
    damage(next(checkpoint.rglob("rows-*.arrow")), "truncate", 0)
    wrong = wrong_with_run(run, damaged=())

    assert len(wrong) == 3
    assert "does not verify" in wrong[-1]
    assert len(wrong_with_run(run, damaged=[checkpoint.name])) == 2


def test_folders_of_dead_processes_are_removed_by_the_next_and_no_others() -> None:
    with tempfile.TemporaryDirectory() as short:
        dead, another = Path(short, "synchromesh-dead"), Path(short, "synchromesh-another")
        for folder in (dead, another):
            folder.mkdir()
        (dead / "lock").touch()

        assert abandoned_folders(Path(short)) == [f"{another} is left"]


def test_the_table_counts_faults_by_kind_and_outcome() -> None:
    line = {"kind": "disk_full", "outcome": "went on", "seconds": 2.0, "redone_steps": 0}
    lines = [line, {**line, "seconds": 4.0}, {**line, "outcome": "FAILED: because"}]

    shown = [text.split() for text in table(json.loads(json.dumps(lines))).splitlines()[1:]]

    assert shown == [
        ["disk_full", "FAILED", "1", "2.0", "2.0", "0.0"],
        ["disk_full", "went", "on", "2", "3.0", "4.0", "0.0"],
    ]
