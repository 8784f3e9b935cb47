"""Clients in one process of their own, which ask again as soon as they are answered, or by a clock.

    python -m bench.http_load PORT CLIENTS SECONDS RATE < REQUEST

REQUEST is all bytes of one request, RATE how many a second are asked by all clients together, 0: as
many as are answered. Prints JSON: milliseconds of all, and how many failed.
"""

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

_HERE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Load:
    """What clients saw.

    Args:
        milliseconds: of each request, ascending; by a clock from when it was due.
        failed: requests that were not answered by 200.
        answered: how one of these was answered.
        seconds: that all took.
    """

    milliseconds: np.ndarray
    failed: int
    answered: str
    seconds: float

    @property
    def rate(self) -> float:
        return len(self.milliseconds) / self.seconds

    @property
    def p99(self) -> float:
        return float(np.quantile(self.milliseconds, 0.99)) if len(self.milliseconds) else np.inf


def run_load(port: int, request: bytes, *, clients: int, seconds: float, rate: float = 0.0) -> Load:
    """Ask in another process, so that no lock of this one is in the way."""
    arguments = [str(each) for each in (port, clients, seconds, rate)]
    done = subprocess.run(
        [sys.executable, "-m", "bench.http_load", *arguments],
        input=request,
        capture_output=True,
        check=True,
        cwd=_HERE,
    )
    found = json.loads(done.stdout)
    return Load(
        np.sort(found["milliseconds"]), found["failed"], found["answered"], found["seconds"]
    )


def http_request(path: str, body: bytes, json_bytes: int | None = None) -> bytes:
    """Return the bytes of a POST."""
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n"
    if json_bytes is not None:
        head += f"Inference-Header-Content-Length: {json_bytes}\r\n"
    return head.encode() + b"\r\n" + body


class _Client(asyncio.Protocol):
    """Asks again once it is answered, or when the next request is due.

    Args:
        request: all of its bytes.
        due: when the first one is, by `time.perf_counter`: the loop's clock goes by milliseconds.
        end: when no further one begins.
        gap: seconds from one that is due to the next; 0: it is due at once.
        out: gets milliseconds of what was answered by 200.
        failed: gets how others were answered.
    """

    def __init__(
        self,
        request: bytes,
        due: float,
        end: float,
        gap: float,
        out: list[float],
        failed: list[str],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._request, self._end, self._gap = request, end, gap
        self._due = self._began = due
        self._out, self._failed = out, failed
        self._got = b""
        self._is_asking = False
        self.over: asyncio.Future[None] = self._loop.create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._next()

    def data_received(self, data: bytes) -> None:
        got = self._got = self._got + data if self._got else data
        head, found, body = got.partition(b"\r\n\r\n")
        if not found:
            return
        size = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        if len(body) < size:
            return
        self._got, self._is_asking = b"", False
        if head.startswith(b"HTTP/1.1 200"):
            self._out.append(1000 * (time.perf_counter() - self._began))
        else:
            self._failed.append(f"{head[:40]!r} {body[:300]!r}")
        self._due += self._gap
        self._next()

    def connection_lost(self, error: Exception | None) -> None:
        if self._is_asking:
            self._failed.append(f"the connection ended: {error!r}")
        if not self.over.done():
            self.over.set_result(None)

    def _next(self) -> None:
        early = self._due - time.perf_counter()
        if self._gap > 0 and early > 0:
            self._loop.call_later(early, self._ask)
        else:
            self._ask()

    def _ask(self) -> None:
        now = time.perf_counter()
        self._began = min(self._due, now) if self._gap > 0 else now
        if self._began >= self._end:
            self._transport.close()
            return
        self._is_asking = True
        self._transport.write(self._request)


async def _all(
    port: int, clients: int, seconds: float, rate: float, request: bytes
) -> dict[str, object]:
    out: list[float] = []
    failed: list[str] = []
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    end, gap = began + seconds, clients / rate if rate else 0.0
    made = [
        loop.create_connection(
            partial(_Client, request, began + number * gap / clients, end, gap, out, failed),
            "127.0.0.1",
            port,
        )
        for number in range(clients)
    ]
    await asyncio.gather(*[client.over for _, client in await asyncio.gather(*made)])
    return {
        "milliseconds": [round(value, 4) for value in out],
        "failed": len(failed),
        "answered": failed[0] if failed else "",
        "seconds": time.perf_counter() - began,
    }


if __name__ == "__main__":
    port, clients, seconds, rate = sys.argv[1:]
    asking = _all(int(port), int(clients), float(seconds), float(rate), sys.stdin.buffer.read())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(asking)
    # The ring of a loop that has ended may cut the next write to a pipe short, and an unbuffered
    # standard output (`python -u`) would not write the rest.
    with open(sys.stdout.fileno(), "w", closefd=False) as out:
        json.dump(found, out, allow_nan=False)
