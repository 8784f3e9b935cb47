"""The one place where a stream is asked for what has arrived: a thread of the driver.

It cuts batches, writes each extension of the plan down, and tells the coordinator of it. One that
takes another's place is told of all that it does not know: so every epoch has the same batches.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from runtime.storage import StorageError
from scheduler.coordinator.batch_cutter import BatchCutter
from scheduler.coordinator.coordinator_state import CoordinatorState
from scheduler.coordinator.growing_plan import Extension, GrowingPlan, PlanState
from scheduler.driver.ray_calls import CALL_TIMEOUT_SECONDS
from scheduler.driver.trained_files import TrainedFiles
from scheduler.run.plan_log import PlanLog
from worker.data.arrivals import Arrivals
from worker.data.joined_arrivals import JoinedArrivals, LabelFigures
from worker.data.streams import Lag

# Of the files that a poll takes.
_MOST_FILES = 64
_REMOVE_AGAIN_SECONDS = 60.0
_LAG_SECONDS = 1.0


class StreamFeed:
    """Feeds the plan of a job whose samples arrive.

    Args:
        arrivals: of the stream, or of samples that were joined with their labels.
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
        arrivals: Arrivals | JoinedArrivals,
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
        self._known: Iterator[Extension] = iter(())  # that the coordinator is still to be told of
        self._knows_all = True
        self._next: Extension | None = None
        self._last_arrival = time.monotonic()
        self._out_of_reach = False
        self._is_to_finish = False
        self._trained = TrainedFiles()
        for extension in log.extensions(0):
            self._trained.add(extension)
        self._in_cuts: deque[PlanState] = deque(maxlen=1)  # that the stream was not told of
        self._forgotten = 0
        self._to_remove: deque[str] = deque()
        self._remove_again = 0.0
        self._lag = Lag()
        self._labels = arrivals.figures
        self._lag_at = -math.inf
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
            self._known, self._knows_all = self._log.extensions(self._plan.planned), False
            while self._plan.planned < state.ledger.end:
                # The last coordinator was told of it, and could not say so any more.
                self._plan.grow(next(self._known))
            return replace(state, plan=self._plan.state())

    def feed(self, coordinator: Any, recovery_epoch: int) -> None:
        """Feed a coordinator that began with `taken_up`."""
        with self._lock:
            self._coordinator = coordinator, recovery_epoch
            self._last_arrival = time.monotonic()

    def cut_written(self, plan: PlanState | None) -> None:
        """A checkpoint was written that holds a plan."""
        if plan is not None:
            self._in_cuts.append(plan)

    def forget(self, below: int) -> None:
        """No checkpoint that is kept needs the plan, or files, of batches below an id."""
        with self._lock:
            self._to_remove.extend(self._trained.take(below))
            self._forgotten = max(self._forgotten, below)

    def finish(self) -> None:
        """The stream ends with what has arrived by now."""
        self._is_to_finish = True

    @property
    def figures(self) -> dict[str, Any]:
        """What waits in the stream, and what was left out since it began."""
        lag, (files, rows) = self._lag, self._arrivals.skipped
        labels = self._labels
        of_labels = {} if labels is None else {"labels": label_figures(labels)}
        return {
            "files_waiting": lag.files,
            "bytes_waiting": lag.num_bytes,
            "waits_since": lag.oldest,
            "files_skipped": files,
            "rows_skipped": rows,
            "files_too_late": lag.too_late,
            "messages_waiting": lag.messages,
            "messages_skipped": lag.refused,
            "messages_lost": lag.lost,
            "first_skipped": list(self._arrivals.first_refused),
            **of_labels,
        }

    def close(self) -> None:
        """Feed nobody any more; what checkpoints have until now is said, and let go of."""
        self._over.set()
        self._thread.join(timeout=CALL_TIMEOUT_SECONDS)
        if not self._thread.is_alive() and self.failure is None:
            self._keep_house(most=len(self._to_remove))
        self._arrivals.close()

    # The thread -------------------------------------------------------------------------------

    def _feed(self) -> None:
        while not self._over.is_set():
            try:
                with self._lock:
                    if self._coordinator is not None:
                        self._feed_now(*self._coordinator)
                    self._keep_house(most=_MOST_FILES)
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

    def _keep_house(self, *, most: int) -> None:
        """Tell the stream what checkpoints have, and remove some of what none needs.

        The log goes after the files: by it whoever comes after us knows of them.
        """
        if self._in_cuts:
            plan = self._in_cuts.pop()
            self._arrivals.is_in_cut(plan.cursor.position, plan.oldest_path)
        if time.monotonic() < self._remove_again:
            return
        for _ in range(min(most, len(self._to_remove))):
            try:
                self._arrivals.remove(self._to_remove[0])
            except OSError as error:
                if not self._remove_again:
                    self._note(f"a file that is trained can't be removed: {error}")
                self._remove_again = time.monotonic() + _REMOVE_AGAIN_SECONDS
                return
            self._to_remove.popleft()
        if self._forgotten and not self._to_remove:
            self._log.forget(self._forgotten)
            self._forgotten = 0

    def _tell(self, coordinator: Any, recovery_epoch: int, extension: Extension | None) -> bool:
        """Tell the coordinator of an extension, and hear what is resolved; return if it did."""
        at = math.inf if self._plan.ends else self._cutter.arrived_until
        if extension is not None or not self._knows_all:
            at = 0.0  # more comes at once, and nobody looked when it arrived
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
        known = None if self._knows_all else next(self._known, None)
        self._knows_all = known is None
        if known is not None:
            return known
        now, is_to_finish = time.time(), self._is_to_finish
        if is_to_finish:
            self._arrivals.finish()
        nothing_else = self._take_what_arrived(room, now)
        idle = self._idle_seconds
        ends = is_to_finish or (idle is not None and time.monotonic() - self._last_arrival >= idle)
        ends = ends and nothing_else and not self._arrivals.waits
        extension = self._cutter.cut(now, most=room, ends=ends)
        if extension is not None:
            self._log.append(extension)
            self._trained.add(extension)
            if extension.ends:
                self._look_at_lag(at_once=True)
        return extension

    def _take_what_arrived(self, room: int, now: float) -> bool:
        """Add what has arrived to what can be cut; return whether it is known to be all."""
        if self._cutter.has_rows_for(room):
            return False
        try:
            files = self._arrivals.take(most=_MOST_FILES, now=now)
        except StorageError as error:
            if not self._out_of_reach:
                self._note(f"the stream is out of reach: {error}")
            self._out_of_reach = True
            return False
        self._out_of_reach = False
        for text in self._arrivals.take_notes():
            self._note(text)
        if files:
            self._last_arrival = time.monotonic()
        self._cutter.add(
            files,
            self._arrivals.position,
            now,
            skipped=self._arrivals.skipped,
            are_all=self._arrivals.took_all,
        )
        self._look_at_lag()
        return self._arrivals.took_all

    def _look_at_lag(self, *, at_once: bool = False) -> None:
        """Note what waits, once a second unless at once: there may be many files."""
        if at_once or time.monotonic() - self._lag_at >= _LAG_SECONDS:
            self._lag, self._labels = self._arrivals.lag(), self._arrivals.figures
            self._lag_at = time.monotonic()


def label_figures(figures: LabelFigures) -> dict[str, Any]:
    """Return what people are told of a join with labels."""
    counts = asdict(figures.counts)
    remembered, labels = figures.remembered
    columns = {name: asdict(each) for name, each in figures.counts_of.items()}
    return {
        "waiting": figures.waiting,
        "remembered": remembered,
        "labels_remembered": labels,
        **counts,
        "files_waiting": figures.lag.files,
        "messages_waiting": figures.lag.messages,
        **({"columns": columns} if columns else {}),
    }
