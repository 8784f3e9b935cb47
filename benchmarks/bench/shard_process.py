"""A parameter server in a child process, without Ray."""

import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection

import numpy as np

from ps.client.client import PsClient
from ps.net.sockets import Address, connect
from ps.server.figures import ServerFigures
from ps.server.server import ServerSetup, ShardServer
from ps.shard.shard import Shard
from ps.spec import StoreSpec

NODE = "here"


class ShardProcess:
    """One server; it ends with `close`, or with this process.

    Args:
        setup: of the server.
        dense: float32, its part of the dense parameters.
        fill: called with the shard before it serves, in its process; can be pickled.
    """

    def __init__(
        self,
        setup: ServerSetup,
        dense: np.ndarray,
        *,
        recovery_epoch: int,
        fill: Callable[[Shard], None] | None = None,
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        arguments = (other, setup, dense, recovery_epoch, fill)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        other.close()
        self.address: Address = self._pipe.recv()

    def stats(self) -> ServerFigures:
        """Return what `ShardServer.stats` says."""
        self._pipe.send("stats")
        return self._pipe.recv()

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(timeout=10.0)


def start_shards(
    store: StoreSpec,
    dense: np.ndarray,
    *,
    secret: bytes,
    recovery_epoch: int,
    max_contributions: int,
    max_buffer_bytes: int,
    fill: Callable[[Shard], None] | None = None,
) -> list[ShardProcess]:
    """Start all servers of a store; none is left where one fails.

    Args:
        dense: float32, all dense parameters.
        secret, max_contributions, max_buffer_bytes: as of `ServerSetup`.
        recovery_epoch, fill: as of `ShardProcess`.
    """
    shards: list[ShardProcess] = []
    try:
        for index in range(store.num_shards):
            setup = ServerSetup(
                store=store,
                index=index,
                secret=secret,
                max_contributions=max_contributions,
                max_buffer_bytes=max_buffer_bytes,
            )
            part = np.ascontiguousarray(dense[slice(*store.routing.dense_range(index))])
            shards.append(ShardProcess(setup, part, recovery_epoch=recovery_epoch, fill=fill))
    except BaseException:
        for shard in shards:
            shard.close()
        raise
    return shards


def client_of(
    store: StoreSpec, addresses: Sequence[Address], *, secret: bytes, recovery_epoch: int
) -> PsClient:
    """Connect to the servers of a store."""
    return PsClient(
        store,
        lambda shard: connect(addresses[shard], node_id=NODE, secret=secret),
        recovery_epoch=recovery_epoch,
    )


def _serve(
    pipe: Connection,
    setup: ServerSetup,
    dense: np.ndarray,
    recovery_epoch: int,
    fill: Callable[[Shard], None] | None,
) -> None:
    server = ShardServer(setup, node_id=NODE)
    server.initialize(recovery_epoch, dense)
    if fill is not None:
        fill(server._shard)  # nobody else needs rows without steps, so there is no public way
    try:
        pipe.send(server.address())
        while True:
            pipe.recv()
            pipe.send(server.stats())
    except (EOFError, OSError):
        pass  # the other end is closed or gone
    finally:
        server.close()
