"""The coordinator as a Ray actor: a thin shell around `CoordinatorServer`."""

import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.util.metrics import Counter, Gauge

from ps.net.sockets import Address
from runtime.fingerprint import process_facts
from runtime.metrics_export import MetricsExport
from scheduler.coordinator.batch_trace import BatchSpan
from scheduler.coordinator.coordinator_state import CoordinatorState
from scheduler.coordinator.events import Wanted
from scheduler.coordinator.exported_figures import coordinator_figures
from scheduler.coordinator.growing_plan import Extension
from scheduler.coordinator.history import Told
from scheduler.coordinator.server import CoordinatorFaults, CoordinatorServer
from scheduler.coordinator.spec import CoordinatorSpec
from scheduler.coordinator.status import ServersView, Status
from scheduler.coordinator.worker_connections import ControlPlane
from scheduler.scaling.decisions import ScalingView
from worker.protocol import Grant, Report

# The driver asks several times a second; Ray passes metrics on more seldom.
EXPORT_SECONDS = 2.0
# For a server that is replaced: it may be waiting for a shard that is gone.
OLD_SERVER_SECONDS = 0.5


@ray.remote(max_restarts=0, max_task_retries=0, max_concurrency=8)
class CoordinatorActor:
    """The one coordinator of a job; it begins once the shards have addresses.

    Where a recovery epoch begins, it begins again: workers find it where it was.
    """

    _server: CoordinatorServer | None = None
    _plane: ControlPlane | None = None
    _node_id: str
    _metrics: MetricsExport
    _next_export: float

    def describe(self) -> dict[str, Any]:
        """Return where this process runs and what its numbers depend on."""
        return process_facts(ray.get_runtime_context().get_node_id())

    def begin(
        self,
        spec: CoordinatorSpec,
        addresses: tuple[Address, ...],
        standbys: dict[int, Address],
        secret: bytes,
        retry_seconds: float,
        run: str,
        faults: CoordinatorFaults,
        state: CoordinatorState | None = None,
    ) -> None:
        """Begin a job, or go on from a state; another server of this process ends.

        Raises:
            ValueError: the state is of another plan; what was there is as it was.
        """
        before, self._node_id = self._server, ray.get_runtime_context().get_node_id()
        self._server = CoordinatorServer(
            spec,
            addresses,
            standbys=standbys,
            secret=secret,
            node_id=self._node_id,
            retry_seconds=retry_seconds,
            faults=faults,
            state=state,
        )
        if before is not None:
            before.close(patience=OLD_SERVER_SECONDS)
        if self._plane is None:
            self._metrics, self._next_export = MetricsExport(run, Gauge, Counter), 0.0
            self._plane = ControlPlane(self._exchange, secret=secret, on_error=self._fail)

    def _exchange(self, reports: Sequence[Report]) -> Sequence[Grant]:
        return self._now().exchange(reports)

    def _fail(self, error: Exception) -> None:
        self._now().fail(error)

    def _now(self) -> CoordinatorServer:
        # No property: Ray reads every attribute of the class when it sends it to a process.
        assert self._server is not None, "it has begun"
        return self._server

    def address(self) -> Address:
        """Return where workers of this node find it."""
        assert self._plane is not None, "it has begun"
        return self._plane.listener.address(self._node_id)

    def open_network_here(self) -> Address:
        """Listen on the address by which the cluster knows this node, too."""
        assert self._plane is not None, "it has begun"
        self._plane.listener.open_network(ray.util.get_node_ip_address())
        return self.address()

    def worker_lost(self, worker: int, incarnation: int) -> None:
        self._now().worker_lost(worker, incarnation)

    def look(self, told: Told) -> Status:
        """Return the status, with what its caller was not told yet."""
        return self._now().status(told)

    def order(self, wanted: Wanted) -> None:
        self._now().order(wanted)

    def grow_plan(self, recovery_epoch: int, extension: Extension | None, at: float) -> int | None:
        return self._now().grow_plan(recovery_epoch, extension, at)

    def cut_state(self, step: int) -> CoordinatorState:
        return self._now().cut_state(step)

    def cut_taken(self, step: int, path: str | None, error: str | None) -> None:
        self._now().cut_taken(step, path, error)

    def show_scaling(self, view: ScalingView) -> None:
        self._now().show_scaling(view)

    def show_servers(self, view: ServersView) -> None:
        self._now().show_servers(view)

    def evaluate(self) -> None:
        self._now().evaluate()

    def stop_workers(self) -> None:
        self._now().stop_workers()

    def close(self) -> None:
        """Let no worker in any more."""
        if self._plane is not None:
            self._plane.close()

    def take_batches(self) -> list[BatchSpan]:
        return self._now().take_batches()

    def status(self, told: Told) -> Status:
        """Return the status as `look`, and export it as metrics of Ray every few seconds."""
        status = self._now().status(told)
        began = time.monotonic()
        if began >= self._next_export:
            self._metrics.publish(coordinator_figures(status))
            ended = time.monotonic()
            # With thousands of workers it takes long: never more than 2 % of this process's time.
            self._next_export = ended + max(EXPORT_SECONDS, 50 * (ended - began))
        return status
