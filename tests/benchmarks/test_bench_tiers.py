"""The benchmark of tiers as a user runs it, at sizes whose figures mean nothing."""

import json
from pathlib import Path

import pytest
from tiers import main


def test_every_figure_has_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick", "--without-rocksdb", "--path", str(tmp_path)]) == 0

    lines = {line["name"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert list(lines) == [
        "disk random reads of 4 KiB",
        "memory pull",
        "memory apply",
        "memory pull and apply",
        "tiers pull",
        "tiers apply",
        "tiers pull and apply",
        "tiers pull of what the disk allows",
        "memory memory",
        "tiers memory",
        "tiers disk",
    ]
    assert lines["tiers disk"]["memory_bytes"] <= lines["tiers disk"]["budget"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [("--rows", "0"), ("--times", "1"), ("--path", "/none")])
def test_mistakes_exit_2(wrong: tuple[str, str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(list(wrong))
    assert exit_.value.code == 2


def test_cuts_by_reference_and_by_copy_are_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--quick", "--cuts", "--path", str(tmp_path)]) == 0

    lines = {line["name"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert list(lines) == [
        "cut by reference",
        "cut by copy",
        "restore by reference",
        "restore by copy",
        "training while a cut by reference is written, slower",
        "training with a cut by reference each minute, slower",
        "training while a cut by copy is written, slower",
        "training with a cut by copy each minute, slower",
    ]
    assert lines["cut by reference"]["written"] < lines["cut by copy"]["written"]
    assert list(tmp_path.iterdir()) == []


def test_so_many_rows_in_so_much_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = ("--path", str(tmp_path), "--rows", "50000", "--batch", "4000", "--batches", "2")

    assert main([*size, "--memory", "6000000"]) == 0

    lines = {line["name"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert list(lines) == [
        "rows made by applies",
        "memory of a row",
        "disk of a row",
        "pull, uniform keys",
        "pull, Zipf keys",
        "cut by reference",
        "restore by reference",
    ]
    assert lines["memory of a row"]["total"] <= 6.0
    assert lines["disk of a row"]["rows_on_disk"] > 10_000
    assert list(tmp_path.iterdir()) == []

    assert main([*size, "--memory", "1000000"]) == 2
    assert "--memory must be >= " in capsys.readouterr().err
