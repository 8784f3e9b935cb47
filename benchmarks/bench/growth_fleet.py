"""The processes of one point of a curve: workers, servers, and what they cost while they train.

Every worker has a process, pulls, computes and pushes its own batches, and waits until each is
applied; this process makes the steps, as a coordinator does in `async`.
"""

import multiprocessing
import secrets
import time
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from types import TracebackType

from threadpoolctl import threadpool_limits

from bench.growth_job import Point, batches, fill
from bench.one_step import Contributor, apply_batch
from bench.shard_process import client_of, start_shards
from ps.net.sockets import Address
from ps.server.figures import ServerFigures
from worker.models import build_model, initial_parameters

# Occurrences of keys in the batches that a worker draws before, and trains in turns.
_DRAWN_KEYS = 64 * 26 * 2048
_EPOCH = 0


@dataclass(frozen=True, slots=True)
class Cost:
    """Microseconds for each sample: CPU time of all workers, of all servers, time by the wall."""

    worker: float
    server: float
    wall: float
    samples: int


class Fleet:
    """Workers and servers; `train` may be called again and again.

    Example:
        with Fleet(Point(shards=2)) as fleet:
            cost = fleet.train(seconds=1.0)
    """

    def __init__(self, point: Point) -> None:
        self.point = point
        store = point.store()
        secret = secrets.token_bytes(32)
        dense = initial_parameters(build_model(point.model()), seed=0)
        self._workers: list[_WorkerProcess] = []
        self.shards = start_shards(
            store,
            dense,
            secret=secret,
            recovery_epoch=_EPOCH,
            max_contributions=2 * point.workers + 2,
            max_buffer_bytes=4 << 30,
            fill=partial(fill, point),
        )
        try:
            addresses = [shard.address for shard in self.shards]
            for index in range(point.workers):
                self._workers.append(_WorkerProcess(point, index, addresses, secret))
            self._client = client_of(store, addresses, secret=secret, recovery_epoch=_EPOCH)
        except BaseException:
            self._end_processes()
            raise
        self._step = 0
        # The batch that each worker computes, or will compute next.
        self._next = list(range(point.workers))

    def __enter__(self) -> "Fleet":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.close()
        self._end_processes()

    def _end_processes(self) -> None:
        for worker in self._workers:
            worker.close()
        for shard in self.shards:
            shard.close()

    def train(self, *, seconds: float) -> Cost:
        """Train for so long, at least two batches of every worker; return what it cost."""
        before, began = self._cpu_seconds(), time.perf_counter()
        samples = rounds = 0
        while rounds < 2 or time.perf_counter() - began < seconds:
            samples += self._round()
            rounds += 1
        wall = time.perf_counter() - began
        after = self._cpu_seconds()
        worker, server = (
            1e6 * (end - begin) / samples for begin, end in zip(before, after, strict=True)
        )
        return Cost(worker, server, 1e6 * wall / samples, samples)

    def stats(self) -> list[ServerFigures]:
        """Return what every server says of itself."""
        return [shard.stats() for shard in self.shards]

    def _round(self) -> int:
        """Let every worker train a batch, all at once; apply them as they come."""
        for worker, number in zip(self._workers, self._next, strict=True):
            worker.pipe.send(number)
        waiting = {worker.pipe: index for index, worker in enumerate(self._workers)}
        total = 0
        while waiting:
            for pipe in wait(list(waiting)):
                assert isinstance(pipe, Connection)
                index = waiting.pop(pipe)
                samples = pipe.recv()
                number = self._next[index]
                low_water = min(self._next)
                apply_batch(
                    self._client,
                    step=self._step,
                    batch_id=number,
                    samples=samples,
                    low_water=low_water,
                )
                self._step += 1
                self._next[index] = number + self.point.workers
                total += samples
        return total

    def _cpu_seconds(self) -> tuple[float, float]:
        workers = sum(worker.cpu_seconds() for worker in self._workers)
        return workers, sum(server.process.cpu_seconds for server in self.stats())


class _WorkerProcess:
    """One worker; it ends with `close`, or with this process."""

    def __init__(self, point: Point, index: int, addresses: list[Address], secret: bytes) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        arguments = (other, point, index, addresses, secret)
        self._process = context.Process(target=_work, args=arguments, daemon=True)
        self._process.start()
        other.close()
        self.pipe.recv()  # it is ready

    def cpu_seconds(self) -> float:
        self.pipe.send(None)
        return self.pipe.recv()

    def close(self) -> None:
        self.pipe.close()
        self._process.join(timeout=10.0)


def _work(
    pipe: Connection, point: Point, index: int, addresses: list[Address], secret: bytes
) -> None:
    drawn = batches(point, worker=index, count=max(4, _DRAWN_KEYS // (point.keys * point.batch)))
    client = client_of(point.store(), addresses, secret=secret, recovery_epoch=_EPOCH)
    contributor = Contributor(client, point.model(), point.sparse())
    try:
        with threadpool_limits(limits=1):
            pipe.send("ready")
            while True:
                number = pipe.recv()
                if number is None:
                    pipe.send(time.process_time())
                else:
                    batch = drawn[number // point.workers % len(drawn)]
                    pushed = contributor.push(number, batch)
                    contributor.give_back(pushed)
                    pipe.send(pushed.samples)
    except (EOFError, OSError):
        pass  # the other end is closed or gone
    finally:
        client.close()
