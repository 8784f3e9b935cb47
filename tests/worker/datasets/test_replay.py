"""Replayed files: all rows in order, at the rate, each file whole."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_here import run_here

from worker.data.directory_stream import DirectoryStream
from worker.datasets.replay import replay


@pytest.fixture
def recorded(tmp_path: Path) -> str:
    for number, rows in enumerate((70, 5, 45)):
        first = (0, 70, 75)[number]
        table = pa.table({"a": list(range(first, first + rows))})
        pq.write_table(table, tmp_path / f"day-{number}.parquet", row_group_size=9)
    return str(tmp_path / "day-*.parquet")


def test_rows_come_in_order_at_the_rate(recorded: str, tmp_path: Path) -> None:
    now, times = 1_764_437_854.0, []

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    rows = replay(
        [recorded],
        str(tmp_path / "stream"),
        rate=20,
        every_seconds=2,
        loops=2,
        time_column="at",
        on_file=lambda path, rows: times.append((now, rows)),
        clock=lambda: now,
        sleep=sleep,
    )

    assert rows == 240
    assert times == [(1_764_437_854.0 + 2 * i, 40) for i in range(1, 7)]
    files = DirectoryStream(str(tmp_path / "stream")).poll(most=99, now=0.0)
    tables = [pq.read_table(file) for file in files]
    assert pa.concat_tables(tables)["a"].to_pylist() == [*range(120), *range(120)]
    assert tables[0]["at"][0].as_py().timestamp() == 1_764_437_856.0
    assert not list((tmp_path / "stream").rglob(".*"))


def test_the_command_replays_and_says_how_much(recorded: str, tmp_path: Path) -> None:
    done = run_here("data", "replay", recorded, "--to", tmp_path / "s", "--rate", 1e9, "--json")

    assert done.returncode == 0, done.stderr
    assert '"rows": 120' in done.stdout
    missing = run_here("data", "replay", tmp_path / "none", "--to", tmp_path / "s", "--rate", 9)
    assert missing.returncode == 1
    assert "none" in missing.stderr
