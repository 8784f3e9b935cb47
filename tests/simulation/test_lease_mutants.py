"""Deliberate faults in the lease of a shard, which the simulation notices where one is cut off.

A shard lives on out of its coordinator's reach; workers that are connected with it go on asking it,
until the driver gives it up and they hear of another recovery epoch.
"""

from dataclasses import replace
from typing import Any

import pytest

from ps.shard.lease import CoordinatorLease
from simulation.engine import Parts, SimulationError, run
from simulation.scenario import Faults


class NeverEnds(CoordinatorLease):
    def silence(self, recovery_epoch: int, now: float) -> float | None:
        return None


class AnyoneRenewsIt(CoordinatorLease):
    def silence(self, recovery_epoch: int, now: float) -> float | None:
        silent = super().silence(recovery_epoch, now)
        self.heard(recovery_epoch, now)
        return silent


class LastsTwiceAsLong(CoordinatorLease):
    def __init__(self, seconds: float | None) -> None:
        super().__init__(None if seconds is None else 2 * seconds)


class NeverHears(CoordinatorLease):
    def heard(self, recovery_epoch: int, now: float) -> None:
        pass


SEEDS = 4
SLOW = Faults(fleet_slow=(0.1, 9.0), until=3.0)
CUT_OFF: dict[str, Any] = {
    "mode": "async", "workers": 6, "depth": 3, "shards": 2, "batches_per_epoch": 40, "epochs": 1,
    "limit": None, "max_seconds": None, "eval_batches": 0,
    # So many workers don't wait for the steps that they wrote, and slow ones ask for long.
    "faults": replace(SLOW, cut_off_shards=(0.3, 0.6)),
}  # fmt: skip


def is_caught(lease: type[CoordinatorLease], options: dict[str, Any]) -> bool:
    for seed in range(SEEDS):
        try:
            run(seed, Parts(lease=lease), **options)
        except SimulationError:
            return True
    return False


@pytest.mark.parametrize("lease", [NeverEnds, AnyoneRenewsIt, LastsTwiceAsLong])
def test_a_shard_that_answers_for_too_long_is_caught_where_one_is_cut_off(
    lease: type[CoordinatorLease],
) -> None:
    assert is_caught(lease, CUT_OFF)


def test_where_no_shard_is_cut_off_a_lease_need_not_end() -> None:
    assert not is_caught(NeverEnds, CUT_OFF | {"faults": SLOW})


def test_a_shard_that_never_hears_its_coordinator_is_caught() -> None:
    assert is_caught(NeverHears, CUT_OFF | {"faults": SLOW})


def test_real_leases_pass_where_shards_are_cut_off() -> None:
    outcomes = [run(seed, **CUT_OFF) for seed in range(SEEDS)]

    assert sum(outcome.recoveries for outcome in outcomes) >= SEEDS
