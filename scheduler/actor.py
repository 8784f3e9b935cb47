"""The coordinator as a Ray actor: a thin shell around `CoordinatorServer`."""

import os
from typing import Any

import ray

from ps.sockets import ShardAddress
from scheduler.batch_trace import BatchSpan
from scheduler.coordinating import CoordinatorServer, Status
from scheduler.coordinator import CoordinatorSpec
from worker.protocol import Grant, Report


@ray.remote(max_restarts=0, max_task_retries=0, max_concurrency=8)
class CoordinatorActor:
    """The one coordinator of a job; it begins once the shards have addresses."""

    _server: CoordinatorServer

    def describe(self) -> dict[str, Any]:
        return {"pid": os.getpid(), "node": ray.get_runtime_context().get_node_id()}

    def begin(
        self,
        spec: CoordinatorSpec,
        addresses: tuple[ShardAddress, ...],
        secret: bytes,
        retry_seconds: float,
    ) -> None:
        node_id = ray.get_runtime_context().get_node_id()
        self._server = CoordinatorServer(
            spec, addresses, secret=secret, node_id=node_id, retry_seconds=retry_seconds
        )

    def exchange(self, report: Report) -> Grant:
        return self._server.exchange(report)

    def worker_lost(self, worker: int, incarnation: int) -> None:
        self._server.worker_lost(worker, incarnation)

    def evaluate(self) -> None:
        self._server.evaluate()

    def stop_workers(self) -> None:
        self._server.stop_workers()

    def take_batches(self) -> list[BatchSpan]:
        return self._server.take_batches()

    def status(self) -> Status:
        return self._server.status()
