"""What the coordinator makes of the mode rules: weights, drops, void attempts, slack."""

from collections.abc import Iterator
from typing import Any

import pytest

from embedding.spec.optimizers import Sgd
from embedding.spec.table import TableSpec
from ps.messages.records import Record
from ps.spec import StoreSpec
from scheduler.coordinator.coordinator import Coordinator
from scheduler.coordinator.events import (
    Answer,
    RecordsApplied,
    SendRecords,
    WorkerLost,
    WorkerReported,
)
from scheduler.coordinator.ledger_plan import LedgerPlan
from scheduler.coordinator.modes.rules import ModeOptions
from scheduler.coordinator.modes.stale_weights import Power
from scheduler.coordinator.spec import CoordinatorSpec
from worker.protocol import Finished, Grant, Report, Token


class Job:
    """A coordinator and what it said; every record is applied at once."""

    def __init__(self, mode: Any, *, batches: int = 12, workers: int = 3, **options: Any) -> None:
        store = StoreSpec(
            tables=(TableSpec(name="t", dim=1),), dense_size=1,
            dense_optimizer=Sgd(learning_rate=1.0), num_shards=1,
        )  # fmt: skip
        plan = LedgerPlan(batches_per_epoch=batches, epochs=1, rows_of=lambda batch_id: 10)
        self.coordinator = Coordinator(
            CoordinatorSpec(
                store=store, plan=plan, evaluation_plan=None, mode=mode, group_size=2,
                global_batch=20, workers=workers, depth=4, options=ModeOptions(**options),
            )
        )  # fmt: skip
        self.records: list[Record] = []
        self._sequences: dict[tuple[int, int], Iterator[int]] = {}
        self._held: dict[tuple[int, int], set[Any]] = {}

    def report(
        self, worker: int, *finished: Finished, want: int = 0, incarnation: int = 0
    ) -> Grant:
        name = worker, incarnation
        held = self._held.setdefault(name, set())
        held -= {each.token.identity for each in finished}
        sequence = next(self._sequences.setdefault(name, iter(range(1, 1000))))
        report = Report(
            worker, incarnation, sequence, held=tuple(held), finished=finished, want=want
        )
        grant = None
        for command in self.coordinator.handle(WorkerReported(report), 0.0):
            if isinstance(command, SendRecords):
                self.records += command.records
            elif isinstance(command, Answer):
                grant = command.grant
        self.coordinator.handle(RecordsApplied(0, self.coordinator.step), 0.0)
        assert grant is not None
        held |= {token.identity for token in grant.tokens}
        return grant

    def lease(self, worker: int, want: int = 1, incarnation: int = 0) -> tuple[Token, ...]:
        return self.report(worker, want=want, incarnation=incarnation).tokens

    def finish(self, worker: int, *tokens: Token, incarnation: int = 0) -> Grant:
        ends = [Finished(token, "done", samples=10) for token in tokens]
        return self.report(worker, *ends, incarnation=incarnation)


def entries(record: Record) -> list[tuple[int, int, float]]:
    return [(e.batch_id, e.attempt, e.weight) for e in record.entries]


def test_a_stale_batch_takes_its_place_in_the_step_and_weighs_nothing() -> None:
    job = Job("gba", staleness_bound=1)
    (late,) = job.lease(0)
    job.finish(1, *job.lease(1, want=5))
    (next_to_last,) = job.lease(1)
    assert [record.step for record in job.records] == [0, 1]

    job.finish(0, late)
    job.finish(1, next_to_last)

    last = job.records[2]
    # 1, 2, 3, 4 made two steps; 5 was first in this one.
    assert entries(last) == [(5, 0, 1.0), (0, 0, 0.0)]
    assert last.divisor == 20, "N is what the synchronous global batch would have"
    samples = job.coordinator.ledger.samples
    assert (samples.applied, samples.dropped) == (50, 10)
    assert job.coordinator.clock.value == 2, "what was dropped was not applied"
    assert job.coordinator.data_staleness.counts[2] == 1


def test_staleness_of_exactly_the_bound_is_kept() -> None:
    job = Job("gba", staleness_bound=2)
    (late,) = job.lease(0)
    job.finish(1, *job.lease(1, want=5))
    job.finish(0, late)

    assert entries(job.records[2]) == [(5, 0, 1.0), (0, 0, 1.0)]


def test_a_step_of_dropped_batches_only_advances_k() -> None:
    job = Job("gba", staleness_bound=0)
    late = job.lease(0, want=2)
    job.finish(1, *job.lease(1, want=2))
    job.finish(0, *late)

    assert entries(job.records[1]) == [(0, 0, 0.0), (1, 0, 0.0)]
    assert job.coordinator.step == 2
    assert job.coordinator.clock.value == 1


def test_a_decaying_weight_is_in_the_record() -> None:
    job = Job("gba", staleness_bound=0, stale_weight=Power(base=0.5))
    (late,) = job.lease(0)
    job.finish(1, *job.lease(1, want=5))
    job.finish(0, late)

    assert entries(job.records[2]) == [(5, 0, 1.0), (0, 0, 0.25)]
    assert job.coordinator.ledger.samples.applied == 60


def test_a_token_of_a_lost_worker_keeps_its_step() -> None:
    job = Job("gba", staleness_bound=0)
    (lost,) = job.lease(0)
    job.finish(1, *job.lease(1, want=2))
    job.coordinator.handle(WorkerLost(0, 0), 0.0)
    (again,) = job.lease(1)

    assert (again.batch_id, again.attempt, again.step) == (lost.batch_id, 1, lost.step)


def test_reissued_batches_are_trained_again_and_their_first_attempts_discarded() -> None:
    job = Job("gba", staleness_bound=0, on_stale="reissue")
    (late,) = job.lease(0)
    job.finish(1, *job.lease(1, want=2))
    assert job.coordinator.step == 1

    grant = job.report(0)
    assert grant.revoked == (late.identity,), "there is no use in finishing it"
    (again,) = job.lease(1)
    assert (again.batch_id, again.attempt, again.step) == (0, 1, 1)
    job.finish(0, late)
    job.finish(1, again, *job.lease(1))

    assert [batch for batch, _, _ in entries(job.records[1])] == [0, 3]
    assert (0, 0) in job.records[1].discard
    assert job.coordinator.ledger.samples.dropped == 0
    assert job.coordinator.ledger.tallies.reissued == 1


def test_no_worker_gets_further_ahead_than_the_slack() -> None:
    job = Job("ssp", ssp_slack=2)
    (slow,) = job.lease(0)
    fast = job.lease(1, want=9)

    assert len(fast) == 3, "it would have ended 2 more than the slowest when the last begins"
    job.finish(1, *fast)
    assert job.lease(1, want=1) == ()
    job.finish(0, slow)
    assert len(job.lease(1, want=9)) == 1


def test_without_slack_workers_take_turns() -> None:
    job = Job("ssp", ssp_slack=0)
    (a,) = job.lease(0, want=2)
    (b,) = job.lease(1, want=2)
    job.finish(0, a)
    assert job.lease(0) == ()
    job.finish(1, b)

    assert len(job.lease(0, want=2)) == len(job.lease(1, want=2)) == 1


def test_no_one_waits_for_a_lost_worker() -> None:
    job = Job("ssp", ssp_slack=0)
    job.lease(0)
    job.finish(1, *job.lease(1))
    assert job.lease(1) == ()

    job.coordinator.handle(WorkerLost(0, 0), 0.0)

    assert len(job.lease(1)) == 1


@pytest.mark.parametrize("incarnation", [0, 1])
def test_a_worker_that_joins_late_holds_no_one_up(incarnation: int) -> None:
    job = Job("ssp", ssp_slack=1)
    if incarnation:
        job.lease(0)
        job.coordinator.handle(WorkerLost(0, 0), 0.0)
    for _ in range(4):
        job.finish(1, *job.lease(1))

    job.lease(0, incarnation=incarnation)

    assert len(job.lease(1, want=9)) == 2


def test_a_backup_step_goes_without_the_last() -> None:
    job = Job("backup", backup_batches=1)
    (slow,) = job.lease(0)
    job.finish(1, *job.lease(1))
    job.finish(1, *job.lease(1))

    assert entries(job.records[0]) == [(1, 0, 1.0), (2, 0, 1.0)]
    assert job.report(0).revoked == (slow.identity,)
    (again,) = job.lease(0)
    assert (again.batch_id, again.attempt, again.at_step) == (0, 1, 1)
    job.finish(0, again)
    job.finish(1, *job.lease(1))
    assert (0, 0) in job.records[1].discard


def test_backup_batches_have_credits_of_their_own() -> None:
    plain, backup = (Job(mode, backup_batches=1).coordinator for mode in ("sync", "backup"))

    assert backup.credits == plain.credits + 2
