"""Start Ray or join it, and create the actors of a job."""

import math
import os
import secrets
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import ray

from ps.server.actor import ServerActor
from ps.server.server import ServerSetup
from scheduler.coordinator.actor import CoordinatorActor
from scheduler.coordinator.coordinator_state import CoordinatorState
from scheduler.coordinator.server import CoordinatorFaults
from scheduler.coordinator.spec import CoordinatorSpec
from scheduler.driver.answers import answers_of
from scheduler.driver.like_processes import LikeProcesses, UnlikeProcessError
from scheduler.driver.placement import Placement
from scheduler.driver.processes import (
    COORDINATOR,
    CoordinatorProcess,
    Processes,
    ServerProcess,
    Who,
    WorkerProcess,
)
from scheduler.driver.ray_calls import CALL_TIMEOUT_SECONDS, WHERE_BUSY
from scheduler.driver.ray_token import check_token, protect_token
from scheduler.driver.relays import Relays
from scheduler.errors import StartError
from scheduler.job.config import ClusterConfig
from scheduler.run.reaching import why_unreachable
from worker.actor import WorkerActor
from worker.running import WorkerSetup

JOIN_SECONDS = 10.0
_UNITS = 10_000  # in which Ray counts what it gives
SAY_SO_SECONDS = 10.0
# How Ray begins what it prints about a process that died.
DEATH_OF_RAY = "A worker died or was killed while executing a task by an unexpected system error"


def starts_ray() -> bool:
    """Whether a job has a Ray of its own, on this machine alone, as it is to join no cluster."""
    return not os.environ.get("RAY_ADDRESS")


def start_ray(cluster: ClusterConfig, *, namespace: str) -> None:
    """Join the cluster that RAY_ADDRESS names (as inside `ray job submit`), else start one here."""
    common: dict[str, Any] = {"namespace": namespace, "logging_level": "error"}
    protect_token(starts_cluster=starts_ray())
    if not starts_ray():
        address = os.environ["RAY_ADDRESS"]
        _check_address(address)
        check_token(address)
        _init_ray(address=address, **common)
        return
    wanted = (
        cluster.coordinator_cpus * (1 + cluster.num_relays)
        + cluster.servers * (1 + cluster.standby) * cluster.server_cpus
        + cluster.workers * cluster.worker_cpus
    )
    resources: dict[str, float] = {}
    for role, count in (
        ("server", cluster.servers * (1 + cluster.standby)),
        ("worker", cluster.workers),
        ("coordinator", 1 + cluster.num_relays),
    ):
        for name, amount in getattr(cluster.resources, role).items():
            resources[name] = resources.get(name, 0) + amount * count
    _init_ray(
        address="local",
        num_cpus=max(os.cpu_count() or 1, math.ceil(wanted)),
        resources=resources or None,
        include_dashboard=False,
        object_store_memory=512 << 20,
        **common,
    )
    _check_gpus(cluster)


def _check_gpus(cluster: ClusterConfig) -> None:
    """Raise StartError where this machine, which is all that there is, has too few GPUs."""
    if not cluster.worker_gpus:
        return
    workers = cluster.min_workers if cluster.autoscale else cluster.workers
    # Of shares as many as fit on each: three of 0.4 need two GPUs.
    wanted = math.ceil(workers / (_UNITS // round(_UNITS * cluster.worker_gpus)))
    there = int(ray.cluster_resources().get("GPU", 0))
    if wanted > there:
        ray.shutdown()
        raise StartError(
            f"{workers} workers with cluster.worker_gpus {cluster.worker_gpus:g} need {wanted}"
            f" GPUs, and Ray finds {there} on this machine (CUDA_VISIBLE_DEVICES may hide some)."
            " Have fewer workers, or a share of a GPU each, or leave cluster.worker_gpus out; a"
            " cluster is joined where RAY_ADDRESS names it"
        )


def _check_address(address: str) -> None:
    """Raise StartError where no Ray cluster answers at HOST:PORT: `ray.init` may never return."""
    host, _, port = address.rpartition(":")
    # Of a loopback address Ray makes the node's own; other forms ("auto") Ray resolves itself.
    if not port.isdigit() or "/" in host or host in ("localhost", "127.0.0.1", "[::1]"):
        return
    cause = why_unreachable(address, seconds=JOIN_SECONDS)
    if cause is not None:
        raise StartError(f"no Ray cluster answers at {address} (RAY_ADDRESS): {cause}")


def _init_ray(**options: Any) -> None:
    """Initialise Ray, and keep the caller's SIGTERM handler: Ray's would abort the process.

    Raises:
        KeyboardInterrupt: SIGTERM came while Ray had its own handler.
        StartError: Ray gave up starting.
    """
    _leave_deaths_to_us()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**options)
    except Exception as error:
        if type(error) is not Exception:
            raise
        # Ray has no class of its own for a node that was not up within its 30 s.
        raise StartError(
            f"Ray did not start on this machine ({' '.join(str(error).split())}). Where the machine"
            " is busy try again later, or start Ray before the job: ray start --head, and"
            " RAY_ADDRESS=127.0.0.1:6379"
        ) from error
    except SystemExit as error:
        if error.code != signal.SIGTERM:
            raise
        raise KeyboardInterrupt from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _leave_deaths_to_us() -> None:
    """Keep Ray from printing a page about each process that dies: the job says it in a line.

    Ray prints it to stdout, where only results belong, and has no option for it. Where a version
    prints it by another name, it is printed. It has one for what calls raise whose answer nobody
    wants any more, such as those of an epoch that is over.
    """
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    printed = getattr(ray._private.worker, "print_to_stdstream", None)
    if printed is None or hasattr(printed, "without_deaths"):
        return

    def print_others(data: dict[str, Any], *arguments: Any, **options: Any) -> None:
        lines = [line for line in data["lines"] if not line.startswith(DEATH_OF_RAY)]
        if lines or not data["lines"]:
            printed({**data, "lines": lines}, *arguments, **options)

    print_others.without_deaths = True  # type: ignore[attr-defined]
    ray._private.worker.print_to_stdstream = print_others


class UnlikePlaceError(UnlikeProcessError):
    """A server, or the coordinator, has come up where it would compute other bits than before.

    Args:
        who, node: which one, and where.
    """

    def __init__(self, text: str, *, who: Who, node: str) -> None:
        super().__init__(text)
        self.who, self.node = who, node


class Launcher:
    """Creates the processes of one job, and gets them to work.

    Args:
        cluster: how many and with what.
        mixed_cpus: whether processes may differ in their numeric fingerprint.
        run: by what name metrics know the job.
        note: tells a person something.
        fingerprints: that the processes of a run had which this job goes on with, by role.
        libraries: that the model computes with beside NumPy and Numba.
    """

    def __init__(
        self,
        cluster: ClusterConfig,
        *,
        mixed_cpus: bool,
        run: str,
        note: Callable[[str], None] = lambda text: None,
        fingerprints: Mapping[str, Any] | None = None,
        libraries: tuple[str, ...] = (),
    ) -> None:
        self._run = run
        self._libraries = libraries
        self._note = note
        self._cluster = cluster
        self._like = LikeProcesses(mixed=mixed_cpus, before=fingerprints, note=note)
        self._incarnations: Counter[int] = Counter()  # processes of each server so far
        self.secret = secrets.token_bytes(32)

    @property
    def fingerprints(self) -> dict[str, dict[str, Any]]:
        """The numeric fingerprint of each role that has come up."""
        return self._like.fingerprints

    def create(self, setup: Callable[[int, int], ServerSetup]) -> Processes:
        """Place the job and create servers and coordinator side by side; servers are fenced.

        Args:
            setup: what a server is told, by its number and incarnation.
        """
        placement = Placement(self._cluster, own_cluster=starts_ray())
        placement.wait()
        indices = range(self._cluster.servers)
        servers = [
            self._new_server(placement, setup, index, placement.bundle(index)) for index in indices
        ]
        processes = Processes(placement, servers, self._new_coordinator(placement, 0))
        processes.relays = Relays(
            placement,
            self._cluster,
            secret=self.secret,
            own_cluster=starts_ray(),
            note=self._note,
        )
        if self._cluster.standby:
            for index in indices:
                processes.standbys[index] = self._new_copy(processes, setup, index)
        return processes

    def replace_server(
        self, processes: Processes, setup: Callable[[int, int], ServerSetup], index: int
    ) -> None:
        """Create another process for a server that is lost, in its place; it comes up fenced."""
        lost = processes.servers[index]
        ray.kill(lost.handle)  # where it hangs that may take effect later
        processes.servers[index] = self._new_server(processes.placement, setup, index, lost.bundle)

    def promote(self, processes: Processes, index: int) -> None:
        """Let a standby take the place of its server, which is lost."""
        ray.kill(processes.servers[index].handle)
        processes.servers[index] = processes.standbys.pop(index)

    def drop_standby(self, processes: Processes, index: int) -> None:
        """End a standby that is lost."""
        ray.kill(processes.standbys.pop(index).handle)

    def create_copy(
        self, processes: Processes, setup: Callable[[int, int], ServerSetup], index: int
    ) -> None:
        """Create a process that is to be a server's standby; it comes up fenced."""
        processes.copies[index] = self._new_copy(processes, setup, index)

    def drop_copy(self, processes: Processes, index: int) -> None:
        """End a process that was to be a standby."""
        ray.kill(processes.copies.pop(index).handle)

    def replace_coordinator(self, processes: Processes) -> None:
        """Create another process for the coordinator that is lost, in its place."""
        lost = processes.coordinator
        ray.kill(lost.handle)
        processes.coordinator = self._new_coordinator(processes.placement, lost.incarnation + 1)

    def server_elsewhere(
        self, processes: Processes, setup: Callable[[int, int], ServerSetup], index: int
    ) -> ServerProcess:
        """Create a process that may take a server's place, on a node that stays."""
        bundle = processes.servers[index].bundle
        return self._new_server(processes.placement, setup, index, bundle)

    def another_server(
        self, processes: Processes, setup: Callable[[int, int], ServerSetup], index: int
    ) -> ServerProcess:
        """Create a server beside those that there are; it comes up fenced."""
        placement = processes.placement
        return self._new_server(placement, setup, index, placement.bundle(index))

    def note_up(self, processes: Processes, new: Mapping[Who, ServerProcess]) -> None:
        """Note processes that have come up; see `bring_up_servers`."""
        self._note_new(processes, new)

    def resize(
        self, processes: Processes, new: Mapping[Who, ServerProcess], num_servers: int
    ) -> None:
        """Have servers that are up join the others; those beyond a number, and standbys, end."""
        for index in list(processes.standbys):
            self.drop_standby(processes, index)
        for index in list(processes.copies):
            self.drop_copy(processes, index)
        for who in sorted(new):
            processes.servers.append(new[who])
            processes.coming.pop(who, None)
        for server in processes.servers[num_servers:]:
            server.handle.close.remote()  # it removes its socket's folder
            processes.leaving.append(server)
        del processes.servers[num_servers:]

    def end_leaving(self, processes: Processes) -> None:
        """End the servers that the job has no more."""
        for server in processes.leaving:
            ray.kill(server.handle)
        processes.leaving.clear()

    def coordinator_elsewhere(self, processes: Processes) -> CoordinatorProcess:
        """Create a process that may take the coordinator's place, on a node that stays."""
        return self._new_coordinator(processes.placement, processes.coordinator.incarnation + 1)

    def take_over(
        self, processes: Processes, new: Mapping[Who, ServerProcess | CoordinatorProcess]
    ) -> None:
        """Have processes that are up take the places of those that work now, which end."""
        for who, process in new.items():
            ray.kill(processes.of(who).handle)
            if isinstance(process, ServerProcess):
                processes.servers[who[1]] = process
            else:
                processes.coordinator = process

    def bring_up_servers(self, processes: Processes) -> None:
        """Wait for those servers and standbys that are new.

        Raises:
            StartError: the cluster has no place for one, or it did not come up in time.
            ProcessLostError: one died meanwhile.
            UnlikePlaceError: one would compute other bits than the first server.
        """
        new = {who: each for who, each in processes.holding.items() if each.watch is None}
        self._come_up(processes, {who: server.begun for who, server in new.items()})
        self._note_new(processes, new)

    def bring_up_copy(self, processes: Processes, index: int) -> None:
        """Note a process that is to be a standby and has come up; see `bring_up_servers`."""
        self._note_new(processes, {("copy", index): processes.copies[index]})

    def _note_new(self, processes: Processes, new: Mapping[Who, ServerProcess]) -> None:
        calls = {who: server.handle.describe.remote() for who, server in new.items()}
        for who, facts in answers_of(processes, calls).items():
            new[who].facts = facts
            self._check_like(who, facts)
        calls = {who: self._asked_for_address(server.handle) for who, server in new.items()}
        for who, address in answers_of(processes, calls).items():
            new[who].address = address
            new[who].watch = new[who].handle.watch.remote()

    def begin_coordinator(
        self,
        processes: Processes,
        spec: CoordinatorSpec,
        faults: CoordinatorFaults,
        state: CoordinatorState,
    ) -> None:
        """Connect the coordinator to the shards, in the recovery epoch of its spec; see above.

        Args:
            state: to go on from.
        """
        coordinator = processes.coordinator
        if not coordinator.facts:
            describing = {COORDINATOR: coordinator.begun}
            self._come_up(processes, describing)
            coordinator.facts = answers_of(processes, describing)[COORDINATOR]
            self._check_like(COORDINATOR, coordinator.facts)
        begun = coordinator.handle.begin.remote(
            replace(spec, standbys=tuple(sorted(processes.standbys))),
            processes.addresses,
            processes.standby_addresses,
            self.secret,
            self._cluster.retry_seconds,
            self._run,
            faults,
            state,
        )
        answers_of(processes, {COORDINATOR: begun}, seconds=self._cluster.start_timeout_seconds)
        asked = {COORDINATOR: self._asked_for_address(coordinator.handle)}
        coordinator.address = answers_of(processes, asked)[COORDINATOR]
        if processes.relays is not None:
            processes.relay_addresses = processes.relays.begin(coordinator.address)

    def _check_like(self, who: Who, facts: dict[str, Any]) -> None:
        try:
            role = "coordinator" if who == COORDINATOR else "server"
            self._like.check(role, who[1], facts["fingerprint"])
        except UnlikeProcessError as error:
            raise UnlikePlaceError(str(error), who=who, node=facts["node"]) from error

    def create_worker(self, processes: Processes, index: int, incarnation: int) -> WorkerProcess:
        """Ask for a worker's process; it comes up when the cluster has a place for it."""
        handle = _create(WorkerActor, processes.placement.options("worker", index))
        return WorkerProcess(
            index=index,
            incarnation=incarnation,
            handle=handle,
            created=time.monotonic(),
            described=handle.describe.remote(
                *self._libraries, on_gpu=self._cluster.worker_gpus > 0
            ),
        )

    def set_to_work(self, setup: WorkerSetup, worker: WorkerProcess) -> None:
        """Let a worker that is up train.

        Raises:
            UnlikeProcessError: its bits would differ, or it can't use the GPU that it was given.
        """
        if worker.pid is None:
            facts = ray.get(worker.described, timeout=CALL_TIMEOUT_SECONDS)
            worker.pid, worker.node = facts["pid"], facts["node"]
            worker.fingerprint = facts["fingerprint"]["digest"]
            if "unfit" in facts:
                raise UnlikeProcessError(
                    f"worker {worker.index} on {worker.node}: {facts['unfit']}"
                )
            self._like.check("worker", worker.index, facts["fingerprint"])
        worker.run = worker.handle.run.remote(setup, worker.index, worker.incarnation)

    def _new_server(
        self,
        placement: Placement,
        setup: Callable[[int, int], ServerSetup],
        index: int,
        bundle: int,
    ) -> ServerProcess:
        incarnation = self._incarnations[index]
        self._incarnations[index] += 1
        handle = _create(ServerActor, placement.options("server", bundle))
        begun = handle.begin.remote(setup(index, incarnation), self._run)
        return ServerProcess(handle, begun, incarnation, bundle)

    def _new_copy(
        self, processes: Processes, setup: Callable[[int, int], ServerSetup], index: int
    ) -> ServerProcess:
        placement = processes.placement
        bundle = placement.bundle(index, beside=processes.servers[index].bundle)
        return self._new_server(placement, setup, index, bundle)

    def _new_coordinator(self, placement: Placement, incarnation: int) -> CoordinatorProcess:
        name = f"coordinator-{self._run}-{secrets.token_hex(4)}"
        options = {**placement.options("coordinator", 0), "name": name}
        handle = _create(CoordinatorActor, options)
        return CoordinatorProcess(handle, name, handle.describe.remote(), incarnation)

    def _asked_for_address(self, handle: Any) -> Any:
        """Ask where a process listens: beyond its node too, where other nodes may come."""
        return handle.address.remote() if starts_ray() else handle.open_network_here.remote()

    def _come_up(self, processes: Processes, calls: dict[Who, Any]) -> None:
        """Wait until new processes have a place and have answered; raises StartError."""
        limit = self._cluster.start_timeout_seconds
        names = {call: processes.describe(who) for who, call in calls.items()}
        at_first = min(SAY_SO_SECONDS, limit)
        late = _still_open(list(names), at_first)
        if late and limit > at_first:
            waiting = ", ".join(names[call] for call in late)
            self._note(f"waiting for {waiting}: the cluster has no place yet, or is slow")
            late = _still_open(late, limit - at_first)
        if late:
            waiting = ", ".join(names[call] for call in late)
            raise StartError(
                f"a process did not come up within {limit:.0f} s (cluster.start_timeout_seconds):"
                f" {waiting}{WHERE_BUSY}"
            )
        answers_of(processes, calls)


def _still_open(calls: list[Any], seconds: float) -> list[Any]:
    """Wait for calls; return those that have not ended by then."""
    if not calls:
        return []
    return ray.wait(calls, num_returns=len(calls), timeout=seconds)[1]


def _create(actor: Any, options: dict[str, Any]) -> Any:
    return actor.options(**options).remote()
