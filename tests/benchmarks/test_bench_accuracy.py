"""The benchmark of accuracy: which runs are compared, and what it prints."""

from pathlib import Path

import pytest
from bench_accuracy import BATCH, pair_of, parse, runs

from bench.training_jobs import Data
from scheduler import JobConfig

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("mode", "global_batch"), [("gba", 2 * BATCH), ("async", BATCH)])
def test_both_runs_of_a_pair_take_steps_of_the_same_size(mode: str, global_batch: int) -> None:
    *cases, in_step = pair_of(mode, servers=1)
    data = Data(Path("x"), 10_000)
    configs = [
        [JobConfig.from_yaml(run.job, list(run.overrides)) for run in runs(case, in_step, data, 2)]
        for case in cases
    ]

    assert [config.training.mode for (config, _) in configs] == [mode, "sync"]
    assert [config.cluster.workers for (config, _) in configs] == [2, 1]
    assert {c.training.global_batch for pair in configs for c in pair} == {global_batch}


def test_every_seed_is_another_run() -> None:
    case, _, in_step = pair_of("gba", servers=1)

    assert [run.seed for run in runs(case, in_step, Data(Path("x"), 10_000), 3)] == [1, 2, 3]


@pytest.mark.parametrize("arguments", [["--seeds", "0"], ["--modes", "sync"], ["--rows", "x"]])
def test_wrong_arguments_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(arguments)
