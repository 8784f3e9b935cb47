"""The training benchmark: its bound, its cases, and what it prints at sizes that mean nothing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_training import HEADLINE, cases_of, main, parse
from command_here import run_here

from bench.matrix_products import Layer, ProductsBound, layers_of
from bench.training_jobs import Case, figures, overrides
from bench.training_jobs import Data as TrainingData
from scheduler import JobConfig
from scheduler.job.specs import model_spec
from worker.datasets.synthetic import CriteoLike, write_criteo_like
from worker.loop import STAGES
from worker.models import build_model

ROOT = Path(__file__).parents[2]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/bench_training.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)


def lines_of(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line, parse_constant=pytest.fail) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "criteo"
    write_criteo_like(out, CriteoLike(rows=20_000, test_rows=1000, files=2, row_group_rows=4096))
    return out


def test_the_bound_counts_three_products_a_layer_and_two_of_the_first() -> None:
    model = build_model(model_spec(JobConfig.from_yaml(str(ROOT / "jobs/dlrm.yaml"))))

    layers = layers_of(model.parameters)

    weights = [(13, 512), (512, 256), (256, 64), (64, 16), (367, 512), (512, 256), (256, 1)]
    assert [(layer.inputs, layer.outputs) for layer in layers] == weights
    assert [layer.grad_inputs for layer in layers] == [False] + 6 * [True]
    products = sum(3 * m * n for m, n in weights) - 13 * 512
    assert sum(layer.flops_per_sample for layer in layers) == 2 * products == 2_832_896


def test_the_bound_is_a_rate_of_samples() -> None:
    layers = [Layer(8, 4, False), Layer(4, 1, True)]

    rate = ProductsBound(layers, 64, cores=2, seconds=0.01).samples_per_second()

    assert np.isfinite(rate)
    assert rate > 0


def test_without_choices_the_headline_is_run_else_every_combination() -> None:
    assert cases_of(parse([])) == list(HEADLINE)
    assert all(case.target is not None for case in HEADLINE)
    chosen = cases_of(parse(["--topologies", "1+2,2+1", "--modes", "gba", "--batches", "512"]))
    assert chosen == [Case(1, 2, "gba", 512), Case(2, 1, "gba", 512)]
    assert len(cases_of(parse(["--modes", "sync"]))) == 4 * 3


@pytest.mark.parametrize(("workers", "threads"), [(1, 2), (2, 1), (4, 1)])
def test_workers_share_the_cores(workers: int, threads: int) -> None:
    settings = overrides(
        Case(workers, 1, "sync", 512), TrainingData(Path("data"), 10), cores=2, seconds=1.0
    )

    assert f"cluster.worker_threads={threads}" in settings
    assert f"training.global_batch={workers * 512}" in settings


def test_figures_are_those_between_the_first_and_the_last_look() -> None:
    def line(samples: int, seconds: float, auc: float | None = None) -> dict[str, Any]:
        return {
            "samples": samples,
            "eval_auc": auc,
            "cpu_seconds": {"worker": [seconds, seconds], "server": [0.1], "coordinator": [0.0]},
            "stage_seconds": {
                "worker": 2 * [{"read": seconds, "wait_batch": 0.0}],
                "server": [{"idle": 1.0}],
            },
            "wire_bytes": {"pushed_and_pulled_by_workers": 10 * samples},
        }

    lines = [line(0, 9.0), line(1000, 10.0), line(3000, 12.0), line(3000, 99.0, auc=0.7)]
    result = {"peak_rss_bytes": {"worker": 5_000_000}}

    found = figures(lines, result, Case(2, 1, "async", 500))

    assert found["worker_ms_per_batch"] == {"read": 1000.0, "wait_batch": 0.0}
    assert found["server_ms_per_batch"] == {"idle": 0.0}
    assert found["cpu_seconds_per_million"]["worker"] == pytest.approx(2000.0)
    assert found["wire_bytes_per_sample"] == 10
    assert found["peak_memory_mb"] == {"worker": 5.0}


def test_limits_and_bound_are_printed(data: Path) -> None:
    lines = lines_of(bench("--quick", "--data", str(data), "--only", "limits,torch"))

    names = [line["name"] for line in lines]
    assert names[:3] == ["machine", "limit_memcpy", "limit_parquet"]
    assert names[-1] == "bound_products"
    assert names[3:-1] == ["torch_bags", "torch_merged"] or "not installed" in lines[3]["error"]


def test_every_name_is_explained() -> None:
    page = (ROOT / "docs/performance.md").read_text()

    names = [*STAGES, "idle", "send", "torch_bags", "torch_merged", "train", "bound_products"]
    assert [name for name in names if f"`{name}`" not in page] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--modes", "sync,fast"], "got 'fast'"),
        (["--topologies", "9+9"], "got '9+9'"),
        (["--repeats", "0"], "--repeats must be >= 1, got 0"),
    ],
)
def test_mistakes_exit_2(arguments: list[str], message: str) -> None:
    done = run_here(*arguments, main=main)

    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_too_few_rows_exit_2(data: Path) -> None:
    done = run_here("--data", data, "--rows", 30000, main=main)

    assert (done.returncode, done.stdout) == (2, "")
    assert "has 20000 train rows, --rows is 30000" in done.stderr
