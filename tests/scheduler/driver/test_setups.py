"""What processes are told when they start."""

from pathlib import Path

from scheduler.driver.resolved import resolve
from scheduler.driver.setups import Setups
from scheduler.job.config import JobConfig


def test_a_server_falls_silent_in_half_the_time_after_which_it_is_given_up(
    samples: Path, tmp_path: Path
) -> None:
    config = JobConfig.from_dict(
        {
            "data": {"train": str(samples / "train-*.parquet"), "dense": ["d1"], "sparse": ["a"]},
            "model": {"type": "dlrm", "bottom_mlp": [4], "top_mlp": [4]},
            "cluster": {"server_timeout_seconds": 30},
            "run": {"dir": str(tmp_path / "run")},
        }
    )
    specs = resolve(config, None)

    assert specs.coordinator.server_timeout_seconds == 30
    assert Setups(specs, b"secret").server(0).lease_seconds == 15
