"""A parameter server in a child process, without Ray."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from ps.server import ServerSetup, ShardServer
from ps.shard import Shard
from ps.sockets import Address

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

    def stats(self) -> dict[str, Any]:
        """Return what `ShardServer.stats` says."""
        self._pipe.send("stats")
        return self._pipe.recv()

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(timeout=10.0)


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
