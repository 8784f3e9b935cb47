"""The benchmark of serving as a user runs it, at sizes whose figures mean nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from bench_serving import main
from command_here import run_here

ROOT = Path(__file__).parents[2]


def test_mistakes_exit_2() -> None:
    for arguments, message in (
        (["--rows", "100"], "--rows must be >= 26000, got 100"),
        (["--only", "form,speed"], "knows form, rows, process, shared, http"),
    ):
        done = run_here(*arguments, main=main)
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr


@pytest.mark.slow
def test_every_group_prints_its_figures() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/bench_serving.py", "--quick", "--rows", "26000"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    names = [json.loads(line)["name"] for line in done.stdout.splitlines()]
    assert {
        *("form_make", "form_open", "rows_float32", "rows_bf16", "rows_int8", "in_process"),
        *("shared_compute", "shared_json", "shared_binary", "http_rate", "sessions_rate"),
        *("swaps_slowest", "cut_to_served", "session_memory", "products"),
    } == {*names}
