"""The classes and functions that a simulated job is made of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ps.shard.facts import ShardFacts
from ps.shard.lease import CoordinatorLease
from ps.shard.shard import Shard
from scheduler.coordinator.coordinator import Coordinator
from scheduler.coordinator.coordinator_state import CoordinatorState
from scheduler.coordinator.rebuilding import longest_log, state_after
from scheduler.coordinator.spec import CoordinatorSpec
from scheduler.coordinator.status import Status, stands_still
from simulation.resizing import Incoming
from simulation.worker import SimulatedWorker
from worker.relay.gathering import Gathering
from worker.session import Session

Rebuild = Callable[[ShardFacts, CoordinatorState, Status | None, CoordinatorSpec], CoordinatorState]


@dataclass(frozen=True, slots=True)
class Parts:
    """What is under test; a mutant takes the place of one of them."""

    coordinator: type[Coordinator] = Coordinator
    shard: type[Shard] = Shard
    lease: type[CoordinatorLease] = CoordinatorLease
    session: type[Session] = Session
    worker: type[SimulatedWorker] = SimulatedWorker
    longest: Callable[[Sequence[ShardFacts]], int] = longest_log
    rebuild: Rebuild = state_after
    incoming: type[Incoming] = Incoming
    gathering: type[Gathering] = Gathering
    stands_still: Callable[[Status, int | None], bool] = stands_still
