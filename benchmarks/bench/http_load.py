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
from pathlib import Path

import numpy as np

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


async def _client(
    port: int,
    request: bytes,
    begin: float,
    end: float,
    gap: float,
    out: list[float],
    failed: list[str],
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    due = begin
    while True:
        if gap > 0:
            await asyncio.sleep(due - time.perf_counter())
        began = due if gap > 0 else time.perf_counter()
        if began >= end:
            break
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        size = int(head.split(b"\r\ncontent-length:")[1].split(b"\r\n")[0])
        body = await reader.readexactly(size)
        if head.startswith(b"http/1.1 200"):
            out.append(1000 * (time.perf_counter() - began))
        else:
            failed.append(f"{head[:40]!r} {body[:300]!r}")
        due += gap
    writer.close()


async def _all(
    port: int, clients: int, seconds: float, rate: float, request: bytes
) -> dict[str, object]:
    out: list[float] = []
    failed: list[str] = []
    began = time.perf_counter()
    end, gap = began + seconds, clients / rate if rate else 0.0
    await asyncio.gather(
        *(
            _client(port, request, began + number * gap / clients, end, gap, out, failed)
            for number in range(clients)
        )
    )
    return {
        "milliseconds": [round(value, 4) for value in out],
        "failed": len(failed),
        "answered": failed[0] if failed else "",
        "seconds": time.perf_counter() - began,
    }


if __name__ == "__main__":
    port, clients, seconds, rate = sys.argv[1:]
    found = asyncio.run(
        _all(int(port), int(clients), float(seconds), float(rate), sys.stdin.buffer.read())
    )
    print(json.dumps(found, allow_nan=False))
