"""The benchmark of a GPU, with the CPU in its place: a line for each way."""

import json

import pytest
from bench_gpu import main
from command_here import run_here


def test_each_way_has_a_line_beside_the_cpu() -> None:
    pytest.importorskip("torch")
    done = run_here(
        "--batch", "16", "--batches", "3", "--repeats", "1", "--device", "cpu", main=main
    )

    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    names = ["dense_step_cpu", "dense_step_gpu_in_line", "dense_step_gpu"]
    assert [line["name"] for line in lines] == names
    assert all(line["value"] > 0 and line["batch"] == 16 for line in lines)
    assert lines[0]["ratio_to_cpu"] == 1


def test_mistakes_exit_2() -> None:
    done = run_here("--batches", "0", main=main)

    assert (done.returncode, done.stdout) == (2, "")
    assert "--batches must be >= 1, got 0" in done.stderr
