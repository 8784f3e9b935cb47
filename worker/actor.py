"""The worker as a Ray actor: a thin shell around `WorkerLoop`."""

from typing import Any

import ray
from threadpoolctl import threadpool_limits

from runtime.fingerprint import process_facts
from worker.running import WorkerSetup, make_loop


@ray.remote(max_restarts=0, max_task_retries=0)
class WorkerActor:
    """One worker. A dead one is replaced by a new actor with the same number."""

    def __init__(self) -> None:
        # The job counts compute threads itself; BLAS threads would fight the servers for cores.
        threadpool_limits(limits=1)

    def describe(self) -> dict[str, Any]:
        """Return where this process runs and what its numbers depend on."""
        return process_facts(ray.get_runtime_context().get_node_id())

    def run(self, setup: WorkerSetup, worker: int, incarnation: int) -> None:
        """Work until the coordinator says stop; raises what made the worker fail."""
        node_id = ray.get_runtime_context().get_node_id()
        make_loop(setup, worker=worker, incarnation=incarnation, node_id=node_id).run()
