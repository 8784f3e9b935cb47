"""The plan of a simulated job as a stream: its batches arrive one after another, and are told."""

import math
import random
from collections.abc import Callable
from dataclasses import replace

from scheduler.coordinator.coordinator_state import CoordinatorState
from scheduler.coordinator.events import Event, PlanGrown
from scheduler.coordinator.growing_plan import Cursor, Extension, GrowingPlan, PlanState
from simulation.referee import require
from simulation.scenario import Scenario
from simulation.world import World
from worker.data.arrived import ArrivedFile, PlannedBatch
from worker.data.plan import FilePlan
from worker.protocol import Grant

# Longer than a job may stand still: nothing arrives, and nobody is to blame.
LONG_PAUSE_SECONDS = 50.0


class Arrivals:
    """What arrives when, each extension known to the driver from then on.

    Args:
        scenario: whose epochs are closed one after another, some only a while after their last
            batch.
        tell: tells the coordinator something.
    """

    def __init__(self, scenario: Scenario, world: World, tell: Callable[[Event], object]) -> None:
        self._scenario = scenario
        self._world = world
        self._tell = tell
        self._log: list[Extension] = []
        self._to_come = _extensions(scenario) if scenario.arrives else []

    def begin(self) -> None:
        """Let everything arrive at its time."""
        for seconds, extension in self._to_come:
            self._world.queue.at(seconds, self._arriver(extension))

    def taken_up(self, state: CoordinatorState) -> CoordinatorState:
        """Return the state that another coordinator begins with.

        A cut has its plan; what servers have kept may be of batches that came later.
        """
        if not self._scenario.arrives:
            return state
        plan = state.plan
        assert plan is not None, "a state of a job on a stream has its plan"
        ends, low_water = state.ledger.end, state.ledger.low_water
        if not plan.first <= low_water <= ends <= plan.planned:
            growing = GrowingPlan(PlanState(), lanes=1)
            for extension in self._log:
                if growing.planned < ends:
                    growing.grow(extension)
            growing.forget(below=low_water)
            plan = growing.state()
        return replace(state, plan=plan)

    def tell_again(self) -> None:
        """Tell a coordinator of all that has arrived; of some of it twice."""
        known = self._world.random.randrange(len(self._log) + 1)
        for extension in [*self._log[:known], *self._log]:
            self._tell(self._event(extension))

    def check(self, grant: Grant) -> None:
        """Every training batch comes with its rows."""
        if not self._scenario.arrives:
            return
        granted = [token.batch_id for token in grant.tokens if token.kind == "train"]
        told = {rows.batch_id: rows for rows in grant.rows}
        require(sorted(told) == sorted(granted), "{} came with rows of {}", granted, list(told))
        for batch_id, rows in told.items():
            (file,) = rows.files
            right = (batch_id, self._scenario.rows_of(batch_id))
            found = (file.number, sum(stop - start for _, _, start, stop in rows.rows))
            require(found == right, "batch {} has rows {}", right, found)
            require(rows.oldest_file <= batch_id, "batch {} is forgotten", batch_id)

    def _arriver(self, extension: Extension) -> Callable[[], None]:
        def arrive() -> None:
            self._log.append(extension)
            self._tell(self._event(extension))

        return arrive

    def _event(self, extension: Extension) -> PlanGrown:
        return PlanGrown(extension, math.inf if extension.ends else self._world.queue.now)


def _extensions(scenario: Scenario) -> list[tuple[float, Extension]]:
    rng = random.Random(f"arrivals {scenario.seed}")
    found: list[tuple[float, Extension]] = []
    now, batch_id = 0.0, 0

    def extend(count: int, *, closes: bool, ends: bool) -> None:
        files = tuple(
            ArrivedFile(i, i, FilePlan(f"{i}", 1, (scenario.rows_of(i),), ""), now)
            for i in range(batch_id, batch_id + count)
        )
        batches = tuple(
            PlannedBatch(((file.number, 0, 0, scenario.rows_of(file.number)),), now)
            for file in files
        )
        cursor = Cursor(next_file=batch_id + count, next_position=batch_id + count)
        found.append(
            (
                now,
                Extension(
                    first=batch_id,
                    batches=batches,
                    files=files,
                    closes=closes,
                    ends=ends,
                    cursor=cursor,
                ),
            )
        )

    long_pause = rng.randrange(scenario.epochs * 10)
    for epoch in range(scenario.epochs):
        left = scenario.batches_per_epoch
        while left:
            now += rng.expovariate(1 / rng.choice([0.01, 0.1]))
            if len(found) == long_pause:
                now += LONG_PAUSE_SECONDS
            count = rng.randint(1, min(3, left))
            left -= count
            last = left == 0 and epoch == scenario.epochs - 1
            closes = left == 0 and rng.random() < 0.5
            extend(count, closes=closes, ends=last and closes)
            batch_id += count
        if not closes:
            now += rng.uniform(0.0, 0.5)
            extend(0, closes=True, ends=last)
    return found
