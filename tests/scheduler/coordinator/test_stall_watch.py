"""A job that stands still, and one that has no workers yet or any more."""

from pathlib import Path

from embedding.spec.optimizers import Sgd
from embedding.spec.table import TableSpec
from ps.spec import StoreSpec
from scheduler import JobConfig
from scheduler.coordinator.coordinator import Coordinator
from scheduler.coordinator.events import FailJob, TimePassed, Warn, WorkerLost, WorkerReported
from scheduler.coordinator.ledger_plan import LedgerPlan
from scheduler.coordinator.spec import CoordinatorSpec
from scheduler.driver.resolved import resolve
from worker.protocol import Report


def coordinator() -> Coordinator:
    table = TableSpec(name="t", dim=2)
    return Coordinator(
        CoordinatorSpec(
            store=StoreSpec(tables=(table,), dense_size=1, dense_optimizer=Sgd(), num_shards=1),
            plan=LedgerPlan(batches_per_epoch=4, epochs=1, rows_of=lambda batch: 2),
            evaluation_plan=None,
            mode="sync",
            group_size=2,
            global_batch=4,
            workers=3,
            depth=2,
            stall_seconds=30.0,
            place_seconds=450.0,
            heartbeat_timeout_seconds=1e9,
        )
    )


def test_a_job_without_workers_waits_for_a_place_with_a_limit_of_its_own() -> None:
    job = coordinator()
    for now in (0.0, 61.0, 449.0):
        assert job.handle(TimePassed(), now) == []
    (warning,) = job.handle(TimePassed(), 451.0)
    assert job.handle(TimePassed(), 600.0) == [], "it is said once"
    (failure,) = job.handle(TimePassed(), 901.0)

    assert isinstance(warning, Warn)
    assert warning.text == "waiting for a place for 3 workers: none has been up for 451 s"
    assert isinstance(failure, FailJob)
    assert "the limit is 900 s: cluster.start_timeout_seconds + 2 x" in failure.text


def test_the_limit_that_is_named_without_workers_is_the_one_that_holds(samples: Path) -> None:
    config = {
        "data": {"train": str(samples / "train-*.parquet"), "sparse": ["a"]},
        "model": {"type": "deepfm"},
        "cluster": {"start_timeout_seconds": 100, "stall_seconds": 7},
        "run": {"dir": str(samples / "never-written")},
    }

    spec = resolve(JobConfig.from_dict(config)).coordinator

    assert 2 * spec.place_seconds == 100 + 2 * 7


def test_the_time_without_workers_does_not_count_as_a_stall_once_they_are_back() -> None:
    job = coordinator()
    job.handle(WorkerReported(Report(0, 0, 1, held=(), finished=(), want=1)), 0.0)
    job.handle(TimePassed(), 0.0)
    job.handle(WorkerLost(0, 0), 20.0)
    for now in (30.0, 200.0, 400.0):
        assert job.handle(TimePassed(), now) == []
    job.handle(WorkerReported(Report(0, 1, 1, held=(), finished=(), want=0)), 401.0)
    assert job.handle(TimePassed(), 401.0) == []
    assert job.handle(TimePassed(), 430.0) == []
    (warning,) = job.handle(TimePassed(), 432.0)

    assert isinstance(warning, Warn)
    assert "no step was applied for 31 s" in warning.text
