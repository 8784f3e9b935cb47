"""Transports in turns: rounds of a pull and a push, and calls with nothing in them."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import psutil

from bench.exchanges import Exchange, blank, produce, read
from bench.framed import FramedTransport
from ps.messages.exchange import Message
from ps.messages.pull_push import PullReply

WARM_UP_ROUNDS = 3


class Transport(Protocol):
    """A worker's end; the server's end is another process, and both use the same exchange."""

    def pull(self) -> PullReply:
        """Ask for rows and dense parameters; the reply lasts until the next call."""

    def push(self) -> None:
        """Send gradients and wait for the acknowledgement."""

    def call(self) -> None:
        """Call with nothing in it."""

    def server_cpu_seconds(self) -> float:
        """Return the CPU time that the server's process has used."""

    def close(self) -> None:
        """End the server."""


class NoTransport:
    """What every transport has in common, in one process: filling messages and reading them."""

    def __init__(self, exchange: Exchange) -> None:
        self._sources = exchange.pull(), exchange.reply(), exchange.contribution()
        self._pull = blank(self._sources[0])
        self._reply = blank(self._sources[1])
        self._contribution = blank(self._sources[2])

    def pull(self) -> PullReply:
        self._pass(self._sources[0], self._pull)
        self._pass(self._sources[1], self._reply)
        return self._reply

    def push(self) -> None:
        self._pass(self._sources[2], self._contribution)

    def call(self) -> None:
        pass

    def server_cpu_seconds(self) -> float:
        return 0.0

    def close(self) -> None:
        pass

    def _pass(self, source: Message, message: Message) -> None:
        produce(source, message)
        read(message)


def _ray_call(exchange: Exchange) -> Transport:
    from bench.ray_calls import RayTransport

    return RayTransport(exchange)


def _arrow_flight(exchange: Exchange) -> Transport:
    from bench.arrow_flight import FlightTransport

    return FlightTransport(exchange)


# Ray and Arrow Flight are loaded where they are wanted, not in every server process.
TRANSPORTS: Mapping[str, Callable[[Exchange], Transport]] = {
    "no_transport": NoTransport,
    "unix": lambda exchange: FramedTransport("unix", exchange),
    "tcp": lambda exchange: FramedTransport("tcp", exchange),
    "shared_memory": lambda exchange: FramedTransport("shared_memory", exchange),
    "shared_memory_in_place": lambda exchange: FramedTransport("shared_memory_in_place", exchange),
    "arrow_flight": _arrow_flight,
    "ray_call": _ray_call,
}


@dataclass(frozen=True, slots=True)
class Turn:
    """Milliseconds of one transport's turn: of its median and slow rounds, CPU of a round."""

    median_ms: float
    p95_ms: float
    client_cpu_ms: float
    server_cpu_ms: float
    machine_cpu_ms: float
    empty_call_ms: float


def take_turn(transport: Transport, rounds: int) -> Turn:
    """Exchange so many batches, then make as many empty calls."""
    for _ in range(WARM_UP_ROUNDS):
        transport.pull()
        transport.push()
        transport.call()
    server, machine, client = transport.server_cpu_seconds(), _machine_cpu(), time.process_time()
    walls = []
    for _ in range(rounds):
        begun = time.perf_counter()
        transport.pull()
        transport.push()
        walls.append(time.perf_counter() - begun)
    client, machine = time.process_time() - client, _machine_cpu() - machine
    server = transport.server_cpu_seconds() - server
    calls = []
    for _ in range(rounds):
        begun = time.perf_counter()
        transport.call()
        calls.append(time.perf_counter() - begun)
    return Turn(
        median_ms=1e3 * float(np.median(walls)),
        p95_ms=1e3 * float(np.quantile(walls, 0.95)),
        client_cpu_ms=1e3 * client / rounds,
        server_cpu_ms=1e3 * server / rounds,
        machine_cpu_ms=1e3 * machine / rounds,
        empty_call_ms=1e3 * float(np.median(calls)),
    )


def _machine_cpu() -> float:
    """Return the CPU seconds of everything on the machine, in ticks of 10 ms; not stolen ones."""
    times = psutil.cpu_times()
    return float(sum(times[:7]) - times.idle - times.iowait)
