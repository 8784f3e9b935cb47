"""Deliberate faults in the round of global-norm clipping: the simulation notices each of them."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ps.messages.exchange import Reply
from ps.messages.pull_push import Contribution
from ps.messages.records import DenseNorm, Record
from ps.shard.shard import Shard
from scheduler.coordinator.coordinator import Coordinator
from scheduler.coordinator.dense_norms import DenseNorms
from scheduler.coordinator.events import Command
from simulation.engine import Parts, run, seed_that_fails
from simulation.scenario import Faults

# Shards -------------------------------------------------------------------------------------------


class LeavesTheFactorOut(Shard):
    def _update(self, record: Record, contributions: list[Contribution]) -> None:
        super()._update(replace(record, dense_factor=1.0), contributions)


class MeasuresSums(Shard):
    """The norm of the sum, not of the mean."""

    def _measure(self, message: DenseNorm) -> Reply:
        return super()._measure(replace(message, divisor=1))


class MeasuresOnlyTheFirst(Shard):
    def _measure(self, message: DenseNorm) -> Reply:
        return super()._measure(replace(message, entries=message.entries[:1]))


class AppliesAsItMeasures(Shard):
    """What was read is written, too: a measurement that comes again does harm."""

    def _measure(self, message: DenseNorm) -> Reply:
        reply = super()._measure(message)
        self.dense.rows[:, 0] += 1
        return reply


# The coordinator ----------------------------------------------------------------------------------


class _WithNorms(Coordinator):
    norms_class: type[DenseNorms]

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.dense_norms.__class__ = self.norms_class


class _NeverClips(DenseNorms):
    def measured(self, step: int, parts: Any) -> list[Command]:
        return super().measured(step, [np.zeros(1)])


class NeverClips(_WithNorms):
    norms_class = _NeverClips


class _AddsShardByShard(DenseNorms):
    def measured(self, step: int, parts: Any) -> list[Command]:
        return super().measured(step, [np.cumsum(part)[-1:] for part in parts])


class AddsNormsShardByShard(_WithNorms):
    """Its factors are right but for the last bit."""

    norms_class = _AddsShardByShard


class _SendsAsMeasured(DenseNorms):
    def _send_known(self) -> list[Command]:
        waiting = {step: self._held.pop(step) for step in self.awaited}
        commands = super()._send_known()
        self._held = waiting
        return commands


class SendsStepsAsTheyAreMeasured(_WithNorms):
    norms_class = _SendsAsMeasured


# What catches them --------------------------------------------------------------------------------

SEEDS = 5
_LATE = Faults(duplicate=0.3, delay=0.2, cut=0.03, until=3.0)
CLIPPING: dict[str, Any] = {"dense_clip_norm": 5.0, "faults": _LATE}
MUTANTS: list[tuple[Parts, dict[str, Any]]] = [
    (Parts(shard=LeavesTheFactorOut), {}),
    (Parts(shard=MeasuresSums), {}),
    (Parts(shard=MeasuresOnlyTheFirst), {"mode": "sync", "group_size": 4, "batches_per_epoch": 10}),
    (Parts(shard=AppliesAsItMeasures), {}),
    (Parts(coordinator=NeverClips), {}),
    (Parts(coordinator=AddsNormsShardByShard), {"shards": 2, "batches_per_epoch": 24}),
    (Parts(coordinator=SendsStepsAsTheyAreMeasured), {"mode": "async", "workers": 4}),
]


def _name(value: object) -> str:
    if isinstance(value, Parts):
        return (value.shard if value.shard is not Shard else value.coordinator).__name__
    return ""


@pytest.mark.parametrize(("parts", "options"), MUTANTS, ids=_name)
def test_mutant_is_caught_where_the_real_classes_pass(
    parts: Parts, options: dict[str, Any]
) -> None:
    seed = seed_that_fails(lambda seed: run(seed, parts, **CLIPPING, **options), range(SEEDS))

    run(seed, **CLIPPING, **options)


def test_clipping_makes_another_model() -> None:
    digests = {
        run(5, mode="sync", dense_clip_norm=limit, faults=Faults(), max_seconds=None).digest
        for limit in (None, 5.0, 1e9)
    }

    assert len(digests) == 2, "a limit that is never reached changes no bit"
