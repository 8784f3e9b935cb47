import errno
import os
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from embedding.spec.table import TableSpec
from ps.client.client import PsClient
from ps.messages import wire
from ps.messages.exchange import Refusal
from ps.messages.pull_push import ANY_STEP, PullReply, PushReply
from ps.messages.records import Apply, ApplyReply
from ps.messages.wire import encode
from ps.net import listener, sockets
from ps.net.sockets import COORDINATOR, connect, receive, send
from ps.server import data_plane
from ps.shard.lease import CoordinatorLease

Serve = Callable[..., Any]

TABLES = (TableSpec(name="a", dim=4),)


def raw(served: Any) -> socket.socket:
    """A connection to the first shard without a handshake."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(5)
    sock.connect(served.planes[0].listener.path)
    return sock


def ask(sock: socket.socket, job: Any, keys: list[int]) -> Any:
    sock.settimeout(5)
    send(sock, job.pull(0, job.unique(keys)))
    return receive(sock)[0]


def is_closed(sock: socket.socket) -> bool:
    """Whether the peer closes the connection; what it said before is read."""
    sock.settimeout(5)
    try:
        while sock.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass
    return True


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_goes_wrong_as_a_connection_ends_is_told(
    small_job: Any, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(number: int) -> None:
        raise RuntimeError("a fault of ours")

    job = small_job(TABLES)
    served = serve(job)
    sock = served.connect(0)
    monkeypatch.setattr(job.shards[0], "disconnect", fails)
    ask(sock, job, [1])
    sock.close()

    until(lambda: bool(served.errors))
    assert str(served.errors[0]) == "a fault of ours"


def test_a_connection_for_which_there_is_no_descriptor_left_is_dropped_alone(
    small_job: Any, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    job = small_job(TABLES)
    served = serve(job)
    with monkeypatch.context() as patch:
        patch.setattr(data_plane, "Wake", fails)
        sock = served.connect(0)
        assert is_closed(sock)
        sock.close()

    sock = served.connect(0)
    assert isinstance(ask(sock, job, [1]), PullReply)
    sock.close()
    assert not served.errors


def test_the_local_socket_can_only_be_reached_by_this_user(small_job: Any, serve: Serve) -> None:
    path = serve(small_job(TABLES)).planes[0].listener.path

    assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700


@pytest.mark.parametrize("start", [b"", b"SMF1" + bytes(60), b"\xf5" * 64])
def test_nothing_is_read_from_a_peer_without_the_secret(
    small_job: Any, serve: Serve, start: bytes
) -> None:
    job = small_job(TABLES)
    served = serve(job)
    frame = b"".join(encode(job.contribution(0, job.unique([1]))))

    with raw(served) as sock:
        sock.sendall((start + frame).ljust(200, b"\0"))
        assert is_closed(sock)

    assert len(job.shards[0].buffer) == 0
    assert not served.errors


def test_silent_peers_are_dropped_and_hinder_nobody(
    small_job: Any, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "HANDSHAKE_TIMEOUT_SECONDS", 0.3)
    job = small_job(TABLES)
    served = serve(job)
    silent = [raw(served) for _ in range(20)]

    with served.connect(0) as sock:
        assert isinstance(ask(sock, job, [1]), PullReply)
    assert all(is_closed(sock) for sock in silent)

    for sock in silent:
        sock.close()


def test_connections_are_limited(
    small_job: Any, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "MAX_CONNECTIONS", 3)
    served = serve(small_job(TABLES))

    silent = [served.connect(0) for _ in range(3)]
    until(lambda: len(served.planes[0].listener.peers) == 3)
    with served.connect(0) as one_too_many:
        assert is_closed(one_too_many)
    silent.pop().close()
    until(lambda: len(served.planes[0].listener.peers) == 2)
    served.connect(0).close()

    for sock in silent:
        sock.close()


def test_closing_ends_handshakes_too(small_job: Any, serve: Serve) -> None:
    served = serve(small_job(TABLES))
    with raw(served) as sock:
        sock.recv(1)
        served.close()
        assert is_closed(sock)
    # The fixture finds threads that go on waiting.


def test_a_shard_out_of_file_descriptors_accepts_again_later(
    small_job: Any, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = small_job(TABLES)
    served = serve(job)
    accept, failures = socket.socket.accept, []

    def flaky(listener: socket.socket) -> Any:
        if len(failures) < 2:
            failures.append(listener)
            raise OSError(errno.EMFILE, "Too many open files")
        return accept(listener)

    monkeypatch.setattr(socket.socket, "accept", flaky)
    for _ in range(3):  # the first one is taken by the call that waits already
        with served.connect(0) as sock:
            assert isinstance(ask(sock, job, [1]), PullReply)

    assert len(failures) == 2


def test_a_damaged_frame_costs_its_sender_the_connection_only(
    small_job: Any, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    job = small_job(TABLES)
    served = serve(job)
    frame = bytearray(b"".join(encode(job.contribution(0, job.unique([1])))))
    frame[20] ^= 0xFF

    with served.connect(0) as broken, served.connect(0) as other:
        broken.sendall(frame)
        assert is_closed(broken)
        assert isinstance(ask(other, job, [1]), PullReply)

    assert len(job.shards[0].buffer) == 0
    assert "shard 0 drops a connection: " in caplog.text
    assert not served.errors


def test_a_message_that_is_no_request_costs_the_connection(
    small_job: Any, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    served = serve(small_job(TABLES))

    with served.connect(0) as sock:
        send(sock, PushReply(1))
        assert is_closed(sock)

    assert "a PushReply is no request" in caplog.text


def test_a_peer_that_leaves_loses_its_parked_pulls(small_job: Any, serve: Serve) -> None:
    job = small_job(TABLES)
    served = serve(job)
    with served.connect(0) as stays:
        with served.connect(0) as leaves:
            for sock in (stays, leaves):
                send(sock, job.pull(0, job.unique([1]), at_step=1))
            until(lambda: job.shards[0].num_parked == 2)
        until(lambda: job.shards[0].num_parked == 1)

        with served.locks[0].exclusive():
            assert isinstance(job.send(0, job.pull(0, job.unique([1]))), PullReply)
        send(stays, job.pull(0, job.unique([1]), request_id=9))
        assert receive(stays)[0].request_id == 9


def test_an_unexpected_failure_is_reported_and_not_taken_for_a_lost_peer(
    small_job: Any, serve: Serve
) -> None:
    """Also where it is an OSError, as of a disk that is full."""
    job = small_job(TABLES)
    served = serve(job)
    for error in (OSError(errno.ENOSPC, "No space left"), ValueError("a bug")):

        def fail(*_: object, error: Exception = error) -> None:
            raise error

        job.shards[0].answer = fail
        with served.connect(0) as sock:
            send(sock, job.pull(0, job.unique([1])))
            assert is_closed(sock)

    assert [type(error) for error in served.errors] == [OSError, ValueError]


def test_a_reply_over_the_limits_is_reported(
    small_job: Any, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = small_job(TABLES)
    served = serve(job)
    with served.connect(0) as asks, served.connect(0) as parks:
        send(parks, job.pull(0, job.unique(range(100)), at_step=1))
        until(lambda: job.shards[0].num_parked == 1)
        pull = b"".join(encode(job.pull(0, job.unique(range(100)))))
        monkeypatch.setattr(wire, "MAX_BODY_BYTES", 1500)
        asks.sendall(pull)
        assert is_closed(asks)
        with served.connect(0) as coordinator:
            send(coordinator, Apply(1, job.epoch, (job.record(0),)))
            assert receive(coordinator)[0].step == 1
        until(lambda: len(served.errors) == 2)

    assert "a PullReply would take 1" in str(served.errors[0])
    assert "a PullReply would take 1" in str(served.errors[1])


def test_a_server_that_is_to_die_does_so_once_it_has_reached_its_step(
    small_job: Any, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = small_job(TABLES)
    served = serve(job)
    served.planes[0]._dies_at_step = 2
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *args: killed.append(args))

    with served.connect(0) as sock:
        send(sock, Apply(1, job.epoch, (job.record(0),)))
        assert receive(sock)[0].step == 1
        assert killed == []
        send(sock, Apply(2, job.epoch, (job.record(1),)))
        assert receive(sock)[0].step == 2

    assert killed == [(os.getpid(), signal.SIGKILL)]


def test_bytes_are_counted(small_job: Any, serve: Serve) -> None:
    job = small_job(TABLES)
    served = serve(job)
    client: PsClient = served.client()

    pulled = client.start_pull(job.unique(range(1000)), at_step=ANY_STEP)
    while not pulled.done:
        client.poll(1)

    plane = served.planes[0]
    until(lambda: plane.bytes_sent > 0)
    assert client.bytes_received == plane.bytes_sent > 16_000
    assert client.bytes_sent == plane.bytes_received > 12_000


def test_the_network_socket_is_opened_once_and_asks_for_the_secret(
    small_job: Any, serve: Serve
) -> None:
    job = small_job(TABLES)
    served = serve(job, network=True)
    address = served.address(0)

    assert served.address(0) == address
    with served.connect(0) as sock:
        assert isinstance(ask(sock, job, [1]), PullReply)
    with pytest.raises(ConnectionError):
        connect(address, node_id="here", secret=b"another")


def test_many_pulls_of_one_peer_are_all_answered(small_job: Any, serve: Serve) -> None:
    job = small_job(TABLES)
    with serve(job).connect(0) as sock:
        sock.settimeout(5)
        for number in range(300):
            send(sock, job.pull(0, job.unique([number]), request_id=number))
        replies = [receive(sock)[0] for _ in range(300)]

    assert [reply.request_id for reply in replies] == list(range(300))
    assert not any(isinstance(reply, Refusal) for reply in replies)


def test_pulls_and_pushes_are_answered_while_the_state_is_read(
    small_job: Any, serve: Serve
) -> None:
    """By a digest or a checkpoint, say; records wait, and then everything goes on."""
    job = small_job(TABLES)
    served = serve(job)
    unique = job.unique([1, 2])
    with served.connect(0) as worker, served.connect(0) as coordinator:
        for sock in (worker, coordinator):
            sock.settimeout(5)
        with served.locks[0].shared():
            send(worker, job.pull(0, unique))
            assert isinstance(receive(worker)[0], PullReply)
            send(worker, job.contribution(0, unique))
            assert isinstance(receive(worker)[0], PushReply)
            send(worker, job.pull(0, unique, at_step=1))
            until(lambda: job.shards[0].num_parked == 1)
            send(coordinator, Apply(1, job.epoch, (job.record(0, 0),)))
            until(lambda: len(served.locks[0]._waiting_writers) == 1)
            assert job.shards[0].step == 0

        assert receive(coordinator)[0].step == 1
        assert receive(worker)[0].step == 1


def test_parked_pulls_take_bounded_memory_and_no_threads_of_their_own(
    small_job: Any, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replies are made one after another as the sockets take them: one of 30 fits the bound."""
    job = small_job(TABLES)
    unique = job.unique(range(30_000))
    size = job.shards[0].reply_bytes(job.pull(0, unique))
    served = serve(job, max_reply_bytes=size)
    made, at_once = [], []
    read = job.shards[0].answer

    def answer(pull: Any) -> Any:
        at_once.append(served.planes[0].replies._held)
        reply = read(pull)
        if reply is not None:
            made.append(pull.request_id)
        return reply

    job.shards[0].answer = answer
    socks = [served.connect(0) for _ in range(30)]
    for number, sock in enumerate(socks):
        send(sock, job.pull(0, unique, request_id=number, at_step=1))
    until(lambda: job.shards[0].num_parked == 30)
    threads = threading.active_count()

    with served.connect(0) as coordinator:
        send(coordinator, Apply(1, job.epoch, (job.record(0),)))
        assert receive(coordinator)[0].step == 1
        assert threading.active_count() <= threads + 1, "the coordinator's connection has one"
    replies = [receive(sock)[0] for sock in socks]

    assert sorted(made) == list(range(30))
    assert max(at_once) == size
    assert [reply.request_id for reply in replies] == list(range(30))
    assert {reply.step for reply in replies} == {1}
    for sock in socks:
        sock.close()


@pytest.mark.usefixtures("small_buffers")
def test_a_peer_that_reads_nothing_loses_its_connection_where_others_wait(
    small_job: Any, serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(data_plane, "STALLED_SECONDS", 1)
    job = small_job(TABLES)
    unique = job.unique(range(100_000))
    served = serve(job, max_reply_bytes=1)
    with served.connect(0) as stopped, served.connect(0) as reads:
        send(stopped, job.pull(0, unique))
        until(lambda: served.planes[0].replies._held > 0)
        time.sleep(1.5)
        assert len(served.planes[0].listener.peers) == 2, "alone, it may take its time"

        assert isinstance(ask(reads, job, [1]), PullReply)
        assert is_closed(stopped)

    assert "its peer took nothing of a reply for 1 s while others wait" in caplog.text
    assert not served.errors


def test_parked_pulls_and_direct_replies_of_one_peer_do_not_mix(
    small_job: Any, serve: Serve
) -> None:
    job = small_job(TABLES)
    served = serve(job)
    unique = job.unique(range(30_000))
    with served.connect(0) as sock, served.connect(0) as coordinator:
        for number in range(8):
            send(sock, job.pull(0, unique, request_id=number, at_step=1))
        until(lambda: job.shards[0].num_parked == 8)
        asking = threading.Thread(
            target=lambda: [send(sock, job.pull(0, unique, request_id=100 + i)) for i in range(8)]
        )
        asking.start()
        send(coordinator, Apply(1, job.epoch, (job.record(0),)))
        replies = [receive(sock)[0] for _ in range(16)]
        asking.join()

    assert {reply.request_id for reply in replies} == {*range(8), *range(100, 108)}
    assert len({reply.values.tobytes() for reply in replies}) == 1
    assert all(np.isfinite(reply.values).all() for reply in replies)


class Clock:
    """What the data plane takes for the time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        fake = SimpleNamespace(monotonic=lambda: self.now, perf_counter_ns=time.perf_counter_ns)
        monkeypatch.setattr("ps.server.data_plane.time", fake)


def test_without_its_coordinator_a_shard_answers_nobody_until_it_hears_of_it(
    small_job: Any, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    job = small_job(TABLES)
    served = serve(job)
    sock = served.connect(0)
    monkeypatch.setattr(served.planes[0], "_lease", CoordinatorLease(5.0))

    def beat(epoch: int = job.epoch) -> Any:
        send(sock, Apply(3, epoch, ()))
        return receive(sock)[0]

    never = ask(sock, job, [1])
    assert never.reason == "unheard"
    assert f"has heard no coordinator of recovery epoch {job.epoch} yet" in never.text
    assert isinstance(beat(), ApplyReply)
    clock.now += 4.9
    assert isinstance(ask(sock, job, [1]), PullReply)
    clock.now += 0.2
    beat(job.epoch - 1)  # of no use
    push = job.contribution(0, job.unique([1]))
    for message in (job.pull(0, job.unique([1])), push):
        send(sock, message)
        refusal = receive(sock)[0]
        assert isinstance(refusal, Refusal)
        assert refusal.reason == "unheard"
        assert "has heard no coordinator for 5 s" in refusal.text
    assert isinstance(beat(), ApplyReply)
    assert isinstance(ask(sock, job, [1]), PullReply)
    sock.close()


def test_what_the_coordinator_said_while_a_shard_stood_still_is_no_news_of_it(
    small_job: Any, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was frozen may have been replaced: what lies in its sockets is older."""
    clock = Clock(monkeypatch)
    job = small_job(TABLES)
    served = serve(job)
    monkeypatch.setattr(served.planes[0], "_lease", CoordinatorLease(5.0))

    def coordinator() -> socket.socket:
        return connect(served.address(0), node_id="here", secret=served.secret, name=COORDINATOR)

    with served.connect(0) as worker, coordinator() as before:
        send(before, Apply(3, job.epoch, ()))
        assert isinstance(receive(before)[0], ApplyReply)
        assert isinstance(ask(worker, job, [1]), PullReply)
        clock.now += 5.1
        send(before, Apply(4, job.epoch, ()))
        assert is_closed(before)
        assert ask(worker, job, [1]).reason == "unheard"
        with coordinator() as again:
            send(again, Apply(4, job.epoch, ()))
            assert isinstance(receive(again)[0], ApplyReply)
        assert isinstance(ask(worker, job, [1]), PullReply)


def test_pulls_that_waited_while_records_were_applied_have_heard_the_coordinator(
    small_job: Any, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    job = small_job(TABLES)
    served = serve(job)
    plane = served.planes[0]
    monkeypatch.setattr(plane, "_lease", CoordinatorLease(5.0))
    handle = plane.shard.handle

    def slowly(message: Any, sender: Any) -> Any:
        clock.now += 60.0
        return handle(message, sender)

    with served.connect(0) as sock:
        send(sock, Apply(2, job.epoch, ()))
        assert isinstance(receive(sock)[0], ApplyReply)
        send(sock, job.contribution(0, job.unique([1])))
        receive(sock)
        monkeypatch.setattr(plane.shard, "handle", slowly)
        send(sock, Apply(3, job.epoch, (job.record(0, 0),)))
        assert isinstance(receive(sock)[0], ApplyReply)
        assert isinstance(ask(sock, job, [1]), PullReply)
