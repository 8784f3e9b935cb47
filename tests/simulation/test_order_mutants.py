"""Deliberate faults in what a running job is asked for: the simulation notices each of them."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from ps.messages.pull_push import ANY_STEP
from scheduler.coordinator.coordinator import Coordinator
from scheduler.coordinator.events import Command, TakeCut
from scheduler.coordinator.ledger import Ledger
from scheduler.coordinator.modes.rules import ModeRule
from scheduler.coordinator.modes.shift import shift
from simulation.engine import Parts, SimulationError, run_scenario
from simulation.scenario import draw, with_orders
from worker.protocol import Token

SEEDS = 120

# Shifts -------------------------------------------------------------------------------------------


def keeps_everything(ledger: Ledger, rule: ModeRule, *, step: int) -> int:
    ledger.line_up(step=step, batch_is_step=rule.batch_is_step, goes_first=lambda _: False)
    return 0


def keeps_what_has_ended(ledger: Ledger, rule: ModeRule, *, step: int) -> int:
    ended = [batch for batch in ledger.unresolved() if batch.ended]
    steps = [(batch, batch.step) for batch in ended]
    for batch in ledger.unresolved():
        if not batch.ended and rule.at_step(step) != ANY_STEP:
            ledger.give_again(batch, step=batch.step)
    ledger.line_up(step=step, batch_is_step=rule.batch_is_step, goes_first=lambda b: b in ended)
    return len(steps)


def voids_everything(ledger: Ledger, rule: ModeRule, *, step: int) -> int:
    ledger.line_up(step=step, batch_is_step=rule.batch_is_step, goes_first=lambda _: False)
    for batch in ledger.unresolved():
        ledger.give_again(batch, step=batch.step)
    return 0


def forgets_what_is_void(ledger: Ledger, rule: ModeRule, *, step: int) -> int:
    voided = shift(ledger, rule, step=step)
    ledger.take_discards()
    return voided


def lines_up_one_too_late(ledger: Ledger, rule: ModeRule, *, step: int) -> int:
    return shift(ledger, rule, step=step + 1)


def gives_what_has_ended_no_precedence(ledger: Ledger, rule: ModeRule, *, step: int) -> int:
    line_up = ledger.line_up

    def by_id(*, step: int, batch_is_step: bool, goes_first: object) -> None:
        line_up(step=step, batch_is_step=batch_is_step, goes_first=lambda _: False)

    ledger.line_up = by_id  # type: ignore[method-assign]
    try:
        return shift(ledger, rule, step=step)
    finally:
        ledger.line_up = line_up  # type: ignore[method-assign]


@pytest.mark.parametrize(
    "mutant",
    [
        keeps_everything,
        keeps_what_has_ended,
        voids_everything,
        forgets_what_is_void,
        lines_up_one_too_late,
        gives_what_has_ended_no_precedence,
    ],
)
def test_a_wrong_shift_is_noticed(
    mutant: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scheduler.coordinator.mode_control.shift", mutant)

    assert caught(Coordinator, group_size=4, workers=4, batches_per_epoch=10)


# Pauses, cuts, workers ----------------------------------------------------------------------------


class GivesOutInAPause(Coordinator):
    def _lease(self, worker: int, now: float) -> Token | None:
        self.time.go_on("pause", now)
        return super()._lease(worker, now)


class TakesACutTooLate(Coordinator):
    def _order_steps(self, now: float) -> list[Command]:
        commands = super()._order_steps(now)
        return [replace(c, step=c.step - 1) if isinstance(c, TakeCut) else c for c in commands]


class KeepsTheOldRule(Coordinator):
    def _shift(self, mode, now, **why):  # type: ignore[no-untyped-def]
        rule = self.modes.rule
        commands = super()._shift(mode, now, **why)
        self.modes.rule = rule
        return commands


class KeepsWorkersThatAreNotWanted(Coordinator):
    def _reported(self, reports, now):  # type: ignore[no-untyped-def]
        wanted, self.num_workers = self.num_workers, 99
        result = super()._reported(reports, now)
        self.num_workers = wanted
        return result


@pytest.mark.parametrize(
    "mutant",
    [GivesOutInAPause, TakesACutTooLate, KeepsTheOldRule, KeepsWorkersThatAreNotWanted],
)
def test_a_wrong_answer_to_an_order_is_noticed(mutant: type[Coordinator]) -> None:
    assert caught(mutant)


def caught(coordinator: type[Coordinator], **options: int) -> bool:
    for seed in range(SEEDS):
        try:
            run_scenario(with_orders(draw(seed, **options)), Parts(coordinator=coordinator))
        except (SimulationError, AssertionError):
            return True
    return False
