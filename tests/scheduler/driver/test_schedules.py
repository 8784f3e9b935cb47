"""The coordinator's records carry what schedules and decay periods make of the schedule clock."""

import math
from dataclasses import replace
from typing import Any

import pytest

from embedding.spec.optimizers import AdagradDecay, Adam, Sgd
from embedding.spec.schedule import Schedule
from embedding.spec.table import TableSpec
from ps.messages.records import Record
from ps.spec import StoreSpec
from scheduler import JobConfig
from scheduler.coordinator.coordinator import Coordinator
from scheduler.coordinator.events import RecordsApplied, SendRecords, WorkerReported
from scheduler.coordinator.ledger_plan import LedgerPlan
from scheduler.coordinator.spec import CoordinatorSpec
from scheduler.coordinator.status import Status
from scheduler.run.metrics import IntervalReport
from worker.protocol import Finished, Report

WARM = Sgd(learning_rate=0.5, schedule=Schedule(type="polynomial", warmup_steps=2, decay_steps=4))
DECAY = AdagradDecay(learning_rate=0.1, decay_steps=2)
STORE = StoreSpec(
    tables=(
        TableSpec(name="a", dim=2, optimizer=WARM),
        TableSpec(name="b", dim=2, optimizer=DECAY),
    ),
    dense_size=3,
    dense_optimizer=Adam(schedule=Schedule(warmup_steps=4)),
    num_shards=1,
)
BATCH = 10


def records_of(mode: Any, store: StoreSpec = STORE, *, batches: int = 12) -> list[Record]:
    """What a job of one worker orders: 2 batches a global batch."""
    coordinator = Coordinator(
        CoordinatorSpec(
            store=store,
            plan=LedgerPlan(batches_per_epoch=batches, epochs=1, rows_of=lambda _: BATCH),
            evaluation_plan=None,
            mode=mode,
            group_size=2,
            global_batch=2 * BATCH,
            workers=1,
            depth=2,
        )
    )
    records: list[Record] = []
    finished: tuple[Finished, ...] = ()
    for sequence in range(3 * batches):
        report = Report(worker=0, incarnation=0, sequence=sequence, finished=finished, want=1)
        finished = ()
        for command in coordinator.handle(WorkerReported(report), float(sequence)):
            if isinstance(command, SendRecords):
                records += command.records
        grant = coordinator.workers[0].last_grant
        assert grant is not None
        finished = tuple(Finished(token, "done", samples=BATCH) for token in grant.tokens)
        coordinator.handle(RecordsApplied(0, coordinator.step), float(sequence))
    assert coordinator.trained
    return records


def test_learning_rates_follow_the_clock_of_global_batches() -> None:
    records = records_of("sync")

    assert [record.clock for record in records] == [0, 1, 2, 3, 4, 5]
    rates = [record.scalars[0][0] for record in records]
    assert rates == pytest.approx([0.25, 0.5, 0.5, 0.375, 0.25, 0.125])


def test_async_steps_have_the_learning_rate_of_their_global_batch() -> None:
    records = records_of("async")

    assert [record.clock for record in records] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    rates = [record.scalars[0][0] for record in records]
    synchronous = [record.scalars[0][0] for record in records_of("sync")]
    assert rates == [rate for rate in synchronous for _ in range(2)]


@pytest.mark.parametrize(("mode", "repeat"), [("sync", 1), ("async", 2)])
def test_accumulators_decay_by_the_clock_in_every_mode(mode: Any, repeat: int) -> None:
    periods = [record.scalars[1][1] for record in records_of(mode)]

    assert periods == [period for period in (0, 1, 1, 2, 2, 3) for _ in range(repeat)]


def test_bias_corrections_count_steps_and_take_the_scheduled_rate() -> None:
    for record in records_of("async"):
        k, rate = record.step, 0.001 * min((record.clock + 1) / 4, 1.0)
        expected = rate * math.sqrt(1 - 0.999 ** (k + 1)) / (1 - 0.9 ** (k + 1))
        assert record.scalars[2][1] == pytest.approx(expected, rel=1e-12)


def test_a_schedule_makes_an_optimizer_another_one() -> None:
    """Two tables that differ by their schedule alone have scalars of their own."""
    tables = tuple(
        replace(STORE.tables[0], name=name, optimizer=replace(WARM, schedule=schedule))
        for name, schedule in (("a", WARM.schedule), ("b", None))
    )

    first = records_of("sync", replace(STORE, tables=tables))[0]

    assert [first.scalars[0][0], first.scalars[1][0]] == [0.25, 0.5]


def test_metrics_show_the_learning_rates_of_the_interval() -> None:
    schedule = {"type": "polynomial", "decay_steps": 10}
    config = JobConfig.from_dict(
        {
            "data": {"train": "a", "dense": ["x"], "sparse": ["C1", "C2"]},
            "embedding": {"optimizer": {"type": "sgd", "learning_rate": 0.5}},
            "tables": {
                "C1": {"dim": 16},
                "C2": {"optimizer": {"type": "adam", "learning_rate": 1, "schedule": schedule}},
            },
            "model": {"type": "deepfm"},
            "run": {"dir": "r"},
        }
    )
    line = IntervalReport(config).line(Status(clock=4), [])

    assert line["learning_rate"] == {"embedding": 0.5, "model": 0.001, "tables.C2": 0.6}
