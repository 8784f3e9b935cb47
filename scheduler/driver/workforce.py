"""The worker processes of a running job: as many as are wanted, and new ones for those that die."""

import time
from collections import deque
from collections.abc import Callable, Collection
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from scheduler.driver.launch import Launcher
from scheduler.driver.like_processes import UnlikeProcessError
from scheduler.driver.processes import Processes, WorkerProcess
from scheduler.driver.ray_calls import CALL_TIMEOUT_SECONDS, WHERE_BUSY, first_line
from scheduler.errors import StartError, TrainingError
from scheduler.job.config import ClusterConfig
from worker.running import KernelSetup, WorkerSetup

# For workers to end what they do, all of them together: half a second, and what a batch takes.
LEAVE_SECONDS = 5.0


class Workforce:
    """Starts, replaces and dismisses workers; never waits for one that is on its way.

    Args:
        launcher, processes: of the job.
        cluster: limits.
        note: tells a person something.
        failed: takes a worker and what it raised; says why it is to be replaced, or raises
            TrainingError.
        lost: tells the coordinator that a worker's process is gone: its number and incarnation.
    """

    def __init__(
        self,
        *,
        launcher: Launcher,
        processes: Processes,
        cluster: ClusterConfig,
        note: Callable[[str], None],
        failed: Callable[[WorkerProcess, RayTaskError], str],
        lost: Callable[[int, int], None],
    ) -> None:
        self.restarts = 0
        self.moved = 0
        self._launcher = launcher
        self._processes = processes
        self._setup: WorkerSetup | None = None
        self._cluster = cluster
        self._note = note
        self._failed = failed
        self._lost = lost
        self._replaced_at: deque[float] = deque()
        self._wanted = cluster.workers
        self._next_incarnation: dict[int, int] = {}
        self._said_to_wait: set[tuple[int, int]] = set()
        self._drained: frozenset[str] = frozenset()  # nodes that will be taken away
        self._coming: dict[int, WorkerProcess] = {}  # elsewhere, for those that are there

    def leave(self, recovery_epoch: int) -> None:
        """Tell all workers to end what they do in an epoch that is over; waits for nobody."""
        for worker in self._workers:
            worker.handle.leave.remote(recovery_epoch)

    def go_to(self, setup: WorkerSetup) -> None:
        """Have the workers work in another recovery epoch, in the processes that they are in.

        Args:
            setup: what every worker is told in it.

        Raises:
            StartError: the first workers do not come up in time.
        """
        first = self._setup is None
        self._setup = setup
        if first:
            self._start()
            return
        at_work = [worker for worker in self._workers if worker.run is not None]
        left, _ = (
            ray.wait(
                [worker.run for worker in at_work], num_returns=len(at_work), timeout=LEAVE_SECONDS
            )
            if at_work
            else ([], [])
        )
        for worker in at_work:
            if worker.run not in left:
                self._replace(worker, "does not leave its work")
            elif _lives(worker):
                self._launcher.set_to_work(setup, worker)
            else:
                self._ended(worker)

    def begin(self, kernels: KernelSetup) -> None:
        """Have the first workers come up, and their kernels loaded, while servers come up."""
        for index in range(self._wanted):
            self._create(index)
            self._processes.workers[index].handle.load_kernels.remote(kernels)

    def _start(self) -> None:
        """Set the first workers to work; they were asked for when the first epoch began."""
        limit = self._cluster.start_timeout_seconds
        # Of a job that scales, those beyond the least come when the cluster has a place for them.
        needed = self._cluster.min_workers if self._cluster.autoscale else self._wanted
        waiting = [worker.awaited for worker in self._workers if worker.index < needed]
        _, late = ray.wait(waiting, num_returns=len(waiting), timeout=limit)
        if late:
            raise StartError(
                f"{len(late)} of {len(waiting)} workers did not come up within {limit:.0f} s"
                f" (cluster.start_timeout_seconds){WHERE_BUSY}"
            )
        self.look(waiting)

    def leave_nodes(self, nodes: Collection[str]) -> None:
        """Have workers come up elsewhere for those on nodes that will be taken away."""
        self._drained = frozenset(nodes)
        for worker in self._workers:
            if worker.node in self._drained and worker.index not in self._coming:
                self._coming[worker.index] = self._new(worker.index)

    @property
    def awaited(self) -> list[Any]:
        """Calls whose end is news: see `look`."""
        workers = [*self._workers, *self._coming.values()]
        return [worker.awaited for worker in workers]

    def look(self, ended: list[Any]) -> None:
        """Take what came of calls: a process that came up, or a worker that ended."""
        for index in [i for i, worker in self._coming.items() if worker.described in ended]:
            self._take_over(self._coming.pop(index))
        for worker in [w for w in self._workers if w.awaited in ended]:
            if worker.run is None:
                self._came_up(worker)
            else:
                self._ended(worker)
        self._look_for_late()

    def want(self, count: int) -> None:
        """Have so many workers, numbered from 0; what runs beyond them is told to go elsewhere."""
        if count != self._wanted:
            self._note(f"{count} workers are wanted, there were {self._wanted}")
        self._wanted = count
        for worker in [w for w in self._workers if w.run is None and w.index >= count]:
            self._remove(worker)
        for index in [index for index in self._coming if index >= count]:
            ray.kill(self._coming.pop(index).handle)
        for index in range(count):
            if index not in self._processes.workers:
                self._create(index)

    def give_up(self, index: int, incarnation: int, text: str) -> None:
        """End a worker that says nothing or does nothing, and replace it."""
        worker = self._processes.workers.get(index)
        if worker is not None and worker.incarnation == incarnation:
            self._replace(worker, f"is given up: {text}")

    # Inside -----------------------------------------------------------------------------------

    @property
    def _workers(self) -> list[WorkerProcess]:
        return list(self._processes.workers.values())

    def _create(self, index: int) -> None:
        self._processes.workers[index] = self._new(index)

    def _new(self, index: int) -> WorkerProcess:
        incarnation = self._next_incarnation.get(index, 0)
        self._next_incarnation[index] = incarnation + 1
        return self._launcher.create_worker(self._processes, index, incarnation)

    def _take_over(self, worker: WorkerProcess) -> None:
        """A worker has come up elsewhere: the one that has its number leaves."""
        before = self._processes.workers.get(worker.index)
        if before is not None:
            self._lost(before.index, before.incarnation)
            self._remove(before)
            self._note(f"worker {worker.index} moves from a node that will be taken away")
        self._processes.workers[worker.index] = worker
        self.moved += 1
        self._came_up(worker)

    def _came_up(self, worker: WorkerProcess) -> None:
        try:
            assert self._setup is not None, "an epoch has begun"
            self._launcher.set_to_work(self._setup, worker)
        except (RayActorError, GetTimeoutError) as error:
            self._replace(worker, f"died: {first_line(error)}")
        except UnlikeProcessError as error:
            if worker.incarnation == 0:
                raise
            self._note(f"{error}. Another node is looked for")
            self._processes.placement.avoid("worker", worker.node)
            self._remove(worker)
            self._create(worker.index)

    def _ended(self, worker: WorkerProcess) -> None:
        try:
            ray.get(worker.run, timeout=CALL_TIMEOUT_SECONDS)
        except RayTaskError as error:
            self._replace(worker, f"died: {self._failed(worker, error)}")
        except RayError as error:  # it died, or Ray killed it as the node's memory ran out
            self._replace(worker, f"died: {first_line(error)}")
        else:
            self._replace(worker, "died: it returned before the end")

    def _replace(self, worker: WorkerProcess, what: str) -> None:
        self._lost(worker.index, worker.incarnation)
        self._remove(worker)
        if worker.index >= self._wanted:
            self._note(f"worker {worker.index} (pid {worker.pid}) has left")
            return
        text = f"worker {worker.index} (pid {worker.pid}) {what}"
        if worker.node in self._drained:
            self._note(f"{text}, on a node that was to be taken away. It is replaced")
        else:
            self._count_restart(text)
            self._note(f"{text}. It is replaced, and its batches are given out again")
        coming = self._coming.pop(worker.index, None)
        if coming is None:
            self._create(worker.index)
        else:
            self._processes.workers[worker.index] = coming

    def _count_restart(self, text: str) -> None:
        """Count a replacement; raises TrainingError where there were too many of late."""
        limit, window = self._cluster.max_worker_restarts, self._cluster.restart_window_seconds
        now = time.monotonic()
        while self._replaced_at and now - self._replaced_at[0] > window:
            self._replaced_at.popleft()
        if len(self._replaced_at) >= limit:
            raise TrainingError(
                f"{text}. Workers were replaced {limit} times within the last {window:.0f} s"
                " already (cluster.max_worker_restarts, cluster.restart_window_seconds)"
            )
        self._replaced_at.append(now)
        self.restarts += 1

    def _remove(self, worker: WorkerProcess) -> None:
        ray.kill(worker.handle)
        del self._processes.workers[worker.index]

    def _look_for_late(self) -> None:
        """Say once that a worker has not come up: the cluster may have no place for it."""
        limit = self._cluster.start_timeout_seconds
        for worker in self._workers:
            name = worker.index, worker.incarnation
            late = worker.run is None and time.monotonic() - worker.created > limit
            if late and name not in self._said_to_wait:
                self._said_to_wait.add(name)
                self._note(
                    f"worker {worker.index} has not come up for {limit:.0f} s: the cluster has no"
                    " place for it yet. The job goes on with the others"
                )


def _lives(worker: WorkerProcess) -> bool:
    """Whether the process of a worker whose work has ended is still there."""
    try:
        ray.get(worker.run, timeout=CALL_TIMEOUT_SECONDS)
    except RayTaskError:
        return True  # whatever it raised was of an epoch that is over
    except RayError:
        return False
    return True
