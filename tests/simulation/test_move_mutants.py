"""Deliberate faults in moves of shards and of the coordinator, which the simulation notices.

A job that is to move stands still, is saved as it is, and goes on at that very step in another
recovery epoch: no step is done again.
"""

from typing import Any

import pytest

from ps.messages.records import Record
from scheduler.coordinator.coordinator import Coordinator
from scheduler.coordinator.status import Status
from simulation.engine import Parts, SimulationError, run
from simulation.scenario import Faults
from worker.protocol import Token


def moves_before_it_stands_still(status: Status, saved_step: int | None) -> bool:
    return status.held and saved_step is not None


class FormsStepsOn(Coordinator):
    def _form_steps(self, now: float) -> list[Record]:
        held = self.time.is_held_by("move")
        self.time.go_on("move", now)
        records = super()._form_steps(now)
        self.time.hold_if(held, "move", now)
        return records


class GivesOutBatchesOn(Coordinator):
    def _lease_train(self, worker: int, now: float) -> Token | None:
        held = self.time.is_held_by("move")
        self.time.go_on("move", now)
        token = super()._lease_train(worker, now)
        self.time.hold_if(held, "move", now)
        return token


SEEDS = 5
MOVING: dict[str, Any] = {
    "mode": "async", "workers": 3, "shards": 3, "batches_per_epoch": 24, "epochs": 1, "limit": None,
    "max_seconds": None, "faults": Faults(moves=(0.05, 0.3), delay=0.05, until=3.0),
}  # fmt: skip
MUTANTS = [
    Parts(coordinator=FormsStepsOn),
    Parts(coordinator=GivesOutBatchesOn),
    Parts(coordinator=FormsStepsOn, stands_still=moves_before_it_stands_still),
]


@pytest.mark.parametrize("parts", MUTANTS, ids=["steps", "batches", "too soon"])
def test_mutant_is_caught_where_something_moves(parts: Parts) -> None:
    def is_caught() -> bool:
        for seed in range(SEEDS):
            try:
                run(seed, parts, **MOVING)
            except SimulationError:
                return True
        return False

    assert is_caught()


@pytest.mark.parametrize("mode", ["sync", "gba", "async"])
def test_real_classes_pass_where_something_moves_and_no_step_is_done_twice(mode: str) -> None:
    outcomes = [run(seed, **MOVING | {"mode": mode}) for seed in range(SEEDS)]

    assert sum(outcome.moves for outcome in outcomes) > SEEDS / 2
