"""Buckets move between shards that have standbys, while copies die and others are made.

What is held against it: whenever an epoch begins each key has one owner, all copies go by one
routing, and a standby holds what its primary holds, to the bit; the model is as if nothing moved.
"""

from typing import Any

import pytest

import simulation.recovery
from ps.shard.shard import Shard
from ps.spec import StoreSpec
from simulation.engine import Outcome, Parts, run, run_scenario, seed_that_fails
from simulation.recovery import Driver
from simulation.resizing import Incoming, takes_over
from simulation.scenario import Faults, Scenario, draw, with_orders, with_resizes_of_copies

RESIZING: dict[str, Any] = {
    "mode": "async", "workers": 3, "shards": 3, "batches_per_epoch": 40, "epochs": 1, "limit": None,
    "max_seconds": None, "eval_batches": 0,
    "faults": Faults(resizes=(0.02, 0.9), delay=0.05, until=3.0),
}  # fmt: skip
WITH_STANDBYS = RESIZING | {"standby": True}


def scenario(seed: int) -> Scenario:
    found = with_resizes_of_copies(draw(seed))
    return with_orders(found) if seed % 4 == 0 else found


@pytest.mark.parametrize("block", range(3))
def test_whatever_befalls_copies_while_buckets_move_the_job_ends_right(block: int) -> None:
    outcomes = [run_scenario(scenario(seed), Parts()) for seed in range(block, 9, 3)]

    assert any(outcome.resizes for outcome in outcomes)


def test_standbys_are_made_again_after_a_move_and_take_the_place_of_who_dies() -> None:
    faults = Faults(resizes=(0.02,), shard_deaths=(3.0,), delay=0.05, until=4.0)
    options = WITH_STANDBYS | {"batches_per_epoch": 80, "faults": faults}

    outcomes = [run(seed, **options) for seed in range(3)]

    assert all(outcome.resizes == 1 and outcome.copies > 0 for outcome in outcomes)
    assert any(outcome.promotions for outcome in outcomes)


def test_a_standby_that_keeps_what_it_holds_when_buckets_have_moved_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def takes_over_anyway(
        incoming: list[Incoming], shard: Shard, store: StoreSpec, step: int
    ) -> bool:
        if not takes_over(incoming, shard, store, step):
            shard.go_by(store)
        return True

    monkeypatch.setattr(Driver, "end_standbys", lambda driver: None)
    monkeypatch.setattr(simulation.recovery, "takes_over", takes_over_anyway)

    for seed in range(2):
        assert run(seed, **RESIZING).resizes > 0
    seed_that_fails(lambda seed: run(seed, **WITH_STANDBYS), range(2))


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_thousands_of_moves_of_buckets_with_standbys_end_right() -> None:
    outcomes: list[Outcome] = [run_scenario(scenario(seed), Parts()) for seed in range(1000, 3000)]

    assert sum(outcome.resizes for outcome in outcomes) > 1000
    assert sum(outcome.promotions for outcome in outcomes) > 500
