"""A run of faults as a person would start it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_with_a_killed_server_coordinator_and_driver_has_the_same_bits(
    tmp_path: Path,
) -> None:
    kinds = "server_killed,coordinator_killed,driver_killed"
    command = [sys.executable, "scripts/chaos.py", "--seed=11", "--run=0", "--modes=sync"]

    done = subprocess.run(
        [*command, f"--kinds={kinds}", f"--work={tmp_path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert {line["kind"] for line in lines} == set(kinds.split(","))
    assert {line["outcome"] for line in lines} == {"went on", "resumed"}
