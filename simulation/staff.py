"""The workers of a simulated job, as its driver starts, replaces and gives them up."""

from collections import Counter
from collections.abc import Callable
from typing import Protocol

from scheduler.coordinator.coordinator import Coordinator
from scheduler.coordinator.events import Event, WorkerLost
from simulation.worker import SimulatedWorker
from simulation.world import World


class Job(Protocol):
    """What the staff has hold of."""

    world: World
    coordinator: Coordinator

    @property
    def is_down(self) -> bool:
        """Whether there is no coordinator at the moment."""

    def new_worker(self, index: int, incarnation: int) -> SimulatedWorker:
        """Return a process that does nothing yet."""

    def handle(self, event: Event) -> object:
        """Tell the coordinator something."""


class Staff:
    """Workers, and what the driver knows of them."""

    def __init__(self, job: Job) -> None:
        self.current: dict[int, SimulatedWorker] = {}
        self._job = job
        self._replaced: set[tuple[int, int]] = set()
        self._incarnations: Counter[int] = Counter()

    def start(self, index: int, incarnation: int) -> None:
        """Have a worker work."""
        worker = self._job.new_worker(index, incarnation)
        self.current[index] = worker
        self._incarnations[index] = incarnation
        self._job.world.story.tell("%s starts", worker)
        worker.start()

    def hire(self) -> None:
        """Start workers that are wanted beyond those that there are."""
        for index in range(self._job.coordinator.num_workers):
            if index not in self.current:
                self.start(index, self._incarnations[index] + 1)

    def ended(self, worker: SimulatedWorker) -> None:
        """Ray tells of most deaths soon, and of a lost machine late."""
        if self._job.coordinator.stopping and not self._job.is_down:
            self.current.pop(worker.index, None)
            return
        rng = self._job.world.random
        seconds = rng.uniform(2.0, 4.0) if rng.random() < 0.3 else rng.uniform(0.0, 0.3)
        self._job.world.queue.later(seconds, lambda: self._replace(worker))

    def give_up(self, index: int, incarnation: int) -> None:
        """The coordinator hears nothing of a worker, or it is far too long at something."""
        worker = self.current.get(index)
        if worker is not None and worker.incarnation == incarnation:
            seconds = self._job.world.random.uniform(0.0, 0.5)
            self._job.world.queue.later(seconds, self._killer(worker))

    def _killer(self, worker: SimulatedWorker) -> Callable[[], None]:
        def kill() -> None:
            worker.die()
            self._replace(worker)

        return kill

    def _replace(self, worker: SimulatedWorker) -> None:
        """Tell the coordinator; start a new process, unless this worker is gone for good."""
        job, name = self._job, (worker.index, worker.incarnation)
        if name in self._replaced:
            return
        self._replaced.add(name)
        job.handle(WorkerLost(*name))
        wanted = job.coordinator.num_workers
        if job.coordinator.stopping or worker.index >= wanted:
            self.current.pop(worker.index, None)
            return
        others = sum(index < wanted for index in self.current) - 1
        rng = job.world.random
        if others > 0 and rng.random() < job.world.faults.forever:
            job.world.story.tell("%s is not replaced", worker)
            del self.current[worker.index]
            return
        seconds = rng.uniform(0.05, 0.6)
        job.world.queue.later(seconds, lambda: self._start_again(worker))

    def _start_again(self, worker: SimulatedWorker) -> None:
        wanted = worker.index < self._job.coordinator.num_workers
        if wanted and not self._job.coordinator.stopping:
            self.start(worker.index, worker.incarnation + 1)
        else:
            self.current.pop(worker.index, None)
