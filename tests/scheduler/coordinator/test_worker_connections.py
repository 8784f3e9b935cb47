import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from ps.messages.wire import WireError
from ps.net.sockets import Address, connect, local_place, prove_as_server
from scheduler.coordinator.worker_connections import ControlPlane
from worker.coordinator_client import CoordinatorClient, CoordinatorLostError
from worker.protocol import Grant, Report

SECRET = b"s" * 32


class Answering:
    """A coordinator that answers the sequence, and remembers what it was told."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.errors: list[Exception] = []
        self.raises: Exception | None = None
        self.plane = ControlPlane(self.exchange, secret=SECRET, on_error=self.errors.append)

    def exchange(self, reports: Sequence[Report]) -> list[Grant]:
        self.reports += reports
        if self.raises is not None:
            raise self.raises
        return [Grant(report.sequence) for report in reports]

    def connect(self, secret: bytes = SECRET) -> socket.socket:
        return connect(self.plane.listener.address("here"), node_id="here", secret=secret)

    def client(self, retry_seconds: float = 5.0) -> CoordinatorClient:
        return CoordinatorClient(self.connect, retry_seconds=retry_seconds)


@pytest.fixture
def answering() -> Iterator[Answering]:
    threads = set(threading.enumerate())
    one = Answering()
    yield one
    one.plane.close()
    deadline = time.monotonic() + 60
    while set(threading.enumerate()) - threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - threads, "every thread has ended"


def test_every_report_is_answered_in_order(answering: Answering) -> None:
    with contextlib.closing(answering.client()) as client:
        answers = [client.exchange(Report(0, 0, sequence)) for sequence in (1, 2, 3)]

    assert [grant.sequence for grant in answers] == [1, 2, 3]
    assert [report.sequence for report in answering.reports] == [1, 2, 3]


def test_workers_are_answered_side_by_side(answering: Answering) -> None:
    clients = [answering.client() for _ in range(5)]

    assert [client.exchange(Report(i, 0, i)).sequence for i, client in enumerate(clients)] == [
        *range(5)
    ]

    for client in clients:
        client.close()


def test_a_report_is_sent_again_where_the_connection_broke(answering: Answering) -> None:
    with contextlib.closing(answering.client()) as client:
        client.exchange(Report(0, 0, 1))
        for peer in answering.plane.listener.peers:
            peer.sock.shutdown(socket.SHUT_RDWR)

        assert client.exchange(Report(0, 0, 2)).sequence == 2

    assert answering.reports[-1].sequence == 2


def test_a_coordinator_that_stays_away_is_given_up(answering: Answering) -> None:
    with contextlib.closing(answering.client(retry_seconds=0.3)) as client:
        client.exchange(Report(0, 0, 1))
        answering.plane.close()

        with pytest.raises(CoordinatorLostError, match="for 0 s"):
            client.exchange(Report(0, 0, 2))


def test_nobody_is_heard_who_does_not_know_the_secret(answering: Answering) -> None:
    with pytest.raises((WireError, ConnectionError)):
        answering.connect(b"x" * 32)

    assert not answering.reports


def test_a_peer_that_sends_no_report_is_dropped_and_nobody_else(answering: Answering) -> None:
    with contextlib.closing(answering.client()) as client, answering.connect() as other:
        client.exchange(Report(0, 0, 1))
        other.sendall(b"GET / HT")

        assert other.recv(1) == b""
        assert client.exchange(Report(0, 0, 2)).sequence == 2
    assert not answering.errors


def test_a_failure_of_the_coordinator_is_told(answering: Answering) -> None:
    answering.raises = RuntimeError("a bug")
    client = answering.client(retry_seconds=0.0)

    with pytest.raises(CoordinatorLostError):
        client.exchange(Report(0, 0, 1))

    assert [str(error) for error in answering.errors[:1]] == ["a bug"]


def test_a_coordinator_that_never_answers_is_lost(tmp_path: Path) -> None:
    """It accepts, proves the secret, and is silent from then on."""
    path = str(tmp_path / "c")
    secret = b"s" * 32
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        accepted: list[socket.socket] = []

        def accept() -> None:
            sock, _ = listener.accept()
            accepted.append(sock)
            prove_as_server(sock, secret, local_place("coordinator", path))

        thread = threading.Thread(target=accept)
        thread.start()
        address = Address("here", path, name="coordinator")
        client = CoordinatorClient(
            lambda: connect(address, node_id="here", secret=secret), retry_seconds=0.5
        )
        with pytest.raises(CoordinatorLostError, match="coordinator"):
            client.exchange(Report(0, 0, 1))
        thread.join(10)
        accepted[0].close()
