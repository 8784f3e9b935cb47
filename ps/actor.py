"""The parameter server as a Ray actor: a thin shell around `ShardServer`."""

from typing import Any

import ray
from ray.util.metrics import Counter, Gauge
from threadpoolctl import threadpool_limits

from ps.fingerprint import process_facts
from ps.metrics_export import MetricsExport, server_figures
from ps.server import ServerSetup, ShardServer
from ps.sockets import Address


@ray.remote(max_restarts=0, max_task_retries=0, concurrency_groups={"watch": 1})
class ServerActor(ShardServer):
    """One parameter server. A dead one is not restarted: its state would be gone."""

    def __init__(self, setup: ServerSetup, run: str) -> None:
        threadpool_limits(limits=1)  # as in workers, whatever the number of cores
        super().__init__(setup, node_id=ray.get_runtime_context().get_node_id())
        self._index = setup.index
        self._metrics = MetricsExport(run, Gauge, Counter)

    def describe(self) -> dict[str, Any]:
        """Return where this process runs and what its numbers depend on."""
        return process_facts(ray.get_runtime_context().get_node_id())

    def stats(self) -> dict[str, Any]:
        """Return the server's statistics, and export them as metrics of Ray."""
        stats = super().stats()
        self._metrics.publish(server_figures(self._index, stats))
        return stats

    def open_network_here(self) -> Address:
        """Listen on the address by which the cluster knows this node."""
        return self.open_network(ray.util.get_node_ip_address())

    @ray.method(concurrency_group="watch")
    def watch(self) -> None:
        super().watch()
