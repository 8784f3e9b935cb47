"""Workers that are so slow that their batches are given to others, which must not show."""

from dataclasses import replace
from typing import Any

import pytest

from ps.messages.records import Record
from scheduler.coordinator.batches import Batch
from scheduler.coordinator.coordinator import Coordinator
from scheduler.coordinator.ledger import Ledger
from simulation.engine import Parts, run, run_scenario, seed_that_fails
from simulation.scenario import Faults, draw, with_orders

SLOW: dict[str, Any] = {
    "workers": 4, "depth": 1, "group_size": 2, "batches_per_epoch": 40, "epochs": 2,
    "limit": None, "max_seconds": None, "attempt_lasts": 1,
    "faults": Faults(pause=0.03, slow=0.03, kill=0.01, max_kills=3, until=4.0),
}  # fmt: skip
SEEDS = 8


@pytest.mark.parametrize("mode", ["sync", "gba", "async", "ssp", "backup"])
def test_a_job_ends_right_though_attempts_last_too_long(mode: str) -> None:
    given_up = []

    class Counts(Coordinator):
        def _give_up_the_oldest(self) -> None:
            before = self.ledger.tallies.reissued
            super()._give_up_the_oldest()
            given_up.append(self.ledger.tallies.reissued - before)

    for seed in range(SEEDS):
        run(seed, Parts(coordinator=Counts), mode=mode, **SLOW)

    waits = mode in ("sync", "backup")
    assert (sum(given_up) == 0) if waits else (sum(given_up) > 0)


@pytest.mark.parametrize("block", [0, *(pytest.param(b, marks=pytest.mark.slow) for b in (1, 2))])
def test_modes_may_change_meanwhile(block: int) -> None:
    for seed in range(block, 3 * SEEDS, 3):
        run_scenario(with_orders(draw(seed, mode="async", **SLOW)), Parts())


class _WithLedger(Coordinator):
    ledger_class: type[Ledger]

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.ledger.__class__ = self.ledger_class


class PromisesWhatMayStillCome(Coordinator):
    """Shards forget evictions, and the late gradient brings a row back."""

    def _make_record(self, batches: list[Batch]) -> Record:
        record = super()._make_record(batches)
        oldest = max(record.oldest_pull_step, self.step - self.attempt_steps)
        return replace(record, oldest_pull_step=min(oldest, record.applied_step))

    def _give_up_the_oldest(self) -> None:
        pass


class RemembersForEver(Coordinator):
    def _give_up_the_oldest(self) -> None:
        pass


class _StillCounts(Ledger):
    def give_again(self, batch: Batch, *, step: int) -> None:
        super().give_again(batch, step=step)
        batch.first_valid = 0


class TakesWhatWasGivenUp(_WithLedger):
    ledger_class = _StillCounts


class _DiscardsNothing(Ledger):
    def take_discards(self) -> list[tuple[int, int]]:
        return []


class LeavesItInTheBuffers(_WithLedger):
    ledger_class = _DiscardsNothing


MUTANTS = [
    PromisesWhatMayStillCome,
    RemembersForEver,
    TakesWhatWasGivenUp,
    LeavesItInTheBuffers,
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda kind: kind.__name__)
def test_mutant_is_caught(mutant: type[Coordinator]) -> None:
    options = {**SLOW, "mode": "async", "faults": replace(SLOW["faults"], kill=0.0)}

    seed_that_fails(lambda seed: run(seed, Parts(coordinator=mutant), **options), range(3 * SEEDS))
