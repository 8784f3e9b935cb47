"""What is kept aside does not grow with the time for which a stream runs."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from worker.data import quarantine
from worker.data.quarantine import keep_name, keep_table

TABLE = pa.table({"a": [1, 2, 3]})


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.parquet"))


def keep(folder: Path, number: int) -> None:
    path = keep_table(folder, f"{number}.parquet", TABLE)
    os.utime(path, (number, number))  # as if it was written then


def test_the_oldest_make_room_for_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine, "MOST_FILES", 3)
    (tmp_path / "files.jsonl").write_text("{}")

    for number in range(1, 6):
        keep(tmp_path, number)

    assert kept(tmp_path) == ["3.parquet", "4.parquet", "5.parquet"]
    assert pq.read_table(tmp_path / "5.parquet").equals(TABLE)
    monkeypatch.setattr(quarantine, "MOST_BYTES", 1)
    keep(tmp_path, 6)
    assert kept(tmp_path) == ["6.parquet"]
    assert (tmp_path / "files.jsonl").exists()


def test_of_files_that_were_left_out_the_newest_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine, "_MOST_LIST_BYTES", 100)

    for number in range(20):
        keep_name(tmp_path / "aside", f"part-{number}", "no footer")

    newest = (tmp_path / "aside" / "files.jsonl").read_text()
    before = (tmp_path / "aside" / "files.1.jsonl").read_text()
    assert "part-19" in newest
    assert "part-0" not in before + newest
