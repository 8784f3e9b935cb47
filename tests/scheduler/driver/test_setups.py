"""What processes are told when they start."""

from pathlib import Path
from typing import Any

import pytest

from ps.net.sockets import Address
from scheduler.driver.resolved import JobSpecs, resolve
from scheduler.driver.setups import Setups
from scheduler.job.config import JobConfig
from worker.faults import Hang, Kill

KILLS = [
    {"kind": "kill", "role": "server", "index": 0, "at_step": 10},
    {"kind": "kill", "role": "server", "index": 0, "at_step": 30},
    {"kind": "kill", "role": "coordinator", "index": 0, "at_step": 20},
    {"kind": "kill", "role": "worker", "index": 0, "at_step": 10},
    {"kind": "hang", "index": 0, "at_step": 12},
    {"kind": "kill", "role": "worker", "index": 1, "at_step": 40},
]


@pytest.fixture
def specs(samples: Path, tmp_path: Path) -> JobSpecs:
    config = JobConfig.from_dict(
        {
            "data": {"train": str(samples / "train-*.parquet"), "dense": ["d1"], "sparse": ["a"]},
            "model": {"type": "dlrm", "bottom_mlp": [4], "top_mlp": [4]},
            "cluster": {"server_timeout_seconds": 30, "inject": KILLS},
            "run": {"dir": str(tmp_path / "run"), "allow_faults": True},
        }
    )
    return resolve(config, None)


def deaths(setups: Setups) -> dict[str, Any]:
    """Return at which steps processes die or hang on purpose, by role and incarnation."""
    place = Address("here", "socket", None, None, name="nobody")
    workers = setups.worker(
        addresses=(place,) * 2, standbys={}, coordinator=place, recovery_epoch=0
    )
    return {
        "server": [setups.server(0, incarnation).dies_at_step for incarnation in range(2)],
        "coordinator": [setups.coordinator(incarnation).dies_at_step for incarnation in range(2)],
        "worker": [f.at_step for f in workers.faults.faults if isinstance(f, Kill | Hang)],
    }


def test_a_server_falls_silent_in_half_the_time_after_which_it_is_given_up(
    specs: JobSpecs,
) -> None:
    assert specs.coordinator.server_timeout_seconds == 30
    assert Setups(specs, b"secret").server(0).lease_seconds == 15


@pytest.mark.parametrize(("rebalance", "counts"), [("never", False), ("auto", True)])
def test_servers_count_what_buckets_are_asked_for_where_somebody_goes_by_it(
    specs: JobSpecs, rebalance: str, counts: bool
) -> None:
    cluster = specs.config.cluster.model_copy(update={"rebalance": rebalance})
    specs.config = specs.config.model_copy(update={"cluster": cluster})

    assert Setups(specs, b"secret").server(0).counts_loads == counts


def test_faults_on_purpose_that_have_been_come_again_under_no_other_driver(
    specs: JobSpecs,
) -> None:
    assert deaths(Setups(specs, b"secret")) == {
        "server": [10, 30], "coordinator": [20, None], "worker": [10, 12, 40],
    }  # fmt: skip
    assert deaths(Setups(specs, b"secret", reached=20)) == {
        "server": [30, None], "coordinator": [None, None], "worker": [40],
    }  # fmt: skip
