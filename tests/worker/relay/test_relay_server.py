"""Relays between workers and the coordinator's sockets, with real ones."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from ps.net.sockets import connect
from scheduler.coordinator.worker_connections import ControlPlane
from worker.control_bundles import pack_reports
from worker.control_wire import MANY_MAGIC, framed
from worker.coordinator_client import CoordinatorClient, CoordinatorLostError
from worker.protocol import Grant, Report
from worker.relay.gathering import Gathering
from worker.relay.server import RelayServer

SECRET = b"s" * 32


class Job:
    """A coordinator that answers the sequence, and relays to it."""

    def __init__(self, relays: int = 2) -> None:
        self.bundles: list[list[Report]] = []
        self.errors: list[Exception] = []
        self.plane = ControlPlane(self.exchange, secret=SECRET, on_error=self.errors.append)
        self.relays = [
            RelayServer(n, self.to_coordinator, secret=SECRET, gathering=Gathering(seconds=0.05))
            for n in range(relays)
        ]

    def exchange(self, reports: Sequence[Report]) -> list[Grant]:
        self.bundles.append(list(reports))
        return [Grant(report.sequence) for report in reports]

    def to_coordinator(self) -> socket.socket:
        return connect(self.plane.listener.address("here"), node_id="here", secret=SECRET)

    def to_relay(self, number: int) -> socket.socket:
        address = self.relays[number].listener.address("here")
        return connect(address, node_id="here", secret=SECRET)

    def client(self, retry_seconds: float = 10.0) -> CoordinatorClient:
        ways = [lambda number=number: self.to_relay(number) for number in range(len(self.relays))]
        return CoordinatorClient(self.to_coordinator, retry_seconds=retry_seconds, relays=ways)

    def close(self) -> None:
        for relay in self.relays:
            relay.close()
        self.plane.close()


@pytest.fixture
def job() -> Iterator[Job]:
    threads = set(threading.enumerate())
    one = Job()
    yield one
    one.close()
    deadline = time.monotonic() + 60
    while set(threading.enumerate()) - threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - threads, "every thread has ended"
    assert not one.errors


def test_reports_that_come_at_about_the_same_time_are_passed_on_together(job: Job) -> None:
    clients = [job.client() for _ in range(8)]
    answers: dict[int, list[int]] = {}

    def work(number: int) -> None:
        with contextlib.closing(clients[number]) as client:
            reports = [Report(number, 0, 100 * number + n) for n in range(3)]
            answers[number] = [client.exchange(report).sequence for report in reports]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert answers == {n: [100 * n, 100 * n + 1, 100 * n + 2] for n in range(8)}
    assert sum(map(len, job.bundles)) == 24
    assert max(map(len, job.bundles)) > 1


def test_a_worker_goes_to_another_relay_and_then_to_the_coordinator(job: Job) -> None:
    with contextlib.closing(job.client()) as client:
        assert client.exchange(Report(0, 0, 1)).sequence == 1
        job.relays[0].close()
        assert client.exchange(Report(0, 0, 2)).sequence == 2
        job.relays[1].close()
        assert client.exchange(Report(0, 0, 3)).sequence == 3

    assert [report.sequence for bundle in job.bundles for report in bundle] == [1, 2, 3]


def test_a_relay_that_hangs_is_left_in_time(job: Job) -> None:
    hangs = threading.Event()
    relay, received = job.relays[0], job.relays[0]._loop._received
    relay._loop._received = lambda frames: (hangs.wait(20), received(frames))[1]
    try:
        with contextlib.closing(job.client(retry_seconds=4.0)) as client:
            assert client.exchange(Report(0, 0, 1)).sequence == 1
    finally:
        hangs.set()


def test_workers_are_told_at_once_where_a_relay_does_not_reach_the_coordinator(job: Job) -> None:
    job.plane.close()
    with (
        contextlib.closing(job.client(retry_seconds=0.3)) as client,
        pytest.raises(CoordinatorLostError),
    ):
        client.exchange(Report(0, 0, 1))


def test_a_relay_reaches_a_coordinator_again_that_dropped_it(job: Job) -> None:
    with contextlib.closing(job.client()) as client:
        client.exchange(Report(0, 0, 1))
        for peer in job.plane.listener.peers:
            peer.shut()
        assert client.exchange(Report(0, 0, 2)).sequence == 2
        assert client.exchange(Report(0, 0, 3)).sequence == 3


def test_a_relay_passes_on_nothing_of_another_relay(job: Job) -> None:
    with job.to_relay(0) as sock:
        sock.settimeout(10)
        sock.sendall(framed(MANY_MAGIC, pack_reports([Report(0, 0, 1)])))
        assert sock.recv(1) == b""
    assert not job.bundles


def test_nobody_is_heard_who_does_not_know_the_secret(job: Job) -> None:
    address = job.relays[0].listener.address("here")
    with pytest.raises(ConnectionError):
        connect(address, node_id="here", secret=b"x" * 32)
