"""Deliberate faults with pulls that had to wait and are answered some time after their step."""

from typing import Any

import pytest

from ps.messages.pull_push import ANY_STEP, Pull
from ps.shard.shard import Shard
from simulation.engine import Parts, run, seed_that_fails
from simulation.scenario import Faults

# Where a step is applied before all that waited for it were answered: some of its batches are void.
BACKUP: dict[str, Any] = {
    "mode": "backup",
    "workers": 5,
    "group_size": 3,
    "batches_per_epoch": 12,
    "shards": 2,
    "limit": None,
    "faults": Faults(delay=0.3, duplicate=0.1, cut=0.02, until=4.0),
}


class LosesWhatHasWaited(Shard):
    def take_ready(self) -> list[tuple[Any, Pull]]:
        return super().take_ready()[1:]


class NeverHandsBack(Shard):
    def take_ready(self) -> list[tuple[Any, Pull]]:
        return []


@pytest.mark.parametrize("mutant", [LosesWhatHasWaited, NeverHandsBack])
def test_a_wrong_answer_to_a_pull_that_has_waited_is_noticed(mutant: type[Shard]) -> None:
    seed_that_fails(lambda seed: run(seed, Parts(shard=mutant), **BACKUP), range(20))


def test_waiting_pulls_are_answered_or_superseded_and_every_batch_is_counted_once() -> None:
    superseded = 0

    class Counts(Shard):
        def answer(self, pull: Pull) -> Any:
            nonlocal superseded
            superseded += pull.at_step != ANY_STEP and pull.at_step < self.step
            return super().answer(pull)

    for seed in range(20):
        run(seed, Parts(shard=Counts), **BACKUP)

    assert superseded > 0
