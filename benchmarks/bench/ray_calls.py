"""The exchange of a batch as calls of a Ray actor, with arrays as arguments and results."""

import time
from typing import Any

import numpy.typing as npt
import ray

from bench.exchanges import Exchange, blank, produce, read, read_arrays
from ps.messages.pull_push import PullReply

Array = npt.NDArray[Any]


class Answering:
    """The shard's end."""

    def __init__(self, exchange: Exchange) -> None:
        self._source = exchange.reply()
        self._reply = blank(self._source)

    def pull(self, keys: Array, counts: Array) -> tuple[Array, Array, Array]:
        read_arrays(keys, counts)
        produce(self._source, self._reply)
        return self._reply.values, self._reply.dense, self._reply.admitted

    def push(self, *arrays: Array) -> None:
        read_arrays(*arrays)

    def call(self) -> None:
        pass

    def cpu_seconds(self) -> float:
        return time.process_time()


class RayTransport:
    """The worker's end, with an actor of its own; Ray is initialised."""

    def __init__(self, exchange: Exchange) -> None:
        self._sources = exchange.pull(), exchange.contribution()
        self._pull, self._contribution = blank(self._sources[0]), blank(self._sources[1])
        self._actor = ray.remote(num_cpus=0)(Answering).remote(exchange)

    def pull(self) -> PullReply:
        """Ask for rows and dense parameters."""
        produce(self._sources[0], self._pull)
        arrays = ray.get(self._actor.pull.remote(self._pull.keys, self._pull.counts))
        reply = PullReply(1, 0, *arrays)
        read(reply)
        return reply

    def push(self) -> None:
        """Send gradients and wait for the acknowledgement."""
        produce(self._sources[1], self._contribution)
        sent = self._contribution
        arrays = (sent.keys, sent.counts, sent.gradients, sent.dense, sent.admitted)
        ray.get(self._actor.push.remote(*arrays))

    def call(self) -> None:
        """Call with nothing in it."""
        ray.get(self._actor.call.remote())

    def server_cpu_seconds(self) -> float:
        return float(ray.get(self._actor.cpu_seconds.remote()))

    def close(self) -> None:
        ray.kill(self._actor)
