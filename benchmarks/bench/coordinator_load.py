"""A coordinator in a process of its own, and workers that report to it over sockets all the time.

Everything is real but the work: reports come from sockets that `Load` serves in this process, each
of which ends what it was granted as soon as it is granted, and shards acknowledge records without
applying them. So the coordinator has as much to do as it can, and its CPU time for a batch is what
one core of it has to give; how many batches/s came of it depends on what else the cores do here.
"""

import contextlib
import secrets
import selectors
import socket
import time
from abc import ABC, abstractmethod
from collections import deque
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgpack

from bench.server_process import ServerProcess
from embedding.spec.optimizers import Adagrad
from embedding.spec.table import TableSpec
from ps.messages.records import Apply, ApplyReply
from ps.net.listener import Listener, Peer
from ps.net.sockets import Address, connect, receive, send
from ps.spec import StoreSpec
from scheduler.coordinator.ledger_plan import LedgerPlan
from scheduler.coordinator.modes.rules import Mode, ModeOptions
from scheduler.coordinator.server import CoordinatorServer
from scheduler.coordinator.spec import CoordinatorSpec
from scheduler.coordinator.worker_connections import ControlPlane
from worker.control_bundles import pack_reports, unpack_grants
from worker.control_wire import MAGIC, MANY_MAGIC, PREFIX, framed
from worker.protocol import Finished, Report, Token
from worker.relay.server import RelayServer

NODE = "here"
SHARDS = 2
DEPTH = 2
WARM_UP_SECONDS = 1.0
_FAR = 10**9
_STAGES = (
    "read",
    "deduplicate",
    "pull",
    "wait_lease",
    "wait_batch",
    "wait_rows",
    "compute",
    "push",
)
# Processes keep what serves in them here, for as long as they live.
_kept: list[Any] = []


def start_shards(count: int, secret: bytes) -> tuple[Address, ...]:
    """Acknowledge records, as shards that have nothing else to do."""

    def serve(peer: Peer) -> None:
        with contextlib.suppress(OSError):  # the coordinator has ended
            while True:
                message, _ = receive(peer.sock)
                assert isinstance(message, Apply), "nothing else is asked of it"
                step = message.records[-1].step + 1 if message.records else 0
                send(peer.sock, ApplyReply(message.request_id, step))

    listeners = [Listener(f"shard {n}", secret=secret, serve=serve) for n in range(count)]
    _kept.extend(listeners)
    return tuple(listener.address(NODE) for listener in listeners)


def start_coordinator(
    mode: Mode, workers: int, shards: tuple[Address, ...], secret: bytes
) -> Address:
    """Serve workers, with M = W."""
    store = StoreSpec(
        tables=(TableSpec(name="t", dim=16, optimizer=Adagrad(learning_rate=0.1)),),
        dense_size=1024,
        dense_optimizer=Adagrad(learning_rate=0.1),
        num_shards=len(shards),
    )
    plan = LedgerPlan(batches_per_epoch=_FAR, epochs=1, rows_of=lambda _: 2048, lanes=workers)
    spec = CoordinatorSpec(
        store=store,
        plan=plan,
        evaluation_plan=None,
        mode=mode,
        options=ModeOptions(staleness_bound=_FAR),
        group_size=workers,
        global_batch=2048 * workers,
        workers=workers,
        depth=DEPTH,
    )
    server = CoordinatorServer(spec, shards, secret=secret, node_id=NODE, retry_seconds=5.0)
    plane = ControlPlane(server.exchange, secret=secret, on_error=server.fail)
    _kept.extend([server, plane])
    return plane.listener.address(NODE)


def start_relay(number: int, coordinator: Address, secret: bytes) -> Address:
    """Pass on what workers report."""
    to_coordinator = partial(
        connect, coordinator, node_id=NODE, secret=secret, name=f"relay {number}"
    )
    relay = RelayServer(number, to_coordinator, secret=secret)
    _kept.append(relay)
    return relay.listener.address(NODE)


@dataclass(slots=True)
class _Connection:
    """An end of a socket, and the begin of a frame that came."""

    sock: socket.socket
    incoming: bytearray = field(default_factory=bytearray)


@dataclass(slots=True)
class _Worker(_Connection):
    """One worker's end of a socket: what it was granted and says next that it has ended."""

    number: int = 0
    sequence: int = 0
    computing: list[list[Any]] = field(default_factory=list)


class _Connections(ABC):
    """Connections that are answered as fast as they say something.

    Attributes:
        batches, reports: that were told of so far.
    """

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self.batches = self.reports = 0

    def run(self, seconds: float) -> None:
        """Go on for so long."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for key, _ in self._selector.select(0.1):
                self._receive(key.data)

    def close(self) -> None:
        """Let all connections go."""
        for key in list(self._selector.get_map().values()):
            key.data.sock.close()
        self._selector.close()

    def _receive(self, connection: Any) -> None:
        connection.incoming += connection.sock.recv(1 << 20)
        if len(connection.incoming) < PREFIX.size:
            return
        _, nbytes = PREFIX.unpack_from(connection.incoming)
        if len(connection.incoming) < PREFIX.size + nbytes:
            return
        body = bytes(connection.incoming[PREFIX.size :])
        connection.incoming.clear()
        self._answered(connection, body)

    @abstractmethod
    def _answered(self, connection: Any, body: bytes) -> None:
        """A frame has come."""


class Load(_Connections):
    """Workers that report as fast as they are answered.

    Args:
        addresses: where worker i connects: to the one at i modulo their number.
    """

    def __init__(self, addresses: list[Address], workers: int, secret: bytes) -> None:
        super().__init__()
        stages = dict.fromkeys(_STAGES, 1.25)
        self._process = [1 << 30, 1 << 30, 1 << 30, 3.5, stages]
        for number in range(workers):
            sock = connect(
                addresses[number % len(addresses)],
                node_id=NODE,
                secret=secret,
                name=f"worker {number} incarnation 0",
            )
            worker = _Worker(sock, number=number)
            self._selector.register(sock, selectors.EVENT_READ, worker)
            self._report(worker)

    def _answered(self, connection: _Worker, body: bytes) -> None:
        grant = msgpack.unpackb(body)
        connection.computing += grant[1]
        self._report(connection)

    def _report(self, worker: _Worker) -> None:
        """Say that the first of what it holds has ended, and ask for as many as it has room for."""
        worker.sequence += 1
        finished = []
        if worker.computing:
            token = worker.computing.pop(0)
            pulled, began = max(0, token[3]), time.time()
            finished = [[token, "done", 2048, 0, None, 1000.5, pulled, 0.05, began, 1 << 20, None]]
            self.batches += 1
        held = [[token[5], token[1], token[2]] for token in worker.computing]
        want = DEPTH - len(held)
        fields = [
            worker.number, 0, worker.sequence, held, finished, want, False, self._process, 0,
            "pushing" if held else "none",
        ]  # fmt: skip
        body = msgpack.packb(fields)
        worker.sock.sendall(framed(MAGIC, body))
        self.reports += 1


class BundledLoad(_Connections):
    """The same, of relays that this process plays: what a coordinator of many workers sees of them.

    A relay of thousands of batches/s has a few dozen reports in each bundle. Real ones would share
    the cores of this machine, and never come to that.

    Args:
        relays: connections to the coordinator; each has a part of the workers.
        bundle: reports of a bundle at most.
    """

    def __init__(
        self, coordinator: Address, workers: int, secret: bytes, *, relays: int, bundle: int
    ) -> None:
        super().__init__()
        self._bundle = bundle
        self._sequence = [0] * workers
        self._held: list[list[Token]] = [[] for _ in range(workers)]
        for number in range(relays):
            sock = connect(coordinator, node_id=NODE, secret=secret, name=f"relay {number}")
            relay = _Relay(sock, ready=deque(range(number, workers, relays)))
            self._selector.register(sock, selectors.EVENT_READ, relay)
            self._pass_on(relay)

    def _answered(self, connection: "_Relay", body: bytes) -> None:
        for worker, grant in zip(connection.asked, unpack_grants(body), strict=True):
            self._held[worker] += grant.tokens
        connection.ready += connection.asked
        self._pass_on(connection)

    def _pass_on(self, relay: "_Relay") -> None:
        count = min(self._bundle, len(relay.ready))
        relay.asked = [relay.ready.popleft() for _ in range(count)]
        body = pack_reports([self._report(worker) for worker in relay.asked])
        relay.sock.sendall(framed(MANY_MAGIC, body))
        self.reports += count

    def _report(self, worker: int) -> Report:
        """Say that the first of what it holds has ended, and ask for as many as it has room for."""
        held = self._held[worker]
        finished: tuple[Finished, ...] = ()
        if held:
            token = held.pop(0)
            pulled = max(0, token.at_step)
            numbers: Any = (2048, 0, None, 1000.5, pulled, 0.05, time.time(), 1 << 20)
            finished = (Finished(token, "done", *numbers),)
            self.batches += 1
        self._sequence[worker] += 1
        return Report(
            worker,
            0,
            self._sequence[worker],
            tuple([token.identity for token in held]),
            finished,
            DEPTH - len(held),
            stage="pushing" if held else "none",
        )


@dataclass(slots=True)
class _Relay(_Connection):
    """A connection of a relay: whose reports are under way, and who reports next."""

    ready: deque[int] = field(default_factory=deque)
    asked: list[int] = field(default_factory=list)


def measure_load(
    mode: Mode, *, workers: int, relays: int, seconds: float, bundle: int | None = None
) -> dict[str, Any]:
    """Return what a coordinator served, and the CPU seconds that it and the relays took for it.

    Args:
        relays: processes between workers and coordinator; 0: there are none.
        bundle: this process plays the relays, with so many reports in a bundle; None: it plays
            the workers.
    """
    secret = secrets.token_bytes(32)
    with ExitStack() as stack:

        def started(*arguments: Any) -> ServerProcess[Any]:
            return stack.enter_context(closing(ServerProcess(*arguments)))

        shards = started(start_shards, SHARDS, secret)
        coordinator = started(start_coordinator, mode, workers, shards.address, secret)
        between: list[ServerProcess[Any]] = []
        load: Load | BundledLoad
        if bundle is None:
            between = [started(start_relay, n, coordinator.address, secret) for n in range(relays)]
            addresses = [each.address for each in between] or [coordinator.address]
            load = Load(addresses, workers, secret)
        else:
            load = BundledLoad(coordinator.address, workers, secret, relays=relays, bundle=bundle)
        stack.enter_context(closing(load))
        load.run(WARM_UP_SECONDS)
        batches, reports, began = load.batches, load.reports, time.perf_counter()
        cpu = coordinator.cpu_seconds()
        cpu_relays = sum(each.cpu_seconds() for each in between)
        load.run(seconds)
        cpu = coordinator.cpu_seconds() - cpu
        cpu_relays = sum(each.cpu_seconds() for each in between) - cpu_relays
        wall = time.perf_counter() - began
        batches, reports = load.batches - batches, load.reports - reports
    return {
        "mode": mode,
        "workers": workers,
        "relays": relays,
        "bundle": bundle,
        "batches_per_second_here": batches / wall,
        "reports_per_batch": reports / batches,
        "coordinator_cores": cpu / wall,
        "coordinator_us_per_batch": 1e6 * cpu / batches,
        "batches_per_second_of_a_core": batches / cpu,
        "relays_us_per_batch": 1e6 * cpu_relays / batches if between else None,
    }
