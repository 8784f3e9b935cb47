"""Moves what runs on nodes that will be taken away to other ones, before they go."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import ray
from ray.exceptions import RayError

from scheduler.coordinator.events import CutWanted, HoldWanted, Wanted
from scheduler.coordinator.status import Status, stands_still
from scheduler.driver.draining import draining_nodes
from scheduler.driver.launch import Launcher
from scheduler.driver.processes import (
    COORDINATOR,
    CoordinatorProcess,
    Processes,
    ServerProcess,
    Who,
)
from scheduler.driver.ray_calls import CALL_TIMEOUT_SECONDS, first_line
from scheduler.driver.setups import Setups
from scheduler.driver.workforce import Workforce
from scheduler.run.recoveries import DrainNotice

LOOK_SECONDS = 1.0
# What is left until a deadline, below which nothing is waited for that can be gone without.
HURRY_SECONDS = 5.0


class MoveReadyError(Exception):
    """All stands still at a step that is saved: the job can begin another epoch there.

    Args:
        what: that moves, for people.
        new: processes that are up and have no state yet, by whose place they take.
        step: at which all servers are.
    """

    def __init__(self, what: str, new: dict[Who, ServerProcess | CoordinatorProcess], step: int):
        super().__init__(what)
        self.what, self.new, self.step = what, new, step


@dataclass(slots=True)
class _Move:
    """A move that is under way.

    Args:
        nodes: from which; `until` is when the first of them may go, as `time.time()`.
        new: the processes that come up elsewhere.
        saved: whether the first cut has ended, so that the one of the hold is small.
        holds: whether the job was told to stand still; `asks`: and to take a cut then.
    """

    nodes: frozenset[str]
    until: float
    new: dict[Who, ServerProcess | CoordinatorProcess]
    saved: bool = False
    holds: bool = False
    asks: bool = False


@dataclass(slots=True)
class Moves:
    """Looks for nodes that are being drained, and has what runs there move.

    Workers move one by one: another one comes up elsewhere and takes the place. Servers and the
    coordinator move together: processes come up elsewhere while the job trains and a cut is
    written; then the job stands still for as long as it takes to write what has changed since, and
    begins another recovery epoch at that very step. Where there is no room until the deadline they
    stay: once the node goes the job goes back to its newest checkpoint.

    Args:
        processes, workforce, launcher: of the job.
        setups: what its processes are told.
        order: tells the coordinator what is wanted.
        note: tells a person something.
        patience: how long processes may take to come up where no deadline is known.
        nodes, clock: which nodes are being drained, and what time it is.

    Attributes:
        notices: of all nodes so far that anything ran on.
        drained: ids of all nodes that were ever seen being drained.
    """

    processes: Processes
    workforce: Workforce
    launcher: Launcher
    setups: Setups
    order: Callable[[Wanted], None]
    note: Callable[[str], None]
    patience: float
    nodes: Callable[[], dict[str, float | None]] = lambda: draining_nodes()
    clock: Callable[[], float] = time.time
    notices: list[DrainNotice] = field(default_factory=list)
    drained: set[str] = field(default_factory=set)
    _draining: dict[str, float | None] = field(default_factory=dict)
    _next_look: float = 0.0
    _stay: set[str] = field(default_factory=set)
    _move: _Move | None = None
    _saved_step: int | None = None
    _begun_step: int = 0

    def look(self, status: Status) -> None:
        """Go on with what can be done without waiting.

        Raises:
            MoveReadyError: the rest is to begin another recovery epoch.
            ProcessLostError: the coordinator is gone.
        """
        now = self.clock()
        if now >= self._next_look:
            self._next_look = now + LOOK_SECONDS
            self._draining = self.nodes()
            self._take_notice(now)
        if status.trained:  # what is left is short, and done anew after a loss
            self._give_up(None)
        elif self._move is None:
            self._begin(now)
        elif not self._move.holds:
            self._hold_once_ready(self._move, status, now)
        else:
            self._go_once_saved(self._move, status)

    def cut_ended(self, step: int | None) -> None:
        """A cut is written (its step), or could not be."""
        self._saved_step = step
        move = self._move
        if move is None:
            return
        move.saved = True
        if step is None and move.asks:
            self._give_up("the checkpoint that it needs could not be written")

    def begin_epoch(self, step: int) -> None:
        """The job is in another recovery epoch from a step on; what is to move begins anew."""
        self._saved_step, self._begun_step = None, step
        if self._move is not None:
            self._end(self._move)

    @property
    def is_busy(self) -> bool:
        """Whether servers or the coordinator are about to move."""
        return self._move is not None

    def is_on_drained_node(self, who: Who) -> bool:
        """Whether a process ran where everything had to go."""
        return self._node_of(who) in self.drained

    # Inside -----------------------------------------------------------------------------------

    def _node_of(self, who: Who) -> str | None:
        return self.processes.of(who).facts.get("node")

    def _stateful_on(self, nodes: set[str]) -> list[Who]:
        everyone: list[Who] = [COORDINATOR]
        everyone += [("server", index) for index in range(len(self.processes.servers))]
        return [who for who in everyone if self._node_of(who) in nodes]

    def _take_notice(self, now: float) -> None:
        for node, deadline in self._draining.items():
            if node in self.drained:
                continue
            self.drained.add(node)
            names = [self.processes.describe(who) for who in self._stateful_on({node})]
            names += [
                f"worker {w.index}" for w in self.processes.workers.values() if w.node == node
            ]
            if not names:
                continue
            left = None if deadline is None else max(0.0, deadline - now)
            self.notices.append(DrainNotice(now, node, left, tuple(names)))
            when = "soon" if left is None else f"in {left:.0f} s"
            self.note(f"node {node[:8]} will be taken away {when}; on it: {', '.join(names)}")
        if self.drained:
            self.processes.placement.shun(self.drained)
        self.workforce.leave_nodes(self.drained)

    def _begin(self, now: float) -> None:
        nodes = self._draining.keys() - self._stay
        whose = self._stateful_on(nodes)
        if not whose:
            return
        nodes = {node for node in nodes if node in {self._node_of(who) for who in whose}}
        deadlines = [self._draining[node] for node in nodes]
        until = min((d for d in deadlines if d is not None), default=now + self.patience)
        new = {who: self._elsewhere(who) for who in whose}
        self.processes.coming = new
        self._move = _Move(frozenset(nodes), until, new)
        self.order(CutWanted(full=False))

    def _elsewhere(self, who: Who) -> ServerProcess | CoordinatorProcess:
        """Create a process that may take another one's place, on a node that stays."""
        if who == COORDINATOR:
            return self.launcher.coordinator_elsewhere(self.processes)
        return self.launcher.server_elsewhere(self.processes, self.setups.server, who[1])

    def _hold_once_ready(self, move: _Move, status: Status, now: float) -> None:
        calls = [process.begun for process in move.new.values()]
        _, late = ray.wait(calls, num_returns=len(calls), timeout=0)
        if late:
            if now > move.until:
                self._give_up("the cluster has had no other place for it in time")
            return
        if not move.saved and move.until - now > HURRY_SECONDS:
            return
        try:
            for process in move.new.values():
                process.facts = process.facts or ray.get(
                    process.handle.describe.remote(), timeout=CALL_TIMEOUT_SECONDS
                )
        except (RayError, TimeoutError) as error:
            self._give_up(f"what was to take its place has failed: {first_line(error)}")
            return
        if any(process.facts["node"] in self._draining for process in move.new.values()):
            self._give_up("the other place that the cluster has will be taken away too")
            return
        move.holds = True
        self.order(HoldWanted(True))

    def _go_once_saved(self, move: _Move, status: Status) -> None:
        if stands_still(status, self._saved_step):
            self._move, self.processes.coming = None, {}
            what = ", ".join(self.processes.describe(who) for who in move.new)
            raise MoveReadyError(what, move.new, status.step)
        if not move.asks and status.held and status.step == status.applied_step:
            move.asks = True
            # A delta of nothing is not written.
            self.order(CutWanted(full=status.step == self._begun_step))

    def _give_up(self, why: str | None) -> None:
        """Leave things where they are, until their nodes go."""
        move = self._move
        if move is None:
            return
        self._end(move)
        if move.holds:
            self.order(HoldWanted(False))
        if why is not None:
            self._stay |= move.nodes
            what = ", ".join(self.processes.describe(who) for who in move.new)
            self.note(f"{what} can't move: {why}")

    def _end(self, move: _Move) -> None:
        self._move, self.processes.coming = None, {}
        for process in move.new.values():
            ray.kill(process.handle)
