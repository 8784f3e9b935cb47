"""Other servers, or other buckets on them, while the job trains: buckets move between them.

The order of it: new servers come up; a cut is taken and written as any other, and every server
that gets buckets takes in what it has of them; then what changed since, from one delta after
another, until that is little. Then the job stands still (`HoldWanted`), a last delta is taken in at
that very step, and all enter the next recovery epoch, in which they go by the new routing
(`Epochs.begin`). Until then nothing of the old routing has changed: whatever fails is given up, and
begun again later. From then on there is the checkpoint of that step, from which any servers can go
on.
"""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
from ray.exceptions import GetTimeoutError, RayError

from ps.routing import Routing
from ps.server.moving import TakenIn
from ps.spec import StoreSpec
from scheduler.coordinator.events import CutWanted, DeltasWanted, HoldWanted, Wanted
from scheduler.coordinator.status import ServersView, Status, stands_still
from scheduler.driver.answers import GONE
from scheduler.driver.cuts import CutEnd
from scheduler.driver.launch import Launcher, UnlikePlaceError
from scheduler.driver.points import Point
from scheduler.driver.processes import Processes, ProcessLostError, ServerProcess, Who
from scheduler.driver.ray_calls import CALL_TIMEOUT_SECONDS, first_line
from scheduler.driver.resolved import JobSpecs
from scheduler.driver.setups import Setups
from scheduler.errors import StartError
from scheduler.job.errors import ConfigError
from scheduler.run.recoveries import ServerMove

# Before what failed is begun again; twice as long each time.
FIRST_PAUSE_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 300.0
SAY_SO_SECONDS = 30.0
# A delta that was written and taken in within this time is little: so is the next one.
NEAR_SECONDS = 0.6
# Of deltas; where as much changes in each as in the one before, more of them don't help.
MOST_ROUNDS = 6
SHRINKS = 0.8
# For all to stand still, and for the last delta: beyond that the job goes on as it was.
HOLD_SECONDS = 30.0


class ServersReadyError(Exception):
    """All stand still at a saved step: the job can go on there with another routing.

    Args:
        what: was wanted, for people.
        routing: that one.
        new: servers that are up and have taken in what is theirs.
        point: at which all are.
        since: since when they have stood still, seconds since 1970.
    """

    def __init__(
        self,
        what: str,
        routing: Routing,
        new: dict[Who, ServerProcess],
        point: Point,
        since: float,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.routing, self.new, self.point, self.since = routing, new, point, since


class Resizing:
    """Has the job get as many servers as are wanted.

    Args:
        specs, processes, launcher, setups: of the job.
        order: tells the coordinator what is wanted.
        show: has the coordinator tell whoever looks.
        note: tells a person something.
        automatic: whether the policy of scaling decides at first.

    Attributes:
        done: what has moved so far.
        automatic: whether the policy of scaling decides.
    """

    def __init__(
        self,
        specs: JobSpecs,
        processes: Processes,
        launcher: Launcher,
        setups: Setups,
        *,
        order: Callable[[Wanted], None],
        show: Callable[[ServersView], None],
        note: Callable[[str], None],
        automatic: bool = False,
    ) -> None:
        self.done: list[ServerMove] = []
        self.automatic = automatic
        self._specs = specs
        self._processes = processes
        self._launcher = launcher
        self._setups = setups
        self._order = order
        self._show = show
        self._note = note
        self._asked: int | None = None
        self._buckets: npt.NDArray[np.uint16] | None = None  # that each of them is to have
        self._begun_step = 0  # of the recovery epoch
        self._last: CutEnd | None = None  # cut that was written in it
        self._shown: ServersView | None = None
        self._pause = FIRST_PAUSE_SECONDS
        self._not_before = 0.0
        self._work: Callable[[Status], None] = self._idle
        self._moved: ServerMove | None = None  # that is to be applied at
        self._moved_held_at = 0.0  # since when all stood still for it
        self._forget()

    def _forget(self) -> None:
        self._store: StoreSpec | None = None
        self._new: dict[Who, ServerProcess] = {}
        self._cut: CutEnd | None = None  # the newest that was written
        self._asked_at = 0.0
        self._calls: dict[int, Any] = {}
        self._late: list[Any] = []  # of them
        self._taken_step = -1
        self._begun_at = self._held_at = 0.0
        self._pause_parts: dict[str, float] = {}
        self._asks_last = False
        self._say_so_at = math.inf
        self._rounds: list[TakenIn] = []  # the sums over the servers
        self._rounds_before_hold = 0

    @property
    def _wanted(self) -> int:
        return self._asked or len(self._processes.servers)

    @property
    def is_busy(self) -> bool:
        """Whether buckets are about to move."""
        return self._work != self._idle

    @property
    def moves_rows(self) -> bool:
        """Whether they do; until its new servers are up all goes on as if none were wanted."""
        return self._work not in (self._idle, self._come_up)

    @property
    def stands_still(self) -> bool:
        """Whether the job does for it: what is next is wanted at once."""
        return self._held_at > 0.0

    @property
    def awaited(self) -> list[Any]:
        """Calls whose end is news."""
        return self._late

    def want(self, count: int | None, *, by_policy: bool = False) -> None:
        """Have so many servers from now on; None: as many as the policy finds."""
        if by_policy and not self.automatic:
            return
        self.automatic = by_policy or count is None
        if count is None or count == self._wanted:
            return
        self._note(f"{count} servers are wanted, there are {len(self._processes.servers)}")
        self._asked, self._buckets = count, None
        self._pause, self._not_before = FIRST_PAUSE_SECONDS, 0.0
        if self.is_busy:
            self._give_up(None)

    def rebalance(self, buckets: npt.NDArray[np.uint16]) -> None:
        """Have the servers that there are share buckets out so, unless their number changes."""
        if not self.is_busy and self._wanted == len(self._processes.servers):
            self._buckets = buckets

    def cut_ended(self, end: CutEnd) -> None:
        """A cut is written, or could not be."""
        self._last = end if end.path is not None else None
        if self._asked_at:  # of one that ended before, the next need not be a delta
            if end.path is None:
                self._give_up(end.error or "a cut could not be written")
            else:
                self._cut = end
                if self.stands_still:
                    self._end_part("write")

    def begin_epoch(self, step: int) -> None:
        """The job is in another recovery epoch from a step on; what has not moved begins anew."""
        self._begun_step, self._last = step, None
        # Else it is another epoch after that.
        if self._moved is not None and self._moved_held_at == self._held_at:
            self._end_part("enter")
            self._moved = replace(self._moved, pause_parts=self._pause_parts)
        for process in self._new.values():
            ray.kill(process.handle)
        self._end()
        self._shown = None

    def moved(self, now: float) -> bool:
        """A step was applied: return whether it was the first one after servers had moved.

        Args:
            now: seconds since 1970.
        """
        has_moved = self._moved is not None
        if has_moved:
            self._end_move(now)
            self._launcher.end_leaving(self._processes)
        return has_moved

    def took_over(self, new: dict[Who, ServerProcess]) -> None:
        """The new servers are the job's from now on."""
        for who in new:
            self._new.pop(who, None)

    def look(self, status: Status, *, drains: bool) -> None:
        """Go on with what can be done without waiting.

        Args:
            drains: whether processes move from a node that will be taken away, which goes first.

        Raises:
            ServersReadyError: the rest is to begin another recovery epoch.
            ProcessLostError: the coordinator is gone.
        """
        if status.trained:
            self._come_too_late()
        elif self.is_busy and drains and not self.stands_still:
            self._give_up("what is on a node that will be taken away moves first")
        elif not drains and time.monotonic() >= self._not_before:
            try:
                self._work(status)
            except UnlikePlaceError as error:
                self._processes.placement.avoid("server", error.node)
                self._give_up(first_line(error))
            except (*GONE, GetTimeoutError, RayError, StartError, OSError) as error:
                self._give_up(first_line(error))
            except ProcessLostError as error:
                if not set(error.lost) <= set(self._new):
                    raise
                self._give_up(first_line(error))
        view = ServersView(wanted=self._wanted, automatic=self.automatic, doing=self._doing())
        if view != self._shown:
            self._show(view)
            self._shown = view

    # Stages, in their order ---------------------------------------------------------------------

    def _idle(self, status: Status) -> None:
        routing = self._planned()
        if routing is None or status.trained:
            return
        try:
            self._store = self._specs.with_routing(routing).store
        except ConfigError as error:
            self._asked = None
            self._note(f"{routing.num_shards} servers can't be had: {error}")
            return
        self._begun_at = time.time()
        store = self._store
        for index in range(len(self._processes.servers), self._wanted):
            who = ("server", index)
            self._new[who] = self._launcher.another_server(
                self._processes, lambda i, n: self._setups.server(i, n, store=store), index
            )
        self._processes.coming.update(self._new)
        self._say_so_at = time.monotonic() + SAY_SO_SECONDS
        self._work = self._come_up

    def _planned(self) -> Routing | None:
        """Return the routing that is wanted, None: it is the one that there is."""
        buckets, same = self._buckets, self._wanted == len(self._processes.servers)
        if buckets is None and same:
            return None
        routing = self._specs.store.routing
        if buckets is None or not same:
            return routing.spread_over(self._wanted)
        if np.array_equal(buckets, routing.buckets):
            return None
        return replace(routing, version=routing.version + 1, buckets=buckets)

    def _come_up(self, status: Status) -> None:
        calls = [process.begun for process in self._new.values()]
        if calls:
            _, late = ray.wait(calls, num_returns=len(calls), timeout=0)
            if late and time.monotonic() > self._say_so_at:
                self._say_so_at = math.inf
                self._note(
                    f"{len(late)} servers have not come up: the cluster has no place yet, or is"
                    " slow. The job goes on without them"
                )
            if late:
                return
            self._launcher.note_up(self._processes, self._new)
        if status.step == self._begun_step:  # a delta of nothing is not written
            self._order(CutWanted(full=True))
        self._order(DeltasWanted(True))
        self._ask()

    def _ask(self) -> None:
        self._asked_at = time.monotonic()
        self._order(CutWanted(full=False))
        self._work = self._take_in

    def _take_in(self, status: Status) -> None:
        """Have the newest cut taken in, once there is one that was not."""
        self._look_at_new()
        cut, is_at = self._cut, status.step == status.applied_step
        last = self._last
        if cut is None and last is not None and is_at and last.cut.step == status.step:
            cut = self._cut = last  # nothing has changed since that
        if cut is None or cut.cut.step <= self._taken_step:
            if self.stands_still:
                self._go_once_level(status)
            elif is_at and status.step == self._taken_step:
                self._hold()  # a job that is paused, or waits for its stream
            return
        servers = [*self._processes.servers, *self._new.values()][: self._wanted]
        store, path = self._store, str(cut.path)
        self._calls = {i: s.handle.take_in.remote(store, path) for i, s in enumerate(servers)}
        self._late = list(self._calls.values())
        self._taken_step = cut.cut.step
        self._work = self._await_taken

    def _await_taken(self, status: Status) -> None:
        ended, self._late = ray.wait(self._late, num_returns=len(self._late), timeout=0)
        for call in ended:
            ray.get(call, timeout=CALL_TIMEOUT_SECONDS)
        if self._late:
            self._look_at_new()
            return
        taken = [ray.get(call, timeout=CALL_TIMEOUT_SECONDS) for call in self._calls.values()]
        self._rounds.append(
            TakenIn(self._taken_step, sum(t.rows for t in taken), sum(t.nbytes for t in taken))
        )
        assert self._cut is not None, "it was taken in"
        if self.stands_still:
            self._end_part("take_in")
            self._work = self._take_in
            self._take_in(status)
        elif status.cut is not None or self._cut.cut.step > self._taken_step:
            self._work = self._take_in  # one came by schedule meanwhile
        elif self._is_near():
            self._hold()
        else:
            self._ask()

    def _is_near(self) -> bool:
        """Whether what the next delta will have is as little as it gets."""
        if len(self._rounds) == 1:
            return False
        before, last = self._rounds[-2:]
        shrinks = last.nbytes < SHRINKS * before.nbytes
        quick = time.monotonic() - self._asked_at <= NEAR_SECONDS
        return quick or len(self._rounds) > MOST_ROUNDS or not shrinks

    def _hold(self) -> None:
        self._held_at = time.time()
        self._rounds_before_hold = len(self._rounds)
        self._order(HoldWanted(True))
        self._work = self._take_in

    def _go_once_level(self, status: Status) -> None:
        """Go on with the new routing once all that there is was taken in; see to the last delta."""
        if time.time() - self._held_at > HOLD_SECONDS:
            self._give_up(f"the last delta took more than {HOLD_SECONDS:.0f} s")
            return
        if not stands_still(status, self._taken_step):
            if not self._asks_last and status.held and status.step == status.applied_step:
                self._asks_last = True
                self._end_part("stand_still")
                self._ask()
            return
        if not self._asks_last:  # nothing had changed since the cut that was taken in
            self._end_part("stand_still")
        store, new = self._store, dict(self._new)
        assert store is not None, "it was planned"
        if self._moved is not None:  # no step was applied since: this is a pause of its own
            self._end_move(self._held_at)
        self._moved, self._moved_held_at = self._figures(store), self._held_at
        self._pause = FIRST_PAUSE_SECONDS
        cut = self._cut
        assert cut is not None, "it was taken in"
        assert cut.state is not None, "it was written"
        point = Point(state=cut.state, checkpoint=cut.path, num_bytes=cut.num_bytes)
        what = f"{store.num_shards} servers were wanted"
        if store.num_shards == len(self._processes.servers):
            what = "servers were to be equally busy"
        raise ServersReadyError(what, store.routing, new, point, self._held_at)

    # Inside -------------------------------------------------------------------------------------

    def _end_part(self, name: str) -> None:
        """Note that a part of the pause is over, which began where the one before ended."""
        parts = self._pause_parts
        before = sum(parts.values())
        parts[name] = parts.get(name, 0.0) + time.time() - self._held_at - before

    def _end_move(self, now: float) -> None:
        """Keep and tell what moved last; `now` is when its pause was over."""
        assert self._moved is not None, "something has moved"
        moved, self._moved = self._moved.with_pause(now - self._moved_held_at, now=now), None
        self.done.append(moved)
        self._note(moved.described)

    def _figures(self, store: StoreSpec) -> ServerMove:
        before = self._specs.store.routing
        last = self._rounds[self._rounds_before_hold :]
        return ServerMove(
            time=self._begun_at,
            step=self._taken_step,
            before=before.num_shards,
            after=store.num_shards,
            buckets=int(np.count_nonzero(before.buckets != store.routing.buckets)),
            rounds=len(self._rounds),
            rows=sum(taken.rows for taken in self._rounds),
            bytes=sum(taken.nbytes for taken in self._rounds),
            rows_in_pause=sum(taken.rows for taken in last),
            bytes_in_pause=sum(taken.nbytes for taken in last),
            pause_parts=self._pause_parts,
        )

    def _look_at_new(self) -> None:
        """Raise what has befallen one of the new servers."""
        watches = [process.watch for process in self._new.values()]
        ended, _ = ray.wait(watches, num_returns=1, timeout=0) if watches else ([], [])
        for watch in ended:
            ray.get(watch, timeout=CALL_TIMEOUT_SECONDS)
            raise StartError("a new server has ended")

    def _come_too_late(self) -> None:
        """Training has ended: what is wanted since before comes no more."""
        if self.is_busy:
            self._give_up(None)
        there = len(self._processes.servers)
        if self._asked not in (None, there):
            self._note(
                f"training has ended before there were the {self._asked} servers that were wanted:"
                f" the job ends with {there}"
            )
        self._asked = None

    def _give_up(self, why: str | None) -> None:
        """Leave the routing as it is; begin anew some time later."""
        held, planned = self.stands_still, self._store is not None
        for process in self._new.values():
            ray.kill(process.handle)
        self._end()
        if held:
            self._order(HoldWanted(False))
        if planned:
            self._order(DeltasWanted(False))
            self._processes.of_servers(lambda handle: handle.stay.remote())
        if why is not None:
            self._note(
                f"buckets could not move between servers: {why}. That is tried again in"
                f" {self._pause:.0f} s"
            )
            self._not_before = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)

    def _end(self) -> None:
        for who in self._new:
            self._processes.coming.pop(who, None)
        self._work = self._idle
        self._forget()

    def _doing(self) -> str:
        if not self.is_busy:
            if self._planned() is None:
                return ""
            there, wanted = len(self._processes.servers), self._wanted
            what = "the move of buckets is" if wanted == there else f"{wanted} servers are"
            return f"{what} tried again soon"
        if self._work == self._come_up:
            return f"{len(self._new)} new servers come up"
        rows = sum(taken.rows for taken in self._rounds)
        what = "stands still for the last rows" if self.stands_still else "rows move"
        return f"{what}: {rows:,} so far, in {len(self._rounds)} rounds"
