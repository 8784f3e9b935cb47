"""A relay as a Ray actor: a thin shell around `RelayServer`."""

from functools import partial

import ray

from ps.net.sockets import Address, connect
from worker.relay.server import RelayServer


@ray.remote(max_restarts=0, max_task_retries=0)
class RelayActor:
    """One relay of a job; nothing is lost with it."""

    _server: RelayServer | None = None

    def begin(
        self, number: int, coordinator: Address, secret: bytes, open_network: bool
    ) -> Address:
        """Pass reports on to a coordinator, and to no other any more; return where workers find it.

        Args:
            open_network: whether workers of other nodes may come, too.
        """
        node_id = ray.get_runtime_context().get_node_id()
        self.close()
        to_coordinator = partial(
            connect, coordinator, node_id=node_id, secret=secret, name=f"relay {number}"
        )
        self._server = RelayServer(number, to_coordinator, secret=secret)
        if open_network:
            self._server.listener.open_network(ray.util.get_node_ip_address())
        return self._server.listener.address(node_id)

    def close(self) -> None:
        """Let no worker in any more."""
        if self._server is not None:
            self._server.close()
            self._server = None
