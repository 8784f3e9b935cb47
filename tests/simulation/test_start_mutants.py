"""Deliberate faults in how a job goes on from another one: the simulation notices each of them."""

from dataclasses import replace
from typing import Any

import pytest

from ps.shard.shard import Shard
from scheduler.coordinator.clock import ClockState
from scheduler.coordinator.coordinator import Coordinator
from scheduler.coordinator.spec import CoordinatorSpec
from scheduler.coordinator.start import Start
from simulation.engine import Parts, run, seed_that_fails
from simulation.scenario import Faults


class _StartsOtherwise(Coordinator):
    def __init__(self, spec: CoordinatorSpec) -> None:
        super().__init__(replace(spec, start=self.start_of(spec.start)))

    @staticmethod
    def start_of(start: Start) -> Start:
        raise NotImplementedError


class CountsOptimizerStepsAnew(_StartsOtherwise):
    @staticmethod
    def start_of(start: Start) -> Start:
        return replace(start, optimizer_steps=0)


class StartsTheClockAnew(_StartsOtherwise):
    @staticmethod
    def start_of(start: Start) -> Start:
        return replace(start, clock=ClockState())


class ForgetsWhereClockValuesBegan(_StartsOtherwise):
    """What was there before counts as if it had come with the latest tick."""

    @staticmethod
    def start_of(start: Start) -> Start:
        runs = ((0, 0, 0, 1),) if start.step == 0 else ((start.clock.value, start.step, 0, 1),)
        return replace(start, clock=replace(start.clock, first_steps=runs))


class DropsTheRestOfATick(_StartsOtherwise):
    @staticmethod
    def start_of(start: Start) -> Start:
        return replace(start, clock=replace(start.clock, samples=0))


class StartsAtStepZero(Shard):
    def enter(self, recovery_epoch: int, *, step: int, tables: Any = None) -> None:
        super().enter(recovery_epoch, step=0, tables=tables)


class ForgetsCounters(Shard):
    """Keys that are not admitted yet have to be seen all over again."""

    def enter(self, recovery_epoch: int, *, step: int, tables: Any = None) -> None:
        super().enter(recovery_epoch, step=step, tables=tables)
        for table in self.tables:
            table._counters.remove(table.export_counters().keys)


SEEDS = 12
OPTIONS: dict[str, Any] = {
    "limit": None,
    "max_seconds": None,
    "batches_per_epoch": 9,
    "faults": Faults(kill=0.03, max_kills=3, delay=0.1, duplicate=0.1, until=2.0),
}
MUTANTS = [
    Parts(coordinator=CountsOptimizerStepsAnew),
    Parts(coordinator=StartsTheClockAnew),
    Parts(coordinator=ForgetsWhereClockValuesBegan),
    Parts(coordinator=DropsTheRestOfATick),
    Parts(shard=StartsAtStepZero),
    Parts(shard=ForgetsCounters),
]


def _name(parts: Parts) -> str:
    return (parts.shard if parts.shard is not Shard else parts.coordinator).__name__


@pytest.mark.parametrize("parts", MUTANTS, ids=_name)
def test_a_wrong_start_is_noticed_where_a_job_goes_on_and_only_there(parts: Parts) -> None:
    seed = seed_that_fails(lambda seed: run(seed, parts, earlier=7, **OPTIONS), range(SEEDS))

    run(seed, parts, earlier=0, **OPTIONS)


def test_a_job_that_goes_on_ends_right_and_with_another_model() -> None:
    for seed in range(SEEDS):
        ended = {run(seed, earlier=earlier, **OPTIONS).digest for earlier in (0, 7)}
        assert len(ended) == 2
