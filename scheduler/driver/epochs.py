"""What runs in the current recovery epoch, and how all of it comes into the next one."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from ps.checkpoint.manifest import Parent
from ps.checkpoint.restore import MovedDense
from ps.client.client import ShardLostError
from ps.routing import Routing
from ps.shard.facts import ShardFacts
from scheduler.coordinator.coordinator_state import CoordinatorState
from scheduler.coordinator.rebuilding import longest_log, state_after, with_orders
from scheduler.coordinator.status import Status
from scheduler.driver.answers import answers_of
from scheduler.driver.full_disk import once_there_is_room
from scheduler.driver.launch import Launcher, UnlikePlaceError
from scheduler.driver.points import Point
from scheduler.driver.processes import (
    COORDINATOR,
    CoordinatorProcess,
    Processes,
    ProcessLostError,
    ServerProcess,
    Who,
)
from scheduler.driver.ray_calls import (
    CALL_TIMEOUT_SECONDS,
    MOVE_SECONDS,
    first_line,
    seconds_to_move,
)
from scheduler.driver.remote import control_facts
from scheduler.driver.resolved import JobSpecs
from scheduler.driver.setups import Setups
from scheduler.driver.stream_feed import StreamFeed
from scheduler.driver.workforce import Workforce
from scheduler.errors import StartError
from scheduler.run.directory import RunDirectory

# For a new standby to take the rest of what its server has, while nothing is trained.
FINISH_SECONDS = 5.0


class Epochs:
    """Begins every recovery epoch of a job: its first one, and those after a loss.

    Args:
        specs, launcher, processes, run: of the job.
        setups: what its processes are told.
        workforce: its workers.
        reached: notes when the start got so far.
        note: tells a person something.
        feed: of a job on a stream.

    Attributes:
        parent: the checkpoint that all servers began this epoch with, where a delta may lie on it.
    """

    parent: Parent | None = None

    def __init__(
        self,
        *,
        specs: JobSpecs,
        launcher: Launcher,
        processes: Processes,
        run: RunDirectory,
        setups: Setups,
        workforce: Workforce,
        reached: Callable[[str], None],
        note: Callable[[str], None],
        feed: StreamFeed | None,
    ) -> None:
        self._specs = specs
        self._launcher = launcher
        self._processes = processes
        self._run = run
        self._setups = setups
        self._workforce = workforce
        self._reached = reached
        self._note = note
        self._feed = feed
        self._begun = False
        # With which the coordinator of each epoch began or was to begin; of the last two.
        self._states: dict[int, CoordinatorState] = {}
        self._said_where: set[int] = set()

    def begin(
        self,
        point: Point | None,
        last: Status | None = None,
        *,
        stays: bool = False,
        other_routing: bool = False,
    ) -> CoordinatorState:
        """Have all processes work in a new epoch; lost ones were replaced before.

        Where it fails halfway it can be begun again: that is another epoch.

        Args:
            point: that all go back to. None: of each server's state a copy lives, which keeps what
                it holds, and the coordinator is another one; standbys that are made join them.
            last: what was known of the epoch before: what people have ordered holds on.
            stays: the job stands still at the point's step: servers that live and are at it keep
                what they hold.
            other_routing: and they go by another routing from here on.

        Returns:
            the state that the coordinator begins with.

        Raises:
            ProcessLostError: a server or the coordinator died meanwhile.
            StartError: the cluster has no place for a process in time.
            RayTaskError: a server can't take its part of the model.
            ValueError: what the servers hold is no state of the job.
        """
        if self._feed is not None:
            self._feed.hold()
        # On the disk first, so that nobody after us takes its number for another history.
        epoch = self._enter() if self._begun else self._run.recovery_epoch
        self._workforce.leave(epoch - 1)
        if not self._begun:
            self._begun = True
            self._workforce.begin(self._setups.worker_kernels())
        if point is None:
            state = self._kept(epoch, last)
        else:
            state = self._restored(epoch, point, last, stays=stays, other_routing=other_routing)
        if self._feed is not None:
            state = self._feed.taken_up(state, kept=point is None)
        # Servers that stay have changed since they were frozen last, or gave what was to another.
        bears = None if point is None or stays or other_routing else point.bears
        self.parent = None if bears is None or point is None else point.parent
        state = state.entered(epoch)
        before = {} if point is not None else self._states
        self._states = {**before, epoch: state}
        self._reached("servers")
        self._look_where_standbys_are()
        self._begin_coordinator(epoch, state, bears)
        if self._feed is not None:
            self._feed.feed(self._processes.coordinator.handle, epoch)
        self._reached("coordinator")
        self._say_where()
        processes = self._processes
        assert processes.coordinator.address is not None, "it has begun"
        self._workforce.go_to(
            self._setups.worker(
                addresses=processes.addresses,
                standbys=processes.standby_addresses,
                coordinator=processes.coordinator.address,
                relays=processes.relay_addresses,
                recovery_epoch=epoch,
            )
        )
        self._reached("workers")
        return state

    def _enter(self) -> int:
        """Raise the recovery epoch; raises OSError where there is no room on the disk for long."""
        return once_there_is_room(
            self._run.enter_epoch,
            seconds=self._specs.config.cluster.start_timeout_seconds,
            note=self._note,
        )

    def _say_where(self) -> None:
        """Let tools find the coordinator; where that can't be written they don't."""
        facts = control_facts(self._processes, recovery_epoch=self._run.recovery_epoch)
        try:
            self._run.write_control(facts)
        except OSError as error:
            self._note(f"control.json can't be written, so the job can't be found: {error}")

    def _restored(
        self,
        epoch: int,
        point: Point,
        last: Status | None,
        *,
        stays: bool,
        other_routing: bool,
    ) -> CoordinatorState:
        """Have all servers take their part of a point."""
        processes = self._processes
        at_it = self._servers_at(point.step) if stays and not other_routing else set()
        # Those that live read their part while others come up.
        calls: dict[Who, Any] = {}
        for who, server in processes.holding.items():
            if other_routing and server.watch is not None:
                calls[who] = server.handle.go_by.remote(
                    epoch, self._specs.store, str(point.checkpoint), point.step
                )
            elif who in at_it:
                calls[who] = server.handle.enter.remote(epoch)
            elif server.watch is not None:
                calls[who] = self._give_state(who, epoch, point)
        self._where_alike(lambda: self._launcher.bring_up_servers(processes))
        for who in processes.holding:
            if who not in calls:
                calls[who] = self._give_state(who, epoch, point)
        limit = self._specs.config.cluster.start_timeout_seconds
        answers_of(processes, calls, seconds=limit + seconds_to_move(point.num_bytes))
        return with_orders(point.state, last)

    def _where_alike(self, bring_up: Callable[[], None]) -> None:
        """Bring processes up, and replacements elsewhere where their bits would be others.

        Raises:
            UnlikePlaceError: one that is no replacement has come up where they would.
            StartError: there is no other place in time.
        """
        refused: list[str] = []
        while True:
            try:
                return bring_up()
            except UnlikePlaceError as error:
                if self._processes.of(error.who).incarnation == 0:
                    raise
                refused.append(str(error))
                self._note(f"{error}. Another node is looked for")
                self._processes.placement.avoid(error.who[0], error.node)
                self.replace([error.who])
            except StartError as error:
                if not refused:
                    raise
                text = f"{error}; nodes were left out: {'; '.join(refused)}"
                raise StartError(text) from error

    def _servers_at(self, step: int) -> set[Who]:
        """Have the servers that are up leave their epoch; return those that are at a step."""
        leaving: dict[Who, Any] = {
            who: server.handle.leave.remote()
            for who, server in self._processes.holding.items()
            if server.watch is not None
        }
        facts: dict[Who, ShardFacts] = answers_of(self._processes, leaving)
        return {who for who, its in facts.items() if its.step == step}

    def _kept(self, epoch: int, last: Status | None) -> CoordinatorState:
        """Bring all copies to the step of the one that is furthest, see `rebuilding`."""
        processes = self._processes
        # From here on nobody takes a record of the coordinator before, be it alive or not.
        leaving = processes.of_copies(lambda handle: handle.leave.remote())
        facts: dict[Who, ShardFacts] = answers_of(processes, leaving)
        who = list(facts)[longest_log(list(facts.values()))]
        step, of_epoch = facts[who].step, facts[who].recovery_epoch
        if of_epoch not in self._states:
            raise ValueError(f"no coordinator has begun in recovery epoch {of_epoch}")
        behind = [other for other, its in facts.items() if its.step < step]
        if behind:
            lowest = min(facts[other].step for other in behind)
            asked = processes.process(who).handle.log_from.remote(lowest)
            log = answers_of(processes, {who: asked})[who]
            calls = {}
            for other in behind:
                lacks = tuple(record for record in log if record.step >= facts[other].step)
                calls[other] = processes.process(other).handle.catch_up.remote(lacks)
            answers_of(processes, calls, seconds=MOVE_SECONDS)
        self._join(step)
        begun = self._states[of_epoch]
        state = state_after(facts[who], begun, last, self._specs.coordinator)
        # Whoever enters it begins with this, whether all of them come to do so or not.
        self._states = {of_epoch: begun, epoch: state}
        answers_of(processes, processes.of_copies(lambda handle: handle.enter.remote(epoch)))
        return state

    def _join(self, step: int) -> None:
        """Make standbys of the copies that can be brought to a step, at which all servers are."""
        processes = self._processes
        calls = {
            index: processes.servers[index].handle.finish_journal.remote(FINISH_SECONDS)
            for index, copy in processes.copies.items()
            if copy.is_near
        }
        for index, call in calls.items():
            try:
                reached = ray.get(call, timeout=FINISH_SECONDS + CALL_TIMEOUT_SECONDS)
            except (RayError, GetTimeoutError) as error:
                self._note(f"server {index} gets no standby yet: {first_line(error)}")
                continue
            if reached == step:
                processes.standbys[index] = processes.copies.pop(index)
                self._note(
                    f"server {index} has a standby: {processes.describe(('standby', index))}"
                )

    def _look_where_standbys_are(self) -> None:
        """Say which standbys are on the node of their server, once."""
        processes = self._processes
        alike = {
            index
            for index, standby in processes.standbys.items()
            if standby.facts.get("node") == processes.servers[index].facts.get("node")
        }
        if alike - self._said_where:
            self._note(
                f"servers {sorted(alike)} and their standbys are on one node each: the cluster had"
                " no other place. What befalls the node takes both, and the job then goes back to"
                " a checkpoint"
            )
        self._said_where |= alike

    def replace(self, lost: Collection[Who]) -> list[int] | None:
        """Put others in the place of lost processes: standbys, or new ones that come up fenced.

        Returns:
            the servers whose standbys took their places; None where a server is lost of whose state
            there is no copy.
        """
        processes, launcher = self._processes, self._launcher
        whole, promoted = True, []
        for who in sorted(lost, reverse=True):  # standbys first: those that live are promoted
            role, index = who
            if who == COORDINATOR:
                launcher.replace_coordinator(processes)
            elif role == "standby":
                launcher.drop_standby(processes, index)
            elif index in processes.standbys:
                launcher.promote(processes, index)
                promoted.append(index)
            else:
                launcher.replace_server(processes, self._setups.server, index)
                whole = False
        return sorted(promoted) if whole else None

    def resize(self, new: Mapping[Who, ServerProcess], routing: Routing) -> bool:
        """Have as many servers as a routing is of: new ones join, or the last ones end.

        Returns:
            whether there were standbys: they have ended, as they would have the buckets of before.
        """
        had_standbys = bool(self._processes.standbys)
        self._launcher.resize(self._processes, new, routing.num_shards)
        self._specs.go_by(routing)
        return had_standbys

    def take_over(self, new: Mapping[Who, ServerProcess | CoordinatorProcess]) -> None:
        """Have processes that came up elsewhere take their places."""
        self._launcher.take_over(self._processes, new)

    def _give_state(self, who: Who, epoch: int, point: Point) -> Any:
        """Have a server take its part of a point: the job's own, or what the job began from."""
        handle, index = self._processes.process(who).handle, who[1]
        if point.checkpoint is not None:
            return handle.start_from.remote(
                epoch, str(point.checkpoint), goes_on=True, store=self._specs.store
            )
        beginning, part = self._specs.beginning, self._setups.dense_part(index)
        if beginning.checkpoint is None:
            return handle.initialize.remote(epoch, part, self._specs.store)
        moved, sources = None, beginning.dense_sources
        if sources is not None:
            moved = MovedDense(part, sources[slice(*self._specs.store.routing.dense_range(index))])
        return handle.start_from.remote(
            epoch,
            beginning.checkpoint,
            goes_on=beginning.start.goes_on,
            moved=moved,
            adapt=beginning.adapts,
            store=self._specs.store,
        )

    def _begin_coordinator(self, epoch: int, state: CoordinatorState, bears: int | None) -> None:
        try:
            self._where_alike(
                lambda: self._launcher.begin_coordinator(
                    self._processes,
                    replace(self._specs.coordinator, recovery_epoch=epoch, deltas_below=bears),
                    self._setups.coordinator(self._processes.coordinator.incarnation),
                    state,
                )
            )
        except RayTaskError as error:
            cause = error.cause
            if not isinstance(cause, ShardLostError):
                raise
            who = self._processes.who_is(cause.shard)
            text = f"{self._processes.describe(who)} can't be reached by the coordinator: {cause}"
            raise ProcessLostError({who: text}) from error
