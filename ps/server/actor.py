"""The parameter server as a Ray actor: a thin shell around `ShardServer`."""

from typing import Any

import ray
from ray.util.metrics import Counter, Gauge
from threadpoolctl import threadpool_limits

from ps.checkpoint.file_parts import FileEntry
from ps.checkpoint.write import Compression
from ps.net.sockets import Address
from ps.server.exported_figures import server_figures
from ps.server.figures import ServerFigures
from ps.server.moving import TakenIn
from ps.server.server import ServerSetup, ShardServer
from ps.spec import StoreSpec
from runtime.fingerprint import process_facts
from runtime.metrics_export import MetricsExport


@ray.remote(
    max_restarts=0,
    max_task_retries=0,
    concurrency_groups={"watch": 1, "cut": 1, "copy": 1, "moving": 1},
)
class ServerActor(ShardServer):
    """One parameter server. A dead one is not restarted: its state would be gone.

    Its first call is `begin`. Tables may be refused, and what the constructor of an actor raises
    ends its process with 60 lines of Ray's, one of which is the reason.
    """

    _metrics: MetricsExport | None = None

    def __init__(self) -> None:
        threadpool_limits(limits=1)  # as in workers, whatever the number of cores

    def begin(self, setup: ServerSetup, run: str) -> None:
        """Make the tables of the shard, and listen.

        Raises:
            MemoryError: there is no room for them.
        """
        super().__init__(setup, node_id=ray.get_runtime_context().get_node_id())
        self._index = setup.index
        self._metrics = MetricsExport(run, Gauge, Counter)

    def describe(self) -> dict[str, Any]:
        """Return where this process runs and what its numbers depend on."""
        return process_facts(ray.get_runtime_context().get_node_id())

    def stats(self) -> ServerFigures:
        """Return the server's statistics, and export them as metrics of Ray."""
        stats = super().stats()
        assert self._metrics is not None, "it has begun"
        self._metrics.publish(server_figures(self._index, stats))
        return stats

    def open_network_here(self) -> Address:
        """Listen on the address by which the cluster knows this node."""
        return self.open_network(ray.util.get_node_ip_address())

    @ray.method(concurrency_group="cut")
    def write_cut(
        self,
        directory: str,
        step: int,
        *,
        changed_only: bool,
        compression: Compression = "none",
        seconds: float = 0.0,
    ) -> list[FileEntry]:
        return super().write_cut(
            directory, step, changed_only=changed_only, compression=compression, seconds=seconds
        )

    @ray.method(concurrency_group="moving")
    def take_in(self, store: StoreSpec, checkpoint: str) -> TakenIn:
        return super().take_in(store, checkpoint)

    @ray.method(concurrency_group="copy")
    def send_journal(self, address: Address) -> int:
        return super().send_journal(address)

    @ray.method(concurrency_group="watch")
    def watch(self) -> None:
        super().watch()

    def close(self) -> None:
        if self._metrics is not None:
            super().close()
