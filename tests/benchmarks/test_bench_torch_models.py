"""The benchmark of models of torch: a line for each, and what they are held against."""

import json

import pytest
from bench_torch_models import CASES, main
from command_here import run_here


def test_each_way_has_a_line_beside_our_own() -> None:
    pytest.importorskip("torch")
    done = run_here("--batch", "64", "--repeats", "2", main=main)

    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["name"] for line in lines] == [f"dense_step_{case}" for case in CASES]
    assert all(line["value"] > 0 and line["batch"] == 64 for line in lines)
    assert lines[0]["cpu_ratio_to_numpy"] == 1
    assert [line["products"].split(",")[0] for line in lines[2:]] == ["torch", "NumPy", "oneDNN"]


def test_mistakes_exit_2() -> None:
    done = run_here("--batch", "0", main=main)

    assert (done.returncode, done.stdout) == (2, "")
    assert "--batch must be >= 1, got 0" in done.stderr
