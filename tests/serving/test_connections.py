"""A connection as a state machine: what comes in which order, and how long it may take."""

import json
from collections.abc import Callable

import pytest

from serving.calls import Answer
from serving.endpoint.connection import Connection, ConnectionLimits
from serving.endpoint.heads import Asked, Head, path_of
from serving.endpoint.server import Server

LIMITS = ConnectionLimits(
    head_bytes=500,
    headers=10,
    head_seconds=1.0,
    body_seconds=2.0,
    idle_seconds=5.0,
    read_seconds=3.0,
    waiting=4,
    discarded_bytes=50,
)


class Transport:
    """Notes what a connection does to its socket."""

    def __init__(self) -> None:
        self.written = b""
        self.is_reading = True
        self.ended = ""
        self.buffered = 0

    def get_extra_info(self, name: str) -> tuple[str, int]:
        return ("10.0.0.1", 5)

    def write(self, data: bytes) -> None:
        assert not self.ended
        self.written += data

    def write_eof(self) -> None:
        self.ended = "eof"

    def can_write_eof(self) -> bool:
        return True

    def get_write_buffer_size(self) -> int:
        return self.buffered

    def close(self) -> None:
        self.ended = "closed"

    def abort(self) -> None:
        self.ended = "aborted"

    def is_closing(self) -> bool:
        return self.ended in ("closed", "aborted")

    def pause_reading(self) -> None:
        self.is_reading = False

    def resume_reading(self) -> None:
        self.is_reading = True

    @property
    def statuses(self) -> list[int]:
        return [int(part.split(b" ")[0]) for part in self.written.split(b"HTTP/1.1 ")[1:]]


class Application:
    """Answers paths that begin with /now at once, others when the test says so."""

    def __init__(self) -> None:
        self.stopping = False
        self.heads: list[Head] = []
        self.bodies: list[bytes] = []
        self.open: list[Callable[[Answer], None]] = []
        self.noted: list[tuple[str, int]] = []
        self.abandoned = 0

    def begin(self, head: Head) -> Answer | Asked:
        self.heads.append(head)
        return Answer(401, b"no") if head.path.startswith("/now") else self

    def note(self, head: Head, answer: Answer) -> None:
        self.noted.append((head.path, answer.status))

    def complete(self, body: bytes, done: Callable[[Answer], None]) -> None:
        self.bodies.append(body)
        self.open.append(done)

    def abandon(self) -> None:
        self.abandoned += 1

    def answer(self, text: bytes = b"yes") -> None:
        self.open.pop(0)(Answer(200, text))


class Case:
    """A connection that is made, at second 0."""

    def __init__(self, most: int = 10) -> None:
        self.application = Application()
        self.server = Server(
            self.application, host="", port=0, limits=LIMITS, most_connections=most
        )
        self.time = 0.0
        self.server.now = lambda: self.time
        self.connection, self.transport = self.connect()

    def connect(self) -> tuple[Connection, Transport]:
        connection, transport = Connection(self.server), Transport()
        connection.connection_made(transport)
        return connection, transport

    def send(self, *parts: bytes) -> None:
        for part in parts:
            self.connection.data_received(part)

    def check(self, seconds: float) -> None:
        self.time = seconds
        self.connection.check(seconds)


@pytest.fixture
def case() -> Case:
    return Case()


def post(path: str = "/a", body: bytes = b"", *more: str) -> bytes:
    head = "\r\n".join([f"POST {path} HTTP/1.1", f"Content-Length: {len(body)}", *more])
    return head.encode() + b"\r\n\r\n" + body


def test_a_request_in_single_bytes_is_one_and_the_connection_goes_on(case: Case) -> None:
    data = post("/a%20b?c=1", b"body", "X-Some: One", "x-some: two")
    case.send(*[data[i : i + 1] for i in range(len(data))])
    case.application.answer(b"first")
    case.send(post("/c", b"more"))
    case.application.answer(b"second")

    head = case.application.heads[0]
    assert (head.method, head.path, head.client) == ("POST", "/a b", "10.0.0.1")
    assert head.headers == {"content-length": "4", "x-some": "One, two"}
    assert case.application.bodies == [b"body", b"more"]
    assert case.transport.statuses == [200, 200]
    assert case.transport.written.endswith(b"content-length: 6\r\n\r\nsecond")
    assert not case.transport.ended


def test_requests_that_come_early_wait_and_are_answered_in_order(case: Case) -> None:
    case.send(post("/a", b"1") + post("/now") + post("/b", b"2") + post("/c", b"3"))
    assert case.application.bodies == [b"1"], "the next is not begun before it is answered"
    assert not case.transport.is_reading
    for _ in range(3):
        case.application.answer()

    assert case.application.bodies == [b"1", b"2", b"3"]
    assert case.application.noted == [("/a", 200), ("/now", 401), ("/b", 200), ("/c", 200)]
    assert case.transport.statuses == [200, 401, 200, 200]
    assert case.transport.is_reading


def test_who_asks_more_at_once_than_may_wait_is_to_ask_the_rest_again(case: Case) -> None:
    case.send(post("/a") * 9)
    for _ in range(4):
        case.application.answer()

    assert case.transport.statuses == [200] * 4
    assert b"connection: close" in case.transport.written.rsplit(b"HTTP/1.1", 1)[1]
    assert (case.application.open, case.transport.ended) == ([], "eof")


@pytest.mark.parametrize(
    "parts",
    [
        [b"GET /now HTTP/1.1\r\nX: " + b"a" * 600 + b"\r\n\r\n"],
        [b"GET /now HTTP/1.1\r\n" + b"X: a\r\n" * 11 + b"\r\n"],
        [b"GET /" + b"n" * 600 + b" HTTP/1.1\r\n\r\n"],
        [b"GET /now HTTP/1.1\r\nX: ", *[b"a" * 50] * 11],
    ],
    ids=["header", "headers", "target", "pieces"],
)
def test_a_head_that_is_too_large_is_refused(case: Case, parts: list[bytes]) -> None:
    case.send(*parts)

    assert case.application.heads == []
    assert (case.transport.statuses, case.transport.ended) == ([431], "eof")
    assert (
        "500 bytes and 10 headers"
        in json.loads(case.transport.written.split(b"\r\n\r\n")[1])["error"]
    )


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01" + bytes(300),
        b"GET now HTTP/1.1\r\n\r\n",
        b"POST /a HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"POST /a HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /a HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET /a HTTP/1.1\r\nA : b\r\n\r\n",
    ],
)
def test_what_is_no_request_is_refused_and_nothing_behind_it_is_read(
    case: Case, data: bytes
) -> None:
    case.send(data + post("/b"))
    case.send(post("/c"))

    assert case.application.heads == []
    assert (case.transport.statuses, case.transport.ended) == ([400], "eof")


def test_what_comes_before_what_is_no_request_is_answered(case: Case) -> None:
    case.send(post("/a", b"1") + b"\x00\x01\x02\x03 no HTTP\r\n\r\n")
    case.application.answer()

    assert (case.transport.statuses, case.transport.ended) == ([200, 400], "eof")


def test_heads_and_bodies_that_do_not_come_and_idle_connections_end(case: Case) -> None:
    case.check(0.9)
    case.send(post("/a"))
    case.application.answer()
    case.check(5.8)
    assert not case.transport.ended, "idle"
    case.send(post("/b", b"1234")[:-2])
    for seconds in (6.0, 7.7):
        case.check(seconds)
        case.send(b"")
    assert not case.transport.ended
    case.check(7.9)

    assert (case.transport.statuses, case.application.abandoned) == ([200, 408], 1)
    assert case.application.noted[-1] == ("/b", 408)
    case.check(9.8)
    assert case.transport.ended == "eof"
    case.check(10.0)
    assert case.transport.ended == "aborted", "its client does not end it"

    slow = Case()
    for number in range(10):
        slow.send(b"GET /a HTTP/1.1\r\n"[number : number + 1])
        slow.check(number * 0.15)
    assert (slow.transport.statuses, slow.transport.ended) == ([408], "eof")

    idle = Case()
    idle.send(b"\r\n")
    idle.check(1.1)
    assert (idle.transport.written, idle.transport.ended) == (b"", "eof")


def test_a_client_that_does_not_read_is_not_answered_and_ends(case: Case) -> None:
    case.send(post("/a"))
    case.connection.pause_writing()
    assert not case.transport.is_reading
    case.send(post("/b"))
    case.application.answer()
    case.check(2.9)
    assert (case.transport.written, case.application.open) == (b"", [])
    case.connection.resume_writing()
    assert (case.transport.statuses, len(case.application.open)) == ([200], 1)
    assert case.transport.is_reading
    case.connection.pause_writing()
    case.check(6.0)

    assert case.transport.ended == "aborted"


def test_a_body_that_nobody_wants_is_read_if_it_is_short(case: Case) -> None:
    case.send(post("/now", b"a" * 50)[:-10])
    assert not case.transport.written
    case.send(b"a" * 10 + post("/now", b"a" * 51)[:-51])
    assert (case.transport.statuses, case.transport.ended) == ([401, 401], "eof")

    chunked = Case()
    chunked.send(b"POST /now HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
    assert (chunked.transport.statuses, chunked.transport.ended) == ([401], "eof")


def test_another_protocol_is_not_taken_and_its_request_is_as_any_other(case: Case) -> None:
    data = post("/a", b"body", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c")
    case.send(data[:-2], data[-2:] + post("/b", b"next"))
    case.application.answer()
    case.application.answer()

    assert case.application.bodies == [b"body", b"next"]
    assert case.transport.statuses == [200, 200]


def test_who_waits_for_a_word_before_the_body_gets_it_or_the_answer(case: Case) -> None:
    case.send(post("/a", b"body", "Expect: 100-continue")[:-4])
    assert case.transport.statuses == [100]
    case.send(b"body")
    case.application.answer()
    case.send(post("/now", b"body", "Expect: 100-continue")[:-4])

    assert (case.transport.statuses, case.transport.ended) == ([100, 200, 401], "eof")


def test_what_has_come_before_its_client_ends_is_answered(case: Case) -> None:
    case.send(post("/a"))
    assert case.connection.eof_received()
    case.application.answer()
    assert (case.transport.statuses, case.transport.ended) == ([200], "closed")

    half = Case()
    half.send(post("/a", b"body")[:-1])
    assert half.connection.eof_received()
    assert (half.transport.statuses, half.application.abandoned) == ([400], 1)
    assert b"ended after 3 of 4 bytes" in half.transport.written

    nothing = Case()
    nothing.send(b"GET /a HT")
    assert not nothing.connection.eof_received()


def test_a_client_that_is_gone_is_not_answered(case: Case) -> None:
    case.send(post("/a"), post("/b", b"body")[:-1])
    case.connection.connection_lost(None)
    case.application.answer()

    assert (case.transport.written, case.application.noted) == (b"", [("/a", 200)])
    closing = Case()
    closing.send(post("/a"))
    closing.connection.close()
    closing.application.answer()
    assert (closing.transport.written, closing.application.noted) == (b"", [("/a", 200)])
    gone = Case()
    gone.send(post("/a", b"body")[:-1])
    gone.connection.connection_lost(None)
    assert gone.application.abandoned == 1


def test_heads_alone_and_older_clients_are_answered_as_they_ask(case: Case) -> None:
    case.send(b"HEAD /now HTTP/1.1\r\n\r\n")
    assert case.transport.written.endswith(b"content-length: 2\r\n\r\n")
    case.send(b"GET /now HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")

    assert case.transport.ended == "eof"
    assert b"connection: close" in case.transport.written


def test_idle_connections_make_room_and_others_do_not() -> None:
    case = Case(most=2)
    case.send(post("/a"))
    _, idle = case.connect()
    other, taken = case.connect()
    assert idle.ended == "closed"
    other.data_received(post("/b"))
    _, refused = case.connect()

    assert (taken.ended, refused.statuses, refused.ended) == ("", [503], "eof")
    case.connect()
    assert case.connect()[1].ended == "aborted"


def test_targets_have_paths() -> None:
    for target, path in (
        (b"/v2?a=/b", "/v2"),
        (b"http://a:1/v2", "/v2"),
        (b"http://a", "/"),
        (b"*", "*"),
        (b"a:443", None),
        (b"/%C3%BC", "/ü"),
    ):
        assert path_of(target) == path
