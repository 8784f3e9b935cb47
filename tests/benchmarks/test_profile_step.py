"""The profile of a step: real servers, every millisecond in some part."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_here import run_here
from profile_step import Part, main, shown

from worker.datasets.synthetic import CriteoLike, write_criteo_like

ROOT = Path(__file__).parents[2]


def profile_step(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/profile_step.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "criteo"
    write_criteo_like(out, CriteoLike(rows=2000, test_rows=100, files=1))
    return out


@pytest.mark.slow
def test_worker_functions_and_server_stages_have_their_lines(data: Path) -> None:
    done = profile_step(
        *("--data", str(data), "--batch", "64", "--steps", "3"),
        *("--servers", "2", "--least", "0", "--json"),
    )

    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    times = {(line["role"], line["name"]): line["ms"] for line in lines}
    assert times["worker", "worker/models/layers.py: backward"] > 0
    for server in ("server 0", "server 1"):
        assert all(times[server, stage] > 0 for stage in ("pull", "push", "apply", "send"))
    assert times["", "matrix products alone, within the above"] > 0
    assert times["", "all others"] == pytest.approx(0.0, abs=1e-3)


def test_small_parts_are_summed_up_and_none_is_lost() -> None:
    parts = [Part("a", "x", 98.5), Part("a", "y", 0.9), Part("b", "z", 0.6)]

    assert shown(parts, least=1.0) == [parts[0], Part("", "all others", pytest.approx(1.5))]


def test_mistakes_exit_2(data: Path) -> None:
    for arguments, message in (
        (["--batch", "0"], "--batch must be >= 1, got 0"),
        (["--data", str(data)], "has 2000 train rows"),
    ):
        done = run_here(*arguments, main=main)

        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr
