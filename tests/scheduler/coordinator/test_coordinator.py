"""The coordinator: events in, commands out."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from embedding.optimizers.rule import step_scalars
from embedding.spec.eviction import Eviction
from embedding.spec.optimizers import Adam, Sgd
from embedding.spec.table import TableSpec
from ps.messages.pull_push import ANY_STEP
from ps.messages.records import Record, Totals
from ps.spec import StoreSpec
from scheduler.coordinator.clock import ClockState
from scheduler.coordinator.coordinator import Coordinator
from scheduler.coordinator.events import (
    Answer,
    Command,
    DenseNormMeasured,
    EvaluationWanted,
    FailJob,
    GiveUpWorker,
    MeasureDenseNorm,
    RecordsApplied,
    SendRecords,
    StopWanted,
    TimePassed,
    Warn,
    WorkerLost,
    WorkerReported,
    WorkersWanted,
)
from scheduler.coordinator.ledger_plan import LedgerPlan
from scheduler.coordinator.spec import CoordinatorSpec
from scheduler.coordinator.start import Start
from scheduler.coordinator.state import TrainingTime
from worker.protocol import Evaluation, Finished, Grant, Report, TaskScores, Token


class Driver:
    """Speaks to a coordinator as workers and shards would; time is a number."""

    def __init__(self, spec: CoordinatorSpec) -> None:
        self.coordinator = Coordinator(spec)
        self.now = 0.0
        self.records: list[Record] = []
        self.sequences: dict[int, int] = {}
        self.held: dict[int, dict[Any, Token]] = {}

    def handle(self, event: Any) -> list[Command]:
        commands = self.coordinator.handle(event, self.now)
        for command in commands:
            if isinstance(command, SendRecords):
                self.records += command.records
        return commands

    def report(self, worker: int = 0, *finished: Finished, want: int = 0, **more: Any) -> Grant:
        held = self.held.setdefault(worker, {})
        for each in finished:
            held.pop(each.token.identity, None)
        self.sequences[worker] = self.sequences.get(worker, 0) + 1
        report = Report(
            worker, more.pop("incarnation", 0), self.sequences[worker],
            held=tuple(held), finished=finished, want=want, **more,
        )  # fmt: skip
        grant = next(c.grant for c in self.handle(WorkerReported(report)) if isinstance(c, Answer))
        held.update({token.identity: token for token in grant.tokens})
        return grant

    def lease(self, worker: int = 0) -> Token:
        (token,) = self.report(worker, want=1).tokens
        return token

    def finish(self, token: Token, worker: int = 0, **more: Any) -> None:
        self.report(worker, Finished(token, "done", samples=10, **more))

    def apply_all(self) -> None:
        for shard in range(self.coordinator.spec.store.num_shards):
            self.handle(RecordsApplied(shard, self.coordinator.step))


def spec(**changes: Any) -> CoordinatorSpec:
    store = StoreSpec(
        tables=(TableSpec(name="t", dim=2, optimizer=Sgd(learning_rate=0.5)),),
        dense_size=3,
        dense_optimizer=Sgd(learning_rate=0.25),
        num_shards=2,
    )
    plan = LedgerPlan(batches_per_epoch=6, epochs=1, rows_of=lambda batch_id: 10, lanes=2)
    values: dict[str, Any] = {
        "store": store, "plan": plan, "evaluation_plan": None, "mode": "sync", "group_size": 2,
        "global_batch": 20, "workers": 2, "depth": 1,
    }  # fmt: skip
    return CoordinatorSpec(**{**values, **changes})


def _at_tick(value: int, *, samples: int) -> ClockState:
    return ClockState(value=value, samples=samples, first_steps=((value, 5, 0, 1),))


def test_who_takes_over_the_number_of_workers_is_not_overruled_by_the_policy() -> None:
    driver = Driver(spec())
    coordinator = driver.coordinator
    driver.handle(WorkersWanted(None))
    driver.handle(WorkersWanted(5, by_policy=True))
    assert (coordinator.num_workers, coordinator.workers_automatic) == (5, True)

    driver.handle(WorkersWanted(3))
    driver.handle(WorkersWanted(7, by_policy=True))

    assert (coordinator.num_workers, coordinator.workers_automatic) == (3, False)


def test_a_sync_step_is_its_batches_in_the_order_of_their_ids() -> None:
    job = Driver(spec())
    first, second = job.lease(0), job.lease(1)
    assert (first.at_step, second.at_step) == (0, 0)
    job.finish(second, worker=1)
    assert job.records == []
    job.finish(first, worker=0)

    (record,) = job.records
    assert [(e.batch_id, e.weight) for e in record.entries] == [(0, 1.0), (1, 1.0)]
    assert (record.step, record.divisor, record.low_water) == (0, 20, 2)
    assert record.scalars == ((0.5,), (0.25,))


def test_a_job_that_goes_on_counts_steps_and_bias_corrections_from_where_it_begins() -> None:
    adam = Adam(learning_rate=0.5)
    store = replace(spec().store, tables=(), dense_optimizer=adam)
    start = Start(step=7, clock=_at_tick(3, samples=15), optimizer_steps=107)
    job = Driver(spec(store=store, start=start))
    for worker, token in enumerate([job.lease(0), job.lease(1)]):
        job.finish(token, worker, pull_step=token.at_step)

    (record,) = job.records
    assert (record.step, record.clock, record.oldest_pull_step) == (7, 3, 7)
    assert record.scalars == (step_scalars(adam, learning_rate=0.5, step=107, clock=3),)
    assert job.coordinator.clock.state().samples == 15, "of 35"
    assert job.coordinator.data_staleness.counts == {0: 2}
    assert job.lease(0).at_step == 8


def test_an_async_step_is_each_batch_as_it_ends() -> None:
    job = Driver(spec(mode="async"))
    first, second = job.lease(0), job.lease(1)
    assert first.at_step == ANY_STEP
    job.finish(second, worker=1)
    job.finish(first, worker=0)

    assert [[e.batch_id for e in record.entries] for record in job.records] == [[1], [0]]
    assert [record.divisor for record in job.records] == [10, 10]
    assert [record.low_water for record in job.records] == [0, 2]


def test_staleness_is_counted_of_data_and_of_parameters() -> None:
    job = Driver(spec(mode="async"))
    first, second = job.lease(0), job.lease(1)
    job.finish(second, worker=1, pull_step=0)
    job.finish(first, worker=0, pull_step=0)

    # Batch 1 was applied as step 0, one before its turn; batch 0 one after.
    assert job.coordinator.data_staleness.counts == {-1: 1, 1: 1}
    assert job.coordinator.parameter_staleness.counts == {0: 1, 1: 1}


def test_credits_bound_what_is_leased_or_not_applied_everywhere() -> None:
    job = Driver(spec(mode="async", group_size=1, global_batch=10, workers=1, depth=1))
    assert job.coordinator.credits == 3
    for _ in range(3):
        job.finish(job.lease())
    assert job.report(want=1).tokens == ()

    job.handle(RecordsApplied(0, 3))
    assert job.report(want=1).tokens == ()
    job.handle(RecordsApplied(1, 1))

    assert len(job.report(want=3).tokens) == 1


def test_what_a_live_worker_does_not_list_is_given_out_again() -> None:
    job = Driver(spec())
    token = job.lease(0)
    job.held[0].clear()

    (again,) = job.report(0, want=1).tokens

    assert (again.batch_id, again.attempt) == (token.batch_id, 1)


def test_what_a_worker_holds_without_a_lease_is_revoked() -> None:
    job = Driver(spec())
    token = job.lease(0)
    job.held[0].clear()
    job.report(0)
    job.held[0] = {token.identity: token}

    assert job.report(0).revoked == (token.identity,)


def test_a_worker_that_was_given_up_is_told_to_end() -> None:
    job = Driver(spec())
    job.lease(0)
    job.handle(WorkerLost(0, 0))

    assert job.report(0, want=1) == Grant(2, stop=True)


@pytest.mark.parametrize(("workers", "waits"), [(1, True), (4, True), (5, False)])
def test_few_workers_read_from_the_step_of_what_they_ended(workers: int, waits: bool) -> None:
    job = Driver(spec(mode="async", workers=workers))
    for worker in range(workers):
        job.report(worker)
    token = job.lease()

    grant = job.report(0, Finished(token, "done", samples=10))

    assert job.coordinator.step == 1
    assert grant.read_from == (1 if waits else ANY_STEP)


def test_a_repeated_report_gets_the_same_answer_and_counts_once() -> None:
    job = Driver(spec(mode="async"))
    token = job.lease()
    report = Report(0, 0, 2, finished=(Finished(token, "done", samples=10),), want=1)

    answers = [job.handle(WorkerReported(report))[-1] for _ in range(2)]

    assert answers[0] == answers[1]
    assert len(job.records) == 1
    assert job.coordinator.ledger.tallies.leased == 2


def test_a_report_of_another_recovery_epoch_changes_nothing() -> None:
    job = Driver(spec(recovery_epoch=7))
    token = job.report(0, want=1, recovery_epoch=7).tokens[0]
    before = job.coordinator.ledger.num_leased

    ended = Finished(token, "done", samples=10)
    report = Report(0, 0, 9, finished=(ended,), want=1, recovery_epoch=6)
    commands = job.handle(WorkerReported(report))

    assert commands == [Answer(Grant(9, recovery_epoch=7))]
    assert job.coordinator.ledger.num_leased == before
    assert job.report(0, ended, want=1, recovery_epoch=7).tokens
    assert job.coordinator.ledger.num_ended == 1


def test_a_new_incarnation_takes_the_place_of_the_old_one() -> None:
    job = Driver(spec())
    old = job.lease(0)
    job.held[0].clear()
    job.sequences[0] = 0

    grant = job.report(0, want=1, incarnation=1)
    assert (grant.tokens[0].batch_id, grant.tokens[0].attempt) == (old.batch_id, 1)
    late = Report(0, 0, 9, want=1)
    (answer,) = job.handle(WorkerReported(late))

    assert isinstance(answer, Answer)
    assert answer.grant.stop


def test_a_parked_worker_takes_over_the_batch_of_a_dead_one() -> None:
    job = Driver(spec(depth=2))
    lost = job.lease(1)
    mine = job.lease(0)
    job.finish(mine, worker=0)
    ahead = job.report(0, want=2).tokens
    assert [token.step for token in ahead] == [1], "the other one is left for somebody else"
    assert job.report(0, waiting=True).tokens == ()

    job.handle(WorkerLost(1, 0))
    (urgent,) = job.report(0, waiting=True).tokens

    assert (urgent.batch_id, urgent.attempt, urgent.step) == (lost.batch_id, 1, 0)


def test_a_skipped_batch_still_makes_its_step_advance() -> None:
    job = Driver(spec(mode="async"))
    token = job.lease()
    job.report(0, Finished(token, "skipped", 0, 10, "bad_file"))

    (record,) = job.records
    assert (record.entries, record.divisor) == ((), 0)
    assert (record.skipped, record.discard) == ((0,), ())
    assert record.totals == Totals(skipped=(("bad_file", 10),), skipped_batches=1, mode="async")
    assert job.coordinator.ledger.samples.skipped == 10


def test_a_record_says_all_that_is_counted_with_its_step() -> None:
    job = Driver(spec(mode="async"))
    bad = job.lease()
    job.report(0, Finished(bad, "skipped", 0, 10, "bad_file"))
    for samples in (10, 7, 10):
        reason = "bad_file" if samples < 10 else None
        job.report(0, Finished(job.lease(), "done", samples=samples, reason=reason))

    totals = [record.totals for record in job.records]
    reasons = (("bad_file", 10),)
    rest: dict[str, Any] = {"skipped_batches": 1, "mode": "async"}
    assert totals == [
        Totals(0, 0, reasons, clock=0, since_tick=0, **rest),
        Totals(10, 0, reasons, clock=0, since_tick=10, loss_samples=10, **rest),
        Totals(17, 0, (("bad_file", 13),), clock=0, since_tick=17, loss_samples=17, **rest),
        Totals(27, 0, (("bad_file", 13),), clock=1, since_tick=7, loss_samples=27, **rest),
    ]


def clipping(**changes: Any) -> CoordinatorSpec:
    return spec(store=replace(spec().store, dense_clip_norm=1.0), **changes)


def test_a_clipped_sync_step_is_ordered_once_its_norm_is_known() -> None:
    job = Driver(clipping())
    first, second = job.lease(0), job.lease(1)
    job.finish(second, worker=1)
    report = Report(0, 0, 2, finished=(Finished(first, "done", samples=10),))

    (measure, answer) = job.handle(WorkerReported(report))

    assert isinstance(answer, Answer)
    assert isinstance(measure, MeasureDenseNorm)
    assert (measure.step, measure.divisor) == (0, 20)
    assert [entry.batch_id for entry in measure.entries] == [0, 1]
    assert job.records == []
    job.handle(DenseNormMeasured(0, (np.array([16.0]), np.array([]))))
    assert [(record.step, record.dense_factor) for record in job.records] == [(0, 0.25)]
    assert job.records[0].entries == measure.entries


def test_clipped_async_steps_are_measured_side_by_side_and_ordered_by_step() -> None:
    job = Driver(clipping(mode="async"))
    for token in [job.lease(0), job.lease(1)]:
        job.finish(token)
    assert "the norms of steps [0, 1] are being measured" in job.coordinator.who_waits(1.0)

    job.handle(DenseNormMeasured(1, (np.array([4.0]),)))
    assert job.records == []
    job.handle(DenseNormMeasured(0, (np.array([0.0]),)))

    assert [(r.step, r.dense_factor) for r in job.records] == [(0, 1.0), (1, 0.5)]


def test_steps_that_wait_for_their_norms_take_credits() -> None:
    job = Driver(clipping(mode="async", group_size=1, global_batch=10, workers=1, depth=1))
    for _ in range(3):
        job.finish(job.lease())

    assert job.records == []
    assert job.report(want=1).tokens == ()


def test_a_clipped_job_is_trained_once_its_last_step_is_applied() -> None:
    job = Driver(clipping(mode="async"))
    for step in range(6):
        job.finish(job.lease())
        assert not job.coordinator.trained
        job.handle(DenseNormMeasured(step, (np.array([0.0]),)))
        job.apply_all()

    assert job.coordinator.trained


def test_eviction_runs_on_the_schedule_clock() -> None:
    table = TableSpec(name="t", dim=2, eviction=Eviction(steps_to_live=1, every_steps=1))
    store = replace(spec().store, tables=(table,))
    job = Driver(spec(mode="async", store=store))
    for _ in range(6):
        job.finish(job.lease())
        job.apply_all()

    # Two batches are a tick. At tick 2 a row must have changed at tick 1 or later: from step 2 on.
    found = [[(e.table, e.min_version) for e in record.evict] for record in job.records]
    assert found == [[], [], [], [(0, 2)], [], [(0, 4)]]
    assert [record.clock for record in job.records] == [0, 0, 1, 1, 2, 2]


def test_an_evaluation_holds_the_steps_and_is_merged_in_any_order() -> None:
    plan = LedgerPlan(batches_per_epoch=2, epochs=1, rows_of=lambda batch_id: 2)
    job = Driver(spec(mode="async", evaluation_plan=plan, eval_every_steps=1, depth=4))
    first, second, third = (job.lease(), job.lease(), job.lease())
    job.finish(first)
    job.finish(second)
    job.finish(third)
    assert len(job.records) == 2

    tokens = job.report(want=4).tokens
    assert [(t.kind, t.at_step) for t in tokens] == [("eval", 2), ("eval", 2)]
    for token in reversed(tokens):
        scores = Evaluation(np.array([100, 60000], np.int32), np.array([False, True]), 0.5)
        job.report(0, Finished(token, "done", 2, evaluation=scores))

    (result,) = job.coordinator.progress.evaluations
    assert (result.auc, result.logloss, result.samples, result.step) == (1.0, 0.25, 4, 2)
    assert len(job.records) == 3


def test_an_evaluation_of_samples_with_weights_is_weighted() -> None:
    plan = LedgerPlan(batches_per_epoch=2, epochs=1, rows_of=lambda batch_id: 2)
    job = Driver(
        spec(mode="async", evaluation_plan=plan, eval_every_steps=1, depth=4, weighted=True)
    )
    for token in [job.lease() for _ in range(3)]:
        job.finish(token)
    bins, weights = np.array([100, 60000], np.int32), np.array([0.5, 3], np.float32)

    for token, positive in zip(
        job.report(want=4).tokens, ([False, True], [True, False]), strict=True
    ):
        scores = Evaluation(bins, np.array(positive), 0.5, weights=weights)
        job.report(0, Finished(token, "done", 2, evaluation=scores))

    (result,) = job.coordinator.progress.evaluations
    # Positives: 3 above, 0.5 below; negatives: 0.5 below, 3 above. Of one bin they tie.
    right = 3 * 0.5 + 3 * 3 / 2 + 0.5 * 0.5 / 2
    assert result.auc == pytest.approx(right / 3.5**2)
    assert (result.logloss, result.samples) == (1.0 / 7, 4)


def test_an_evaluation_has_the_scores_of_each_task_and_by_group_in_any_order() -> None:
    plan = LedgerPlan(batches_per_epoch=2, epochs=1, rows_of=lambda batch_id: 2)
    scored = {"tasks": ("click", "buy"), "grouped": True}
    job = Driver(spec(mode="async", evaluation_plan=plan, eval_every_steps=1, depth=4, **scored))
    for token in [job.lease() for _ in range(3)]:
        job.finish(token)
    bins, groups = np.array([100, 60000], np.int32), np.array([5, 6])

    for token in reversed(job.report(want=4).tokens):
        clicks = np.array([True, False]) if token.batch_id else np.array([False, True])
        buys = TaskScores(bins[:1], clicks[:1], 0.25, groups=groups[:1])
        scores = Evaluation(bins, clicks, 0.5, groups=groups[::-1], others=(buys,))
        job.report(0, Finished(token, "done", 2, evaluation=scores))

    (result,) = job.coordinator.progress.evaluations
    click, buy = result.tasks
    assert (click.name, click.auc, click.samples, click.logloss) == ("click", 0.5, 4, 0.25)
    assert (buy.name, buy.auc, buy.samples, buy.logloss) == ("buy", 0.5, 2, 0.25)
    assert (click.gauc, click.gauc_groups, click.gauc_samples) == (0.5, 2, 4)
    assert (buy.gauc_groups, buy.gauc_samples) == (1, 2)
    assert (result.auc, result.samples, result.gauc) == (0.5, 4, 0.5)


def test_an_evaluation_comes_before_every_step_that_waits_for_it() -> None:
    plan = LedgerPlan(batches_per_epoch=9, epochs=1, rows_of=lambda batch_id: 2)
    job = Driver(spec(group_size=1, global_batch=10, evaluation_plan=plan, eval_every_steps=1))
    first, parked = job.lease(0), job.lease(1)
    job.finish(first)
    assert parked.step == 1

    token = job.report(0, want=9).tokens[-1]

    # A worker pulls lowest step first, and a pull of step 1 or later waits for this evaluation.
    assert (token.batch_id, token.step) == (8, 1)


def test_scores_of_an_earlier_evaluation_do_not_count_in_a_later_one() -> None:
    plan = LedgerPlan(batches_per_epoch=1, epochs=1, rows_of=lambda batch_id: 1)
    one = Evaluation(np.array([7], np.int32), np.array([True]), 0.5)
    job = Driver(spec(mode="async", group_size=1, global_batch=10, evaluation_plan=plan,
                      eval_every_steps=1))  # fmt: skip
    rounds = []
    for _ in range(2):
        train = job.lease()
        job.finish(train)
        job.apply_all()
        (token,) = job.report(0, want=1).tokens
        rounds.append(token)
        if len(rounds) == 1:
            job.report(0, Finished(token, "done", 1, evaluation=one))

    job.report(0, Finished(rounds[0], "done", 1, evaluation=one))

    assert [token.at_step for token in rounds] == [1, 2]
    assert [result.step for result in job.coordinator.progress.evaluations] == [1]


def test_training_is_over_when_every_shard_has_applied_the_last_step() -> None:
    job = Driver(spec(mode="async"))
    for _ in range(6):
        job.finish(job.lease())
        job.handle(RecordsApplied(0, job.coordinator.step))
        assert not job.coordinator.trained
        job.handle(RecordsApplied(1, job.coordinator.step))
    assert job.coordinator.trained

    job.handle(EvaluationWanted())
    job.handle(StopWanted())

    assert job.report().stop


def test_time_for_training_runs_out() -> None:
    job = Driver(spec(max_seconds=5.0))
    token = job.lease()
    job.now = 6.0
    job.handle(TimePassed())

    assert job.report(1, want=1).tokens == ()
    job.finish(token)
    assert [record.divisor for record in job.records] == [10]


def test_a_silent_worker_is_given_up_and_its_batches_go_to_others() -> None:
    job = Driver(spec(heartbeat_timeout_seconds=10.0))
    token = job.lease(0)
    job.now = 8.0
    job.report(1)
    job.now = 11.0

    given_up = [c for c in job.handle(TimePassed()) if isinstance(c, GiveUpWorker)]

    assert [(c.worker, c.incarnation) for c in given_up] == [(0, 0)]
    taken = [job.lease(1), job.lease(1)]
    assert (token.batch_id, 1) in [(t.batch_id, t.attempt) for t in taken]
    assert job.handle(TimePassed()) == []


@pytest.mark.parametrize("leased", [False, True])
def test_a_job_that_stalls_says_who_waits_and_then_fails(leased: bool) -> None:
    limits = {"heartbeat_timeout_seconds": 1e9, "lease_timeout_seconds": None}
    job = Driver(spec(stall_seconds=30.0, **limits))
    job.report(1)
    job.handle(TimePassed())
    if leased:
        job.lease(1)
    job.now = 31.0
    (warning,) = job.handle(TimePassed())
    assert isinstance(warning, Warn)
    assert job.handle(TimePassed()) == []
    job.now = 61.0
    (failure,) = job.handle(TimePassed())

    assert isinstance(failure, FailJob)
    assert "no step was applied for 61 s" in failure.text
    if leased:
        assert "batch 0 (step 0, attempt 0) is leased, held by worker 1" in failure.text


def test_time_in_which_steps_are_applied_counts_though_training_is_held() -> None:
    time = TrainingTime()
    time.begin(10.0)
    time.applied(12.0)
    time.hold("pause", 13.0)
    time.applied(15.0)
    time.go_on("pause", 25.0)
    time.applied(26.0)

    assert time.at_last_apply == 6.0, "10 to 15 and 25 to 26"


def test_non_finite_batches_in_a_row_fail_the_job_whoever_computed_them() -> None:
    job = Driver(spec(mode="async", max_consecutive_non_finite=3))

    def skip(worker: int) -> list[Command]:
        token = job.lease(worker)
        job.sequences[worker] += 1
        ended = Finished(token, "skipped", skipped=10, reason="non_finite")
        report = Report(worker, 0, job.sequences[worker], finished=(ended,))
        return [c for c in job.handle(WorkerReported(report)) if isinstance(c, FailJob)]

    assert skip(0) == skip(1) == []
    (failure,) = skip(0)

    assert failure.text.startswith("3 batches in a row were skipped")
    assert "from batch 0 (step 0) to batch 2 (step 2)" in failure.text
    assert job.coordinator.ledger.samples.skipped_by_reason == {"non_finite": 30}
