"""A client's connection: requests one after another, bounded in bytes, in number and in time.

httptools tells where a request's parts are; what may come, how long it may take, and in which order
it is answered is decided here. Requests that come before the answer to an earlier one wait for it.
Nothing is read meanwhile, and none is answered while its client does not read.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import httptools

from serving.calls import Answer
from serving.computing import failed
from serving.endpoint.heads import Application, Asked, Head, head_of, path_of

_INF = float("inf")
_END_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """What one connection may take.

    Args:
        head_bytes, headers: of a request's head, its line among them.
        head_seconds: until all of a head must have come, from its first byte or from when the
            connection was made.
        body_seconds: until all of a body must have come, from its head.
        idle_seconds: that a connection stays open between requests.
        read_seconds: that answers may wait to be read.
        waiting: requests that may come before an earlier one is answered.
        discarded_bytes: of a body nobody wants; one that is longer ends the connection.
    """

    head_bytes: int = 64 << 10
    headers: int = 256
    head_seconds: float = 10.0
    body_seconds: float = 10.0
    idle_seconds: float = 75.0
    read_seconds: float = 30.0
    waiting: int = 64
    discarded_bytes: int = 64 << 10


class Home(Protocol):
    """What connections belong to."""

    application: Application
    limits: ConnectionLimits
    date: bytes
    now: Callable[[], float]

    def enter(self, connection: "Connection") -> bool:
        """Take a connection that is made; False: there are too many."""

    def leave(self, connection: "Connection") -> None:
        """Forget one that has ended."""


@dataclass(slots=True)
class _Request:
    head: Head
    num_bytes: int = 0  # of its body
    keeps: bool = False  # the connection, once it is answered
    continues: bool = False  # its client waits for a word before it sends the body
    parts: list[bytes] = field(default_factory=list)
    is_whole: bool = False
    is_begun: bool = False
    asked: Asked | None = None  # its body is wanted, and not handed over yet
    answer: Answer | None = None


class Connection(asyncio.Protocol):
    """Reads requests, has them answered, and writes the answers in the order of the requests.

    Args:
        home: that it belongs to.

    Attributes:
        deadline: by when its client must have done something; the sooner the longer it has not.
    """

    def __init__(self, home: Home) -> None:
        self._home = home
        self._limits = home.limits
        self._transport: Any = None
        self._client = ""
        self._parser = httptools.HttpRequestParser(self)
        self._requests: deque[_Request] = deque()  # that are not answered yet
        self._is_deaf = False  # what else comes is no request any more
        self._is_lost = False
        self._is_advancing = False
        self._is_paused = False
        self._unread_since = _INF  # that its client does not read
        # Of the head that comes now.
        self._in_head = False
        self._target = b""
        self._headers: dict[str, str] = {}
        self._head_bytes = self._num_headers = self._pieces = 0
        # Of a request that asks for another protocol: httptools reads no more behind its head.
        self._left_of_body = -1
        self.deadline = home.now() + self._limits.head_seconds
        self._ending_since = _INF  # answered, and what still comes is thrown away
        self._client_has_ended = False

    # What the transport tells ------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        peer = transport.get_extra_info("peername")
        self._client = str(peer[0]) if peer else ""
        if not self._home.enter(self) and not transport.is_closing():
            self._refuse(503, "too many connections are open")
            self._advance()

    def connection_lost(self, error: Exception | None) -> None:
        self._is_lost = True
        self._home.leave(self)
        for request in self._requests:
            if request.asked is not None:
                request.asked.abandon()
        self._requests.clear()

    def eof_received(self) -> bool:
        """Answer what has come; what is not whole never will be."""
        self._is_deaf = self._client_has_ended = True
        if not self._requests:
            return False
        last = self._requests[-1]
        last.keeps = False
        if not last.is_whole:
            size = sum(map(len, last.parts))
            self._give_up(last, 400, f"the body ended after {size} of {last.num_bytes} bytes")
            self._advance()
        return True

    def pause_writing(self) -> None:
        self._unread_since = self._home.now()
        self._read_or_not()

    def resume_writing(self) -> None:
        self._unread_since = _INF
        self._advance()
        self._read_or_not()

    def data_received(self, data: bytes) -> None:
        was_in_head = self._in_head
        if not self._is_deaf:
            self._feed(data)
        if was_in_head and self._in_head:
            self._pieces += len(data)
            if self._pieces > self._limits.head_bytes:
                self._refuse_head()
        self._advance()
        self._read_or_not()

    def _feed(self, data: bytes) -> None:
        while data and not self._is_deaf:
            if self._left_of_body >= 0:
                data = self._feed_body(data)
                continue
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                # Other protocols are not taken: it is a request as any other, the body behind it.
                data = data[upgrade.args[0] :]
                self._parser = httptools.HttpRequestParser(self)
                if not self._is_deaf:
                    self._left_of_body = self._requests[-1].num_bytes
                    data = self._feed_body(data)
            except httptools.HttpParserError:
                if not self._is_deaf:
                    self._refuse(400, "what came is no request of HTTP/1.1")
                return

    def _feed_body(self, data: bytes) -> bytes:
        """Take what is left of the body; return what comes behind."""
        request, left = self._requests[-1], self._left_of_body
        request.parts.append(data[:left])
        self._left_of_body -= min(left, len(data))
        if self._left_of_body == 0:
            self._left_of_body = -1
            self._whole(request)
        return data[left:]

    # What httptools tells ----------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._is_deaf:
            return
        if len(self._requests) >= self._limits.waiting:
            self._requests[-1].keeps = False  # who asks so much at once is to ask the rest again
            self._is_deaf = True
            return
        self._in_head = True
        self._target, self._headers = b"", {}
        self._head_bytes = self._num_headers = self._pieces = 0
        if not self._requests:
            self.deadline = self._home.now() + self._limits.head_seconds

    def on_url(self, target: bytes) -> None:
        if self._is_deaf:
            return
        self._head_bytes += len(target)
        if self._head_bytes <= self._limits.head_bytes:
            self._target += target

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_deaf:
            return
        self._head_bytes += len(name) + len(value) + 4
        self._num_headers += 1
        if self._is_too_large:
            return
        key, told = name.decode("latin-1").lower(), value.decode("latin-1")
        before = self._headers.get(key)
        self._headers[key] = told if before is None else f"{before}, {told}"

    @property
    def _is_too_large(self) -> bool:
        limits = self._limits
        return self._head_bytes > limits.head_bytes or self._num_headers > limits.headers

    def on_headers_complete(self) -> None:
        if self._is_deaf:
            return
        if self._is_too_large:
            self._refuse_head()
            return
        self._in_head = False
        path, parser, headers = path_of(self._target), self._parser, self._headers
        if path is None:
            self._refuse(400, "the target of a request must begin with /")
            return
        now = self._home.now()
        head = Head(parser.get_method().decode("latin-1"), path, headers, self._client, now)
        keeps = parser.get_http_version() == "1.1" and parser.should_keep_alive()
        self._requests.append(
            _Request(
                head,
                num_bytes=int(headers.get("content-length", "0")),
                keeps=keeps and "transfer-encoding" not in headers,
                continues=headers.get("expect", "").lower() == "100-continue",
            )
        )
        self.deadline = now + self._limits.body_seconds

    def on_body(self, body: bytes) -> None:
        if self._is_deaf:
            return
        request = self._requests[-1]
        if request.answer is None:
            request.parts.append(body)

    def on_message_complete(self) -> None:
        if self._is_deaf or self._parser.should_upgrade():
            return
        self._whole(self._requests[-1])

    def _whole(self, request: _Request) -> None:
        request.is_whole = True
        if not request.keeps:
            self._is_deaf = True

    # Answers -----------------------------------------------------------------------------------

    def _refuse_head(self) -> None:
        limits = self._limits
        text = f"a head has at most {limits.head_bytes} bytes and {limits.headers} headers"
        self._refuse(431, text)

    def _refuse(self, status: int, message: str) -> None:
        """Answer what is no request, behind what came before, and take nothing more."""
        self._is_deaf, self._in_head = True, False
        if self._requests and not self._requests[-1].is_whole:
            self._give_up(self._requests[-1], status, message)
            return
        head = Head("", "", {}, self._client, self._home.now())
        self._requests.append(_Request(head, is_begun=True, answer=failed(status, message)))

    def _give_up(self, request: _Request, status: int, message: str) -> None:
        """Answer a request whose body does not come as it should, and take nothing more."""
        self._is_deaf = request.is_begun = True
        if request.asked is not None:
            request.asked.abandon()
            request.asked = None
        if request.answer is None:
            request.answer, request.parts = failed(status, message), []

    def _advance(self) -> None:
        """Do what can be done for the first request that waits, then for the next."""
        if self._is_advancing:
            return
        self._is_advancing = True
        try:
            while self._requests and self._unread_since == _INF:
                first = self._requests[0]
                if not first.is_begun:
                    self._begin(first)
                if first.is_whole and first.asked is not None:
                    self._hand_over(first, first.asked)
                if first.answer is None or not self._may_answer(first):
                    return
                self._requests.popleft()
                self._write(first, first.answer)
        finally:
            self._is_advancing = False

    def _begin(self, request: _Request) -> None:
        request.is_begun = True
        found = self._home.application.begin(request.head)
        if isinstance(found, Answer):
            request.answer, request.parts = found, []
            return
        request.asked = found
        if request.continues and not request.is_whole:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _hand_over(self, request: _Request, asked: Asked) -> None:
        parts, request.parts, request.asked = request.parts, [], None
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        asked.complete(body, partial(self._answered, request))

    def _answered(self, request: _Request, answer: Answer) -> None:
        if self._is_lost or self._transport.is_closing():
            self._home.application.note(request.head, answer)
            return
        request.answer = answer
        self._advance()
        self._read_or_not()

    def _may_answer(self, request: _Request) -> bool:
        """Return whether the rest of a body that nobody wants has come or is not waited for."""
        if request.is_whole or self._is_deaf:
            return True
        short = request.num_bytes <= self._limits.discarded_bytes
        return request.continues or "transfer-encoding" in request.head.headers or not short

    def _write(self, request: _Request, answer: Answer) -> None:
        home, now = self._home, self._home.now()
        keeps = request.keeps and request.is_whole and not home.application.stopping
        body = b"" if request.head.method == "HEAD" else answer.body
        head = head_of(
            answer.status,
            answer.content_type,
            len(answer.body),
            answer.headers,
            date=home.date,
            keeps=keeps,
        )
        self._transport.write(head + body)
        home.application.note(request.head, answer)
        if keeps:
            self.deadline = now + self._seconds_for_next()
        else:
            self._end()

    def _seconds_for_next(self) -> float:
        limits = self._limits
        if self._requests:
            return limits.body_seconds
        return limits.head_seconds if self._in_head else limits.idle_seconds

    def _end(self) -> None:
        """End the connection once its answers are sent and its client has ended it, too.

        Else a client that still sends might lose the answer, as its system would be told that
        what it sends is not read.
        """
        now = self._home.now()
        self._is_deaf = True
        self._ending_since, self.deadline = now, now + _END_SECONDS
        if self._client_has_ended or not self._transport.can_write_eof():
            self._transport.close()
        else:
            self._transport.write_eof()

    def _read_or_not(self) -> None:
        """Read what a client sends unless it has to be answered first, or to read itself."""
        pauses = self._unread_since != _INF or len(self._requests) > 1
        if pauses == self._is_paused or self._is_lost or self._transport.is_closing():
            return
        self._is_paused = pauses
        if pauses:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    # Time --------------------------------------------------------------------------------------

    @property
    def is_answering(self) -> bool:
        """Whether a request has come that is not answered yet, but for its body perhaps."""
        return bool(self._requests)

    @property
    def is_idle(self) -> bool:
        """Whether it may be closed at any time: nothing of a request has come."""
        return not self._requests and not self._in_head and self._ending_since == _INF

    def check(self, now: float) -> None:
        """End what has taken too long; called again and again."""
        if now - self._unread_since > self._limits.read_seconds:
            self._transport.abort()
        elif now > self.deadline:
            self._late(now)

    def _late(self, now: float) -> None:
        limits, first = self._limits, self._requests[0] if self._requests else None
        if self._ending_since != _INF:
            waits = now - self._ending_since < limits.read_seconds
            if not waits or not self._transport.get_write_buffer_size():
                self._transport.abort()
        elif first is not None:
            if not first.is_whole:
                text = f"the body did not come within {limits.body_seconds:g} seconds"
                self._give_up(first, 408, text)
                self._advance()
        elif self._in_head:
            self._refuse(408, f"the head did not come within {limits.head_seconds:g} seconds")
            self._advance()
        else:
            self._end()

    def close(self) -> None:
        """End it; what has not been answered is not."""
        self._transport.close()

    def abort(self) -> None:
        """End it at once."""
        self._transport.abort()
