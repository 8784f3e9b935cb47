"""Start Ray or join it, and create the actors of a job."""

import math
import os
import secrets
import signal
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray

from ps.checkpoint.read import CheckpointReader
from ps.checkpoint.restore import MovedDense
from ps.net.sockets import Address
from ps.server.actor import ServerActor
from ps.server.server import ServerSetup
from scheduler.coordinator.actor import CoordinatorActor
from scheduler.coordinator.server import CoordinatorFaults
from scheduler.coordinator.spec import CoordinatorSpec
from scheduler.driver.beginning import Beginning
from scheduler.driver.like_processes import LikeProcesses
from scheduler.driver.placement import Placement
from scheduler.driver.ray_calls import CALL_TIMEOUT_SECONDS, seconds_to_move
from scheduler.driver.ray_token import protect_token
from scheduler.errors import StartError
from scheduler.job.config import ClusterConfig
from scheduler.run.reaching import why_unreachable
from worker.actor import WorkerActor
from worker.running import WorkerSetup

CLOSE_SECONDS = 2.0
JOIN_SECONDS = 10.0
# How Ray begins what it prints about a process that died.
DEATH_OF_RAY = "A worker died or was killed while executing a task by an unexpected system error"


def start_ray(cluster: ClusterConfig, *, namespace: str) -> None:
    """Join the cluster that RAY_ADDRESS names (as inside `ray job submit`), else start one here."""
    common: dict[str, Any] = {"namespace": namespace, "logging_level": "error"}
    address = os.environ.get("RAY_ADDRESS")
    protect_token(starts_cluster=not address)
    if address:
        _check_address(address)
        _init_ray(address=address, **common)
        return
    wanted = (
        cluster.coordinator_cpus
        + cluster.servers * cluster.server_cpus
        + cluster.workers * cluster.worker_cpus
    )
    resources: dict[str, float] = {}
    for role, count in (
        ("server", cluster.servers),
        ("worker", cluster.workers),
        ("coordinator", 1),
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
    """
    _leave_deaths_to_us()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**options)
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
    prints it by another name, it is printed.
    """
    printed = getattr(ray._private.worker, "print_to_stdstream", None)
    if printed is None or hasattr(printed, "without_deaths"):
        return

    def print_others(data: dict[str, Any], *arguments: Any, **options: Any) -> None:
        lines = [line for line in data["lines"] if not line.startswith(DEATH_OF_RAY)]
        if lines or not data["lines"]:
            printed({**data, "lines": lines}, *arguments, **options)

    print_others.without_deaths = True  # type: ignore[attr-defined]
    ray._private.worker.print_to_stdstream = print_others


@dataclass(slots=True)
class WorkerProcess:
    """One worker's actor.

    Args:
        created: when it was asked for, as `time.monotonic()`.
        described: the call that is answered once its process is up.
        run: the call in which it works; None until it is up.
        pid, node, fingerprint: known once it is up; of the fingerprint its digest.
    """

    index: int
    incarnation: int
    handle: Any
    created: float
    described: Any
    run: Any = None
    pid: int | None = None
    node: str = ""
    fingerprint: str = ""

    @property
    def awaited(self) -> Any:
        """The call whose end is the next thing that happens to it."""
        return self.described if self.run is None else self.run


@dataclass(slots=True)
class Processes:
    """The actors of a job.

    Args:
        begun: the calls in which servers make their tables, answered once they are up.
    """

    placement: Placement
    servers: list[Any]
    coordinator: Any
    coordinator_name: str
    begun: list[Any]
    watches: list[Any] = field(default_factory=list)
    addresses: tuple[Address, ...] = ()
    server_facts: list[dict[str, Any]] = field(default_factory=list)
    coordinator_facts: dict[str, Any] = field(default_factory=dict)
    coordinator_address: Address | None = None
    workers: dict[int, WorkerProcess] = field(default_factory=dict)

    def release(self) -> None:
        """End every actor; on a shared cluster they would live as long as the driver."""
        handles = [*self.servers, self.coordinator]
        # Who is still there removes its socket's folder first.
        closed = [handle.close.remote() for handle in handles]
        ray.wait(closed, timeout=CLOSE_SECONDS, num_returns=len(closed))
        handles += [worker.handle for worker in self.workers.values()]
        for handle in handles:
            ray.kill(handle)
        self.placement.release()


class Launcher:
    """Creates the processes of one job.

    Args:
        cluster: how many and with what.
        mixed_cpus: whether processes may differ in their numeric fingerprint.
        run: by what name metrics know the job.
    """

    def __init__(self, cluster: ClusterConfig, *, mixed_cpus: bool, run: str) -> None:
        self._run = run
        self._cluster = cluster
        self._like = LikeProcesses(mixed=mixed_cpus)
        self.secret = secrets.token_bytes(32)

    def create(self, setups: list[ServerSetup]) -> Processes:
        """Place the job and create servers and coordinator side by side; servers are fenced."""
        placement = Placement(self._cluster, own_cluster="RAY_ADDRESS" not in os.environ)
        placement.wait()
        name = f"coordinator-{self._run}-{secrets.token_hex(4)}"
        servers = [_create(ServerActor, placement.options("server", i)) for i in range(len(setups))]
        return Processes(
            placement,
            servers=servers,
            coordinator=_create(
                CoordinatorActor, {**placement.options("coordinator", 0), "name": name}
            ),
            coordinator_name=name,
            begun=[
                server.begin.remote(setup, self._run)
                for server, setup in zip(servers, setups, strict=True)
            ],
        )

    def start_servers(
        self,
        processes: Processes,
        parts: list[np.ndarray],
        beginning: Beginning,
    ) -> None:
        """Wait for the servers and give each its first state: fresh, or from a checkpoint.

        Raises TrainingError where they would compute different bits.
        """
        servers = processes.servers
        self._get(processes.begun)
        processes.server_facts = self._get([server.describe.remote() for server in servers])
        for index, facts in enumerate(processes.server_facts):
            self._like.check("server", index, facts["fingerprint"])
        processes.watches = [server.watch.remote() for server in servers]
        processes.addresses = self._addresses_of(servers)
        seconds = self._cluster.start_timeout_seconds
        if beginning.checkpoint is None:
            calls = [
                server.initialize.remote(0, part)
                for server, part in zip(servers, parts, strict=True)
            ]
        else:
            files = CheckpointReader(beginning.checkpoint).manifest.files
            seconds += seconds_to_move(sum(file.bytes for file in files))
            sources, at = beginning.dense_sources, 0
            calls = []
            for server, part in zip(servers, parts, strict=True):
                moved = None
                if sources is not None:
                    moved = MovedDense(part, sources[at : at + part.size])
                at += part.size
                call = server.start_from.remote(
                    0, beginning.checkpoint, goes_on=beginning.start.goes_on, moved=moved
                )
                calls.append(call)
        self._get(calls, "a server has not taken its part of the model", seconds)

    def start_coordinator(
        self, processes: Processes, spec: CoordinatorSpec, faults: CoordinatorFaults
    ) -> None:
        """Connect the coordinator to the shards."""
        coordinator = processes.coordinator
        processes.coordinator_facts = self._get([coordinator.describe.remote()])[0]
        self._like.check("coordinator", 0, processes.coordinator_facts["fingerprint"])
        retry_seconds = self._cluster.retry_seconds
        begun = coordinator.begin.remote(
            spec, processes.addresses, self.secret, retry_seconds, self._run, faults
        )
        self._get([begun])
        (processes.coordinator_address,) = self._addresses_of([coordinator])

    def create_worker(self, processes: Processes, index: int, incarnation: int) -> None:
        """Ask for a worker's process; it comes up when the cluster has a place for it."""
        handle = _create(WorkerActor, processes.placement.options("worker", index))
        processes.workers[index] = WorkerProcess(
            index=index,
            incarnation=incarnation,
            handle=handle,
            created=time.monotonic(),
            described=handle.describe.remote(),
        )

    def set_to_work(self, processes: Processes, setup: WorkerSetup, worker: WorkerProcess) -> None:
        """Let a worker that is up train; raises TrainingError where its bits would differ."""
        facts = ray.get(worker.described, timeout=CALL_TIMEOUT_SECONDS)
        self._like.check("worker", worker.index, facts["fingerprint"])
        worker.pid, worker.node = facts["pid"], facts["node"]
        worker.fingerprint = facts["fingerprint"]["digest"]
        worker.run = worker.handle.run.remote(setup, worker.index, worker.incarnation)

    def _addresses_of(self, handles: list[Any]) -> tuple[Address, ...]:
        """Ask where processes listen; beyond their node only where the cluster has others."""
        several_nodes = sum(node["Alive"] for node in ray.nodes()) > 1
        calls = [
            handle.open_network_here.remote() if several_nodes else handle.address.remote()
            for handle in handles
        ]
        return tuple(self._get(calls))

    def _get(
        self,
        calls: list[Any],
        otherwise: str = "a process did not come up",
        seconds: float | None = None,
    ) -> list[Any]:
        limit = self._cluster.start_timeout_seconds if seconds is None else seconds
        try:
            return ray.get(calls, timeout=limit)
        except ray.exceptions.GetTimeoutError as error:
            raise StartError(
                f"{otherwise} within {limit:.0f} s (cluster.start_timeout_seconds)"
            ) from error


def _create(actor: Any, options: dict[str, Any]) -> Any:
    return actor.options(**options).remote()
