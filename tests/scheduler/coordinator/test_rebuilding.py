"""A coordinator that is gone is made again from what a shard knows and what was last heard."""

from dataclasses import replace
from typing import Any, get_args

import pytest

from ps.messages.records import Record
from ps.shard.buffer import GradientBuffer
from ps.shard.facts import ShardFacts
from runtime.first_steps import FirstSteps
from scheduler.coordinator.coordinator import Coordinator
from scheduler.coordinator.coordinator_state import CoordinatorState, beginning_of
from scheduler.coordinator.events import (
    EndOfTrainingWanted,
    ShiftWanted,
    WorkersWanted,
)
from scheduler.coordinator.ledger_plan import LedgerPlan
from scheduler.coordinator.modes.rules import Mode, PlannedShift
from scheduler.coordinator.rebuilding import longest_log, state_after
from scheduler.coordinator.status import status_of


def facts_of(records: list[Record], epoch: int, step: int, remembered: int = 3) -> ShardFacts:
    """What a shard knows that has applied these records in an epoch."""
    buffer = GradientBuffer(max_contributions=9, max_bytes=99)
    first_steps = FirstSteps(remembered=remembered)
    for record in records:
        buffer.settle(record)
        for value in range(record.clock + 1, record.totals.clock + 1):
            first_steps.begin(value, record.step + 1)
            first_steps.forget(now=value)
    return ShardFacts(
        recovery_epoch=epoch,
        step=step + len(records),
        log_begins=step,
        newest=records[-1] if records else None,
        resolved=tuple(buffer.resolved),
        first_steps=first_steps.runs,
    )


def comparable(state: CoordinatorState) -> str:
    """The same first steps can be other runs; what is NaN is no equal of itself."""
    runs = state.clock.first_steps
    each = tuple((v + i, at + i * by, 0, 1) for v, at, by, count in runs for i in range(count))
    clock = replace(state.clock, first_steps=each[-4:])
    return repr(replace(state, clock=clock))


@pytest.mark.parametrize("mode", get_args(Mode))
@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_state_that_the_coordinator_had(scripted: Any, mode: Mode, seed: int) -> None:
    """Twice: what was resolved before the second coordinator began no shard knows any more."""
    evaluated = LedgerPlan(batches_per_epoch=2, epochs=1, rows_of=lambda _: 0)
    options = {
        "mode": mode, "evaluation_plan": evaluated, "eval_every_steps": 2,
        "shifts": (PlannedShift(at=3, mode="async"),) if mode in ("sync", "gba") else (),
    }  # fmt: skip
    begun = beginning_of(scripted.spec(**options))
    for epoch in range(3):
        spec = scripted.spec(**options, recovery_epoch=epoch)
        job = scripted(Coordinator(spec, begun), 10 * seed + epoch)
        for _ in range(12 + 7 * seed + 5 * epoch):
            job.move()
        facts = facts_of(job.records, epoch, begun.step)

        rebuilt = state_after(facts, begun, status_of(job.coordinator), spec)

        assert comparable(rebuilt) == comparable(job.coordinator.state())
        begun = CoordinatorState.from_json(rebuilt.to_json())


def test_what_was_never_told_is_counted_all_the_same(scripted: Any) -> None:
    spec = scripted.spec(mode="gba")
    begun = beginning_of(spec)
    job = scripted(Coordinator(spec, begun), seed=3)
    job.run(lambda: job.coordinator.step == 2)
    early = status_of(job.coordinator)
    job.run(lambda: job.coordinator.step == 5)
    right = job.coordinator.state()

    for known in (early, None, replace(status_of(job.coordinator), recovery_epoch=7)):
        rebuilt = state_after(facts_of(job.records, 0, 0), begun, known, spec)
        assert rebuilt.ledger.samples == right.ledger.samples
        assert rebuilt.ledger.resolved == right.ledger.resolved
        assert (rebuilt.clock.value, rebuilt.clock.samples) == (right.clock.value, 13)
        assert rebuilt.step == 5
        assert rebuilt.modes.mode == "gba"
        ended = rebuilt.ledger.batches
        assert (ended.applied, ended.dropped, ended.skipped) == (
            right.ledger.batches.applied,
            right.ledger.batches.dropped,
            right.ledger.batches.skipped,
        )


def test_steps_that_no_shard_heard_of_are_not_counted(scripted: Any) -> None:
    spec = scripted.spec(mode="async")
    begun = beginning_of(spec)
    job = scripted(Coordinator(spec, begun), seed=3)
    job.run(lambda: job.coordinator.step == 6)
    known = status_of(job.coordinator)

    for heard in (0, 4):
        rebuilt = state_after(facts_of(job.records[:heard], 0, 0), begun, known, spec)
        assert (rebuilt.step, rebuilt.ledger.num_resolved) == (heard, heard)
        assert rebuilt.ledger.batches.leased == known.batches.leased
        Coordinator(scripted.spec(mode="async", recovery_epoch=1), rebuilt)


def test_what_somebody_wanted_after_the_last_step_is_kept(scripted: Any) -> None:
    spec = scripted.spec()
    begun = beginning_of(spec)
    job = scripted(Coordinator(spec, begun), seed=3)
    job.run(lambda: job.coordinator.step == 2)
    for event in (ShiftWanted("gba"), WorkersWanted(5), WorkersWanted(None), EndOfTrainingWanted()):
        job.handle(event)

    rebuilt = state_after(facts_of(job.records, 0, 0), begun, status_of(job.coordinator), spec)

    assert (rebuilt.modes.mode, rebuilt.modes.epoch, rebuilt.num_workers) == ("gba", 1, 5)
    assert rebuilt.workers_automatic
    assert rebuilt.ledger.limit == job.coordinator.ledger.limit
    assert rebuilt.ledger.limit is not None


def test_the_shard_that_is_furthest_gives_its_log() -> None:
    at = [
        replace(facts_of([], epoch=1, step=step), log_begins=begins)
        for step, begins in ((5, 4), (7, 4), (4, 4))
    ]
    assert longest_log(at) == 1
    with pytest.raises(ValueError, match=r"a shard is at step 3 .* begins at 4"):
        longest_log([*at[:2], replace(at[2], step=3)])


def test_who_entered_the_next_epoch_before_that_failed_is_furthest() -> None:
    before = replace(facts_of([], epoch=1, step=7), log_begins=4)
    entered = facts_of([], epoch=2, step=7)

    assert longest_log([before, entered, before]) == 1
    for wrong in (replace(before, step=6), replace(before, step=8)):
        with pytest.raises(ValueError, match="of recovery epoch 1, the log of another one"):
            longest_log([entered, wrong])
