"""The processes of a fleet that makes dense steps: servers, workers, and who applies."""

import contextlib
import multiprocessing
import os
import secrets
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np

from bench.dense_ways import EPOCH, SAMPLES, Fleet, Servers, Worker
from bench.nodes import INTERFACE, Nodes, enter
from ps.net.sockets import Address
from ps.server.server import ServerSetup, ShardServer
from ps.spec import StoreSpec

_HERE = "127.0.0.1"
_BUFFER_BYTES = 4 << 30
_GROUP_SECONDS = 120.0
_CPU = "cpu"


class Place:
    """A node: its name, its address, and what gives a process its network; None: that of all."""

    def __init__(self, name: str, host: str = _HERE, namespace: str | None = None) -> None:
        self.name, self.host, self.namespace = name, host, namespace


class RunningFleet:
    """Servers and workers of a fleet, in a process each.

    Args:
        workers, servers: where each of them runs.
    """

    def __init__(self, fleet: Fleet, workers: Sequence[Place], servers: Sequence[Place]) -> None:
        self._fleet = fleet
        self._stores = fleet.stores()
        self._context = multiprocessing.get_context("spawn")
        self._processes: list[tuple[BaseProcess, Connection]] = []
        self._secret = secrets.token_bytes(32)
        try:
            for place in servers:
                index = len(self._processes)
                self._start(_serve, place, self._stores, index, self._secret)
            # By server, of each store.
            addresses: list[list[Address]] = [_receive(pipe) for _, pipe in self._processes]
            by_store = list(zip(*addresses, strict=True))
            self._appliers = [
                Servers(store, at, node="here", secret=self._secret)
                for store, at in zip(self._stores, map(_local, by_store), strict=True)
            ]
            for rank, place in enumerate(workers):
                self._start(_work, place, fleet, rank, by_store, workers[0].host, self._secret)
            self._workers = [pipe for _, pipe in self._processes[len(servers) :]]
            for pipe in self._workers:
                _receive(pipe)  # it is ready
        except BaseException:
            self.close()
            raise

    def run(self, steps: int, *, first: int) -> list[float]:
        """Make steps; return the seconds of each."""
        for pipe in self._workers:
            pipe.send((first, steps))
        seconds, since = [], time.perf_counter()
        for step in range(first, first + steps):
            for pipe in self._workers:
                if _receive(pipe) != step:
                    raise RuntimeError("a worker is at another step")
            entries = self._fleet.entries(step)
            samples = SAMPLES * self._fleet.batches
            applied = [
                servers.apply(step, named, samples=samples)
                for servers, named in zip(self._appliers, entries, strict=True)
            ]
            for servers, requests in zip(self._appliers, applied, strict=True):
                servers.wait(*requests)
            now = time.perf_counter()
            seconds.append(now - since)
            since = now
        return seconds

    def digests(self, step: int) -> set[str]:
        """Return the digests that workers have of the parameters of a step: one."""
        for pipe in self._workers:
            pipe.send((step, 0))
        return {_receive(pipe) for pipe in self._workers}

    def cpu_seconds(self) -> float:
        """Return the CPU time of all processes so far, this one's included."""
        for _, pipe in self._processes:
            pipe.send(_CPU)
        return time.process_time() + sum(_receive(pipe) for _, pipe in self._processes)

    def close(self) -> None:
        """End all processes."""
        for _, pipe in self._processes:
            pipe.close()
        for process, _ in self._processes:
            process.join(timeout=10.0)
            if process.is_alive():
                process.kill()

    def _start(self, target: Any, place: Place, *arguments: Any) -> None:
        pipe, other = self._context.Pipe()
        process = self._context.Process(
            target=_in_place, args=(other, place, target, arguments), daemon=True
        )
        process.start()
        other.close()
        self._processes.append((process, pipe))


def places_of(nodes: Nodes | None, count: int) -> list[Place]:
    """Return so many places: nodes of a network, or all on this machine."""
    if nodes is None:
        return [Place(f"node {number}") for number in range(count)]
    pairs = zip(nodes.names, nodes.hosts, strict=True)
    return [Place(name, host, name) for name, host in pairs][:count]


def _local(addresses: Sequence[Address]) -> list[Address]:
    """Have the applying process use local sockets, as what it says is small."""
    return [Address("here", at.path, name=at.name) for at in addresses]


def _receive(pipe: Connection) -> Any:
    try:
        return pipe.recv()
    except EOFError:
        raise RuntimeError("a process of the fleet has failed; it says above why") from None


def _in_place(pipe: Connection, place: Place, target: Any, arguments: tuple[Any, ...]) -> None:
    if place.namespace is not None:
        enter(place.namespace)
        os.environ["GLOO_SOCKET_IFNAME"] = INTERFACE
    with contextlib.suppress(EOFError, BrokenPipeError):  # the other end is closed or gone
        target(pipe, place, *arguments)


def _serve(
    pipe: Connection, place: Place, stores: list[StoreSpec], index: int, secret: bytes
) -> None:
    with ExitStack() as stack:
        addresses = []
        for store in stores:
            setup = ServerSetup(
                store=store,
                index=index,
                secret=secret,
                max_contributions=64,
                max_buffer_bytes=_BUFFER_BYTES,
                max_reply_bytes=_BUFFER_BYTES,
            )
            server = ShardServer(setup, node_id=place.name)
            stack.callback(server.close)
            first, end = store.routing.dense_range(index)
            server.initialize(EPOCH, np.zeros(end - first, np.float32))
            addresses.append(server.open_network(place.host))
        pipe.send(addresses)
        while pipe.recv() == _CPU:
            pipe.send(time.process_time())


def _work(
    pipe: Connection,
    place: Place,
    fleet: Fleet,
    rank: int,
    addresses: Sequence[Sequence[Address]],
    meeting_host: str,
    secret: bytes,
) -> None:
    stores = fleet.stores()

    def servers(number: int) -> Servers:
        return Servers(stores[number], addresses[number], node=place.name, secret=secret)

    has_whole = fleet.way in ("servers", "pulled_once")
    whole = servers(0) if has_whole else None
    slices = None if fleet.way == "servers" else servers(has_whole + rank)
    if fleet.way != "servers":
        import torch.distributed as dist

        port = 20_000 + int.from_bytes(secret[:2], "big") % 10_000
        dist.init_process_group(
            "gloo",
            init_method=f"tcp://{meeting_host}:{port}",
            rank=rank,
            world_size=fleet.workers,
            timeout=timedelta(seconds=_GROUP_SECONDS),
        )
    worker = Worker(fleet, rank, whole, slices)
    pipe.send("ready")
    while True:
        asked = pipe.recv()
        if asked == _CPU:
            pipe.send(time.process_time())
            continue
        first, steps = asked
        for step in range(first, first + steps):
            worker.step(step)
            pipe.send(step)
        if not steps:
            pipe.send(worker.digest(first))
