"""A whole job in one thread and on a virtual clock: a seed, its faults, and what must hold.

The real coordinator, shards and worker sessions run under one event queue; network, processes and
data are simulated. `run(seed)` repeats a failure exactly.
"""

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from simulation.data import Workload
from simulation.job import Simulation
from simulation.outcome import Outcome
from simulation.parts import Parts
from simulation.referee import Violation
from simulation.replay import Replay
from simulation.scenario import Scenario, draw


class SimulationError(AssertionError):
    """A run in which something does not hold; the text says how to repeat it."""

    def __init__(self, scenario: Scenario, error: Exception, story: str) -> None:
        self.scenario, self.error = scenario, error
        super().__init__(
            f"SIM_SEED={scenario.seed}: {type(error).__name__}: {error}\n{scenario}\n{story}"
        )


def run(seed: int, parts: Parts | None = None, **options: Any) -> Outcome:
    """Simulate one job and check it; options are fields of `Scenario` that are not to be drawn.

    Raises:
        SimulationError: an invariant does not hold.
    """
    return run_scenario(draw(seed, **options), parts or Parts())


def run_scenario(scenario: Scenario, parts: Parts) -> Outcome:
    """Simulate a scenario and check it, its model against a run without faults or a replay."""
    simulation = Simulation(scenario, parts)
    try:
        outcome = simulation.run()
        _compare(simulation, outcome)
    except Exception as error:
        batch = error.batch if isinstance(error, Violation) else None
        raise SimulationError(scenario, error, simulation.world.story.of(batch)) from error
    return outcome


def seed_that_fails(run: Callable[[int], object], seeds: Iterable[int]) -> int:
    """Return the first seed with which what runs is found wrong.

    Raises:
        AssertionError: it passes with all of them.
    """
    tried = 0
    for seed in seeds:
        try:
            run(seed)
        except SimulationError:
            return seed
        tried += 1
    raise AssertionError(f"nothing was noticed with {tried} seeds")


def _compare(simulation: "Simulation", outcome: Outcome) -> None:
    """Hold the model against what it has to be."""
    scenario, seen = simulation.scenario, simulation.referee.seen
    if scenario.mode == "sync" and not scenario.shifts:
        limit = simulation.coordinator.ledger.low_water
        expected = _undisturbed(scenario.undisturbed(limit))
        if outcome.digest != expected.digest:
            raise Violation("the model differs from the one of a run without faults")
        right = {result.step: result for result in expected.evaluations}
        steps = [result.step for result in outcome.evaluations]
        # What a coordinator evaluated just before it died, nobody may have heard.
        gaps = scenario.ends_early or simulation.driver.rebuilt
        if steps != list(right) and not gaps:
            raise Violation(f"evaluated at steps {steps}, without faults at {list(right)}")
        for result in outcome.evaluations:
            if repr(right.get(result.step, result)) != repr(result):
                raise Violation(f"evaluated {result}, without faults {right[result.step]}")
        return
    replay = Replay(Workload(scenario, shards=1), simulation.workload.store, simulation.earlier)
    replay.run(seen, list(outcome.evaluations))
    if replay.digest() != outcome.digest:
        raise Violation("the model differs from a replay of its records in the order of k")


@lru_cache(maxsize=4096)
def _undisturbed(scenario: Scenario) -> Outcome:
    return Simulation(scenario, Parts()).run()
