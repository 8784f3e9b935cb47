"""The benchmark of defaults: what it refuses, and that its choices are optimizers."""

from pathlib import Path

import pytest
from bench_defaults import CHOICES, parse, runs

from scheduler.job.config import JobConfig

ROOT = Path(__file__).parents[2]


def test_every_choice_is_one_that_a_job_takes(tmp_path: Path) -> None:
    for choice in CHOICES:
        (run,) = runs(str(ROOT / "jobs/dlrm.yaml"), str(tmp_path), 64, choice, 1)
        config = JobConfig.from_yaml(run.job, [*run.overrides, f"run.dir={tmp_path}"])

        found = (config.embedding.optimizer, config.model.optimizer)
        wanted = CHOICES[choice]
        assert [one.type for one in found] == [one["type"] for one in wanted]
        assert [one.learning_rate for one in found] == [one["learning_rate"] for one in wanted]
        assert config.global_batch == config.data.batch_size == 64


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.yaml=d"], "there is no nowhere.yaml"),
        ([f"{ROOT}/jobs/dlrm.yaml=nowhere"], "there is no nowhere/train"),
    ],
)
def test_what_is_not_there_exits_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(arguments)

    assert said in capsys.readouterr().err
