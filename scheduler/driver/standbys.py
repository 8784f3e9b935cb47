"""New standbys are made while the job trains: from a cut, and from what came since.

The order of it, for all servers that lack one at the same time: a process comes up; its server
keeps a journal; a cut is taken and written as any other; the process begins with its part of it,
and is sent the journal. Once it lacks little, all enter the next recovery epoch with it
(`Epochs.begin`). Whatever fails is begun again later: no standby is worth the job.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from runtime.places import Place
from scheduler.coordinator.events import CutWanted
from scheduler.driver.answers import answers_of
from scheduler.driver.cuts import CutEnd
from scheduler.driver.launch import Launcher
from scheduler.driver.processes import COORDINATOR, Processes, ProcessLostError
from scheduler.driver.ray_calls import CALL_TIMEOUT_SECONDS, first_line
from scheduler.driver.setups import Setups
from scheduler.errors import TrainingError
from scheduler.job.config import ClusterConfig
from scheduler.run.directory import RunDirectory

# Before what failed is begun again; twice as long each time.
FIRST_PAUSE_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 300.0
SAY_SO_SECONDS = 30.0


class StandbysMadeError(Exception):
    """Standbys can join the job: no failure, but all have to enter another recovery epoch."""


class Standbys:
    """Has every server get a standby again that lost its own.

    Args:
        cluster: how many standbys there are to be.
        launcher, processes, setups, run: of the job.
        note: tells a person something.
    """

    def __init__(
        self,
        cluster: ClusterConfig,
        launcher: Launcher,
        processes: Processes,
        setups: Setups,
        run: RunDirectory,
        note: Callable[[str], None],
    ) -> None:
        self._cluster = cluster
        self._launcher = launcher
        self._processes = processes
        self._setups = setups
        self._run = run
        self._note = note
        self._pause = FIRST_PAUSE_SECONDS
        self._not_before = 0.0
        self._say_so_at = math.inf
        self._cut: CutEnd | None = None  # that has ended since one was asked for
        self._work = self._nothing
        # Calls of the stage that is under way, by server.
        self._calls: dict[int, Any] = {}

    def begin_epoch(self) -> None:
        """A recovery epoch has begun: what joined it is made, all else begins again."""
        self._calls = {}
        for copy in self._processes.copies.values():
            copy.is_near = False
        self._work = self._nothing if not self._cluster.standby else self._create

    def cut_ended(self, end: CutEnd) -> None:
        """A cut is written, or could not be."""
        self._cut = end

    def look(self) -> None:
        """Go on with what can be done without waiting.

        Raises:
            StandbysMadeError: all that were to be made are.
        """
        if time.monotonic() < self._not_before:
            return
        try:
            self._work()
        except (ProcessLostError, RayError, GetTimeoutError, TrainingError, OSError) as error:
            if isinstance(error, ProcessLostError) and any(who[0] != "copy" for who in error.lost):
                raise
            self._begin_again(first_line(error))

    # Stages, in their order ---------------------------------------------------------------------

    def _nothing(self) -> None:
        pass

    def _create(self) -> None:
        processes = self._processes
        for index in range(len(processes.servers)):
            if index not in processes.standbys and index not in processes.copies:
                self._launcher.create_copy(processes, self._setups.server, index)
        if processes.copies:
            self._calls = {index: copy.begun for index, copy in processes.copies.items()}
            self._say_so_at = time.monotonic() + SAY_SO_SECONDS
            self._work = self._come_up

    def _come_up(self) -> None:
        if self._ended() is None:
            if time.monotonic() > self._say_so_at:
                self._say_so_at = math.inf
                self._note(
                    f"standbys of servers {sorted(self._calls)} have not come up: the cluster has"
                    " no place yet, or is slow. The job goes on without them"
                )
            return
        processes = self._processes
        for index, copy in processes.copies.items():
            if copy.watch is None:
                self._launcher.bring_up_copy(processes, index)
        limit = self._cluster.buffer_bytes
        for_each = {
            ("server", index): processes.servers[index].handle.keep_journal.remote(limit)
            for index in processes.copies
        }
        answers_of(processes, for_each)
        self._ask_for_cut()

    def _ask_for_cut(self) -> None:
        self._cut = None
        order = self._processes.coordinator.handle.order.remote(CutWanted(full=False))
        answers_of(self._processes, {COORDINATOR: order})
        self._work = self._begin_with_cut

    def _begin_with_cut(self) -> None:
        if self._cut is None:
            return
        if self._cut.path is None:
            raise TrainingError(self._cut.error or "a cut could not be written")
        path, step = self._cut.path, self._cut.cut.step
        self._calls = {
            index: self._begun(index, copy.handle, path, step)
            for index, copy in self._processes.copies.items()
        }
        self._work = self._send_journals

    def _begun(self, index: int, handle: Any, path: Place, step: int) -> Any:
        # Handed over where it is, not by way of the driver.
        evicted = self._processes.servers[index].handle.copy_from.remote(step)
        return handle.begin_copy.remote(self._run.recovery_epoch, str(path), evicted)

    def _send_journals(self) -> None:
        if self._ended() is None:
            return
        processes = self._processes
        self._calls = {
            index: processes.servers[index].handle.send_journal.remote(copy.address)
            for index, copy in processes.copies.items()
        }
        self._work = self._join

    def _join(self) -> None:
        if self._ended() is None:
            return
        for copy in self._processes.copies.values():
            copy.is_near = True
        self._pause = FIRST_PAUSE_SECONDS
        self._work = self._nothing
        raise StandbysMadeError

    # Inside -------------------------------------------------------------------------------------

    def _ended(self) -> dict[int, Any] | None:
        """Return what the calls came to once all of them have ended; raises what one raised."""
        calls = list(self._calls.values())
        ended, late = ray.wait(calls, num_returns=len(calls), timeout=0)
        for call in ended:
            ray.get(call, timeout=CALL_TIMEOUT_SECONDS)
        return None if late else self._calls

    def _begin_again(self, cause: str) -> None:
        """Give up what is being made; begin anew some time later."""
        processes = self._processes
        servers = sorted(processes.copies)
        self._note(
            f"standbys of servers {servers} could not be made: {cause}. That is tried again in"
            f" {self._pause:.0f} s"
        )
        for index in servers:
            processes.servers[index].handle.drop_journal.remote()
            self._launcher.drop_copy(processes, index)
        self._not_before = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
        self._calls = {}
        self._work = self._create
