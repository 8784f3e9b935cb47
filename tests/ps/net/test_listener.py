import contextlib
import fcntl
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ps.messages.pull_push import PushReply
from ps.messages.records import DenseNorm
from ps.net import listener as listening
from ps.net import sockets
from ps.net.listener import Listener, Peer
from ps.net.sockets import (
    Address,
    NotProvenError,
    connect,
    network_place,
    prove_as_server,
    receive,
    send,
)

SECRET = b"s" * 32


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.01)


def echo(peer: Peer) -> None:
    with contextlib.suppress(OSError):
        while True:
            request, _ = receive(peer.sock)
            send(peer.sock, PushReply(request.request_id))


@pytest.fixture
def served() -> Iterator[Listener]:
    listener = Listener("shard 0", secret=SECRET, serve=echo)
    yield listener
    listener.close()


def speak(listener: Listener, node_id: str = "here") -> socket.socket:
    return connect(listener.address("here"), node_id=node_id, secret=SECRET)


def works(sock: socket.socket) -> bool:
    send(sock, DenseNorm(7, 1, 0, (), 0))
    return receive(sock)[0] == PushReply(7)


def test_a_thread_that_can_not_be_started_costs_one_connection(
    served: Listener, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = threading.Thread.start
    left = [1]

    def start(thread: threading.Thread) -> None:
        if left[0]:
            left[0] -= 1
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(ConnectionError):
        speak(served)
    with speak(served) as sock:
        assert works(sock)
        assert len(served.peers) == 1, "the one that failed is not counted"
    assert "can't accept a connection: can't start new thread" in caplog.text


def test_a_peer_that_trickles_is_dropped_when_the_time_of_the_handshake_is_over(
    served: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "HANDSHAKE_TIMEOUT_SECONDS", 0.3)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(served.path)
        with contextlib.suppress(OSError):  # it is dropped
            while True:
                sock.sendall(b"x")
                time.sleep(0.02)
    assert served.peers == []


def test_peers_in_the_handshake_have_few_places_and_the_oldest_makes_place(
    served: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "MAX_UNPROVEN", 3)
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(3)]
        for sock in idle:
            sock.connect(served.path)
            sock.recv(32)
        with speak(served) as sock:
            assert works(sock)
            idle[0].settimeout(5)
            assert idle[0].recv(1) == b""
            assert len(served.peers) == 1


def speak_to(address: Address) -> None:
    with connect(address, node_id="here", secret=SECRET) as sock:
        assert works(sock)


def test_a_proof_that_an_impostor_passes_on_to_another_shard_is_refused() -> None:
    """It listens on a port that a shard had, and hands all bytes to another shard."""
    handled: list[int] = []

    def serve(peer: Peer) -> None:
        handled.append(peer.number)
        echo(peer)

    other = Listener("shard 1", secret=SECRET, serve=serve)
    host, port = other.open_network("127.0.0.1")
    impostor = socket.create_server(("127.0.0.1", 0))

    def pass_on(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(4096):
                target.sendall(data)
        for sock in (source, target):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def relay() -> None:
        victim, _ = impostor.accept()
        with victim, socket.create_connection((host, port)) as shard:
            back = threading.Thread(target=pass_on, args=(shard, victim))
            back.start()
            pass_on(victim, shard)
            back.join()

    thread = threading.Thread(target=relay)
    thread.start()
    address = Address("there", "", *impostor.getsockname(), name="shard 0")
    try:
        with pytest.raises(ConnectionError):
            speak_to(address)
        assert handled == []
    finally:
        thread.join(10)
        impostor.close()
        other.close()


def test_the_same_shard_at_another_port_refuses_a_proof_for_the_old_one(served: Listener) -> None:
    host, port = served.open_network("127.0.0.1")
    stale = Address("there", "", host, port, name="shard 0")
    with connect(stale, node_id="here", secret=SECRET) as sock:
        assert works(sock)

    ours, theirs = socket.socketpair()
    outcome: list[Any] = []

    def accept() -> None:
        try:
            prove_as_server(ours, SECRET, network_place("shard 0", host, port + 1))
        except OSError as error:
            outcome.append(error)
        ours.close()

    thread = threading.Thread(target=accept)
    thread.start()
    with theirs, pytest.raises(ConnectionError):
        sockets.prove_as_client(theirs, SECRET, network_place("shard 0", host, port))
    thread.join(10)
    assert "means somebody else" in str(outcome[0])


# Socket folders -----------------------------------------------------------------------------------


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="t") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def test_many_who_do_not_know_the_secret_are_told_of_in_one_line(
    served: Listener, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        with pytest.raises(NotProvenError, match=r"has another one, is not shard 0 at .*, or has"):
            connect(served.address("here"), node_id="here", secret=b"x" * 32)
    until(lambda: served._refused == 2)
    monkeypatch.setattr(listening, "TELL_SECONDS", 0.0)
    served._silent_until = 0.0
    with pytest.raises(NotProvenError):
        connect(served.address("here"), node_id="here", secret=b"x" * 32)

    until(lambda: len(caplog.messages) == 2)
    assert [text.endswith("(and 2 more since the last time)") for text in caplog.messages] == [
        False, True,
    ]  # fmt: skip
    assert works(speak(served))


def test_a_folder_whose_lock_is_held_stays_whatever_process_ids_are_seen(temporary: Path) -> None:
    """As that of a process in another container, whose id means nothing here."""
    folder = temporary / "synchromesh-4194000-abc"
    folder.mkdir()
    (folder / "shard-0").touch()
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        Listener("shard 1", secret=SECRET, serve=echo).close()
        assert (folder / "shard-0").exists()


def test_the_folder_of_a_process_that_was_killed_is_removed(temporary: Path) -> None:
    child = os.fork()
    if child == 0:
        Listener("shard 0", secret=SECRET, serve=echo)
        os._exit(0)
    os.waitpid(child, 0)
    (left,) = temporary.iterdir()

    listener = Listener("shard 1", secret=SECRET, serve=echo)
    try:
        assert not left.exists()
        assert len(list(temporary.iterdir())) == 1
    finally:
        listener.close()
    assert list(temporary.iterdir()) == []


def test_a_folder_without_a_lock_is_left_alone(temporary: Path) -> None:
    (temporary / "synchromesh-4194000-abc").mkdir()

    Listener("shard 0", secret=SECRET, serve=echo).close()

    assert (temporary / "synchromesh-4194000-abc").exists()


def test_a_folder_whose_maker_died_before_it_had_its_name_is_removed_later(temporary: Path) -> None:
    young, old = (temporary / f".synchromesh-{name}" for name in ("young", "old"))
    for folder in (young, old):
        folder.mkdir()
    (old / "lock").touch()
    os.utime(old, (time.time() - 3600,) * 2)

    Listener("a", secret=b"", serve=lambda peer: None).close()

    assert young.exists(), "its maker may be about to name it"
    assert not old.exists()


def test_two_listeners_of_one_process_keep_their_folders(temporary: Path) -> None:
    first = Listener("shard 0", secret=SECRET, serve=echo)
    second = Listener("shard 1", secret=SECRET, serve=echo)
    try:
        for listener in (first, second):
            with speak(listener) as sock:
                assert works(sock)
    finally:
        first.close()
        second.close()


def test_a_descriptor_is_closed_by_the_thread_that_reads_it_only(served: Listener) -> None:
    with speak(served):
        until(lambda: len(served.peers) == 1)
        (peer,) = served.peers
        peer.shut()
        until(lambda: served.peers == [])
        until(lambda: peer.sock.fileno() == -1)
