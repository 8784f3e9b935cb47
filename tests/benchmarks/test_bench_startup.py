"""The benchmark of a start: phases that add up, and Ray's share beside them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from bench_startup import PHASES, main, middle
from command_here import run_here

from worker.datasets.synthetic import CriteoLike, write_criteo_like

ROOT = Path(__file__).parents[2]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/bench_startup.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)


@pytest.mark.ray
@pytest.mark.slow
def test_phases_add_up_to_the_start_and_ray_has_its_share(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_criteo_like(data, CriteoLike(rows=41_000, test_rows=100, files=1))
    done = bench("--data", str(data), "--repeats", "1", "--workers", "1", "--servers", "1")
    assert done.returncode == 0, done.stderr[-2000:]
    lines = {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}
    start = lines["startup"]
    assert tuple(start["seconds"]) == PHASES
    assert sum(start["seconds"].values()) == pytest.approx(start["value"], rel=0.01)
    assert all(seconds > 0 for seconds in start["seconds"].values())
    assert 0 < lines["ray_alone"]["share"] < 2
    for role in ("server", "worker"):
        assert set(lines[f"{role}_alone"]["seconds"]) == {"import", "kernels"}


def test_phases_are_those_of_the_run_with_the_median_total() -> None:
    runs = [{"a": 1.0, "b": 4.0}, {"a": 2.0, "b": 0.5}, {"a": 0.0, "b": 3.0}]
    assert middle(runs) == {"a": 0.0, "b": 3.0}


def test_mistakes_exit_2(tmp_path: Path) -> None:
    write_criteo_like(tmp_path / "data", CriteoLike(rows=2000, test_rows=100, files=1))
    for arguments, message in (
        (["--repeats", "0"], "--repeats must be >= 1, got 0"),
        (["--data", str(tmp_path / "data")], "has 2000 train rows"),
    ):
        done = run_here(*arguments, main=main)
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr
