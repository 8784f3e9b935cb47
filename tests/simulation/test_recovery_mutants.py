"""Deliberate faults in a change of recovery epoch: the simulation notices each, and only there.

Everything begins anew where the job began, while messages, pulls that wait and batches of the epoch
before are still under way; batches and steps have the same names in both.
"""

from dataclasses import replace
from typing import Any

import pytest

from embedding.table.variable import EmbeddingVariable
from ps.client.dense_copies import DenseCopies, DenseCopy
from ps.shard.evicted_keys import EvictedKeys
from ps.shard.shard import Shard
from scheduler.coordinator.coordinator import Coordinator
from scheduler.coordinator.events import Command
from scheduler.coordinator.spec import CutOptions
from simulation.engine import Parts, run, seed_that_fails
from simulation.scenario import Faults
from simulation.worker import SimulatedWorker
from worker.protocol import Grant, Report, Token
from worker.session import Session

# Shards -------------------------------------------------------------------------------------------


class KeepsRecords(Shard):
    def enter(self, recovery_epoch: int, **options: Any) -> None:
        records = self.log.copy()
        super().enter(recovery_epoch, **options)
        self.log.extend(records)


class KeepsItsBuffer(Shard):
    def enter(self, recovery_epoch: int, **options: Any) -> None:
        clear = self.buffer.clear
        self.buffer.clear = lambda: None  # type: ignore[method-assign]
        super().enter(recovery_epoch, **options)
        self.buffer.clear = clear  # type: ignore[method-assign]


class _NeverClears(EvictedKeys):
    def clear(self) -> None:
        pass


class RemembersEvictions(Shard):
    def enter(self, recovery_epoch: int, **options: Any) -> None:
        for evicted in self._evicted:
            evicted.__class__ = _NeverClears
        super().enter(recovery_epoch, **options)


class KeepsRows(Shard):
    def empty_tables(self) -> list[EmbeddingVariable]:
        return self.tables


# The coordinator and workers ----------------------------------------------------------------------


class TakesReportsOfAnotherEpoch(Coordinator):
    def _take(self, report: Report, commands: list[Command], now: float) -> Grant | None:
        mine = replace(report, recovery_epoch=self.spec.recovery_epoch)
        return super()._take(mine, commands, now)


class TakesGrantsOfAnotherEpoch(Session):
    def granted(self, grant: Grant) -> list[Token]:
        return super().granted(replace(grant, recovery_epoch=self.recovery_epoch))


class _KnownByStep(DenseCopies):
    def latest(self, recovery_epoch: int) -> DenseCopy:
        self._latest.recovery_epoch = recovery_epoch
        return super().latest(recovery_epoch)


class KnowsDenseParametersByTheirStep(SimulatedWorker):
    dense_copies_class = _KnownByStep


# What catches them --------------------------------------------------------------------------------

SEEDS = 16
_SOME = Faults(recoveries=(0.15, 0.35, 0.6), duplicate=0.1, delay=0.1, until=3.0)
# A worker whose session is young may be answered what the one before has asked.
_OFTEN = replace(_SOME, recoveries=(0.05, 0.1, 0.15, 0.2, 0.3, 0.4), delay=0.3, duplicate=0.3)
BUSY: dict[str, Any] = {
    "workers": 4,
    "shards": 3,
    "batches_per_epoch": 24,
    "epochs": 1,
    "limit": None,
    "max_seconds": None,
    "cuts": CutOptions(),
    "faults": _SOME,
}
_ASYNC: dict[str, Any] = BUSY | {"mode": "async"}
_EVICTING: dict[str, Any] = _ASYNC | {"steps_to_live": 1, "group_size": 1, "evict_every_steps": 1}
# Steps that a worker knows of the epoch before come again.
_LATER: dict[str, Any] = _ASYNC | {
    "workers": 3,
    "batches_per_epoch": 60,
    "faults": replace(_SOME, recoveries=(0.4, 0.8, 1.2, 1.6, 2.0)),
}
MUTANTS: list[tuple[Parts, dict[str, Any]]] = [
    (Parts(shard=KeepsItsBuffer), BUSY),
    (Parts(shard=KeepsRecords), _ASYNC),
    (Parts(shard=RemembersEvictions), _EVICTING),
    (Parts(shard=KeepsRows), BUSY),
    (Parts(coordinator=TakesReportsOfAnotherEpoch), BUSY),
    (Parts(session=TakesGrantsOfAnotherEpoch), BUSY | {"faults": _OFTEN}),
    (Parts(worker=KnowsDenseParametersByTheirStep), _LATER),
]


def _name(value: object) -> str:
    if not isinstance(value, Parts):
        return ""
    kinds, usual = (
        (parts.shard, parts.coordinator, parts.session, parts.worker) for parts in (value, Parts())
    )
    return next(kind.__name__ for kind, real in zip(kinds, usual, strict=True) if kind is not real)


@pytest.mark.parametrize(("parts", "options"), MUTANTS, ids=_name)
def test_mutant_is_caught_where_the_recovery_epoch_changes_and_only_there(
    parts: Parts, options: dict[str, Any]
) -> None:
    one_history = replace(options["faults"], recoveries=())

    seed = seed_that_fails(lambda seed: run(seed, parts, **options), range(SEEDS))

    run(seed, parts, **(options | {"faults": one_history}))


@pytest.mark.parametrize("options", [BUSY, _EVICTING, BUSY | {"faults": _OFTEN}])
def test_real_classes_pass_where_the_recovery_epoch_changes(options: dict[str, Any]) -> None:
    outcomes = [run(seed, **options) for seed in range(SEEDS)]

    assert sum(outcome.recoveries for outcome in outcomes) > SEEDS


def test_a_synchronous_model_does_not_depend_on_recoveries() -> None:
    options = BUSY | {"mode": "sync"}

    disturbed = run(5, **options)

    assert disturbed.recoveries > 0
    assert disturbed.digest == run(5, **(options | {"faults": Faults()})).digest
