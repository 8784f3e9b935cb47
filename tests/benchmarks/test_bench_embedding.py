"""The benchmark as a user runs it, at sizes whose figures mean nothing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bench_embedding import main
from command_here import run_here

ROOT = Path(__file__).parents[2]

NAMES = [
    "machine",
    "limit_memcpy",
    "limit_memcpy_new_memory",
    "limit_gather_uniform",
    "limit_gather_zipf",
    "limit_gather_zipf_deduplicated",
    "limit_line_uniform",
    "limit_count_uniform",
    "limit_read_modify_write_uniform",
    "limit_read_modify_write_zipf_deduplicated",
    "pull_uniform",
    "pull_zipf",
    "pull_zipf_deduplicated",
    "pull_unknown",
    "apply_uniform",
    "apply_zipf_deduplicated",
    "insert",
    "growth_worst_batch",
    "insert_zeros",
    "growth_worst_mixed_batch",
    "export",
    "import",
    "freeze_pause",
    "read_frozen",
    "apply_frozen",
    "evict_nothing",
    "evict_tenth",
    "threads_pull",
    "threads_apply",
    "memory_per_row",
    "memory_per_row",
]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/bench_embedding.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def lines() -> list[dict[str, Any]]:
    done = bench("--smoke")
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line, parse_constant=pytest.fail) for line in done.stdout.splitlines()]


def test_every_figure_has_its_line(lines: list[dict[str, Any]]) -> None:
    ours = [line["name"] for line in lines if line.get("error") is None]

    assert ours[: len(NAMES)] == NAMES
    compared = [line for line in lines[len(NAMES) :] if line["name"].startswith("step_")]
    assert len(compared) == 4 or "not installed" in lines[-1]["error"]


def test_a_ratio_is_the_value_over_its_limit(lines: list[dict[str, Any]]) -> None:
    limited = [line for line in lines if line.get("limit") is not None]

    assert len(limited) >= 7
    for line in limited:
        assert line["ratio"] == pytest.approx(line["value"] / line["limit"], rel=1e-2)
        assert line["limit_name"] in NAMES or line["limit_name"].startswith("torch")
        assert line["min"] <= line["value"] <= line["max"]


def test_every_name_is_explained(lines: list[dict[str, Any]]) -> None:
    page = (ROOT / "docs/performance.md").read_text()

    assert [name for name in NAMES if f"`{name}`" not in page] == []


def test_the_memory_of_a_row_adds_up(lines: list[dict[str, Any]]) -> None:
    for line in (line for line in lines if line["name"] == "memory_per_row"):
        parts = ("index", "keys", "metadata", "rows", "counters", "bloom")
        total = sum(line[f"{part}_bytes_per_row"] for part in parts)
        assert line["value"] == pytest.approx(total / line["payload_bytes"], rel=1e-2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "pull,fly"], "got 'fly'"),
        (["--repeats", "0"], "--repeats must be >= 1, got 0"),
        (["--rows", "1000"], "--rows must be >= 10 x --batch"),
    ],
)
def test_mistakes_exit_2(arguments: list[str], message: str) -> None:
    done = run_here(*arguments, main=main)

    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
