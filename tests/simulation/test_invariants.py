"""Whole jobs under a seeded scheduler with faults; the simulation's referee has what must hold.

A failure prints SIM_SEED=<seed>; `SIM_SEED=<seed> pytest tests/simulation` runs that seed alone.
"""

import os
from dataclasses import replace
from functools import cache

import pytest

from ps.shard.shard import Shard
from scheduler.coordinator.modes.rules import ModeOptions
from simulation.engine import Outcome, Parts, SimulationError, run, run_scenario
from simulation.scenario import ARROWS, Arrow, Faults, draw, with_orders

SEEDS = range(80)  # thousands are tried in the slow tests
BLOCKS = 10


def seeds_of(block: int) -> list[int]:
    """Return one part of the seeds, or what SIM_SEED names."""
    chosen = os.environ.get("SIM_SEED")
    if chosen is not None:
        return [int(chosen)] if block == 0 else []
    return list(SEEDS)[block::BLOCKS]


@cache
def outcome_of(seed: int) -> Outcome:
    return run(seed)


@pytest.mark.parametrize("block", range(BLOCKS))
def test_a_job_ends_right_whatever_happens_to_it(block: int) -> None:
    for seed in seeds_of(block):
        outcome_of(seed)


@pytest.mark.parametrize("block", range(BLOCKS))
def test_a_job_ends_right_whatever_is_wanted_of_it_meanwhile(block: int) -> None:
    for seed in seeds_of(block):
        run_scenario(with_orders(draw(seed)), Parts())


@pytest.mark.parametrize("arrow", ARROWS)
def test_a_worker_may_die_at_every_arrow(arrow: Arrow) -> None:
    faults = Faults(kill=0.1, kill_at=arrow, max_kills=4, forever=0.5, until=4.0)

    outcomes = [run(seed, workers=3, shards=3, faults=faults) for seed in range(6)]

    assert sum(outcome.kills for outcome in outcomes) >= 6


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("shards", [1, 4])
def test_a_synchronous_model_does_not_depend_on_workers_or_shards(
    workers: int, shards: int
) -> None:
    scenario = draw(3, mode="sync", epochs=2, batches_per_epoch=7, group_size=3, max_seconds=None)
    alone = run_scenario(scenario.undisturbed(scenario.limit), Parts())

    many = replace(scenario, workers=workers, shards=shards, faults=Faults())
    outcome = run_scenario(many, Parts())

    assert outcome.digest == alone.digest


def test_a_model_depends_on_what_was_trained() -> None:
    options = {"mode": "sync", "faults": Faults(), "max_seconds": None}

    digests = {
        run(5, batches_per_epoch=6, epochs=2, limit=limit, **options).digest for limit in (10, 11)
    }

    assert len(digests) == 2


def test_the_seeds_meet_what_they_are_meant_for() -> None:
    outcomes = [outcome_of(seed) for seed in SEEDS[::2]]

    def total(field: str) -> int:
        return sum(getattr(outcome, field) for outcome in outcomes)

    assert total("kills") > 10
    assert total("reissued") > 20
    assert total("superseded") > 0
    assert total("late_gradients") > 0
    assert total("steps") > 200
    assert any(len(outcome.evaluations) > 1 for outcome in outcomes)
    assert total("recoveries") > 20
    assert total("cuts") > 20
    assert total("failed_cuts") > 0
    strict = ModeOptions(staleness_bound=0)
    assert sum(run(seed, mode="gba", mode_options=strict).dropped for seed in range(6)) > 0


def test_a_seed_repeats_exactly() -> None:
    assert repr(run(4)) == repr(outcome_of(4))


def test_a_failure_tells_its_seed_and_its_story() -> None:
    class Forgetful(Shard):
        def handle(self, message, sender):  # type: ignore[no-untyped-def]
            self.buffer.__init__(max_contributions=99, max_bytes=1 << 30)  # type: ignore[misc]
            return super().handle(message, sender)

    with pytest.raises(SimulationError) as caught:
        run(
            1,
            Parts(shard=Forgetful),
            faults=Faults(),
            bad_batches=0.0,
            non_finite=0.0,
            dense_clip_norm=None,
        )

    text = str(caught.value)
    assert text.startswith("SIM_SEED=1: ")
    assert "the story of batch" in text
    assert "shard 0 holds attempt 0" in text


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("block", range(8))
def test_thousands_of_jobs_end_right(block: int) -> None:
    """Ten thousand recoveries in all blocks."""
    recoveries = 0
    for seed in range(1000 + 500 * block, 1000 + 500 * (block + 1)):
        for scenario in (draw(seed), with_orders(draw(seed))):
            recoveries += run_scenario(scenario, Parts()).recoveries

    assert recoveries >= 1250


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "faults",
    [
        Faults(duplicate=0.5, delay=0.3, lose=0.1, cut=0.02, until=4.0),
        Faults(kill=0.05, max_kills=12, pause=0.03, forever=0.5, until=4.0),
        Faults(lose=0.4, pause=0.05, kill=0.01, max_kills=3, until=4.0),
    ],
)
def test_jobs_under_heavy_faults_end_right(faults: Faults) -> None:
    outcomes: list[Outcome] = [run(seed, workers=3, faults=faults) for seed in range(400)]

    assert all(outcome.digest for outcome in outcomes)
