"""What goes on from one coordinator to the next, taken at any moment."""

import json
import random
from dataclasses import replace
from itertools import chain
from typing import Any, get_args

import pytest

from ps.messages.records import Record
from runtime.strict_json import json_text
from scheduler.coordinator.coordinator import Coordinator
from scheduler.coordinator.coordinator_state import CoordinatorState, epoch_of
from scheduler.coordinator.events import (
    EndOfTrainingWanted,
    PauseWanted,
    WorkersWanted,
)
from scheduler.coordinator.ledger_plan import LedgerPlan
from scheduler.coordinator.modes.rules import Mode, ModeOptions, PlannedShift


def through_json(state: CoordinatorState) -> CoordinatorState:
    return CoordinatorState.from_json(json.loads(json_text(state.to_json())))


def batches_of(records: list[Record]) -> list[list[int]]:
    return [[*(e.batch_id for e in record.entries), *record.skipped] for record in records]


@pytest.mark.parametrize("mode", get_args(Mode))
@pytest.mark.parametrize("seed", range(8))
def test_a_job_goes_on_from_any_moment_with_every_batch_once(
    scripted: Any, mode: Mode, seed: int
) -> None:
    options = ModeOptions(staleness_bound=1, backup_batches=2, ssp_slack=1)
    first = scripted(Coordinator(scripted.spec(mode=mode, options=options)), seed)
    for _ in range(random.Random(seed).randrange(5, 90)):
        first.move()
    before = first.coordinator.state()

    coordinator = Coordinator(
        scripted.spec(mode=mode, options=options, recovery_epoch=1), through_json(before)
    )
    assert coordinator.state() == before
    second = scripted(coordinator, seed + 100)
    second.run(lambda: coordinator.trained)

    records = first.records + second.records
    assert [record.step for record in records] == list(range(len(records)))
    groups = batches_of(records)
    assert sorted(chain.from_iterable(groups)) == list(range(33)), "each batch ends once"
    assert coordinator.ledger.samples.total == sum(map(scripted.rows_of, range(33)))
    assert coordinator.progress.loss_samples == coordinator.ledger.samples.applied + (
        coordinator.ledger.samples.dropped
    )
    if mode == "sync":
        whole = [[*range(e + i, min(e + i + 3, e + 11))] for e in (0, 11, 22) for i in (0, 3, 6, 9)]
        assert [sorted(group) for group in groups] == whole
    assert [len(group) for group in groups] == [1] * 33 or len(groups) == 12


def test_clock_and_time_to_live_go_on_as_if_nothing_had_happened(scripted: Any) -> None:
    first = scripted(Coordinator(scripted.spec()), seed=4)
    first.run(lambda: first.coordinator.step == 7)
    coordinator = Coordinator(
        scripted.spec(recovery_epoch=1), through_json(first.coordinator.state())
    )
    second = scripted(coordinator, seed=4)
    second.run(lambda: coordinator.trained)
    clock, samples, applied = 0, 0, []
    for record in first.records + second.records:
        assert record.clock == clock
        applied.append((clock, record.step))
        samples = record.totals.applied
        clock, rest = divmod(samples, 30)
        assert (record.totals.clock, record.totals.since_tick) == (clock, rest)
        if record.evict:
            living = next((s for c, s in applied if c >= clock - 3), record.step + 1)
            assert record.evict[0].min_version == living


def test_modes_shifts_and_wishes_go_on(scripted: Any) -> None:
    shifts = (PlannedShift(at=2, mode="gba"), PlannedShift(at=8, mode="async"))
    first = scripted(Coordinator(scripted.spec(shifts=shifts, automatic=True)), seed=1)
    first.run(lambda: first.coordinator.clock.value == 4)
    first.handle(WorkersWanted(5))
    first.handle(WorkersWanted(None))
    first.handle(PauseWanted(True))
    coordinator = Coordinator(
        scripted.spec(shifts=shifts, recovery_epoch=1), through_json(first.coordinator.state())
    )

    assert (coordinator.rule.name, coordinator.modes.epoch) == ("gba", 1)
    assert coordinator.workers_automatic
    assert (coordinator.num_workers, coordinator.paused, coordinator.modes.automatic) == (5, 1, 1)
    second = scripted(coordinator, seed=2)
    second.handle(PauseWanted(False))
    second.run(lambda: coordinator.trained)
    assert [shift.to_mode for shift in coordinator.modes.shifts] == ["gba", "async"]
    assert coordinator.modes.epoch == 2


def test_an_evaluation_that_is_not_over_is_begun_again(scripted: Any) -> None:
    evaluated = LedgerPlan(batches_per_epoch=4, epochs=1, rows_of=lambda _: 0)
    options = {"evaluation_plan": evaluated, "eval_every_steps": 4}
    first = scripted(Coordinator(scripted.spec(**options)), seed=3)
    first.run(lambda: first.coordinator.evaluation is not None)
    for _ in range(2):
        first.move()
    before = first.coordinator.state()
    assert before.evaluating
    assert before.evaluations == ()

    coordinator = Coordinator(scripted.spec(**options, recovery_epoch=1), through_json(before))
    assert coordinator.evaluation is not None
    scripted(coordinator, seed=3).run(lambda: coordinator.trained)
    assert [e.clock for e in coordinator.progress.evaluations] == [4, 8]


def test_seconds_of_training_and_an_early_end_go_on(scripted: Any) -> None:
    first = scripted(Coordinator(scripted.spec()), seed=5)
    first.run(lambda: first.coordinator.step == 3)
    first.handle(EndOfTrainingWanted())
    state = through_json(first.coordinator.state())
    coordinator = Coordinator(scripted.spec(recovery_epoch=1), state)
    assert state.train_seconds == coordinator.train_seconds > 0
    scripted(coordinator, seed=6).run(lambda: coordinator.trained)
    assert coordinator.ledger.samples.total < 300
    assert coordinator.train_seconds > state.train_seconds


@pytest.fixture(scope="module")
def state(scripted: Any) -> CoordinatorState:
    job = scripted(Coordinator(scripted.spec(mode="async")), seed=7)
    job.run(lambda: job.coordinator.step == 14)
    return job.coordinator.state()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"step": -1}, "is at -1"),
        ({"step": "7"}, "step: expected an int64, got str '7'"),
        ({"colour": 1}, "has no field 'colour'"),
        ({"modes": {"mode": "turbo"}}, "modes: mode: expected one of"),
        ({"modes": {}}, "modes: ModeState lacks 'mode'"),
        ({"clock": {"value": 9, "samples": 0, "first_steps": [[0, 0, 0, 1]]}}, "clock values"),
        ({"clock": {"value": 0, "samples": -1}}, "-1 samples"),
        ({"ledger": {"low_water": 3, "resolved": [[2, 5]]}}, "ledger: the interval from 2 to 5"),
        ({"ledger": {"low_water": 3}}, "3 batches are resolved, 0 counted"),
        ({"ledger": {"samples": {"applied": -5}}}, "negative"),
        ({"start": {"optimizer_steps": -(2**63)}}, "negative"),
        ({"ledger": {"samples": {"skipped": 5}}}, "by reason"),
        ({"ledger": []}, "expected the fields of LedgerState"),
        ({"data_staleness": [[0, -1]]}, "negative"),
        ({"num_workers": 0}, "no worker"),
        ({"evaluations": [{"step": 1}]}, "EvaluationResult lacks"),
    ],
)
def test_a_damaged_state_is_refused(
    state: CoordinatorState, change: dict[str, Any], text: str
) -> None:
    data = state.to_json()
    with pytest.raises(ValueError, match="state of the coordinator is damaged") as error:
        CoordinatorState.from_json(data | change)
    assert text in str(error.value)


def test_a_state_of_another_plan_is_refused(scripted: Any, state: CoordinatorState) -> None:
    shorter = LedgerPlan(batches_per_epoch=11, epochs=1, rows_of=scripted.rows_of, limit=9)
    with pytest.raises(ValueError, match="the plan has 9"):
        Coordinator(scripted.spec(plan=shorter), state)
    others = LedgerPlan(batches_per_epoch=11, epochs=3, rows_of=lambda _: 7)
    with pytest.raises(ValueError, match="samples in this plan"):
        Coordinator(scripted.spec(plan=others), state)
    with pytest.raises(ValueError, match="since the last tick"):
        Coordinator(
            scripted.spec(global_batch=4), replace(state, clock=replace(state.clock, samples=4))
        )


def test_epochs_of_which_no_step_is_left_are_forgotten_and_few_are_remembered(
    scripted: Any,
) -> None:
    first = Coordinator(scripted.spec()).state()
    assert first.histories == ((0, 0),)

    def at(step: int, before: CoordinatorState, epoch: int) -> CoordinatorState:
        return replace(before, step=step).entered(epoch)

    second = at(10, first, 1)
    assert second.histories == ((0, 0), (1, 10))
    assert at(7, second, 2).histories == ((0, 0), (2, 7)), "all went back before epoch 1"
    third = at(12, second, 3)
    assert third.histories == ((0, 0), (1, 10), (3, 12))
    assert [epoch_of(step, third.histories) for step in (0, 9, 10, 11, 12)] == [0, 0, 1, 1, 3]
    assert through_json(third) == third
    assert at(0, third, 4).histories == ((4, 0),)
    many = third
    for epoch in range(4, 200):
        many = at(many.step + 1, many, epoch)
    assert len(many.histories) == 64
    assert epoch_of(0, many.histories) is None
