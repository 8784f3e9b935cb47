"""Heads of requests as an application reads them, and of answers as they are sent."""

import http
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import unquote

from serving.calls import Answer

_STATUS_LINES = {
    each.value: f"HTTP/1.1 {each.value} {each.phrase}\r\n".encode() for each in http.HTTPStatus
}


@dataclass(slots=True)
class Head:
    """A request's head.

    Args:
        path: decoded, without its query.
        headers: by name in lower case.
        client: its address.
        began: when it had come, by `time.monotonic`.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    client: str = ""
    began: float = field(default_factory=time.monotonic)


class Asked(Protocol):
    """A request that was let in, whose body is to come."""

    def complete(self, body: bytes, done: Callable[[Answer], None]) -> None:
        """Have it answered; `done` is called once, at once or later, by the loop's thread."""

    def abandon(self) -> None:
        """Its body will not come."""


class Application(Protocol):
    """What answers requests; all of it is called by the loop's thread.

    Attributes:
        stopping: whether connections end once they are answered; set by the server.
    """

    stopping: bool

    def begin(self, head: Head) -> Answer | Asked:
        """Return the answer to a request whose body need not be read, else what reads it."""

    def note(self, head: Head, answer: Answer) -> None:
        """Hear how a request was answered."""


def path_of(target: bytes) -> str | None:
    """Return the path of a request's target, decoded; None: it has none."""
    if not target.startswith(b"/"):
        if target == b"*":
            return "*"
        scheme, _, rest = target.partition(b"://")
        if not rest or scheme.lower() not in (b"http", b"https"):
            return None
        target = b"/" + rest.partition(b"/")[2]
    path = target.partition(b"?")[0].decode("latin-1")
    return unquote(path) if "%" in path else path


def head_of(
    status: int,
    content_type: str,
    num_bytes: int,
    headers: Iterable[tuple[str, str]],
    *,
    date: bytes,
    keeps: bool,
) -> bytes:
    """Return the head of an answer.

    Args:
        num_bytes: of its body.
        headers: further ones.
        date: as the header has it.
        keeps: whether the connection stays open.
    """
    more = "".join([f"{name}: {value}\r\n" for name, value in headers])
    if not keeps:
        more += "connection: close\r\n"
    told = f"\r\ncontent-type: {content_type}\r\ncontent-length: {num_bytes}\r\n{more}\r\n"
    return b"%bdate: %b%b" % (_STATUS_LINES[status], date, told.encode("latin-1"))
