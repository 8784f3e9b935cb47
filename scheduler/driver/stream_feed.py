"""The one place where a stream is asked for what has arrived: a thread of the driver.

It cuts batches, writes each extension of the plan down, and tells the coordinator of it. One that
takes another's place is told of all that it does not know: so every epoch has the same batches.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from runtime.storage import StorageError
from scheduler.coordinator.batch_cutter import BatchCutter
from scheduler.coordinator.coordinator_state import CoordinatorState
from scheduler.coordinator.growing_plan import Extension, GrowingPlan, PlanState
from scheduler.driver.ray_calls import CALL_TIMEOUT_SECONDS
from scheduler.run.plan_log import PlanLog
from worker.data.arrivals import Arrivals

# Of the files that a poll takes.
_MOST_FILES = 64


class StreamFeed:
    """Feeds the plan of a job whose samples arrive.

    Args:
        arrivals: of the stream.
        cutter: of its batches; both go on from where `log` ends.
        log: of the plan.
        plan: that the job goes on from.
        most_ahead: batches that may be planned and not resolved.
        poll_seconds: between two looks at the stream.
        idle_seconds: where nothing arrives for so long the stream ends; None: it never does.
        note: tells a person something.
    """

    def __init__(
        self,
        *,
        arrivals: Arrivals,
        cutter: BatchCutter,
        log: PlanLog,
        plan: PlanState,
        most_ahead: int,
        poll_seconds: float,
        idle_seconds: float | None,
        note: Callable[[str], None],
    ) -> None:
        self._arrivals = arrivals
        self._cutter = cutter
        self._log = log
        self._plan = GrowingPlan(plan, lanes=1)
        self._most_ahead = most_ahead
        self._poll_seconds = poll_seconds
        self._idle_seconds = idle_seconds
        self._note = note
        self._lock = threading.Lock()  # held while something is done for one coordinator
        self._coordinator: tuple[Any, int] | None = None
        self._low_water = plan.first
        self._known: Iterator[Extension] = iter(())
        self._next: Extension | None = None
        self._last_arrival = time.monotonic()
        self._out_of_reach = False
        self._over = threading.Event()
        self.failure: Exception | None = None
        self._thread = threading.Thread(target=self._feed, name="stream", daemon=True)
        self._thread.start()

    def hold(self) -> None:
        """Tell the coordinator nothing more: it is lost, or is to be left."""
        with self._lock:
            self._coordinator = None

    def taken_up(self, state: CoordinatorState, *, kept: bool) -> CoordinatorState:
        """Return the state with the plan that another coordinator begins with.

        Args:
            kept: whether the servers kept what they have, and all that is planned is known here;
                else the state is that of a cut.
        """
        with self._lock:
            self._coordinator = None
            if kept:
                self._plan.forget(below=state.ledger.low_water)
            else:
                assert state.plan is not None, "the job is one of a stream"
                self._plan = GrowingPlan(state.plan, lanes=1)
            self._low_water, self._next = state.ledger.low_water, None
            self._known = self._log.extensions(self._plan.planned)
            while self._plan.planned < state.ledger.end:
                # The last coordinator was told of it, and could not say so any more.
                self._plan.grow(next(self._known))
            return replace(state, plan=self._plan.state())

    def feed(self, coordinator: Any, recovery_epoch: int) -> None:
        """Feed a coordinator that began with `taken_up`."""
        with self._lock:
            self._coordinator = coordinator, recovery_epoch
            self._last_arrival = time.monotonic()

    def forget(self, below: int) -> None:
        """No checkpoint that is kept needs the plan of batches below an id."""
        with self._lock:
            self._log.forget(below)

    def close(self) -> None:
        self._over.set()
        self._thread.join(timeout=CALL_TIMEOUT_SECONDS)
        self._arrivals.close()

    # The thread -------------------------------------------------------------------------------

    def _feed(self) -> None:
        while not self._over.is_set():
            try:
                with self._lock:
                    if self._coordinator is not None:
                        self._feed_now(*self._coordinator)
            except Exception as error:  # the driver ends the job with it
                self.failure = error
                return
            self._over.wait(self._poll_seconds)

    def _feed_now(self, coordinator: Any, recovery_epoch: int) -> None:
        while not self._over.is_set():
            room = self._most_ahead - (self._plan.planned - self._low_water)
            extension = self._next or self._following(room)
            if not self._tell(coordinator, recovery_epoch, extension):
                self._next = extension
                return
            self._next = None
            if extension is None:
                return

    def _tell(self, coordinator: Any, recovery_epoch: int, extension: Extension | None) -> bool:
        """Tell the coordinator of an extension, and hear what is resolved; return if it did."""
        at = math.inf if self._plan.ends else time.time()
        call = coordinator.grow_plan.remote(recovery_epoch, extension, at)
        try:
            low_water = ray.get(call, timeout=CALL_TIMEOUT_SECONDS)
        except RayTaskError:
            raise
        except (RayError, GetTimeoutError):
            return False  # it is gone, or too busy: it is told again, or another one is
        if low_water is None:
            return False  # of another epoch
        self._low_water = low_water
        if extension is not None:
            self._plan.grow(extension)
        self._plan.forget(below=self._low_water)
        return True

    def _following(self, room: int) -> Extension | None:
        """Return what the plan grows by next, once it is written down."""
        if room < 1:
            return None
        known = next(self._known, None)
        if known is not None:
            return known
        now = time.time()
        self._take_what_arrived(room, now)
        idle = self._idle_seconds
        ends = idle is not None and time.monotonic() - self._last_arrival >= idle
        extension = self._cutter.cut(now, most=room, ends=ends)
        if extension is not None:
            self._log.append(extension)
        return extension

    def _take_what_arrived(self, room: int, now: float) -> None:
        if self._cutter.has_rows_for(room):
            return
        try:
            files = self._arrivals.take(most=_MOST_FILES, now=now)
        except StorageError as error:
            if not self._out_of_reach:
                self._note(f"the stream is out of reach: {error}")
            self._out_of_reach = True
            return
        self._out_of_reach = False
        for text in self._arrivals.take_notes():
            self._note(text)
        if files:
            self._last_arrival = time.monotonic()
        self._cutter.add(files, self._arrivals.position, now)
