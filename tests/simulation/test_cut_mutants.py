"""Deliberate faults in cuts, and in how a job goes on from one or from its shards."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ps.messages.exchange import Reply
from ps.messages.records import Freeze, FreezeReply, Record
from ps.shard.facts import ShardFacts
from ps.shard.shard import Shard
from scheduler.coordinator.coordinator import Coordinator
from scheduler.coordinator.coordinator_state import CoordinatorState
from scheduler.coordinator.events import Command, TakeCut
from scheduler.coordinator.rebuilding import state_after
from scheduler.coordinator.spec import CutOptions
from simulation.engine import Parts, run, seed_that_fails
from simulation.scenario import Faults

# Cuts ---------------------------------------------------------------------------------------------


class ForgetsTheRemainderOfTheClock(Coordinator):
    def state(self) -> CoordinatorState:
        state = super().state()
        return replace(state, clock=replace(state.clock, samples=0))


class TakesItsStateTooLate(Coordinator):
    def _order_steps(self, now: float) -> list[Command]:
        commands = super()._order_steps(now)
        if any(isinstance(command, TakeCut) for command in commands):
            self.cuts._state = self.state()
        return commands


class ForgetsEvaluationsThatAreDue(Coordinator):
    def state(self) -> CoordinatorState:
        return replace(super().state(), evaluating=False)


class KnowsOnlyItsOwnEpoch(Coordinator):
    def state(self) -> CoordinatorState:
        state = super().state()
        return replace(state, histories=state.histories[-1:])


class FreezesOneStepLate(Shard):
    late: Freeze | None = None

    def _freeze(self, message: Freeze) -> Reply:
        reply = super()._freeze(message)
        self.late = message
        return reply

    def _apply_record(self, record: Record) -> None:
        super()._apply_record(record)
        if self.late is not None:
            number, step = self.late.number, self.late.step
            self._last_cut, self.late = 0, None
            super()._freeze(Freeze(0, 0, number, self.step, changed_only=False))
            assert self.frozen is not None
            self.frozen = replace(self.frozen, step=step)


class MissesTombstones(Shard):
    def _freeze(self, message: Freeze) -> Reply:
        reply = super()._freeze(message)
        if self.frozen is not None:
            for table in self.frozen.tables:
                table.removed = np.empty(0, np.int64)
        return reply


class GivesItsDenseRowsAway(Shard):
    def _freeze(self, message: Freeze) -> Reply:
        reply = super()._freeze(message)
        if self.frozen is not None:
            self.frozen = replace(self.frozen, dense=self.dense.rows)
        return reply


class FreezesAgain(Shard):
    """A freeze that comes again is done again, at another step."""

    def _freeze(self, message: Freeze) -> Reply:
        if message.number == self._last_cut and self.step > message.step:
            self._last_cut = 0
            super()._freeze(replace(message, step=self.step))
            assert self.frozen is not None
            self.frozen = replace(self.frozen, step=message.step)
            return FreezeReply(message.request_id, message.step)
        return super()._freeze(message)


class FreezesAllForADelta(Shard):
    """What a delta leaves out is not there; this one says nothing of what was removed before."""

    def _freeze(self, message: Freeze) -> Reply:
        reply = super()._freeze(replace(message, changed_only=False))
        if self.frozen is not None:
            self.frozen = replace(self.frozen, changed_only=message.changed_only)
        return reply


# Going on -----------------------------------------------------------------------------------------


class StaysInItsEpoch(Shard):
    def enter(self, recovery_epoch: int, **options: Any) -> None:
        super().enter(min(recovery_epoch, self.recovery_epoch or recovery_epoch), **options)


class DoesNotCatchUp(Shard):
    def catch_up(self, records: Sequence[Record]) -> ShardFacts:
        return self.leave()


def shortest_log(facts: Sequence[ShardFacts]) -> int:
    return min(range(len(facts)), key=lambda shard: facts[shard].step)


def ignores_what_is_resolved(facts: ShardFacts, *rest: Any) -> CoordinatorState:
    return state_after(replace(facts, resolved=()), *rest)


def forgets_first_steps(facts: ShardFacts, *rest: Any) -> CoordinatorState:
    state = state_after(facts, *rest)
    runs = ((state.clock.value, state.step, 0, 1),)
    return replace(state, clock=replace(state.clock, first_steps=runs))


def begins_where_the_last_one_did(
    facts: ShardFacts, begun: CoordinatorState, *rest: Any
) -> CoordinatorState:
    return replace(begun, step=facts.step)


# What catches them --------------------------------------------------------------------------------

SEEDS = 20
OFTEN = CutOptions(every_steps=1, full_every=6)
JOB: dict[str, Any] = {
    "workers": 4,
    "shards": 3,
    "batches_per_epoch": 20,
    "epochs": 1,
    "limit": None,
    "max_seconds": None,
    "cuts": OFTEN,
    "faults": Faults(until=3.0),
}
LATE = JOB | {"faults": Faults(duplicate=0.3, delay=0.3, until=3.0)}
EVICTING = JOB | {"steps_to_live": 1, "evict_every_steps": 1, "group_size": 2}
LOST_SHARD = JOB | {"faults": Faults(shard_deaths=(0.15, 0.6, 0.9, 1.2, 1.5, 1.8), until=3.0)}
DEATHS = (0.05, 0.15, 0.3, 0.5)
LOST_COORDINATOR: dict[str, Any] = JOB | {
    "mode": "async", "depth": 3, "cuts": CutOptions(),
    "faults": Faults(coordinator_deaths=DEATHS, delay=0.3, cut=0.05, until=3.0),
}  # fmt: skip
MUTANTS: list[tuple[Parts, dict[str, Any]]] = [
    (Parts(coordinator=ForgetsTheRemainderOfTheClock), JOB | {"mode": "async", "group_size": 3}),
    (Parts(coordinator=TakesItsStateTooLate), JOB | {"mode": "async"}),
    (
        Parts(coordinator=ForgetsEvaluationsThatAreDue),
        LOST_SHARD | {"mode": "sync", "eval_batches": 6, "eval_every_steps": 2},
    ),
    (Parts(coordinator=KnowsOnlyItsOwnEpoch), LOST_SHARD),
    (Parts(shard=FreezesOneStepLate), JOB),
    (Parts(shard=MissesTombstones), EVICTING),
    (Parts(shard=GivesItsDenseRowsAway), JOB),
    (Parts(shard=FreezesAgain), LATE),
    (Parts(shard=FreezesAllForADelta), EVICTING),
    (Parts(shard=StaysInItsEpoch), LOST_SHARD),
    (Parts(shard=DoesNotCatchUp), LOST_COORDINATOR),
    (Parts(longest=shortest_log), LOST_COORDINATOR),
    (Parts(rebuild=ignores_what_is_resolved), LOST_COORDINATOR),
    (
        Parts(rebuild=forgets_first_steps),
        LOST_COORDINATOR | {"steps_to_live": 4, "evict_every_steps": 1, "group_size": 1},
    ),
    (Parts(rebuild=begins_where_the_last_one_did), LOST_COORDINATOR),
]


def _name(value: object) -> str:
    if not isinstance(value, Parts):
        return ""
    usual = Parts()
    changed = [
        getattr(value, name)
        for name in Parts.__dataclass_fields__
        if getattr(value, name) is not getattr(usual, name)
    ]
    return str(changed[0].__name__)


@pytest.mark.parametrize(("parts", "options"), MUTANTS, ids=_name)
def test_mutant_is_caught(parts: Parts, options: dict[str, Any]) -> None:
    seed_that_fails(lambda seed: run(seed, parts, **options), range(SEEDS))


@pytest.mark.parametrize("options", [LATE, EVICTING, LOST_SHARD, LOST_COORDINATOR])
def test_the_real_classes_pass(options: dict[str, Any]) -> None:
    outcomes = [run(seed, **options) for seed in range(3)]

    lost = options["faults"]
    assert sum(outcome.recoveries for outcome in outcomes) >= 3 * lost.recover
    assert sum(outcome.cuts for outcome in outcomes) >= 3 or options is LOST_COORDINATOR


def test_a_synchronous_model_does_not_depend_on_deaths_of_servers_and_coordinator() -> None:
    options = JOB | {"mode": "sync"}
    faults = Faults(
        shard_deaths=(0.2, 0.5), coordinator_deaths=(0.1, 0.35), cut_fails=0.3, until=3.0
    )

    disturbed = run(5, **(options | {"faults": faults}))

    assert disturbed.recoveries >= 2
    assert disturbed.digest == run(5, **options).digest
