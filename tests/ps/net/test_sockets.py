import contextlib
import gc
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from ps.messages.exchange import Message
from ps.messages.pull_push import PullReply, PushReply
from ps.messages.wire import Header, WireError, array_sizes, encode
from ps.net import sockets
from ps.net.sockets import (
    NONCE_BYTES,
    Address,
    connect,
    local_place,
    prove_as_client,
    prove_as_server,
    receive,
    send,
)

PLACE = "shard 0 at /folder/shard-0"

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.settimeout(5)
    yield ours, theirs
    ours.close()
    theirs.close()


def beside(action: Callable[..., object], *args: Any) -> Callable[[], Any]:
    """Run something in a thread; the result is to be called for what it returned or raised."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(action(*args))
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def wait() -> Any:
        thread.join(10)
        return outcome[0]

    return wait


def reply(values: int, dense: int, admitted: int) -> PullReply:
    rng = np.random.default_rng(values)
    return PullReply(
        1,
        2,
        rng.normal(size=values).astype(np.float32),
        rng.normal(size=dense).astype(np.float32),
        rng.integers(0, 2, admitted).astype(np.uint8),
    )


def arrays_of(message: Message) -> list[bytes]:
    assert isinstance(message, PullReply)
    return [a.tobytes() for a in (message.values, message.dense, message.admitted)]


# The handshake ------------------------------------------------------------------------------------


def test_both_ends_accept_the_same_secret(pair: Pair) -> None:
    server = beside(prove_as_server, pair[0], b"secret", PLACE)

    prove_as_client(pair[1], b"secret", PLACE)

    assert server() == ""


def test_a_server_refuses_a_client_with_another_secret(pair: Pair) -> None:
    server = beside(prove_as_server, pair[0], b"secret", PLACE)
    client = beside(prove_as_client, pair[1], b"Secret", PLACE)

    assert "client does not know" in str(server())
    pair[0].close()
    assert isinstance(client(), ConnectionError)


def test_a_client_refuses_a_server_with_another_secret(pair: Pair) -> None:
    """One that takes anybody and answers as well as it can."""

    def impostor() -> None:
        nonce = os.urandom(NONCE_BYTES)
        pair[0].sendall(nonce)
        theirs = sockets.receive_exactly(pair[0], 65)[32:64]
        proof = sockets._proof(b"guess", "listener", (nonce, theirs), (PLACE, ""))
        pair[0].sendall(proof)

    other = beside(impostor)
    with pytest.raises(WireError, match="other end does not know"):
        prove_as_client(pair[1], b"secret", PLACE)
    assert other() is None


def test_a_proof_sent_back_proves_nothing(pair: Pair) -> None:
    """A peer without the secret lets the client itself answer its own nonce."""
    second_ours, second_theirs = socket.socketpair()

    def mirror() -> bytes:
        pair[0].sendall(bytes(NONCE_BYTES))
        nonce = sockets.receive_exactly(pair[0], 65)[32:64]
        second_ours.sendall(nonce)
        proof = sockets.receive_exactly(second_ours, 65)[:32]
        pair[0].sendall(proof)
        second_ours.close()
        return proof

    other = beside(mirror)
    second = beside(prove_as_client, second_theirs, b"secret", PLACE)
    with pytest.raises(WireError, match="other end does not know"):
        prove_as_client(pair[1], b"secret", PLACE)
    assert len(other()) == 32
    assert isinstance(second(), ConnectionError)
    second_theirs.close()


@pytest.mark.parametrize(
    "meant", ["shard 1 at /folder/shard-0", "shard 0 at /other/shard-0", "coordinator at /c"]
)
def test_a_proof_for_another_listener_or_place_is_refused(pair: Pair, meant: str) -> None:
    server = beside(prove_as_server, pair[0], b"secret", PLACE)
    client = beside(prove_as_client, pair[1], b"secret", meant)

    assert "means somebody else than shard 0 at /folder/shard-0" in str(server())
    pair[0].close()
    assert isinstance(client(), ConnectionError)


def test_a_client_can_not_be_given_another_name(pair: Pair) -> None:
    """Somebody on the way changes the name that a client says."""
    ours, theirs = socket.socketpair()

    def rename() -> None:
        ours.sendall(sockets.receive_exactly(pair[1], NONCE_BYTES))
        answer = sockets.receive_exactly(ours, 65 + len("worker 1"))
        pair[1].sendall(answer[:65] + b"worker 2")

    server = beside(prove_as_server, pair[0], b"secret", PLACE)
    client = beside(prove_as_client, theirs, b"secret", PLACE, "worker 1")
    rename()

    assert "does not know" in str(server())
    ours.close()
    assert isinstance(client(), ConnectionError)
    theirs.close()


def test_a_client_says_who_it_is(pair: Pair) -> None:
    server = beside(prove_as_server, pair[0], b"secret", PLACE)

    prove_as_client(pair[1], b"secret", PLACE, "worker 3 incarnation 1")

    assert server() == "worker 3 incarnation 1"


@pytest.mark.parametrize("sent", [b"", b"x", bytes(64)])
def test_a_client_that_leaves_in_the_handshake_is_an_error(pair: Pair, sent: bytes) -> None:
    server = beside(prove_as_server, pair[0], b"secret", PLACE)

    pair[1].sendall(sent)
    pair[1].close()

    assert isinstance(server(), ConnectionError)


@pytest.mark.parametrize("sent", [bytes(65), b"\xf5" * 400, b"GET / HTTP/1.1\r\n".ljust(400)])
def test_garbage_is_no_proof(pair: Pair, sent: bytes) -> None:
    server = beside(prove_as_server, pair[0], b"secret", PLACE)

    pair[1].sendall(sent)

    assert "does not know" in str(server())


@pytest.mark.parametrize("trickles", [False, True])
def test_a_peer_that_is_silent_or_trickles_is_not_waited_for(pair: Pair, trickles: bool) -> None:
    def trickle() -> None:
        with contextlib.suppress(OSError):
            while trickles:
                pair[1].sendall(b"x")
                time.sleep(0.02)

    other = beside(trickle)
    with pytest.raises(TimeoutError):
        prove_as_server(pair[0], b"secret", PLACE, deadline=time.monotonic() + 0.1)
    pair[0].close()
    other()


def listening(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen()
    return listener


def test_a_shard_that_accepts_and_says_nothing_is_not_waited_for(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "HANDSHAKE_TIMEOUT_SECONDS", 0.05)
    path = str(tmp_path / "s")

    with listening(path), pytest.raises(TimeoutError):
        connect(Address("here", path), node_id="here", secret=b"secret")


def test_a_connection_that_fails_leaves_no_socket(tmp_path: Any) -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    gc.disable()  # nothing but an explicit close may close them
    try:
        caught = []
        for address in (
            Address("here", str(tmp_path / "none")),
            Address("there", "", "127.0.0.1", 1),
        ):
            with pytest.raises(OSError) as error:  # noqa: PT011
                connect(address, node_id="here", secret=b"secret")
            caught.append(error)  # with the frame that held the socket
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        gc.enable()


def test_a_shard_on_another_node_needs_a_network_socket() -> None:
    with pytest.raises(ConnectionError, match="node there has no network socket"):
        connect(Address("there", "/x"), node_id="here", secret=b"secret")


def test_a_connected_socket_has_no_timeout(tmp_path: Any) -> None:
    path = str(tmp_path / "s")
    with listening(path) as listener:
        place = local_place("shard 0", path)
        server = beside(lambda: prove_as_server(listener.accept()[0], b"secret", place))
        address = Address("here", path, name="shard 0")
        with connect(address, node_id="here", secret=b"secret") as sock:
            assert sock.gettimeout() is None
        assert server() == ""


def test_a_network_socket_notices_a_silent_node() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as sock,
    ):
        sockets.tune(sock)

        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        idle, pause, probes = (sock.getsockopt(socket.IPPROTO_TCP, name) for name in options)
        assert idle + pause * probes <= sockets.SILENT_SECONDS
        limit = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        assert limit == sockets.SILENT_SECONDS * 1000


def test_a_peer_that_is_silent_in_the_midst_of_a_frame_is_an_error(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "SILENT_SECONDS", 1)
    sockets.tune(pair[1])
    pair[0].sendall(b"".join(encode(reply(5, 3, 7)))[:-1])

    with pytest.raises(TimeoutError, match="sent nothing for 1 s"):
        receive(pair[1])


# Frames -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", [False, True])
def test_a_frame_that_arrives_byte_by_byte_is_received(pair: Pair, compress: bool) -> None:
    message = reply(5, 3, 7)
    frame = b"".join(encode(message, compress=compress))

    def trickle() -> None:
        for i in range(len(frame)):
            pair[0].sendall(frame[i : i + 1])

    beside(trickle)
    got, nbytes = receive(pair[1])

    assert nbytes == len(frame)
    assert arrays_of(got) == arrays_of(message)


@pytest.mark.parametrize("compress", [False, True])
def test_a_frame_larger_than_every_buffer_is_sent_in_parts(pair: Pair, compress: bool) -> None:
    for sock in pair:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    message = reply(300_001, 77, 100_003)

    sender = beside(lambda: send(pair[0], message, compress=compress))
    got, nbytes = receive(pair[1])

    assert sender() == nbytes
    assert arrays_of(got) == arrays_of(message)


def test_a_full_socket_asks_what_to_do_instead_of_waiting(pair: Pair) -> None:
    for sock in pair:
        sock.settimeout(None)
    message = reply(1_000_000, 0, 0)
    frame = b"".join(encode(message))
    got = bytearray()

    sent = send(pair[0], message, when_full=lambda: got.extend(pair[1].recv(1 << 20)))
    while len(got) < sent:
        got += pair[1].recv(1 << 20)

    assert bytes(got) == frame


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("sizes", [(0, 0, 0), (1, 0, 1), (2, 1, 8), (3, 3, 3), (501, 7, 15)])
def test_arrays_are_received_in_place(
    pair: Pair, sizes: tuple[int, int, int], compress: bool
) -> None:
    message = reply(*sizes)
    guard = np.float32(-1)
    values = np.full(sizes[0] + 2, guard)
    dense = np.full(sizes[1] + 2, guard)
    admitted = np.full(sizes[2] + 2, 9, np.uint8)

    def places(header: Header) -> list[np.ndarray]:
        places = [values[1:-1].view(np.uint8), dense[1:-1].view(np.uint8), admitted[1:-1]]
        assert array_sizes(header) == tuple(place.nbytes for place in places)
        return places

    send(pair[0], message, compress=compress)
    send(pair[0], PushReply(5))
    got, _ = receive(pair[1], places)
    after, _ = receive(pair[1])

    assert isinstance(got, PullReply)
    assert (got.request_id, got.step, got.values.size) == (1, 2, 0)
    assert [a[1:-1].tobytes() for a in (values, dense, admitted)] == arrays_of(message)
    assert values[0] == values[-1] == dense[0] == dense[-1] == guard
    assert admitted[0] == admitted[-1] == 9
    assert after == PushReply(5), "the padding was received too"


@pytest.mark.parametrize("cut", [1, 15, 16, 20, -1])
def test_a_peer_that_leaves_within_a_frame_is_an_error(pair: Pair, cut: int) -> None:
    frame = b"".join(encode(reply(5, 3, 7)))
    pair[0].sendall(frame[:cut])
    pair[0].close()

    with pytest.raises(ConnectionError):
        receive(pair[1])
