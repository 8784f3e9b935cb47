"""Workers that report, but whose batches do not end."""

from collections.abc import Collection
from typing import Any

import numpy as np
import pytest

from embedding.spec.optimizers import Sgd
from embedding.spec.table import TableSpec
from ps.spec import StoreSpec
from scheduler.coordinator.coordinator import Coordinator
from scheduler.coordinator.events import (
    Answer,
    Command,
    EvaluationWanted,
    FailJob,
    GiveUpWorker,
    PauseWanted,
    RecordsApplied,
    TimePassed,
    WorkerLost,
    WorkerReported,
)
from scheduler.coordinator.lease_watch import WINDOW
from scheduler.coordinator.ledger_plan import LedgerPlan
from scheduler.coordinator.modes.rules import ModeOptions
from scheduler.coordinator.spec import CoordinatorSpec
from worker.protocol import Evaluation, Finished, Grant, Report, Token


class Job:
    """A coordinator, workers that report every second, and a clock."""

    def __init__(self, *, workers: int = 2, batches: int = 100, **changes: Any) -> None:
        store = StoreSpec(
            tables=(TableSpec(name="t", dim=2),), dense_size=1, dense_optimizer=Sgd(), num_shards=1
        )
        values: dict[str, Any] = {
            "mode": "sync", "group_size": 2, "global_batch": 2, "workers": workers, "depth": 1,
            "lease_timeout_seconds": 10.0, "stall_seconds": 100.0, "evaluation_plan": None,
        }  # fmt: skip
        plan = LedgerPlan(batches_per_epoch=batches, epochs=1, rows_of=lambda batch: 1)
        self.coordinator = Coordinator(CoordinatorSpec(store=store, plan=plan, **values | changes))
        self.now = 0.0
        self.given_up: list[tuple[float, GiveUpWorker]] = []
        self.failed = False
        self._sequences = [0] * workers
        self._incarnations = [0] * workers
        self._held: list[dict[Any, Token]] = [{} for _ in range(workers)]

    def handle(self, event: Any) -> list[Command]:
        commands = self.coordinator.handle(event, self.now)
        self.given_up += [(self.now, c) for c in commands if isinstance(c, GiveUpWorker)]
        self.failed = self.failed or any(isinstance(c, FailJob) for c in commands)
        return commands

    def report(self, worker: int, *finished: Finished, want: int = 0, **more: Any) -> Grant:
        held = self._held[worker]
        for each in finished:
            held.pop(each.token.identity)
        self._sequences[worker] += 1
        report = Report(
            worker, self._incarnations[worker], self._sequences[worker], held=tuple(held),
            finished=finished, want=want, **more,
        )  # fmt: skip
        grant = next(c.grant for c in self.handle(WorkerReported(report)) if isinstance(c, Answer))
        held.update({token.identity: token for token in grant.tokens})
        for identity in grant.revoked:
            held.pop(identity, None)
        return grant

    def held(self, worker: int) -> Collection[Any]:
        return self._held[worker]

    def lease(self, worker: int) -> Token:
        (token,) = self.report(worker, want=1).tokens
        return token

    def finish(self, worker: int, token: Token, **more: Any) -> None:
        self.report(worker, Finished(token, "done", samples=1, **more))

    def apply(self) -> None:
        self.handle(RecordsApplied(0, self.coordinator.step))

    def train(self, worker: int, *, seconds: float, batches: int = 1) -> None:
        for _ in range(batches):
            token = self.lease(worker)
            self.now += seconds
            self.finish(worker, token)
            self.apply()

    def wait(self, seconds: float, *workers: int, **more: Any) -> None:
        """Let time pass in which workers report that nothing has changed."""
        for _ in range(round(seconds)):
            self.now += 1.0
            for worker in workers:
                self.report(worker, **more)
            self.handle(TimePassed())

    def replace(self, worker: int) -> None:
        self._incarnations[worker] += 1
        self._sequences[worker] = 0
        self._held[worker].clear()


def test_a_batch_that_does_not_end_is_given_to_another_worker_once() -> None:
    job = Job()
    job.train(1, seconds=0.5)
    hung = job.lease(0)
    job.wait(10, 0, 1, stage="granted")
    assert job.given_up == []
    job.wait(1, 0, 1, stage="granted")

    ((when, command),) = job.given_up
    assert (when, command.worker, command.incarnation) == (11.5, 0, 0)
    assert command.text == (
        "worker 0 has been at train batch 1 (step 0, attempt 0), which it reads for 11 s; the"
        " longest lately took 0.50 s (cluster.lease_timeout_seconds)"
    )
    assert job.report(0).stop
    again = job.lease(1)
    assert (again.batch_id, again.attempt) == (hung.batch_id, 1)
    job.finish(1, again)
    job.wait(5, 1)
    assert len(job.given_up) == 1
    assert job.coordinator.step == 1


def test_what_the_hanging_worker_ends_after_all_does_not_count() -> None:
    job = Job()
    job.train(1, seconds=0.5)
    hung = job.lease(0)
    job.wait(11, 0, 1)
    again = job.lease(1)

    assert job.report(0, Finished(hung, "done", samples=1)).stop
    assert job.coordinator.step == 0
    job.finish(1, again)

    assert job.coordinator.step == 1
    assert job.coordinator.ledger.samples.applied == 2


def test_waiting_for_a_step_that_another_worker_holds_up_is_not_hanging() -> None:
    job = Job(workers=3, lease_timeout_seconds=10.0)
    job.train(1, seconds=0.5)
    job.lease(0)
    waits = job.lease(1)
    assert waits.at_step == 1
    job.wait(11, 0, 1)

    assert [command.worker for _, command in job.given_up] == [0]
    job.finish(1, job.report(1, want=1, waiting=True).tokens[0])
    job.apply()
    job.wait(10, 1)
    assert len(job.given_up) == 1, "its time begins when its step is there"
    job.wait(2, 1)
    assert [command.worker for _, command in job.given_up] == [0, 1]


def test_a_worker_that_hangs_with_a_later_batch_does_not_leave_an_earlier_one_to_nobody() -> None:
    job = Job(depth=2)
    job.train(0, seconds=0.5)
    left = job.lease(1)
    assert job.lease(0).at_step > left.at_step
    job.handle(WorkerLost(1, 0))
    job.wait(9, 0, stage="granted")
    assert job.given_up == []
    job.wait(3, 0, stage="granted")

    assert [command.worker for _, command in job.given_up] == [0]


def test_the_limit_is_a_multiple_of_what_batches_took_lately() -> None:
    job = Job(mode="async")
    job.train(0, seconds=5.0)
    token = job.lease(0)
    job.wait(20, 0)
    assert job.given_up == []
    job.finish(0, token)
    job.apply()
    job.lease(0)
    job.wait(81, 0)

    assert len(job.given_up) == 1, "4 x 20 s"


def test_what_batches_took_long_ago_is_forgotten() -> None:
    job = Job(mode="async", batches=4 * WINDOW)
    job.train(0, seconds=20.0)
    job.train(0, seconds=0.01, batches=2 * WINDOW)
    job.lease(0)
    job.wait(11, 0)

    assert len(job.given_up) == 1


def test_a_multiple_beyond_three_quarters_of_the_time_of_a_stall_is_cut_to_it() -> None:
    job = Job(mode="async", stall_seconds=40.0)
    job.train(0, seconds=20.0)
    job.lease(0)
    job.wait(30, 0)
    assert job.given_up == []
    job.wait(1, 0)

    assert len(job.given_up) == 1


def test_before_any_batch_has_ended_the_limit_is_three_quarters_of_the_time_of_a_stall() -> None:
    job = Job(stall_seconds=40.0)
    job.lease(0)
    job.wait(30, 0)
    assert job.given_up == []
    job.wait(1, 0)

    ((_, command),) = job.given_up
    assert "none has ended yet" in command.text


@pytest.mark.parametrize(("least", "stall"), [(10.0, 40.0), (45.0, 40.0), (100.0, 40.0)])
def test_a_second_worker_has_twice_the_time_at_the_first_batch_and_a_third_ends_the_job(
    least: float, stall: float
) -> None:
    job = Job(mode="async", lease_timeout_seconds=least, stall_seconds=stall)
    job.handle(TimePassed())
    limit, took = max(least, 0.75 * stall), []
    for worker in (0, 1):
        job.wait(0.4 * stall, 0, 1)  # until it is there
        began = job.now
        assert job.lease(worker).batch_id == 0
        while len(job.given_up) == worker and not job.failed:
            job.wait(1, 0, 1)
        took.append(job.now - began)
    job.replace(0)
    assert job.lease(0).batch_id == 0
    while not job.failed:
        job.wait(1, 0)

    assert took == [pytest.approx(limit, rel=0.05), pytest.approx(2 * limit, rel=0.05)]
    assert len(job.given_up) == 2


def test_the_same_batch_gets_twice_the_time_with_each_worker() -> None:
    job = Job(mode="async")
    job.train(0, seconds=0.5)
    times = []
    for _ in range(3):
        began = job.now
        assert job.lease(0).batch_id == 1
        job.wait(60, 0)
        times.append(job.given_up[-1][0] - began)
        job.replace(0)

    assert times == [11.0, 21.0, 41.0]


def test_where_all_stand_still_they_are_replaced_one_after_another() -> None:
    job = Job(workers=5, mode="async")
    job.train(0, seconds=0.5)
    for worker in range(5):
        job.lease(worker)
    job.wait(31, *range(5))

    assert [round(when) for when, _ in job.given_up] == [12, 22, 32]


@pytest.mark.parametrize("mode", ["async", "gba", "backup"])
@pytest.mark.parametrize(("stage", "given_up"), [("prepared", [0]), ("pulling", [])])
def test_whose_batches_are_taken_sooner_is_late_until_it_begins_another(
    mode: str, stage: str, given_up: list[int]
) -> None:
    job = Job(
        mode=mode, batches=1000, attempt_lasts=1, stall_seconds=1e6,
        options=ModeOptions(staleness_bound=0, on_stale="reissue", backup_batches=1),
    )  # fmt: skip
    job.train(1, seconds=0.5)
    first = job.lease(0)
    taken = 0
    for _ in range(60):
        job.train(1, seconds=0.5)
        if not job.given_up:
            now = "pushing" if first.identity in job.held(0) else stage
            taken += len(job.report(0, want=2 - len(job.held(0)), stage=now).revoked)
        job.handle(TimePassed())

    assert taken > 1
    assert [command.worker for _, command in job.given_up] == given_up
    if given_up:
        ((when, command),) = job.given_up
        assert 10 < when < 13
        assert f"batch {first.batch_id} " in command.text
        assert "attempt 0), which was taken from it meanwhile, for 1" in command.text


def test_who_has_nothing_else_once_its_batch_is_taken_is_not_late() -> None:
    job = Job(mode="async", batches=9, attempt_lasts=1, stall_seconds=1e6)
    job.train(1, seconds=0.5)
    first = job.lease(0)
    while first.identity in job.held(0):
        job.train(1, seconds=0.5)
        job.report(0, stage="pushing")
    job.train(1, seconds=0.5)
    job.wait(60, 0, 1)

    assert job.given_up == []


def test_the_time_of_a_pause_is_nobodys() -> None:
    job = Job(mode="async")
    job.train(0, seconds=0.5)
    job.lease(0)
    job.wait(5, 0)
    job.handle(PauseWanted(True))
    job.wait(50, 0)
    job.handle(PauseWanted(False))
    job.wait(5, 0)
    assert job.given_up == []
    job.wait(2, 0)

    assert len(job.given_up) == 1


def test_the_time_in_which_shards_are_behind_and_stand_still_is_nobodys() -> None:
    job = Job(mode="async")
    job.train(0, seconds=0.5)
    token = job.lease(0)
    job.finish(0, token)
    job.lease(0)
    job.wait(50, 0)
    assert job.given_up == []
    job.apply()
    job.wait(13, 0)

    assert len(job.given_up) == 1


def test_an_evaluation_batch_that_does_not_end_is_given_to_another_worker() -> None:
    plan = LedgerPlan(batches_per_epoch=2, epochs=1, rows_of=lambda batch: 1)
    job = Job(mode="async", batches=1, evaluation_plan=plan)
    job.train(0, seconds=0.5)
    job.handle(EvaluationWanted())
    scores = Evaluation(np.zeros(1, np.int32), np.ones(1, np.bool_), 0.5)
    done, hung = job.lease(0), job.lease(1)
    job.finish(0, done, evaluation=scores)
    job.wait(11, 0, 1)
    again = job.lease(0)
    job.finish(0, again, evaluation=scores)

    assert [command.worker for _, command in job.given_up] == [1]
    assert (again.kind, again.batch_id, again.attempt) == ("eval", hung.batch_id, 1)
    assert [each.samples for each in job.coordinator.progress.evaluations] == [2]


def test_without_a_limit_nobody_is_given_up() -> None:
    job = Job(mode="async", lease_timeout_seconds=None, stall_seconds=1e6)
    job.train(0, seconds=0.5)
    job.lease(0)
    job.wait(500, 0)

    assert job.given_up == []
