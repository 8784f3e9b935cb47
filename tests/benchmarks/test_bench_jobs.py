"""What benchmarks of whole jobs print, at sizes that mean nothing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bench_startup import PHASES

from worker.datasets.synthetic import CriteoLike, write_criteo_like
from worker.loop import STAGES

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]


def lines_of(name: str, *arguments: object) -> list[dict[str, Any]]:
    command = [sys.executable, f"benchmarks/{name}.py", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line, parse_constant=pytest.fail) for line in done.stdout.splitlines()]


def test_a_job_s_line_has_all_its_figures(tmp_path: Path) -> None:
    data = tmp_path / "criteo"
    write_criteo_like(data, CriteoLike(rows=20_000, test_rows=1000, files=2, row_group_rows=4096))

    lines = lines_of(
        *("bench_training", "--quick", "--data", data, "--only", "jobs"),
        *("--topologies", "2+1", "--modes", "gba", "--batches", "512"),
    )

    (line,) = (line for line in lines if line["name"] == "train")
    assert (line["topology"], line["mode"], line["batch"]) == ("2+1", "gba", 512)
    assert line["ratio"] == pytest.approx(line["value"] / line["limit"], rel=1e-2)
    # Such a short run may be over before it could be stopped.
    assert line["limit_measured"] == ("inside" if line["bounds_inside"] else "before and after")
    assert 0 <= line["stopped_share"] < 1
    assert line["undisturbed"] > 0
    assert set(line["worker_ms_per_batch"]) == set(STAGES)
    assert {"pull", "push", "apply", "idle"} <= set(line["server_ms_per_batch"])
    assert set(line["cpu_seconds_per_million"]) == {"worker", "server", "coordinator", "rest"}
    assert set(line["peak_memory_mb"]) == {"worker", "server", "coordinator", "driver"}
    # Keys and rows of 26 features, forth and back.
    assert line["wire_bytes_per_sample"] > 26 * 2
    assert 0.5 <= line["auc"] <= 0.85


def test_phases_add_up_to_the_start_and_ray_has_its_share(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_criteo_like(data, CriteoLike(rows=41_000, test_rows=100, files=1))

    small = ("--repeats", 1, "--workers", 1, "--servers", 1)
    lines = {line["name"]: line for line in lines_of("bench_startup", "--data", data, *small)}

    start = lines["startup"]
    assert tuple(start["seconds"]) == PHASES
    assert sum(start["seconds"].values()) == pytest.approx(start["value"], rel=0.01)
    assert all(seconds > 0 for seconds in start["seconds"].values())
    assert 0 < lines["ray_alone"]["share"] < 2
    for role in ("server", "worker"):
        assert set(lines[f"{role}_alone"]["seconds"]) == {"import", "kernels"}


def test_it_prints_the_mean_difference_over_the_seeds(tmp_path: Path) -> None:
    write_criteo_like(tmp_path / "d", CriteoLike(rows=20_000, test_rows=1000, files=2))
    small = ("--rows", 16384, "--seeds", 2, "--modes", "gba")

    (line,) = lines_of("bench_accuracy", "--data", tmp_path / "d", *small)

    assert line["value"] == pytest.approx(sum(line["differences"]) / 2, abs=1e-4)
    assert len(line["differences"]) == 2
    assert 0 < line["auc"] < 1
