"""Workers that report, but of which a thread hangs: their leases end, and the job goes on."""

from dataclasses import replace
from typing import Any

import pytest

from scheduler.coordinator.batches import Batch
from scheduler.coordinator.coordinator import Coordinator
from scheduler.coordinator.events import Command, Event, GiveUpWorker
from scheduler.coordinator.lease_watch import LeaseWatch
from scheduler.coordinator.modes.rules import ModeOptions
from simulation.engine import run, run_scenario, seed_that_fails
from simulation.parts import Parts
from simulation.scenario import Faults, draw, with_orders
from worker.protocol import Report, StageName, TokenKind

HANGS = Faults(hang=0.1, until=4.0)
RARE = replace(HANGS, hang=0.02)
ALONE = Faults(hang=0.03, max_hangs=1, kill=0.03, max_kills=1, forever=1.0, until=4.0)
BUSY: dict[str, Any] = {
    "workers": 4, "depth": 2, "group_size": 4, "batches_per_epoch": 10, "limit": None,
    "max_seconds": None,
}  # fmt: skip

PAIR: dict[str, Any] = {"workers": 2, "depth": 1, "group_size": 2, "epochs": 3}


@pytest.mark.parametrize(
    "block", [0, 1, *(pytest.param(block, marks=pytest.mark.slow) for block in (2, 3))]
)
def test_a_job_ends_right_though_workers_hang(block: int) -> None:
    outcomes = []
    for seed in range(block, 40, 4):
        scenario = replace(draw(seed), workers=2 + seed % 4, faults=HANGS)
        outcomes += [run_scenario(each, Parts()) for each in (scenario, with_orders(scenario))]

    assert sum(outcome.hangs for outcome in outcomes) > 10
    assert sum(outcome.reissued for outcome in outcomes) > 10


@pytest.mark.parametrize("mode", ["sync", "gba", "async", "ssp", "backup"])
def test_hanging_workers_are_among_the_faults_of_every_mode(mode: str) -> None:
    faults = replace(HANGS, kill=0.01, max_kills=2, pause=0.01, lose=0.05, delay=0.05)

    outcomes = [run(seed, mode=mode, faults=faults, **BUSY) for seed in range(8)]

    assert sum(outcome.hangs for outcome in outcomes) > 8
    assert all(outcome.digest for outcome in outcomes)


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_batch_that_takes_longer_wherever_it_is_trained_ends_at_last(mode: str) -> None:
    outcomes = [
        run(seed, mode=mode, long_batches=0.1, flaky=False, faults=Faults(), **BUSY)
        for seed in range(6)
    ]

    assert sum(outcome.reissued for outcome in outcomes) > 0
    assert all(outcome.digest for outcome in outcomes)


def test_two_workers_that_hang_at_the_first_batch_in_turn_do_not_end_the_job() -> None:
    began_anew = with_orders(draw(6392, earlier=3))
    faults = replace(began_anew.faults, recoveries=(0.07, 0.2, 0.45))

    for scenario in (draw(1407), replace(began_anew, faults=faults)):
        outcome = run_scenario(scenario, Parts())
        assert outcome.digest
        assert outcome.hangs >= 2


# Batches are taken from who hangs long before it is late.
TAKEN: dict[str, Any] = {
    "workers": 3, "depth": 1, "group_size": 3, "shards": 1, "batches_per_epoch": 400, "epochs": 1,
    "limit": None, "max_seconds": None, "earlier": 0, "eval_batches": 0, "bad_batches": 0.0,
    "attempt_lasts": 1, "faults": Faults(hang=0.05, max_hangs=1, until=0.5),
    "mode_options": ModeOptions(staleness_bound=1, on_stale="reissue", backup_batches=1),
}  # fmt: skip


def gives_up_in_time(mode: str, seed: int, watch: type[LeaseWatch]) -> bool:
    """Whether the worker that hangs, perhaps for a while only, is given up while others go on."""
    early = []

    class Watched(Coordinator):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self._lease_watch.__class__ = watch

        def handle(self, event: Event, now: float) -> list[Command]:
            commands = super().handle(event, now)
            given_up = any(isinstance(command, GiveUpWorker) for command in commands)
            early.append(given_up and self.ledger.tallies.done < 300)
            return commands

    outcome = run(seed, Parts(coordinator=Watched), mode=mode, **TAKEN)
    assert outcome.hangs == 1
    return any(early)


class _StartsAnew(LeaseWatch):
    def works_at(self, report: Report, work: tuple[TokenKind, Batch] | None, now: float) -> None:
        known = self._works.get(report.worker)
        if known is not None and not known.is_held_by(report.worker):
            self.gone(report.worker)
        super().works_at(report, work, now)


@pytest.mark.parametrize("mode", ["async", "gba", "backup"])
def test_a_worker_that_hangs_is_replaced_though_its_batches_are_taken_from_it(mode: str) -> None:
    seed = next(seed for seed in range(6) if gives_up_in_time(mode, seed, LeaseWatch))

    assert not gives_up_in_time(mode, seed, _StartsAnew)


class NeverEndsALease(Coordinator):
    def _end_late_lease(self, now: float) -> list[Command]:
        return []


class GivesUpWhoWaits(Coordinator):
    """The time in which a worker waits for others counts as its own."""

    def _work_of(self, worker: int) -> tuple[TokenKind, Batch] | None:
        batch = self.ledger.lowest_of(worker)
        return None if batch is None else ("train", batch)


class TakesLaterBatchesForWaiting(Coordinator):
    """A worker that hangs with batches of later steps leaves earlier ones to nobody."""

    def _work_of(self, worker: int) -> tuple[TokenKind, Batch] | None:
        work = super()._work_of(worker)
        return None if work is not None and work[1].pull_step > self.applied_step else work


class _NeverDoubles(LeaseWatch):
    def give_up(self, worker: int, now: float, stage: StageName) -> str:
        batch = self._works[worker].batch
        text = super().give_up(worker, now, stage)
        batch.times_late = 0
        return text


class NeverDoubles(Coordinator):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._lease_watch.__class__ = _NeverDoubles


class _NoticesNoMoves(LeaseWatch):
    def works_at(self, report: Report, work: tuple[TokenKind, Batch] | None, now: float) -> None:
        super().works_at(replace(report, finished=(), stage="none"), work, now)


class GivesUpWhoGoesOn(Coordinator):
    """A worker from which a batch was taken is late though it has begun others."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._lease_watch.__class__ = _NoticesNoMoves


class ForgetsEvaluations(Coordinator):
    def _work_of(self, worker: int) -> tuple[TokenKind, Batch] | None:
        work = super()._work_of(worker)
        return None if work is None or work[0] == "eval" else work


@pytest.mark.parametrize(
    ("mutant", "options"),
    [
        (NeverEndsALease, {"mode": "sync", "faults": HANGS}),
        (NeverEndsALease, {"mode": "async", "faults": HANGS}),
        (GivesUpWhoWaits, {"mode": "sync", "faults": HANGS}),
        (TakesLaterBatchesForWaiting, {"mode": "sync", "faults": ALONE, **PAIR}),
        (GivesUpWhoGoesOn, {"mode": "async", **TAKEN, "faults": Faults(pause=0.02, until=4.0)}),
        (
            NeverDoubles,
            {"mode": "sync", "faults": Faults(), "long_batches": 0.1, "flaky": False},
        ),
        (
            ForgetsEvaluations,
            {"mode": "sync", "faults": RARE, "eval_every_steps": 1, "eval_batches": 6},
        ),
    ],
)
def test_what_would_let_a_hanging_worker_stop_the_job_is_noticed(
    mutant: type[Coordinator], options: dict[str, Any]
) -> None:
    seed_that_fails(lambda seed: run(seed, Parts(coordinator=mutant), **BUSY | options), range(20))
