"""The coordinator as a Ray actor: a thin shell around `CoordinatorServer`."""

import ray

from ps.sockets import ShardAddress
from scheduler.coordinating import CoordinatorServer
from scheduler.coordinator import CoordinatorSpec


@ray.remote(max_restarts=0, max_task_retries=0, max_concurrency=8)
class CoordinatorActor(CoordinatorServer):
    """The one coordinator of a job."""

    def __init__(
        self,
        spec: CoordinatorSpec,
        addresses: tuple[ShardAddress, ...],
        secret: bytes,
        retry_seconds: float,
    ) -> None:
        node_id = ray.get_runtime_context().get_node_id()
        super().__init__(
            spec, addresses, secret=secret, node_id=node_id, retry_seconds=retry_seconds
        )

    def node(self) -> str:
        return ray.get_runtime_context().get_node_id()
