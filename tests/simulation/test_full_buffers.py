"""Jobs whose shards have room for a few contributions only: they go on, and end alike."""

from dataclasses import replace
from typing import Any

import pytest

from ps.shard.shard import Shard
from scheduler.coordinator.allowance import Allowance
from scheduler.coordinator.coordinator import Coordinator
from simulation.engine import Parts, run, run_scenario, seed_that_fails
from simulation.scenario import Faults, draw, with_orders

ROOM = (1, 2, 4)


@pytest.mark.parametrize("room", ROOM)
def test_a_job_ends_right_with_hardly_any_room(room: int) -> None:
    for seed in range(ROOM.index(room), 30, len(ROOM)):
        ends_right(seed, room)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("room", ROOM)
def test_hundreds_of_jobs_end_right_with_hardly_any_room(room: int) -> None:
    for seed in range(300):
        ends_right(seed, room)


def ends_right(seed: int, room: int) -> None:
    for scenario in (draw(seed), with_orders(draw(seed))):
        run_scenario(replace(scenario, buffered=room), Parts())


@pytest.mark.parametrize("mode", ["sync", "gba"])
def test_a_model_in_sync_does_not_depend_on_the_room(mode: str) -> None:
    options: dict[str, Any] = {
        "mode": mode, "workers": 5, "shards": 3, "depth": 3, "group_size": 4, "epochs": 2,
        "batches_per_epoch": 9, "limit": None, "max_seconds": None, "faults": Faults(),
    }  # fmt: skip
    plenty, tight = (run(7, buffered=room, **options) for room in (None, 1))

    assert plenty.batches == tight.batches == 18
    if mode == "sync":
        assert plenty.digest == tight.digest


class RefusesWhateverIsTooMuch(Shard):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{**options, "always_buffered": 0})


class _NothingBeyondItsCredits(Allowance):
    def _is_needed_now(self) -> bool:
        return False


class GivesNothingBeyondItsCredits(Coordinator):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.allowance.__class__ = _NothingBeyondItsCredits


@pytest.mark.parametrize(
    ("parts", "first"),
    [
        (Parts(shard=RefusesWhateverIsTooMuch), 0),
        (Parts(coordinator=GivesNothingBeyondItsCredits), 10),
    ],
    ids=["shards without room for a step", "credits that hold back what a step waits for"],
)
def test_what_a_step_waits_for_must_always_have_room(parts: Parts, first: int) -> None:
    """Only a few seeds come to it: `first` did, and others are tried where it no longer does."""
    seed_that_fails(
        lambda seed: run_scenario(replace(draw(seed), buffered=1), parts), (first, *range(300))
    )
