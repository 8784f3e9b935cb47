"""Jobs whose shards have standbys: copies die or are taken for dead, others are made meanwhile.

What the referee holds against it: what is acknowledged every copy has, a copy is equal to the bit,
and where one of each shard lives no step is lost.
"""

from collections.abc import Sequence
from typing import Any

import pytest

from ps.client.client import Open
from scheduler.coordinator.coordinator import Coordinator
from scheduler.coordinator.events import Command
from scheduler.coordinator.spec import CutOptions
from simulation.engine import Outcome, Parts, SimulationError, run, run_scenario
from simulation.scenario import Faults, Scenario, draw, with_orders, with_standbys
from simulation.worker import SimulatedWorker

# Copies die one after another, and each time there is time to make another one.
_DEATHS = Faults(shard_deaths=(0.3, 2.3, 4.3), duplicate=0.1, until=1.0)
LONG: dict[str, Any] = {
    "standby": True,
    "workers": 3,
    "shards": 2,
    "group_size": 1,
    "batches_per_epoch": 40,
    "epochs": 2,
    "limit": None,
    "max_seconds": None,
    "cuts": CutOptions(),
    "eval_batches": 0,
    "faults": _DEATHS,
}


def scenarios(seeds: Sequence[int]) -> list[Scenario]:
    found = [with_standbys(draw(seed)) for seed in seeds]
    return [with_orders(s) if s.seed % 3 == 0 else s for s in found]


@pytest.mark.parametrize("block", range(4))
def test_a_job_with_standbys_ends_right_whatever_happens_to_it(block: int) -> None:
    for scenario in scenarios(range(block, 16, 4)):
        run_scenario(scenario, Parts())


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_no_step_is_lost_while_a_copy_of_each_shard_lives(mode: str) -> None:
    steps: list[int] = []

    class Watched(Coordinator):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            steps.append(self.step)

    promotions = 0
    for seed in range(2):
        steps.clear()
        promotions += run(seed, Parts(coordinator=Watched), **(LONG | {"mode": mode})).promotions

        assert steps == sorted(steps)
        assert steps[-1] > 0
    assert promotions > 0


# Deliberate faults --------------------------------------------------------------------------------


class IsDoneOnceThePrimariesAre(SimulatedWorker):
    def is_done(self, request: Open) -> bool:
        return not any(number in self._client.copies.primaries for number in request.waiting)


class CountsThePrimariesAlone(Coordinator):
    def _applied(self, shard: int, step: int, now: float) -> list[Command]:
        commands = super()._applied(shard, step, now)
        copies = self.spec.copies
        if not copies.is_standby(shard) and shard in copies.standbys:
            commands += super()._applied(copies.standby_of(shard), step, now)
        return commands


MUTANTS: list[tuple[Parts, dict[str, Any]]] = [
    (Parts(worker=IsDoneOnceThePrimariesAre), LONG | {"mode": "sync"}),
    (Parts(coordinator=CountsThePrimariesAlone), LONG | {"mode": "async"}),
]
SEEDS = 10


@pytest.mark.parametrize(("parts", "options"), MUTANTS, ids=["worker", "coordinator"])
def test_a_mutant_is_caught(parts: Parts, options: dict[str, Any]) -> None:
    def run_all() -> None:
        for seed in range(SEEDS):
            run(seed, parts, **options)

    with pytest.raises(SimulationError):
        run_all()


def test_a_job_ends_though_it_is_noticed_late_that_its_coordinator_died() -> None:
    for scenario in scenarios([1306]):
        run_scenario(scenario, Parts())


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_thousands_of_jobs_with_standbys_end_right() -> None:
    outcomes: list[Outcome] = [
        run_scenario(scenario, Parts()) for scenario in scenarios(range(1000, 3000))
    ]

    assert sum(outcome.promotions for outcome in outcomes) > 1000
    assert sum(outcome.copies for outcome in outcomes) > 1000
