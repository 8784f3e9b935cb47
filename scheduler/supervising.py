"""Watch a running job: replace workers that die, end the job where it can't go on, report."""

import time
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from ps.client import ShardLostError
from ps.memory import peak_rss_bytes
from scheduler.config import JobConfig
from scheduler.coordinating import Status
from scheduler.errors import TrainingError
from scheduler.launching import Launcher, Processes, WorkerProcess
from scheduler.progress import Progress
from scheduler.reporting import IntervalReport
from scheduler.run_files import RunDirectory
from worker.running import WorkerSetup

POLL_SECONDS = 0.25
# How long after a worker's failure a server or the coordinator may turn out to be its cause.
BLAME_SECONDS = 3.0
CALL_TIMEOUT_SECONDS = 30.0


class Supervisor:
    """The driver's side of a running job."""

    def __init__(
        self,
        *,
        launcher: Launcher,
        processes: Processes,
        setup: WorkerSetup,
        config: JobConfig,
        run: RunDirectory,
        progress: Progress,
    ) -> None:
        self.processes = processes
        self.worker_restarts = 0
        self.peak_rss: dict[str, int] = {"worker": 0, "server": 0, "coordinator": 0, "driver": 0}
        self._launcher = launcher
        self._setup = setup
        self._config = config
        self._run = run
        self._progress = progress
        self._interval = IntervalReport(config)
        self._next_report = time.monotonic() + config.run.progress_every_seconds
        self._next_incarnation: dict[int, int] = {}

    def start_workers(self) -> None:
        for index in range(self._config.cluster.workers):
            self._start_worker(index)

    def until_trained(self) -> Status:
        """Supervise until every batch is resolved and applied."""
        while True:
            status = self.poll()
            if status.trained:
                self.report(status)
                return status
            self._report_if_due(status)

    def until_evaluated(self) -> Status:
        """Supervise until the evaluation that was asked for is over."""
        while True:
            status = self.poll()
            if not status.evaluating:
                self.report(status)
                return status

    def poll(self) -> Status:
        """Look at every process once, after a short wait; raises TrainingError."""
        runs = {worker.run: worker for worker in self.processes.workers.values()}
        ended, _ = ray.wait([*runs, *self.processes.watches], num_returns=1, timeout=POLL_SECONDS)
        self._look_at_servers()
        status = self.status()
        self._progress.advance(status.samples["applied"])
        for ref in ended:
            if ref in runs:
                self._worker_ended(runs[ref])
        for index, incarnation, text in status.give_up:
            self._give_up(index, incarnation, text)
        for text in status.warnings:
            self._progress.note(text)
        if status.failure is not None:
            self._look_at_servers(wait=BLAME_SECONDS)
            raise TrainingError(status.failure)
        return status

    def status(self) -> Status:
        """Ask the coordinator; raises TrainingError where it is gone."""
        return self._answer_of_coordinator(self.processes.coordinator.status.remote())

    def _answer_of_coordinator(self, call: Any) -> Any:
        try:
            return ray.get(call, timeout=CALL_TIMEOUT_SECONDS)
        except (RayActorError, GetTimeoutError) as error:
            facts = self.processes.coordinator_facts
            raise TrainingError(
                f"the coordinator (pid {facts['pid']}) died: {_cause(error)}. The job can't go on"
            ) from error

    def report(self, status: Status) -> None:
        """Write one line of metrics and show it."""
        servers = self.server_stats()
        self._note_memory(status, servers)
        line = self._interval.line(status, servers)
        self._run.add_metrics(line)
        taken = self.processes.coordinator.take_batches.remote()
        self._run.add_batches(self._answer_of_coordinator(taken))
        self._progress.show(line)

    def _report_if_due(self, status: Status) -> None:
        if time.monotonic() >= self._next_report:
            self._next_report = time.monotonic() + self._config.run.progress_every_seconds
            self.report(status)

    def server_stats(self) -> list[dict[str, Any]]:
        """Return the statistics of every server; raises TrainingError where one is gone."""
        calls = [server.stats.remote() for server in self.processes.servers]
        try:
            return ray.get(calls, timeout=CALL_TIMEOUT_SECONDS)
        except (RayActorError, GetTimeoutError) as error:
            self._look_at_servers(wait=BLAME_SECONDS)
            raise TrainingError(f"a server does not answer: {_cause(error)}") from error

    def _note_memory(self, status: Status, servers: list[dict[str, Any]]) -> None:
        seen = {
            "worker": max((w["peak_rss_bytes"] for w in status.workers.values()), default=0),
            "server": max(server["peak_rss_bytes"] for server in servers),
            "coordinator": status.peak_rss_bytes,
            "driver": peak_rss_bytes(),
        }
        self.peak_rss = {role: max(self.peak_rss[role], seen[role]) for role in seen}

    # Deaths -----------------------------------------------------------------------------------

    def _look_at_servers(self, *, wait: float = 0.0) -> None:
        ended, _ = ray.wait(self.processes.watches, num_returns=1, timeout=wait)
        for ref in ended:
            index = self.processes.watches.index(ref)
            pid = self.processes.server_facts[index]["pid"]
            try:
                ray.get(ref)
            except (RayActorError, RayTaskError) as error:
                raise TrainingError(
                    f"server {index} (pid {pid}) died: {_cause(error)}. Its part of the tables is"
                    " gone, so the job can't go on"
                ) from error

    def _worker_ended(self, worker: WorkerProcess) -> None:
        try:
            ray.get(worker.run)
        except RayActorError as error:
            self._replace(worker, _cause(error))
        except RayTaskError as error:
            self._worker_failed(worker, error)
        else:
            self._replace(worker, "it returned before the end")

    def _worker_failed(self, worker: WorkerProcess, error: RayTaskError) -> None:
        """A worker raised: blame the server or coordinator that it missed, else the worker."""
        cause = error.cause
        if isinstance(cause, RayActorError | ShardLostError | ConnectionError):
            self._look_at_servers(wait=BLAME_SECONDS)
            self.status()
        raise TrainingError(f"worker {worker.index}: {cause or error}") from error

    def _give_up(self, index: int, incarnation: int, text: str) -> None:
        worker = self.processes.workers.get(index)
        if worker is not None and worker.incarnation == incarnation:
            ray.kill(worker.handle)
            self._replace(worker, text)

    def _replace(self, worker: WorkerProcess, cause: str) -> None:
        ray.get(self.processes.coordinator.worker_lost.remote(worker.index, worker.incarnation))
        limit = self._config.cluster.max_worker_restarts
        if self.worker_restarts >= limit:
            raise TrainingError(
                f"worker {worker.index} (pid {worker.pid}) died: {cause}. Workers were replaced"
                f" {limit} times already (cluster.max_worker_restarts)"
            )
        self.worker_restarts += 1
        self._progress.note(
            f"worker {worker.index} (pid {worker.pid}) died: {cause}. It is replaced, and its"
            " batches are given out again"
        )
        self._start_worker(worker.index)

    def _start_worker(self, index: int) -> None:
        incarnation = self._next_incarnation.get(index, 0)
        self._next_incarnation[index] = incarnation + 1
        self._launcher.start_worker(self.processes, self._setup, index, incarnation)


def _cause(error: BaseException) -> str:
    """The first line of what Ray says, without its traceback."""
    text = str(error).strip() or type(error).__name__
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0].rstrip(".")
