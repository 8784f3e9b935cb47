"""When a cut is taken, and whether whole; and what a coordinator does around one."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from embedding.spec.optimizers import Sgd
from ps.spec import StoreSpec
from scheduler.coordinator.clock import ClockState
from scheduler.coordinator.coordinator import Coordinator
from scheduler.coordinator.coordinator_state import CoordinatorState, beginning_of
from scheduler.coordinator.cuts import CutKind, CutSchedule
from scheduler.coordinator.events import (
    Answer,
    CutFrozen,
    CutTaken,
    CutWanted,
    DenseNormMeasured,
    HoldWanted,
    RecordsApplied,
    SendRecords,
    TakeCut,
    TimePassed,
    WorkerReported,
)
from scheduler.coordinator.ledger_plan import LedgerPlan
from scheduler.coordinator.spec import CoordinatorSpec, CutOptions
from scheduler.coordinator.status import status_of
from worker.protocol import Finished, Report


def spec(**changes: Any) -> CoordinatorSpec:
    store = StoreSpec(
        tables=(),
        dense_size=3,
        dense_optimizer=Sgd(learning_rate=0.25),
        num_shards=1,
        dense_clip_norm=changes.pop("clip", None),
    )
    plan = LedgerPlan(batches_per_epoch=20, epochs=1, rows_of=lambda _: 5)
    values: dict[str, Any] = {
        "store": store, "plan": plan, "evaluation_plan": None, "mode": "async", "group_size": 2,
        "global_batch": 10, "workers": 1, "depth": 4,
    }  # fmt: skip
    return CoordinatorSpec(**{**values, **changes})


def at(step: int) -> CoordinatorState:
    return replace(beginning_of(spec()), step=step)


class Saved:
    """A schedule that is asked at one step after another, every second; each cut is written."""

    def __init__(self, **options: Any) -> None:
        self.cuts = CutSchedule(CutOptions(**options), step=0, clock=0)
        self.taken: list[tuple[int, CutKind]] = []

    def pass_steps(self, *steps: int, ticks: int = 1, failed: bool = False) -> None:
        for step in steps:
            if self.cuts.is_due(step=step, clock=step // ticks, now=float(step), ends=False):
                clock = ClockState(value=step // ticks, first_steps=((step // ticks, step, 0, 1),))
                cut = self.cuts.take(replace(at(step), clock=clock), now=float(step))
                self.taken.append((cut.step, cut.kind))
                self.cuts.taken(step, failed=failed)


def test_cuts_come_by_the_clock_or_by_time_and_every_so_many_is_full() -> None:
    by_clock = Saved(every_steps=4, full_every=3)
    by_clock.pass_steps(*range(50), ticks=2)
    assert by_clock.taken == [
        (8, "full"), (16, "delta"), (24, "delta"), (32, "full"), (40, "delta"), (48, "delta"),
    ]  # fmt: skip
    by_time = Saved(every_seconds=10.0)
    by_time.pass_steps(*range(31))
    assert by_time.taken == [(10, "full"), (20, "full"), (30, "full")]
    first_of_both = Saved(every_steps=7, every_seconds=10.0)
    first_of_both.pass_steps(*range(15))
    assert first_of_both.taken == [(7, "full"), (14, "full")]
    never = Saved()
    never.pass_steps(*range(100))
    assert never.taken == []


def test_a_schedule_that_begins_between_two_multiples_of_the_clock_keeps_to_them() -> None:
    begun_again = Saved(every_steps=15)
    begun_again.cuts = CutSchedule(CutOptions(every_steps=15), step=59, clock=59)
    begun_again.pass_steps(*range(60, 80))
    assert begun_again.taken == [(60, "full"), (75, "full")]


def test_where_all_begin_with_a_checkpoint_the_chain_goes_on_as_long_as_it_may() -> None:
    def kinds(below: int | None, *, failed: bool = False) -> list[CutKind]:
        saved = Saved(every_steps=1, full_every=4)
        options = CutOptions(every_steps=1, full_every=4)
        saved.cuts = CutSchedule(options, step=0, clock=0, below=below)
        saved.pass_steps(1, failed=failed)
        saved.pass_steps(*range(2, 6))
        return [kind for _, kind in saved.taken]

    assert kinds(None) == ["full", "delta", "delta", "delta", "full"]
    assert kinds(0) == ["delta", "delta", "delta", "full", "delta"]
    assert kinds(2) == ["delta", "full", "delta", "delta", "delta"]
    assert kinds(3) == kinds(9) == kinds(None)
    assert kinds(0, failed=True) == ["delta", "full", "delta", "delta", "delta"]


def test_after_a_cut_that_failed_and_where_somebody_asks_it_is_full() -> None:
    saved = Saved(every_steps=2, full_every=9)
    saved.pass_steps(1, 2, 3, 4)
    saved.pass_steps(5, 6, failed=True)
    saved.pass_steps(7, 8, 9, 10)
    saved.cuts.ask()
    saved.pass_steps(11, 12, 13, 14)
    saved.cuts.ask(full=False)
    saved.pass_steps(15)
    saved.cuts.ask(full=False)
    saved.pass_steps(15)
    assert saved.taken == [
        (2, "full"), (4, "delta"), (6, "delta"), (8, "full"), (10, "delta"), (11, "full"),
        (12, "delta"), (14, "delta"), (15, "delta"),
    ]  # fmt: skip


def test_one_cut_is_taken_at_a_time_and_none_of_a_step_that_has_one() -> None:
    cuts = CutSchedule(CutOptions(every_seconds=1.0), step=0, clock=0)

    def due(step: int, now: float, ends: bool = False) -> bool:
        return cuts.is_due(step=step, clock=0, now=now, ends=ends)

    assert not due(0, 0.0)
    assert not due(0, 9.0), "nothing has happened yet"
    assert not due(3, 9.0, ends=True), "the last checkpoint comes anyway"
    assert due(3, 9.0)
    cut = cuts.take(at(3), now=9.0)
    assert cuts.to_write is None
    assert cuts.state_of(3) == at(3)
    cuts.ask()
    assert not due(5, 99.0)
    cuts.frozen(2)
    assert cuts.to_write is None
    cuts.frozen(3)
    assert cuts.to_write == cut
    assert cuts.taken(4, failed=False) is None
    assert cuts.taken(3, failed=False) == cut
    with pytest.raises(ValueError, match="no cut of step 3"):
        cuts.state_of(3)
    assert due(3, 99.0, ends=True), "it was asked for meanwhile"


class Job:
    """One worker that ends batch after batch."""

    def __init__(self, **changes: Any) -> None:
        self.coordinator = Coordinator(spec(**changes))
        self.said: list[int | TakeCut] = []
        self.sequence = 0

    def handle(self, event: Any, now: float = 0.0) -> None:
        for command in self.coordinator.handle(event, now):
            if isinstance(command, SendRecords):
                self.said += [record.step for record in command.records]
            elif isinstance(command, TakeCut):
                self.said.append(command)
            elif isinstance(command, Answer):
                self.tokens = command.grant.tokens

    def report(self, *finished: Finished, want: int = 1) -> None:
        self.sequence += 1
        held = self.coordinator.ledger.leases_of(0) - {f.token.identity for f in finished}
        report = Report(0, 0, self.sequence, tuple(held), finished, want)
        self.handle(WorkerReported(report))

    def end_batches(self, count: int, now: float = 0.0) -> None:
        """Lease so many batches and end them with one report."""
        self.report(want=count)
        self.report(*(Finished(token, "done", samples=5) for token in self.tokens), want=0)


def test_a_cut_stands_between_the_records_of_a_report_and_the_steps_go_on() -> None:
    options = CutOptions(every_steps=1, full_every=2)
    job = Job(cuts=options)
    job.end_batches(3)
    assert job.said == [0, 1, TakeCut(1, 2, changed_only=False), 2]
    state = job.coordinator.cuts.state_of(2)
    assert (state.step, state.ledger.low_water, state.clock.value) == (2, 2, 1)
    assert state.ledger.samples.applied == 10
    job.end_batches(3)
    assert job.said[4:] == [3, 4, 5], "one at a time"
    job.handle(CutFrozen(2))
    job.handle(CutTaken(2))
    assert job.said[7:] == [TakeCut(2, 6, changed_only=True)]


def test_a_cut_that_somebody_wants_comes_at_once_where_nothing_moves() -> None:
    job = Job()
    job.handle(CutWanted())
    assert job.said == [TakeCut(1, 0, changed_only=False)]


def test_time_makes_a_cut_due_without_any_report() -> None:
    job = Job(cuts=CutOptions(every_seconds=5.0))
    job.end_batches(1)
    job.handle(TimePassed(), now=4.0)
    assert job.said == [0]
    job.handle(TimePassed(), now=5.0)
    assert job.said == [0, TakeCut(1, 1, changed_only=False)]


def test_a_cut_waits_for_the_norms_of_the_steps_before_it_and_no_step_is_formed() -> None:
    job = Job(clip=1.0, cuts=CutOptions())
    job.end_batches(2)
    job.handle(CutWanted())
    job.end_batches(2)
    assert job.coordinator.step == 2
    assert job.said == []
    job.handle(DenseNormMeasured(0, (np.ones(1),)))
    assert job.said == [0]
    job.handle(DenseNormMeasured(1, (np.ones(1),)))
    assert job.said == [0, 1, TakeCut(1, 2, changed_only=False)]
    assert job.coordinator.step == 4


def test_who_waits_for_a_cut_is_known_until_it_is_written() -> None:
    cuts = CutSchedule(CutOptions(every_steps=1), step=0, clock=0)
    assert not cuts.is_awaited
    cuts.ask()
    assert cuts.is_awaited
    state = at(3)
    cuts.take(state, now=0.0)
    assert cuts.is_awaited
    cuts.taken(3, failed=False)
    assert not cuts.is_awaited
    cuts.take(state, now=1.0)
    assert not cuts.is_awaited, "this one nobody asked for"


def test_a_job_that_is_to_move_stands_still_at_a_step_and_can_be_saved_there() -> None:
    job = Job(cuts=CutOptions())
    job.report(want=3)
    tokens = job.tokens
    job.report(Finished(tokens[0], "done", samples=5), want=0)
    job.handle(HoldWanted(True))
    job.report(*(Finished(token, "done", samples=5) for token in tokens[1:]), want=4)
    assert (job.coordinator.step, status_of(job.coordinator).held, job.tokens) == (1, True, ())
    job.handle(CutWanted(full=False))
    job.handle(CutFrozen(1))
    assert job.said == [0, TakeCut(1, 1, changed_only=False)]
    state = job.coordinator.cuts.state_of(1)
    assert (state.step, state.ledger.samples.applied, state.paused) == (1, 5, False)

    job.handle(CutTaken(1))
    job.handle(HoldWanted(False))
    job.report(want=1)
    assert (job.coordinator.step, len(job.tokens)) == (3, 1), "what ended meanwhile is not lost"


def test_nobody_is_late_and_nothing_stalls_while_a_job_stands_still() -> None:
    job = Job(cuts=CutOptions(), stall_seconds=5.0, lease_timeout_seconds=2.0)
    job.report(want=1)
    job.handle(HoldWanted(True))
    for second in range(1, 60):
        job.sequence += 1
        held = tuple(job.coordinator.ledger.leases_of(0))
        job.handle(WorkerReported(Report(0, 0, job.sequence, held, (), 0)), float(second))
        commands = job.coordinator.handle(TimePassed(), float(second))
        assert commands == []


def test_samples_are_applied_once_every_shard_has_applied_their_step() -> None:
    job = Job()
    job.end_batches(3)
    before = status_of(job.coordinator)
    job.handle(RecordsApplied(0, 2))
    after = status_of(job.coordinator)

    assert (before.samples.applied, before.applied_samples, before.applied_step) == (15, 0, 0)
    assert (after.samples.applied, after.applied_samples, after.applied_step) == (15, 10, 2)


def test_a_cut_that_could_not_be_written_is_taken_again_though_no_step_came_since() -> None:
    job = Job(cuts=CutOptions())
    job.end_batches(1)
    job.handle(HoldWanted(True))
    step = job.coordinator.step
    job.handle(CutWanted(full=False))
    job.handle(CutFrozen(step))
    job.handle(CutTaken(step, failed=True))

    job.handle(CutWanted(full=False))

    takes = [said for said in job.said if isinstance(said, TakeCut)]
    assert takes == [TakeCut(number, step, changed_only=False) for number in (1, 2)]
