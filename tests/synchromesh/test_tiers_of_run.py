"""Where the rows of a run's tables were, as its files say."""

import json
from pathlib import Path

from rich.console import Console

from synchromesh.tiers_of_run import show_tiers, tiers_of_run

TIERS = {
    "memory_rows": 40,
    "disk_rows": 60,
    "memory_bytes": 1000,
    "disk_bytes": 2000,
    "memory_hits": 80,
    "cache_hits": 15,
    "disk_reads": 5,
    "disk_bytes_written": 3000,
    "prefetched": 15,
    "prefetched_lost": 1,
}


def test_the_last_line_of_metrics_says_it_while_a_job_runs(tmp_path: Path) -> None:
    old = {**TIERS, "memory_rows": 1}
    lines = [json.dumps({"tiers": {"items": each}}) for each in (old, TIERS)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")

    assert tiers_of_run(str(tmp_path)) == {"items": TIERS}


def test_the_result_says_it_afterwards(tmp_path: Path) -> None:
    tables = {"items": {"rows": 100, **TIERS}, "users": {"rows": 7}}
    (tmp_path / "result.json").write_text(json.dumps({"tables": tables}))

    assert tiers_of_run(str(tmp_path)) == {"items": {"rows": 100, **TIERS}}


def test_what_has_no_tiers_says_nothing(tmp_path: Path) -> None:
    assert tiers_of_run(str(tmp_path)) == {}
    assert tiers_of_run("s3://bucket/run") == {}
    (tmp_path / "metrics.jsonl").write_text('{"rows": {}}\n{"half')
    assert tiers_of_run(str(tmp_path)) == {}


def test_a_line_says_where_rows_are_and_were() -> None:
    console = Console(record=True, width=200)

    small = {**TIERS, "disk_rows": 0}
    show_tiers(console, {"items": TIERS, "few": small}, ["items", "few", "users"])

    lines = console.export_text().splitlines()
    assert lines[1] == (
        "Where rows were when the run last said so; 1 of 2 tables with tiers are in memory"
    )
    assert lines[2:] == [
        "items: 40 in memory, 60 on disk (2.0 kB); of rows asked for 80.0 % in memory,"
        " 15.0 % just read, 5.0 % read from disk; 75.0 % of the disk's reads were ahead of who"
        " asked"
    ]
