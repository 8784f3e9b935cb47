"""Watch a running job: do what is wanted of it, end it where it can't go on, report."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from ps.checkpoint.manifest import Parent
from ps.client.client import ShardLostError
from ps.server.figures import ServerFigures
from runtime.memory import peak_rss_bytes
from scheduler.coordinator.coordinator_state import CoordinatorState
from scheduler.coordinator.events import CutWanted, Wanted
from scheduler.coordinator.history import NOTHING
from scheduler.coordinator.modes.shift import described
from scheduler.coordinator.progressive import WindowResult
from scheduler.coordinator.status import ServersView, Status, joined
from scheduler.driver.answers import answers_of
from scheduler.driver.autoscaling import Autoscaler
from scheduler.driver.cuts import RunningCuts
from scheduler.driver.launch import Launcher
from scheduler.driver.moves import Moves
from scheduler.driver.processes import (
    COORDINATOR,
    Processes,
    ProcessLostError,
    Who,
    WorkerProcess,
)
from scheduler.driver.ray_calls import CALL_TIMEOUT_SECONDS, first_line
from scheduler.driver.rebalancing import Rebalancer
from scheduler.driver.resizing import Resizing
from scheduler.driver.resolved import JobSpecs
from scheduler.driver.setups import Setups
from scheduler.driver.standbys import Standbys
from scheduler.driver.stop_signal import StopSignal
from scheduler.driver.stream_feed import StreamFeed
from scheduler.driver.workforce import Workforce
from scheduler.errors import TrainingError
from scheduler.job.config import JobConfig
from scheduler.run.collector import Collector
from scheduler.run.directory import RunDirectory
from scheduler.run.metrics import IntervalReport
from scheduler.run.recoveries import Recoveries
from scheduler.run.saved_cuts import first_needed
from scheduler.scaling.decisions import ScalingView
from scheduler.views.progress import Progress
from worker.errors import UnreadableError
from worker.loop import DeadShardError

POLL_SECONDS = 0.25
# While rows move: what changes until they are looked at is moved again.
BUSY_SECONDS = 0.05
HURRY_SECONDS = 0.02
# `ray job stop` kills the driver 3 s after the signal.
SAVE_SECONDS = 2.0
# How long after a worker's failure a server or the coordinator may turn out to be its cause.
BLAME_SECONDS = 3.0
# How long a server, or the coordinator, may take to say how it is before it counts as lost. It
# takes milliseconds, a second on a machine with ten times the processes that it has cores for.
ANSWER_SECONDS = 15.0
# The same of a server that its coordinator hears nothing of.
SILENT_SECONDS = 10.0


class Supervisor:
    """The driver's side of a running job."""

    def __init__(
        self,
        *,
        launcher: Launcher,
        processes: Processes,
        config: JobConfig,
        run: RunDirectory,
        progress: Progress,
        recoveries: Recoveries,
        cuts: RunningCuts,
        collector: Collector,
        standbys: Standbys,
        setups: Setups,
        specs: JobSpecs,
        restarts_before: int = 0,
        feed: StreamFeed | None = None,
        planned_samples: int | None = None,
        published: Callable[[str], None] = lambda name: None,
    ) -> None:
        self.processes = processes
        self.recoveries = recoveries
        self.peak_rss: dict[str, int] = {"worker": 0, "server": 0, "coordinator": 0, "driver": 0}
        self.workforce = Workforce(
            launcher=launcher,
            processes=processes,
            cluster=config.cluster,
            note=progress.note,
            failed=self._worker_failed,
            lost=self._tell_worker_lost,
        )
        self.autoscaler = Autoscaler(
            config,
            planned_samples=planned_samples,
            order=self._order,
            order_servers=lambda count: self.resizing.want(count, by_policy=True),
            show=self._show_scaling,
            note=progress.note,
        )
        self.moves = Moves(
            processes=processes,
            workforce=self.workforce,
            launcher=launcher,
            setups=setups,
            order=self._order,
            note=progress.note,
            patience=config.cluster.start_timeout_seconds,
        )
        self.resizing = Resizing(
            specs,
            processes,
            launcher,
            setups,
            order=self._order,
            show=self._show_servers,
            note=progress.note,
            automatic=config.cluster.autoscale,
        )
        self.rebalancer = Rebalancer(
            config.cluster,
            loads=self._bucket_loads,
            order=self.resizing.rebalance,
            note=progress.note,
        )
        self._specs = specs
        self._launcher = launcher
        self._cuts = cuts
        self._collector = collector
        self._feed = feed
        self._published = published
        self._standbys = standbys
        self._restarts_before = restarts_before
        self._model_bytes = 0
        self._unread: set[tuple[str, int | None]] = set()
        self._shifts_told = 0
        self._config = config
        self._run = run
        self._progress = progress
        self._interval = IntervalReport(config)
        self._next_report = time.monotonic() + config.run.progress_every_seconds
        self._evaluations_told = 0
        # What was told to whoever asked, until `poll` comes to it.
        self._to_give_up: deque[tuple[int, int, str]] = deque()
        self._warnings: deque[str] = deque()
        self._windows: list[WindowResult] = []  # that are in no line of metrics yet
        self._silent: dict[Who, str] = {}
        self.last_status: Status | None = None
        self._stop = StopSignal()

    @property
    def worker_restarts(self) -> int:
        """How many workers died and were replaced, under earlier drivers of the run too."""
        return self._restarts_before + self.workforce.restarts

    def begin_epoch(self, state: CoordinatorState, parent: Parent | None = None) -> None:
        """All processes are in another epoch, which began at a state.

        Args:
            parent: the checkpoint that has it, where the first cut may lie on that.
        """
        evaluations, shifts = len(state.evaluations), len(state.modes.shifts)
        if self.last_status is not None:  # a run that is gone on with has told them all
            evaluations = min(self._evaluations_told, evaluations)
            shifts = min(self._shifts_told, shifts)
        self._evaluations_told, self._shifts_told = evaluations, shifts
        self._to_give_up.clear()
        self._warnings.clear()
        self._silent.clear()
        self._interval.begin_at(state)
        self._cuts.forget(parent)
        self._standbys.begin_epoch()
        self.resizing.begin_epoch(state.step)
        self.autoscaler.restarted()
        self.rebalancer.begin_epoch()
        self.moves.begin_epoch(state.step)

    def until_trained(self) -> Status:
        """Supervise until every batch is resolved and applied.

        Raises:
            KeyboardInterrupt: a signal came; what was trained by then is saved, if there was time.
        """
        with self._stop.awaited():
            while True:
                status = self.poll()
                if self._stop.came:  # also with the last step: what follows may take long
                    self._save_and_stop()
                if status.trained and status.cut is None:
                    break
                self.autoscaler.look(status, self.server_stats)
                routing, busy = self._specs.store.routing, self.resizing.is_busy
                self.rebalancer.look(status, routing, busy=busy)
                self._report_if_due(status)
        self.report(status)
        return status

    def _save_and_stop(self) -> None:
        """Have a cut written, of what has changed if that is enough, unless it takes too long.

        Raises:
            KeyboardInterrupt: always.
        """
        self._progress.note("a signal to stop has come: what is trained is saved first")
        ends = time.monotonic() + SAVE_SECONDS
        try:
            step = self.status().applied_step
            self._order(CutWanted(full=False))
            while time.monotonic() < ends:
                status = self.poll()
                if any(cut.step >= step for cut in status.cuts):
                    break
        except TrainingError as error:  # it ends anyway
            self._progress.note(str(error))
        raise KeyboardInterrupt

    def until_evaluated(self) -> Status:
        """Supervise until the evaluation that was asked for is over."""
        while True:
            status = self.poll()
            if not status.evaluating:
                self._report_evaluations(status)
                return status

    def poll(self) -> Status:
        """Look at every process once, after a short wait; raises TrainingError."""
        calls = [*self.workforce.awaited, *self.processes.watches]
        calls += [*self._cuts.awaited, *self.resizing.awaited]
        ended, _ = ray.wait(calls, num_returns=1, timeout=self._poll_seconds)
        self._look_at_servers()
        status = self.status()
        self._look_at_gone(status)
        self._note_progress(status)
        self._progress.advance(status.samples.applied)
        self._report_evaluations(status)
        if not status.trained:
            # Before anyone's end is judged: it may have been told to go.
            self.workforce.want(status.num_workers)
        self.workforce.look(ended)
        while self._to_give_up:
            self.workforce.give_up(*self._to_give_up.popleft())
        self._look_at_cuts(status)
        for shift in status.shifts[self._shifts_told :]:
            self._progress.note(f"step {shift.step}: {described(shift)}")
        self._shifts_told = len(status.shifts)
        while self._warnings:
            self._progress.note(self._warnings.popleft())
        self._look_at_silent(status)
        if self._feed is not None and status.is_to_finish:
            self._feed.finish()
        if self._feed is not None and self._feed.failure is not None:
            raise TrainingError(str(self._feed.failure)) from self._feed.failure
        if status.failure is not None:
            self._look_at_servers(wait=BLAME_SECONDS)
            raise TrainingError(status.failure)
        if not status.trained and not self.resizing.moves_rows:
            self._standbys.look()
        if not self.resizing.stands_still:
            self.moves.look(status)
        for count in status.server_orders:
            self.resizing.want(count)
        self.resizing.look(status, drains=self.moves.is_busy)
        return status

    @property
    def _poll_seconds(self) -> float:
        """How long to wait for news: less where training waits for what is done here."""
        if self.resizing.stands_still or self.recoveries.is_moving:
            return HURRY_SECONDS
        return BUSY_SECONDS if self.resizing.is_busy else POLL_SECONDS

    def status(self) -> Status:
        """Ask the coordinator what is new; raises ProcessLostError where it is gone.

        Returns:
            The status with all evaluations and shifts since the start.
        """
        before = self.last_status
        told = NOTHING if before is None else before.told
        new = self._answer_of_coordinator(self.processes.coordinator.handle.status.remote(told))
        self._to_give_up.extend(new.give_up)
        self._warnings.extend(new.warnings)
        self._windows.extend(new.windows)
        who_is = self.processes.who_is
        self._silent.update({who_is(number): text for number, text in new.silent_shards})
        self.last_status = status = joined(before, new)
        return status

    def tell_coordinator(self, call: Any) -> None:
        """Wait until the coordinator has done a call; raises ProcessLostError where it is gone."""
        self._answer_of_coordinator(call)

    def _order(self, wanted: Wanted) -> None:
        self._answer_of_coordinator(self.processes.coordinator.handle.order.remote(wanted))

    def _show_scaling(self, view: ScalingView) -> None:
        self._answer_of_coordinator(self.processes.coordinator.handle.show_scaling.remote(view))

    def _show_servers(self, view: ServersView) -> None:
        self._answer_of_coordinator(self.processes.coordinator.handle.show_servers.remote(view))

    def _tell_worker_lost(self, index: int, incarnation: int) -> None:
        lost = self.processes.coordinator.handle.worker_lost
        self._answer_of_coordinator(lost.remote(index, incarnation))

    def _answer_of_coordinator(self, call: Any) -> Any:
        calls = {COORDINATOR: call}
        return answers_of(self.processes, calls, seconds=ANSWER_SECONDS)[COORDINATOR]

    def _note_progress(self, status: Status) -> None:
        now = time.time()
        done = self.recoveries.reached(status.applied_step, trained=status.trained, now=now)
        if done is not None and not self.resizing.moved(now):
            self._progress.note(
                f"the job goes on after {done.seconds:.1f} s; {done.redone_steps:,} steps"
                f" ({done.redone_samples:,} samples) are done again"
            )

    def report(self, status: Status) -> None:
        """Write one line of metrics and show it."""
        servers = self.server_stats()
        self._note_memory(status, servers)
        self._model_bytes = sum(t.bytes for server in servers for t in server.tables.values())
        scalings = self.autoscaler.history.news()
        windows, self._windows = self._windows, []
        line = self._interval.line(
            status,
            servers,
            self.recoveries.done,
            scalings,
            windows=windows,
            drains=self.moves.notices,
            server_moves=self.resizing.done,
            rebalancings=self.rebalancer.news(),
            load_skew=self.rebalancer.skew,
            worker_restarts=self.worker_restarts,
            stream=None if self._feed is None else self._feed.figures,
        )
        self._run.add_metrics(line)
        self._run.keep_fingerprints(self._launcher.fingerprints)
        taken = self.processes.coordinator.handle.take_batches.remote()
        self._run.add_batches(self._answer_of_coordinator(taken))
        self._progress.show(line)

    def _report_evaluations(self, status: Status) -> None:
        """Write a line for each evaluation that has ended, so that every one is found there."""
        while self._evaluations_told < len(status.evaluations):
            self._evaluations_told += 1
            evaluations = status.evaluations[: self._evaluations_told]
            self.report(replace(status, evaluations=evaluations))

    def _report_if_due(self, status: Status) -> None:
        if time.monotonic() >= self._next_report:
            self._next_report = time.monotonic() + self._config.run.progress_every_seconds
            self.report(status)

    def server_stats(self) -> list[ServerFigures]:
        """Return the statistics of every server; raises ProcessLostError where one is gone."""
        calls = self.processes.of_servers(lambda handle: handle.stats.remote())
        return list(answers_of(self.processes, calls, seconds=ANSWER_SECONDS).values())

    def _bucket_loads(self) -> list[npt.NDArray[np.int64]]:
        """Return what each server counts; raises ProcessLostError where one is gone."""
        calls = self.processes.of_servers(lambda handle: handle.bucket_loads.remote())
        return list(answers_of(self.processes, calls, seconds=ANSWER_SECONDS).values())

    def _note_memory(self, status: Status, servers: list[ServerFigures]) -> None:
        seen = {
            "worker": max((w.process.peak_rss_bytes for w in status.workers.values()), default=0),
            "server": max(server.process.peak_rss_bytes for server in servers),
            "coordinator": status.peak_rss_bytes,
            "driver": peak_rss_bytes(),
        }
        self.peak_rss = {role: max(self.peak_rss[role], seen[role]) for role in seen}

    # Deaths -----------------------------------------------------------------------------------

    def lost_servers(self, *, wait: float = 0.0) -> dict[Who, str]:
        """Return the servers that have failed, after so long at most, and how."""
        watches = {server.watch: who for who, server in self.processes.holding.items()}
        watches.pop(None, None)
        if not watches:
            return {}
        ray.wait(list(watches), num_returns=1, timeout=wait)
        # Where a node is lost, all that were on it.
        ended, _ = ray.wait(list(watches), num_returns=len(watches), timeout=0.0)
        lost: dict[Who, str] = {}
        for watch in ended:
            who = watches[watch]
            try:
                ray.get(watch, timeout=CALL_TIMEOUT_SECONDS)
            except RayError as error:
                lost[who] = f"{self.processes.describe(who)} died: {first_line(error)}"
        return lost

    def _look_at_servers(self, *, wait: float = 0.0) -> None:
        lost = self.lost_servers(wait=wait)
        if lost:
            raise ProcessLostError(lost)

    def _look_at_gone(self, status: Status) -> None:
        """Raise ProcessLostError where nobody listens at a server's address any more.

        It is known long before Ray says so where a node is gone.
        """
        gone = [(self.processes.who_is(number), text) for number, text in status.gone_shards]
        held = self.processes.holding
        lost = {who: f"{self.processes.describe(who)} died: {t}" for who, t in gone if who in held}
        if lost:
            raise ProcessLostError({**lost, **self.lost_servers()})

    def _look_at_silent(self, status: Status) -> None:
        """Hear the servers that the coordinator has heard nothing of: they may only be busy.

        Raises:
            ProcessLostError: they don't answer, or the coordinator has given one up.
        """
        silent, self._silent = self._silent, {}
        if not silent:
            return
        has_other = all(who[1] in self.processes.standbys for who in silent)
        if status.failure is None and not has_other:
            calls = {who: self.processes.process(who).handle.stats.remote() for who in silent}
            answers_of(self.processes, calls, seconds=SILENT_SECONDS)
            return
        raise ProcessLostError(
            {who: f"{self.processes.describe(who)} is lost: {text}" for who, text in silent.items()}
        )

    def _worker_failed(self, worker: WorkerProcess, error: RayTaskError) -> str:
        """A worker raised: return why it is to be replaced, as one that died.

        Raises:
            ProcessLostError: a server or the coordinator is gone.
            TrainingError: the data or numbers of the job are wrong, which another worker would
                find too.
        """
        cause = error.cause
        if isinstance(cause, RayActorError | ShardLostError | DeadShardError | ConnectionError):
            self._look_at_servers(wait=BLAME_SECONDS)
            self.status()
        if self._is_of_the_place(cause):
            return str(cause)
        raise TrainingError(f"worker {worker.index}: {cause or error}") from error

    def _is_of_the_place(self, cause: BaseException | None) -> bool:
        """Whether a failure comes from where a worker runs, so that another may do better."""
        if isinstance(cause, UnreadableError):
            # A store that failed can't be told from damage, but damage is found a second time.
            place = str(cause.file), cause.row_group
            again = place in self._unread
            self._unread.add(place)
            return "://" in place[0] and not again
        kinds = RayError | ShardLostError | DeadShardError | OSError | MemoryError
        return isinstance(cause, kinds)

    # Checkpoints of a running job -------------------------------------------------------------

    def _look_at_cuts(self, status: Status) -> None:
        """Go on with the cut that is due; what comes of it is told, and a failure ends nothing."""
        in_a_hurry = status.trained or status.cut_is_awaited or self._stop.came
        end = self._cuts.look(status.cut, self._model_bytes, in_a_hurry=in_a_hurry)
        if end is None:
            return
        if end.error is not None:
            self._progress.note(end.error)
        elif end.cut.asked:
            self._progress.note(f"checkpoint {end.path} is written")
        self._standbys.cut_ended(end)
        self.resizing.cut_ended(end)
        if end.path is not None:
            self._published(end.path.name)
            if end.cut.kind == "full":  # a delta supersedes nothing
                self._collector.collect()
            if self._feed is not None:
                self._feed.cut_written(end.plan)
            if self._feed is not None and end.cut.kind == "full":
                self._feed.forget(first_needed(self._run.path))
        self.moves.cut_ended(None if end.path is None else end.cut.step)
        path = None if end.path is None else str(end.path)
        coordinator = self.processes.coordinator.handle
        self._answer_of_coordinator(coordinator.cut_taken.remote(end.cut.step, path, end.error))
